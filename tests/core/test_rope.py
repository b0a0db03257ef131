"""Positions and cos/sin tables against transformers, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl import modeling_qwen2_vl as reference

from qwen2vl_rt import _core
from qwen2vl_rt.errors import InputError

IMAGE, VIDEO, VISION_START, VISION_END = 90, 91, 92, 93


class _PositionsOnly:
    """The part of Qwen2VLModel that get_rope_index reads."""

    config = Qwen2VLConfig(
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_config={"spatial_merge_size": 2},
    )


def reference_positions(ids, visuals):
    images = [grid for kind, grid in visuals if kind == IMAGE]
    videos = [grid for kind, grid in visuals if kind == VIDEO]
    positions, delta = reference.Qwen2VLModel.get_rope_index(
        _PositionsOnly,
        torch.tensor([ids]),
        torch.tensor(images) if images else None,
        torch.tensor(videos) if videos else None,
        torch.ones(1, len(ids), dtype=torch.long),
    )
    return positions[:, 0].numpy(), int(delta[0, 0])


def build_prompt(parts):
    """parts: an int (that many text tokens) or (pad id, (t, h, w) in patches)."""
    ids, visuals = [], []
    for part in parts:
        if isinstance(part, int):
            ids += list(range(10, 10 + part))
        else:
            pad, (t, h, w) = part
            ids += [VISION_START] + [pad] * (t * h * w // 4) + [VISION_END]
            visuals.append(part)
    return ids, visuals


def check_against_reference(parts):
    ids, visuals = build_prompt(parts)
    positions, delta = _core.mrope_positions(ids, [grid for _, grid in visuals], IMAGE, VIDEO, 2)
    expected, expected_delta = reference_positions(ids, visuals)
    assert positions.dtype == np.int64
    np.testing.assert_array_equal(positions, expected)
    assert delta == expected_delta


@pytest.mark.parametrize(
    "parts",
    [
        [7],
        [3, (IMAGE, (1, 4, 6)), 5],
        [(IMAGE, (1, 2, 2))],
        [2, (IMAGE, (1, 4, 6)), (IMAGE, (1, 8, 2)), (IMAGE, (1, 2, 40)), 3],
        [2, (VIDEO, (3, 4, 4)), 4],
        [2, (VIDEO, (9, 4, 4)), 4],  # more temporal patches than max(h, w) / 2: delta stays the paper's
        [1, (VIDEO, (12, 2, 2)), 1, (IMAGE, (1, 6, 6)), (VIDEO, (2, 4, 8)), 6],
    ],
)
def test_positions_equal_the_reference(parts):
    check_against_reference(parts)


_grid = st.tuples(st.integers(1, 4), st.integers(1, 4)).map(lambda hw: (2 * hw[0], 2 * hw[1]))
_visual = st.one_of(
    _grid.map(lambda hw: (IMAGE, (1, *hw))),
    st.tuples(st.integers(1, 12), _grid).map(lambda thw: (VIDEO, (thw[0], *thw[1]))),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.integers(0, 9), _visual), min_size=1, max_size=6).filter(any))
def test_positions_equal_the_reference_on_any_prompt(parts):
    check_against_reference(parts)


def test_a_long_video_starts_the_text_after_its_last_frame():
    """The paper's rule; advancing by max(h, w) / merge would make text and frames collide."""
    ids, visuals = build_prompt([(VIDEO, (9, 4, 4)), 3])
    positions, delta = _core.mrope_positions(ids, [grid for _, grid in visuals], IMAGE, VIDEO)
    assert positions[:, -4:].tolist() == [[10, 11, 12, 13]] * 3  # vision_end, then text
    assert delta == 14 - len(ids)


def test_empty_prompt():
    positions, delta = _core.mrope_positions([], [], IMAGE, VIDEO)
    assert positions.shape == (3, 0)
    assert delta == 0


