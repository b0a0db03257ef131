"""The data generators: deterministic by seed, and their labels agree with their pictures and answers."""

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("skimage")
pytest.importorskip("torch")

from models.training import batches, digits, phrases, scenes, text
from models.training.sample import CELL


def draw(kind, seed, level=1.0):
    rng = np.random.default_rng(seed)
    return batches.draw_sample(rng, kind, batches.draw_layout(rng, kind, level), level)


@pytest.mark.parametrize("kind", batches.KINDS)
def test_same_seed_same_sample(kind):
    first, second, other = draw(kind, 7), draw(kind, 7), draw(kind, 8)
    assert first.turns == second.turns
    for a, b in zip(first.blocks, second.blocks, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
    assert any(
        a.frames.shape != b.frames.shape or (a.frames != b.frames).any()
        for a, b in zip(first.blocks, other.blocks, strict=False)
    )


@pytest.mark.parametrize("kind", batches.KINDS)
def test_sides_are_whole_cells_and_labels_fit(kind):
    for seed in range(8):
        sample = draw(kind, seed)
        assert sample.turns or kind == "drill"
        for block in sample.blocks:
            frames, height, width, channels = block.frames.shape
            assert (frames == 1 or frames % 2 == 0) and channels == 3
            assert 56 <= width <= 448 and 56 <= height <= 448
            assert width % CELL == 0 and height % CELL == 0
            assert block.cells.colour.shape == (*block.grid, 4)
            assert block.cells.motion.shape == block.grid


def test_boxes_enclose_the_object_they_name():
    rng = np.random.default_rng(0)
    checked = 0
    while checked < 10:
        sample = scenes.scene(rng, 168, 140, most=1)
        for turn in sample.turns:
            if turn.task != "grounding":
                continue
            x1, y1, x2, y2 = (edge / 1000 for edge in batches_box(turn.answer))
            _, row, column = np.nonzero(sample.blocks[0].cells.thing.any(-1))
            assert x1 * 6 - 1 <= column.min() and column.max() <= x2 * 6
            assert y1 * 5 - 1 <= row.min() and row.max() <= y2 * 5
            checked += 1


def batches_box(answer):
    (edges,) = batches.box_edges(answer)
    return [edge * 1000 - 0.5 for edge in edges]


def test_a_longer_curriculum_has_larger_pictures():
    rng = np.random.default_rng(0)

    def area(level):
        layouts = [batches.draw_layout(rng, "scene", level)[0] for _ in range(200)]
        return np.mean([width * height for _, width, height in layouts])

    assert area(1.0) > 2 * area(0.0)


def test_splits_do_not_meet():
    assert set(text.WORDS) < set(text.COMMON_WORDS)  # all that training prints
    assert not set(text.COMMON_WORDS) & set(text.HELD_OUT_WORDS)
    train, held_out = digits.handwriting(False)[0], digits.handwriting(True)[0]
    assert len(train) + len(held_out) == 1797
    seen = {image.tobytes() for image in train}
    assert sum(image.tobytes() in seen for image in held_out) == 0


def test_grounding_form_and_articles():
    assert phrases.grounded("red cup", (1, 2, 30, 400)) == (
        "<|object_ref_start|>red cup<|object_ref_end|><|box_start|>(1,2),(30,400)<|box_end|>"
    )
    assert phrases.enumerate_names(["red cup", "orange ball", "blue block"]) == (
        "a red cup, an orange ball and a blue block"
    )
    assert phrases.enumerate_names([]) == phrases.NOTHING
