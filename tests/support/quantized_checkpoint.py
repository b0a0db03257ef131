"""Checkpoints in the layouts of AutoGPTQ and AutoAWQ, packed from known codes by the packers' own sums.

AutoGPTQ, QuantLinear.pack:        qweight[i / P, n] |= code[i, n] << (bits * (i % P))
                                   qzeros[g, n / P] |= (zero[g, n] - 1) << (bits * (n % P))
AutoAWQ, WQLinear_GEMM.from_linear: qweight[k, c] |= code[k, 8 c + order[i]] << (4 * i), qzeros likewise
both:                              weight = scale * (code - zero), of the input's group
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import Qwen2VLForConditionalGeneration

from tests.support.random_model import save_checkpoint

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Layout:
    """A way to store a quantized checkpoint, as its config.json states it."""

    method: str = "gptq"
    bits: int = 4
    group: int = 128
    checkpoint_format: str = "gptq"
    symmetric: bool = True
    act_order: bool = False  # desc_act

    @property
    def quantization_config(self) -> dict[str, Any]:
        """The entry in config.json, with what AutoGPTQ and AutoAWQ write into it."""
        common = {"quant_method": self.method, "bits": self.bits, "group_size": self.group}
        if self.method == "awq":
            return common | {"modules_to_not_convert": ["visual"], "version": "gemm", "zero_point": True}
        return common | {
            "checkpoint_format": self.checkpoint_format,
            "damp_percent": 0.1,
            "desc_act": self.act_order,
            "static_groups": False,
            "sym": self.symmetric,
            "true_sequential": True,
        }


# What is published of Qwen2-VL, then what others make of it with the same tools.
GPTQ_INT4, GPTQ_INT8 = Layout(), Layout(bits=8)
AWQ = Layout("awq", symmetric=False)
GPTQ_ASYMMETRIC = Layout(symmetric=False, group=32)
GPTQ_V2 = Layout(checkpoint_format="gptq_v2", symmetric=False, group=64)
GPTQ_V2_INT8 = Layout(bits=8, checkpoint_format="gptq_v2", symmetric=False, group=32)
GPTQ_ACT_ORDER = Layout(act_order=True)


@dataclass(frozen=True)
class Layer:
    """The known content of a quantized layer."""

    codes: np.ndarray  # int64 [N, K]
    scales: np.ndarray  # float16 [N, G]
    zeros: np.ndarray  # int64 [N, G]
    groups: np.ndarray  # [K], the group of each input

    @property
    def weight(self) -> np.ndarray:
        """The matrix that the layer stands for, float32 [N, K]."""
        scales, zeros = self.scales[:, self.groups], self.zeros[:, self.groups]
        return (scales.astype(np.float64) * (self.codes - zeros)).astype(np.float32)


def groups_of(inputs: int, layout: Layout) -> np.ndarray:
    """The group of each input, [K]; with act-order the inputs are dealt out in any order."""
    groups = np.arange(inputs) // layout.group
    return np.random.default_rng(inputs).permutation(groups) if layout.act_order else groups


def quantize(weight: np.ndarray, layout: Layout) -> Layer:
    """Round a matrix [N, K] to the nearest codes."""
    groups = groups_of(weight.shape[1], layout)
    members = [weight[:, groups == group].astype(np.float64) for group in range(groups.max() + 1)]
    steps = 2**layout.bits - 1
    least = np.stack([np.minimum(group.min(-1), 0) for group in members], axis=1)
    most = np.stack([np.maximum(group.max(-1), 0) for group in members], axis=1)
    if layout.symmetric:
        most = np.maximum(most, -least)
        least = -most
    scales = ((most - least) / steps).astype(np.float16)
    if layout.symmetric:
        zeros = np.full(scales.shape, 2 ** (layout.bits - 1))
    else:  # AutoGPTQ's first format cannot hold a zero point of 0
        zeros = np.clip(np.round(-least / scales), layout.checkpoint_format == "gptq", steps).astype(np.int64)
    codes = np.round(weight / scales[:, groups].astype(np.float64)) + zeros[:, groups]
    return Layer(np.clip(codes, 0, steps).astype(np.int64), scales, zeros, groups)


def pack(layer: Layer, layout: Layout) -> dict[str, np.ndarray]:
    """Return the tensors of a layer by their names behind the layer's."""
    per_word = 32 // layout.bits
    parts = {"scales": np.ascontiguousarray(layer.scales.T)}
    if layout.method == "awq":
        order = AWQ_ORDER
        parts["qweight"] = _words([layer.codes.T[:, order[i] :: 8] for i in range(8)], 4)
        parts["qzeros"] = _words([layer.zeros.T[:, order[i] :: 8] for i in range(8)], 4)
        return parts
    stored = layer.zeros.T - (layout.checkpoint_format == "gptq")
    parts["qweight"] = _words([layer.codes.T[i::per_word] for i in range(per_word)], layout.bits)
    parts["qzeros"] = _words([stored[:, i::per_word] for i in range(per_word)], layout.bits)
    parts["g_idx"] = layer.groups.astype(np.int32)
    return parts


def _words(values: list[np.ndarray], bits: int) -> np.ndarray:
    """Add up values, the first in the lowest bits: int32."""
    total = sum(value.astype(np.int64) << (bits * i) for i, value in enumerate(values))
    return np.ascontiguousarray(np.where(total >= 2**31, total - 2**32, total).astype(np.int32))


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """A written checkpoint, and what it holds."""

    path: Path
    layout: Layout
    layers: dict[str, Layer]  # by the published name of the weight
    tensors: dict[str, np.ndarray]  # as stored

    def save(self) -> None:
        """Write `tensors` and `layout` again, for instance after a test changed them."""
        save_file(self.tensors, self.path / "model.safetensors")
        config = json.loads((self.path / "config.json").read_text())
        config["quantization_config"] = self.layout.quantization_config
        (self.path / "config.json").write_text(json.dumps(config))

    def copy(self, path: Path) -> QuantizedCheckpoint:
        """Copy the folder to `path`; the copy's `tensors` may be changed, then saved."""
        return replace(self, path=Path(shutil.copytree(self.path, path)), tensors=dict(self.tensors))


def save_quantized(
    model: Qwen2VLForConditionalGeneration, folder: Path, layout: Layout, **options: Any
) -> QuantizedCheckpoint:
    """Write `model` with its decoder's matrices quantized, the rest in float16, as the published ones are.

    The model itself gets the weights that the checkpoint stands for. `options` go to `save_checkpoint`.
    """
    save_checkpoint(model, folder, **options)
    layers: dict[str, Layer] = {}
    tensors: dict[str, np.ndarray] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # a tied table comes once
            published = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
            layer, _, kind = published.rpartition(".")
            if kind == "weight" and layer.rpartition(".")[2] in LINEAR:
                layers[published] = quantize(parameter.numpy(), layout)
                parameter.copy_(torch.from_numpy(layers[published].weight))
                parts = pack(layers[published], layout)
                tensors |= {f"{layer}.{part}": values for part, values in parts.items()}
            else:
                parameter.copy_(parameter.half().float())
                tensors[published] = parameter.half().numpy()
    checkpoint = QuantizedCheckpoint(folder, layout, layers, tensors)
    checkpoint.save()
    return checkpoint