@pytest.mark.parametrize(
    ("ids", "grids", "message"),
    [
        ([IMAGE], [], "belongs to no picture"),
        ([1, 2], [(1, 2, 2)], "pad tokens for 0"),
        ([IMAGE, 1], [(1, 2, 4)], "found 1 at position 0"),
        ([IMAGE, VIDEO], [(1, 2, 4)], "found 1 at position 0"),
        ([IMAGE], [(1, 4, 4)], "left from position 0"),
        ([IMAGE, IMAGE], [(1, 2, 2)], "belongs to no picture"),
        ([IMAGE], [(1, 3, 2)], "multiples of 2"),
        ([IMAGE], [(0, 2, 2)], "at least 1"),
        ([IMAGE], [(1, -2, -2)], "multiples of 2"),
        ([IMAGE], [(2**62, 2**62, 2**62)], "needs more pad tokens"),
        ([IMAGE], [(2**63 - 1, 2, 2)], "needs more pad tokens"),
        ([IMAGE], [(1, 2)], r"shape \[n, 3\]"),
        ([2**31], [], "out of range"),
        ([0.5], [], "integers"),
        (["a"], [], "integers"),
        ([[1, 2]], [], "1 dimensions"),
    ],
)
def test_positions_refuse_what_does_not_fit(ids, grids, message):
    with pytest.raises(InputError, match=message):
        _core.mrope_positions(ids, grids, IMAGE, VIDEO)


def reference_rope_table(positions, head_dim, theta, sections):
    """Columns [0, head_dim / 2) of the table that apply_multimodal_rotary_pos_emb multiplies with."""
    config = Qwen2VLConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        rope_theta=theta,
        rope_scaling={"type": "mrope", "mrope_section": list(sections)},
    ).get_text_config()
    cos, sin = reference.Qwen2VLRotaryEmbedding(config)(torch.zeros(1), torch.as_tensor(positions)[:, None])

    def choose(table):
        chosen = torch.cat([m[i % 3] for i, m in enumerate(table.split(list(sections) * 2, dim=-1))], dim=-1)[
            0
        ]
        left, right = chosen.chunk(2, dim=-1)
        assert torch.equal(left, right)  # so that half the table says it all
        return left.numpy()

    return choose(cos), choose(sin)


