"""Qwen2-VL's layers in NumPy, for calibration: what a layer's matrices get as input, and what it gives on.

All functions take the tokens (or patches) of every sequence (or picture) side by side, float32 [T, width]. A
linear layer is the caller's: `linear(group, x)` returns the outputs of the group's layers. So a quantizer
sees each input on its way, replaces the matrices, and everything behind follows from what it put there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qwen2vl_export.quantize.parameters import Parameters
from qwen2vl_export.vision import QUICK_GELU
from qwen2vl_rt.geometry import DecoderGeometry, VisionGeometry

_ROWS = 512  # queries of one head that are scored at a time


@dataclass(frozen=True)
class Group:
    """Linear layers that share an input, and what their input may be scaled by.

    `before` is what a scale of the input's channels folds into: a norm, or the linear layer whose (last)
    outputs the channels are; None where nothing exact is there. Each channel of it appears `repeats` times:
    the input is [.., repeats, head_dim], `head_dim` None for the whole width.
    """

    layers: tuple[str, ...]
    before: str | None = None
    repeats: int = 1
    head_dim: int | None = None


Linear = Callable[[Group, np.ndarray], list[np.ndarray]]


@dataclass(frozen=True)
class Sequences:
    """Where each sequence lies, as bounds [n + 1], and its rotary tables, float32 [T, head_dim / 2]."""

    bounds: np.ndarray
    cos: np.ndarray
    sin: np.ndarray

    def repeated(self, times: int) -> Sequences:
        """Put these sequences `times` times, one behind the other."""
        steps = np.tile(np.diff(self.bounds), times)
        return Sequences(bounds(steps), np.tile(self.cos, (times, 1)), np.tile(self.sin, (times, 1)))

    def spans(self) -> list[slice]:
        """Return each sequence's slice of the tokens."""
        return [slice(start, stop) for start, stop in zip(self.bounds[:-1], self.bounds[1:], strict=True)]


