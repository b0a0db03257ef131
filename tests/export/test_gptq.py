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


def factors(x: np.ndarray) -> list[gptq.Part]:
    """Those of inputs whose tokens all count the same."""
    return gptq.parts(x, np.ones(len(x), np.float32))


@pytest.mark.parametrize(("outputs", "inputs", "widest"), [(96, 256, 9600), (64, 320, 9600), (48, 512, 256)])
def test_outputs_on_inputs_not_seen_are_closer_than_rounded_ones(outputs, inputs, widest, monkeypatch):
    monkeypatch.setattr(gptq, "WIDEST", widest)
    rng = np.random.default_rng(inputs)
    mixing = rng.standard_normal((inputs // 8, inputs), dtype=np.float32)
    mixing *= rng.lognormal(0, 1, inputs).astype(np.float32)
    matrix = rng.standard_normal((outputs, inputs), dtype=np.float32) / inputs**0.5
    found = gptq.quantize(matrix, factors(related_inputs(rng, 2048, inputs, mixing)))
    held_out = related_inputs(rng, 512, inputs, mixing)

    def error(blocks) -> float:
        return float(np.linalg.norm(held_out @ (blocks.dequantized() - matrix).T))

    assert error(found) < 0.5 * error(nearest_blocks(matrix, 4))


def test_unrelated_inputs_leave_nothing_to_make_up_for():
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((32, 200), dtype=np.float32)
    x = np.diag(rng.uniform(1, 5, 200).astype(np.float32))  # H is diagonal
    found = gptq.quantize(matrix, factors(x))
    nearest = np.clip(np.rint(matrix / spread(found.scales, 200)), -8, 7) + 8
    np.testing.assert_array_equal(found.codes, nearest)


def test_a_column_on_which_nothing_ever_comes_in_does_no_harm():
    rng = np.random.default_rng(1)
    matrix, x = (
        rng.standard_normal((16, 128), dtype=np.float32),
        rng.standard_normal((64, 128), dtype=np.float32),
    )
    x[:, 5] = 0
    blocks = gptq.quantize(matrix, factors(x))
    assert np.isfinite(blocks.scales).all()
    assert np.abs(blocks.dequantized() - matrix).max() < 1.5


def test_scales_are_positive_and_zero_points_in_the_middle():
    matrix = np.zeros((4, 256), np.float32)
    matrix[1] = np.linspace(-1, 1, 256)
    blocks = gptq.quantize(matrix, factors(np.eye(256, dtype=np.float32)))
    assert (blocks.scales > 0).all()
    assert (blocks.zero_points == 8).all()
    assert (blocks.codes[[0, 2, 3]] == 8).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [0, 1e-30, 1e-9, 1e-3, 1, 10])
def test_scales_fit_in_two_bytes(bits, size):
    """As float16 of 2^15 times their value, which is how a CPU keeps them."""
    rng = np.random.default_rng(4)
    matrix = rng.standard_normal((16, 384), dtype=np.float32) / 4 * np.float32(size)
    x = np.eye(384, dtype=np.float32)
    for blocks in (nearest_blocks(matrix, bits), gptq.quantize(matrix, factors(x), bits)):
        np.testing.assert_array_equal(np.float16(blocks.scales * 2**15) / np.float32(2**15), blocks.scales)
        assert np.abs(blocks.dequantized() - matrix).max() <= max(0.5 * np.abs(matrix).max(), 2e-9)


@pytest.mark.parametrize("inputs", [40, 256, 600])
def test_factors_solve(inputs):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((900, inputs), dtype=np.float32) * rng.lognormal(0, 1, inputs).astype(np.float32)
    weights = rng.uniform(0, 3, 900).astype(np.float32)
    (part,) = gptq.parts(x, weights)
    h = (x * weights[:, None]).T.astype(np.float64) @ x
    h[np.diag_indices_from(h)] += gptq.DAMPING * h.diagonal().mean()
    right = rng.standard_normal((inputs, 3), dtype=np.float32)
    expected = np.linalg.solve(h, right)
    np.testing.assert_allclose(part.solve(right), expected, atol=1e-4 * np.abs(expected).max())
    # H = (A + I) D (A + I)^T, in the part's order
    a = np.triu(part.a, 1).astype(np.float64) + np.eye(inputs)
    found = (a * part.d) @ a.T
    np.testing.assert_allclose(found, h[np.ix_(part.order, part.order)], atol=1e-5 * h.max())


def test_numbers_that_float32_cannot_factor():
    """Two inputs that are the same but for one in ten million, a million times larger than the others."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((300, 200), dtype=np.float32)
    x[:, :2] = 1e6 * x[:, :1]
    x[:, 1] *= np.float32(1 + 1e-7)
    (part,) = gptq.parts(x, np.ones(300, np.float32))
    assert np.isfinite(part.d).all() and (part.d > 0).all()
    blocks = gptq.quantize(rng.standard_normal((8, 200), dtype=np.float32), [part])
    assert np.isfinite(blocks.dequantized()).all()


@pytest.mark.parametrize(("outputs", "widest"), [(64, 9600), (700, 9600), (64, 256)])
def test_a_matrix_makes_up_for_what_its_inputs_lost(outputs, widest, monkeypatch):
    """Whichever way it is computed: by the outputs' difference, by the inputs', in parts."""
    monkeypatch.setattr(gptq, "WIDEST", widest)
    rng = np.random.default_rng(outputs)
    mixing = rng.standard_normal((60, 512), dtype=np.float32)
    exact = related_inputs(rng, 3000, 512, mixing)
    x = exact + 0.2 * np.roll(exact, 1, axis=1)  # an error that follows from the inputs
    matrix = rng.standard_normal((outputs, 512), dtype=np.float32)
    weights = np.where(np.arange(3000) < 1000, 8, 1).astype(np.float32)
    found = gptq.parts(x, weights)
    loss = gptq.Loss.of(x, exact, weights, outputs, found)
    assert (loss.crossed is not None) == (outputs > 512)
    wanted = exact @ matrix.T
    corrected = loss.corrected(matrix, wanted, found)
    before, after = (np.linalg.norm(x @ m.T - wanted, axis=1) for m in (matrix, corrected))
    assert after.mean() < 0.3 * before.mean()


def test_tokens_that_count_more_are_rounded_for():
    rng = np.random.default_rng(4)
    kinds = [rng.standard_normal((32, 256), dtype=np.float32) for _ in range(2)]
    x = np.concatenate([related_inputs(rng, 1000, 256, mixing) for mixing in kinds])
    matrix = rng.standard_normal((64, 256), dtype=np.float32)
    errors = []
    for weight in (1, 50):
        weights = np.where(np.arange(2000) < 1000, weight, 1).astype(np.float32)
        found = gptq.quantize(matrix, gptq.parts(x, weights)).dequantized()
        errors.append(np.linalg.norm(x[:1000] @ (found - matrix).T))
    assert errors[1] < 0.8 * errors[0]