def reference_angles(positions, head_dim, theta, sections):
    """(float64 angles [T, head_dim / 2], which columns have the correctly rounded inverse frequency)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    inv_freq = (1.0 / theta**exponents).numpy()
    rounded = np.float32(1) / np.power(float(np.float32(theta)), exponents.double().numpy()).astype(
        np.float32
    )
    np.testing.assert_array_max_ulp(rounded, inv_freq, maxulp=1)
    axis = np.repeat([0, 1, 2], sections)
    return positions[axis].T * inv_freq.astype(np.float64), rounded == inv_freq


def assert_within_one_ulp(actual, expected):
    np.testing.assert_array_max_ulp(actual, expected, maxulp=1)


@pytest.mark.parametrize(
    ("head_dim", "theta", "sections"),
    [
        (128, 1e6, (16, 24, 24)),
        (64, 1e6, (8, 12, 12)),
        (32, 1e4, (4, 6, 6)),
        (16, 1e6, (2, 3, 3)),
        (16, 1e6, (8, 0, 0)),
        (24, 500.0, (1, 4, 7)),
        (256, 1e6, (64, 32, 32)),
    ],
)
@pytest.mark.parametrize("largest", [40, 32768])
def test_rope_table_equals_the_reference(head_dim, theta, sections, largest):
    positions = np.random.default_rng(head_dim).integers(0, largest, (3, 700))
    cos, sin = _core.rope_table(positions, head_dim, theta, sections)
    expected_cos, expected_sin = reference_rope_table(positions, head_dim, theta, sections)
    assert cos.shape == (700, head_dim // 2)
    assert cos.dtype == np.float32
    # torch's float32 power misses the correctly rounded inverse frequency in a few columns; which depends
    # on its vector width. There, and only there, the angle may be off by its last bit.
    angles, exact = reference_angles(positions, head_dim, theta, sections)
    assert exact.mean() > 0.95
    for actual, expected in ((cos, expected_cos), (sin, expected_sin)):
        assert_within_one_ulp(actual[:, exact], expected[:, exact])
        assert (np.abs(actual - expected) <= 2.0**-22 * (1 + np.abs(angles))).all()


def test_cos_and_sin_are_correctly_rounded_at_every_size_of_angle():
    """Up to 2^31, where the largest float32 angles are near multiples of pi / 2 by accident."""
    rng = np.random.default_rng(0)
    positions = np.concatenate([np.arange(3000), (2.0 ** rng.uniform(0, 31, 6000)).astype(np.int64)])
    positions = np.concatenate([positions, -positions])
    cos, sin = _core.rope_table(np.tile(positions, (3, 1)), 32, 1e6, (4, 6, 6))
    table = _core.RopeTable(32, 1e6, (4, 6, 6))
    angles = positions.astype(np.float32)[:, None] * np.array(table.inverse_frequencies, np.float32)
    for actual, function in ((cos, math.cos), (sin, math.sin)):
        expected = np.array([function(angle) for angle in angles.reshape(-1).tolist()]).astype(np.float32)
        np.testing.assert_array_equal(actual.reshape(-1), expected)


@pytest.mark.parametrize(
    ("head_dim", "sections", "message"),
    [
        (128, (16, 24, 23), "sum to 63"),
        (7, (1, 1, 1), "even"),
        (0, (0, 0, 0), "even"),
        (8, (5, -1, 0), "section 1"),
    ],
)
def test_rope_table_refuses_wrong_sections(head_dim, sections, message):
    with pytest.raises(InputError, match=message):
        _core.rope_table(np.zeros((3, 1), np.int64), head_dim, 1e6, sections)


@pytest.mark.parametrize(("grid_h", "grid_w"), [(2, 2), (4, 6), (32, 2), (58, 90)])
@pytest.mark.parametrize("head_dim", [16, 80])
def test_vision_rope_table_equals_the_reference(grid_h, grid_w, head_dim):
    class Tower:
        spatial_merge_size = 2
        rotary_pos_emb = reference.VisionRotaryEmbedding(head_dim // 2)

    angles = reference.Qwen2VisionTransformerPretrainedModel.rot_pos_emb(
        Tower, torch.tensor([[1, grid_h, grid_w]])
    )
    cos, sin = _core.vision_rope_table(grid_h, grid_w, head_dim, 2, 10000.0)
    assert cos.shape == (grid_h * grid_w, head_dim // 2)
    assert_within_one_ulp(cos, angles.cos().numpy())
    assert_within_one_ulp(sin, angles.sin().numpy())


@pytest.mark.parametrize(
    "grid", [(3, 2, 80, 2), (0, 2, 80, 2), (2, 2, 6, 2), (2, 2, 80, 0), (2**62, 2**62, 80, 2)]
)
def test_vision_rope_table_refuses_wrong_grids(grid):
    with pytest.raises(InputError):
        _core.vision_rope_table(*grid)


_size = st.one_of(st.integers(-3, 9), st.sampled_from([2**31, 2**62, 2**63 - 1, -(2**63)]))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([1, IMAGE, VIDEO]), max_size=20),
    st.lists(st.tuples(_size, _size, _size), max_size=4),
    st.integers(-1, 3),
)
def test_any_tokens_and_grids_are_placed_or_refused(ids, grids, merge_size):
    try:
        positions, delta = _core.mrope_positions(ids, grids, IMAGE, VIDEO, merge_size)
    except InputError:
        return
    assert (
        sum(t * h * w for t, h, w in grids)
        == ids.count(IMAGE) * merge_size**2 + ids.count(VIDEO) * merge_size**2
    )
    assert positions.shape == (3, len(ids))
    assert delta == (positions.max(initial=-1) + 1) - len(ids)


@pytest.mark.parametrize(
    ("raised", "seen"),
    [(TypeError, InputError), (ValueError, InputError), (KeyboardInterrupt, KeyboardInterrupt),
     (MemoryError, MemoryError)],
)  # fmt: skip
def test_an_interrupt_is_not_taken_for_a_bad_array(raised, seen):
    class Interrupted:
        def __array__(self, *_arguments, **_keywords):
            raise raised

    for call in (
        lambda bad: _core.mrope_positions(bad, None, 1, 2),
        lambda bad: _core.mrope_positions([3], bad, 1, 2),
        lambda bad: _core.rope_table(bad, 8, 10000.0, (1, 1, 2)),
        lambda bad: _core.Sampler(_core.SamplingOptions(), 4).sample(bad),
    ):
        with pytest.raises(seen):
            call(Interrupted())