def decoder_layer(
    x: np.ndarray,
    layer: int,
    geometry: DecoderGeometry,
    parameters: Parameters,
    at: Sequences,
    linear: Linear,
) -> np.ndarray:
    """Run decoder layer `layer`: [T, H] -> [T, H]."""
    g, name = geometry, f"layers.{layer}"
    a = f"{name}.attention"
    normed = rms_norm(x, parameters.vector(f"{a}.norm.weight"), g.rms_norm_eps)
    q, k, v = linear(Group((f"{a}.q", f"{a}.k", f"{a}.v"), f"{a}.norm"), normed)
    y = attention(q, k, v, g.heads, g.kv_heads, at, causal=True)
    (y,) = linear(Group((f"{a}.o",), f"{a}.v", g.heads // g.kv_heads, g.head_dim), y)
    x = x + y
    m = f"{name}.mlp"
    normed = rms_norm(x, parameters.vector(f"{m}.norm.weight"), g.rms_norm_eps)
    gate, up = linear(Group((f"{m}.gate", f"{m}.up"), f"{m}.norm"), normed)
    up *= gate
    multiply_by_sigmoid(up, gate)
    del gate
    (y,) = linear(Group((f"{m}.down",), f"{m}.up"), up)
    return x + y


def vision_block(
    x: np.ndarray, block: int, geometry: VisionGeometry, parameters: Parameters, at: Sequences, linear: Linear
) -> np.ndarray:
    """Run block `block` of the vision tower: [P, E] -> [P, E]."""
    g, name = geometry, f"blocks.{block}"
    a = f"{name}.attention"
    normed = layer_norm(x, parameters, f"{a}.norm", g.layer_norm_eps)
    (qkv,) = linear(Group((f"{a}.qkv",), f"{a}.norm"), normed)
    y = attention(*np.split(qkv, 3, axis=1), g.heads, g.heads, at, causal=False)
    (y,) = linear(Group((f"{a}.proj",), f"{a}.qkv"), y)
    x = x + y
    m = f"{name}.mlp"
    normed = layer_norm(x, parameters, f"{m}.norm", g.layer_norm_eps)
    (inner,) = linear(Group((f"{m}.fc1",), f"{m}.norm"), normed)
    multiply_by_sigmoid(inner, np.float32(QUICK_GELU) * inner)
    (y,) = linear(Group((f"{m}.fc2",)), inner)
    return x + y


def vision_merger(
    x: np.ndarray, geometry: VisionGeometry, parameters: Parameters, linear: Linear
) -> np.ndarray:
    """Merge neighbouring patches into visual embeddings: [P, E] -> [P / m^2, H]."""
    joined = geometry.merge_size**2
    x = layer_norm(x, parameters, "merger.norm", geometry.layer_norm_eps)
    x = x.reshape(len(x) // joined, -1)
    (x,) = linear(Group(("merger.fc1",), "merger.norm", joined), x)
    (x,) = linear(Group(("visual_embeddings",)), gelu(x))
    return x


def rms_norm(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    """x / rms(x) * weight, over the last axis."""
    square = np.einsum("tk,tk->t", x, x)[:, None] / np.float32(x.shape[1])
    return x / np.sqrt(square + np.float32(epsilon)) * weight


def layer_norm(x: np.ndarray, parameters: Parameters, name: str, epsilon: float) -> np.ndarray:
    """(x - mean) / deviation * weight + bias, over the last axis."""
    x = x - x.mean(axis=1, keepdims=True)
    square = np.einsum("tk,tk->t", x, x)[:, None] / np.float32(x.shape[1])
    x /= np.sqrt(square + np.float32(epsilon))
    return x * parameters.vector(f"{name}.weight") + parameters.vector(f"{name}.bias")


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, kv_heads: int, at: Sequences, causal: bool
) -> np.ndarray:
    """Rotate q and k, attend within each sequence: q [T, heads * D], k, v [T, kv_heads * D] -> as q."""
    y = np.empty_like(q)
    for span in at.spans():
        parts = (_heads(q[span], heads), _heads(k[span], kv_heads), _heads(v[span], kv_heads))
        cos, sin = at.cos[span], at.sin[span]
        queries, keys, values = rotate(parts[0], cos, sin), rotate(parts[1], cos, sin), parts[2]
        for head in range(heads):
            of_kv = head * kv_heads // heads
            found = _attend(queries[head], keys[of_kv], values[of_kv], causal)
            width = found.shape[1]
            y[span, head * width : (head + 1) * width] = found
    return y


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> np.ndarray:
    """Attention of one head, each [T, D]; scores in pieces of _ROWS queries."""
    y, scale = np.empty_like(q), np.float32(q.shape[1] ** -0.5)
    for start in range(0, len(q), _ROWS):
        rows = slice(start, min(start + _ROWS, len(q)))
        scores = (q[rows] * scale) @ k.T
        if causal:
            scores[np.arange(len(k)) > np.arange(rows.start, rows.stop)[:, None]] = -np.inf
        scores -= scores.max(axis=1, keepdims=True)
        np.exp(scores, out=scores)
        y[rows] = (scores @ v) / scores.sum(axis=1, keepdims=True)
    return y


def _heads(x: np.ndarray, heads: int) -> np.ndarray:
    """[T, heads * D] -> [heads, T, D]."""
    return x.reshape(len(x), heads, -1).swapaxes(0, 1)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotary embedding over halves: x [heads, T, D], cos and sin [T, D / 2]."""
    first, second = np.split(x, 2, axis=2)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=2)


def multiply_by_sigmoid(x: np.ndarray, y: np.ndarray) -> None:
    """x *= 1 / (1 + exp(-y)), in place, at the cost of y: these are the largest arrays of all.

    exp may overflow to infinity, which is right.
    """
    np.negative(y, out=y)
    with np.errstate(over="ignore"):
        np.exp(y, out=y)
    y += 1
    x /= y


def gelu(x: np.ndarray) -> np.ndarray:
    """x * normal distribution(x), by Abramowitz and Stegun 7.1.26: off by less than 2e-7 of x."""
    z = np.abs(x) * np.float32(0.5**0.5)
    t = 1 / (1 + np.float32(0.3275911) * z)
    polynomial = np.zeros_like(t)
    for c in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        polynomial = (polynomial + np.float32(c)) * t
    erf = np.copysign(1 - polynomial * np.exp(-z * z), x)
    return np.float32(0.5) * x * (1 + erf)


def float_linear(parameters: Parameters) -> Linear:
    """Return the `linear` of the checkpoint itself."""

    def linear(group: Group, x: np.ndarray) -> list[np.ndarray]:
        return [parameters.product(layer, x) for layer in group.layers]

    return linear


def bounds(lengths: Sequence[int]) -> np.ndarray:
    """Return where sequences of these lengths begin and end, side by side: [n + 1]."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
