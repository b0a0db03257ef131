"""Boxes: from an answer's text to pixels, and onto the picture."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qwen2vl_rt.boxes import Box, draw_boxes, parse_boxes
from qwen2vl_rt.errors import InputError
from tests.support.preparation import noise

SIZE = (2000, 500)  # width, height


def ref(label):
    return f"<|object_ref_start|>{label}<|object_ref_end|>"


def box(*corners):
    return "<|box_start|>({},{}),({},{})<|box_end|>".format(*corners)


def test_pixels_are_thousandths_of_the_side():
    (found,) = parse_boxes(ref("the eyes on a giraffe") + box(176, 106, 232, 160), [SIZE])
    assert found.label == "the eyes on a giraffe"
    assert found.normalized == (176, 106, 232, 160)
    assert (found.x1, found.y1, found.x2, found.y2) == pytest.approx((352, 53, 464, 80))
    assert found.picture == 0


def test_several_boxes_after_one_label():
    text = "I see " + ref("cups") + box(1, 2, 3, 4) + ", " + box(5, 6, 7, 8) + " and " + ref(" a dog ")
    found = parse_boxes(text + box(9, 9, 10, 10), [SIZE])
    assert [(b.label, b.normalized[0]) for b in found] == [("cups", 1), ("cups", 5), ("a dog", 9)]


def test_boxes_without_a_label():
    text = box(1, 2, 3, 4) + ref("cup") + box(5, 6, 7, 8) + " something else at " + box(9, 9, 10, 10)
    assert [b.label for b in parse_boxes(text, [SIZE])] == [None, "cup", None]


def test_odd_coordinates():
    text = box(1200, 5, 3, 1000) + box("  7 ", " 8", 9, "10 ")
    assert [b.normalized for b in parse_boxes(text, [SIZE])] == [(3, 5, 999, 999), (7, 8, 9, 10)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<|box_start|>",
        "<|box_start|>(1,2),(3,4)",
        "<|box_start|>(1,2)<|box_end|>",
        "<|box_start|>(1,2),(3)<|box_end|>",
        "<|box_start|>(-1,2),(3,4)<|box_end|>",
        "<|box_start|>(1.5,2),(3,4)<|box_end|>",
        "<|box_start|>(a,b),(c,d)<|box_end|>",
        f"<|box_start|>({'9' * 5000},2),(3,4)<|box_end|>",
        "(1,2),(3,4)",
        ref("no box"),
    ],
)
def test_broken_boxes_are_left_out(text):
    assert parse_boxes(text, [SIZE]) == []
    assert [b.normalized for b in parse_boxes(text + box(1, 2, 3, 4), [SIZE])][-1:] == [(1, 2, 3, 4)]


def test_a_broken_label_is_none():
    assert [b.label for b in parse_boxes("<|object_ref_start|>cup" + box(1, 2, 3, 4), [SIZE])] == [None]
    assert [b.label for b in parse_boxes(ref("") + box(1, 2, 3, 4), [SIZE])] == [None]


class TestWhichPicture:
    sizes = ((100, 100), (200, 200), (400, 400))

    def test_the_last_one(self):
        (found,) = parse_boxes(box(500, 500, 900, 900), self.sizes)
        assert (found.picture, found.x1) == (2, 200)

    def test_the_one_named_before(self):
        text = f"In Picture 1 {box(1, 1, 2, 2)} and in Picture 2: {box(1, 1, 2, 2)}{box(1, 1, 2, 2)}"
        assert [b.picture for b in parse_boxes(text, self.sizes)] == [0, 1, 1]

    def test_unknown_numbers_change_nothing(self):
        text = f"Picture 2, Picture 9, Picture 0, MyPicture 1 {box(1, 1, 2, 2)}"
        assert [b.picture for b in parse_boxes(text, self.sizes)] == [1]

    def test_videos_are_counted_by_themselves(self):
        kinds = ["video", "image", "video"]
        text = f"Picture 1 {box(1, 1, 2, 2)} Video 1 {box(1, 1, 2, 2)} Video 2 {box(1, 1, 2, 2)}"
        assert [b.picture for b in parse_boxes(text, self.sizes, kinds)] == [1, 0, 2]

    def test_without_pictures(self):
        assert parse_boxes(box(1, 2, 3, 4), []) == []


tags = ["<|box_start|>", "<|box_end|>", "<|object_ref_start|>", "<|object_ref_end|>"]
pieces = st.sampled_from([*tags, "(", ")", ",", "1", "999", "Picture 2", " "])


@settings(max_examples=500, deadline=None)
@given(st.lists(pieces | st.text(max_size=3), max_size=40).map("".join))
def test_any_text_parses(text):
    for found in parse_boxes(text, [(30, 40), (50, 60)]):
        width, height = [(30, 40), (50, 60)][found.picture]
        assert 0 <= found.x1 <= found.x2 <= width
        assert 0 <= found.y1 <= found.y2 <= height


class TestDrawing:
    boxes = (Box("a cup", 30, 40, 90, 80, (0, 0, 0, 0), 0), Box(None, 100, 5, 150, 50, (0, 0, 0, 0), 0))

    def test_edges_and_labels(self):
        original = Image.new("RGB", (200, 100), "black")
        drawn = np.asarray(draw_boxes(original, self.boxes))
        assert drawn.shape == (100, 200, 3)
        assert np.asarray(original).max() == 0
        for x, y in ((30, 60), (90, 60), (60, 80), (100, 25), (125, 50)):
            assert drawn[y, x].max() > 0
        # A plate with letters lies above the labelled box, and nothing inside the boxes.
        assert (drawn[28:38, 32:60] == 255).all(axis=-1).any()
        assert drawn[45:75, 40:80].max() == 0
        assert drawn[20:40, 110:140].max() == 0

    def test_labels_at_the_border_and_odd_ones(self):
        picture = Image.new("L", (50, 40))
        labels = ["x" * 500, "two\nlines", "\u732b", "\U0001f600", " "]
        boxes = [Box(label, 45, 0, 50, 40, (0, 0, 0, 0), 0) for label in labels]
        assert draw_boxes(picture, boxes).size == (50, 40)

    def test_any_source_and_only_boxes(self):
        assert draw_boxes(noise(1, 30, 40), []).size == (40, 30)
        with pytest.raises(InputError, match="Box objects, not tuple"):
            draw_boxes(noise(1, 30, 40), [(1, 2, 3, 4)])
