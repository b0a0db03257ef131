"""GPTQ by itself: it rounds to nearest where inputs are unrelated, and beats that where they are not."""

from __future__ import annotations

import numpy as np
import pytest

from qwen2vl_export.quantize import gptq
from qwen2vl_export.quantize.forms import nearest_blocks, spread


def related_inputs(rng: np.random.Generator, tokens: int, inputs: int, mixing: np.ndarray) -> np.ndarray:
    """Activations as a model has them: a few directions carry most, some channels are always large."""
    x = rng.standard_normal((tokens, len(mixing)), dtype=np.float32) @ mixing
    return x + 0.1 * rng.standard_normal((tokens, inputs), dtype=np.float32)


@pytest.mark.parametrize(("outputs", "inputs", "widest"), [(96, 256, 9600), (64, 320, 9600), (48, 512, 256)])
def test_outputs_on_inputs_not_seen_are_closer_than_rounded_ones(outputs, inputs, widest, monkeypatch):
    monkeypatch.setattr(gptq, "WIDEST", widest)
    rng = np.random.default_rng(inputs)
    mixing = rng.standard_normal((inputs // 8, inputs), dtype=np.float32)
    mixing *= rng.lognormal(0, 1, inputs).astype(np.float32)
    matrix = rng.standard_normal((outputs, inputs), dtype=np.float32) / inputs**0.5
    found = gptq.quantize(matrix, gptq.parts(related_inputs(rng, 2048, inputs, mixing)))
    held_out = related_inputs(rng, 512, inputs, mixing)

    def error(blocks) -> float:
        return float(np.linalg.norm(held_out @ (blocks.dequantized() - matrix).T))

    assert error(found) < 0.5 * error(nearest_blocks(matrix, 4))


def test_unrelated_inputs_leave_nothing_to_make_up_for():
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((32, 200), dtype=np.float32)
    x = np.diag(rng.uniform(1, 5, 200).astype(np.float32))  # H is diagonal
    found = gptq.quantize(matrix, gptq.parts(x))
    nearest = np.clip(np.rint(matrix / spread(found.scales, 200)), -8, 7) + 8
    np.testing.assert_array_equal(found.codes, nearest)


def test_a_column_on_which_nothing_ever_comes_in_does_no_harm():
    rng = np.random.default_rng(1)
    matrix, x = (
        rng.standard_normal((16, 128), dtype=np.float32),
        rng.standard_normal((64, 128), dtype=np.float32),
    )
    x[:, 5] = 0
    blocks = gptq.quantize(matrix, gptq.parts(x))
    assert np.isfinite(blocks.scales).all()
    assert np.abs(blocks.dequantized() - matrix).max() < 1.5


def test_scales_are_positive_and_zero_points_in_the_middle():
    matrix = np.zeros((4, 256), np.float32)
    matrix[1] = np.linspace(-1, 1, 256)
    blocks = gptq.quantize(matrix, gptq.parts(np.eye(256, dtype=np.float32)))
    assert (blocks.scales > 0).all()
    assert (blocks.zero_points == 8).all()
    assert (blocks.codes[[0, 2, 3]] == 8).all()
