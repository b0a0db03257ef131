"""A decode step as a list of the project's own kernels, made of the decoder's lowered graph.

What a step computes is the graph's (lowering/cuda.py); here each of its nodes becomes a kernel over fixed
addresses on the device, and the whole step one recording. No engine is called between two tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from qwen2vl_rt import _core
from qwen2vl_rt.backends.device.steps import Tensor
from qwen2vl_rt.errors import BackendError
from qwen2vl_rt.geometry import DecoderGeometry
from qwen2vl_rt.graph_format import COS, INPUTS_EMBEDS, LOGITS, SIN, cached_keys
from qwen2vl_rt.lowering.graph import attribute, producers
from qwen2vl_rt.lowering.linear import ADDED, DEVICE_KINDS, MOST_LAYERS, NORM_WEIGHT, SHARED

RMS_NORMS = ("RMSNormalization", "SimplifiedLayerNormalization")  # lowering/simplified_layer_norm.py


class DeviceWeights:
    """A graph's matrices, biases and norms in a device's memory, each once.

    Args:
        device: whose memory.
        model: the lowered graph; taken is what its layers (`DEVICE_KINDS`) and norms read.
        weights: the external data by name.
    """

    def __init__(self, device: _core.Device, model: ModelProto, weights: Mapping[str, np.ndarray]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._blocks: dict[str, _core.DeviceBlock] = {}
        readers = [node for node in model.graph.node if node.op_type in (*DEVICE_KINDS, *RMS_NORMS)]
        read = {name for node in readers for name in node.input}
        for tensor in model.graph.initializer:
            if tensor.name not in read:
                continue
            array = weights[tensor.name] if tensor.name in weights else numpy_helper.to_array(tensor)
            self._blocks[tensor.name] = _upload(device, array)
            self.shapes[tensor.name] = tuple(tensor.dims)

    def address(self, name: str) -> int:
        """Of the tensor called `name`; 0 for ""."""
        return self._blocks[name].pointer if name else 0

    def tensors(self) -> list[Tensor]:
        """All, as a session's inputs."""
        return [Tensor(name, shape, self.address(name)) for name, shape in self.shapes.items()]


def _upload(device: _core.Device, array: np.ndarray) -> _core.DeviceBlock:
    """The array in a block of its own. A transpose's numbers change places there: it takes the host long."""
    transposed = array.ndim == 2 and array.flags.f_contiguous and not array.flags.c_contiguous
    data = np.ascontiguousarray(array.T if transposed else array)
    block = device.allocate(data.nbytes)
    block.upload(data.reshape(-1).view(np.uint8))
    if not transposed:
        return block
    target = device.allocate(data.nbytes)
    device.transpose(block.pointer, target.pointer, *data.shape, data.itemsize)
    device.synchronize()  # before the first block goes
    return target


class _Value(NamedTuple):
    """A tensor of the graph: [rows, width] at an address, and the norm that its reader applies to it."""

    address: int
    width: int
    norm: str = ""
    epsilon: float = 0.0


class ProgramWriter:
    """Writes a graph's decode step, of one token a row, into a `_core.StepProgram`.

    Args:
        program: empty.
        weights: on the program's device.
        buffers: addresses of the step's inputs and of `logits`, by name (`_core.DeviceDecoder.buffers`).
        geometry: the decoder's.
        dtype: "float32", "bfloat16" or "float16", of everything but the logits.
    """

    def __init__(
        self,
        program: _core.StepProgram,
        weights: DeviceWeights,
        buffers: Mapping[str, int],
        geometry: DecoderGeometry,
        dtype: str,
    ) -> None:
        self._program, self._weights, self._buffers = program, weights, buffers
        self._geometry, self._dtype = geometry, dtype
        self._values = {INPUTS_EMBEDS: _Value(buffers[INPUTS_EMBEDS], geometry.hidden_size)}
        self._layers = {cached_keys(layer).past: layer for layer in range(geometry.layers)}

    def write(self, model: ModelProto) -> None:
        """Add the step's operations.

        Raises:
            BackendError: a node that is none of what the lowering leaves.
        """
        logits = _source(model, LOGITS)
        for node in model.graph.node:
            if node.op_type in DEVICE_KINDS:
                self._linear(node, last=node.output[0] == logits)
            elif node.op_type == "GroupQueryAttention":
                self._attention(node)
            elif node.op_type in RMS_NORMS:
                value = self._values[node.input[0]]
                epsilon = next(entry.f for entry in node.attribute if entry.name == "epsilon")
                self._values[node.output[0]] = value._replace(norm=node.input[1], epsilon=epsilon)
            elif node.op_type in _SAME_NUMBERS:
                if node.input[0] in self._values:
                    self._values[node.output[0]] = self._values[node.input[0]]
            elif node.op_type not in _SHAPES:
                raise BackendError(f"{node.name} ({node.op_type}) has no place in a decode step's program")

    def _linear(self, node: NodeProto, last: bool) -> None:
        x, layers = self._values[node.input[0]], attribute(node, "layers")
        gated, rotated = attribute(node, "gated"), attribute(node, "rotated")
        plain = node.op_type.startswith("Plain")
        matrix_inputs = DEVICE_KINDS[node.op_type]
        inputs = list(node.input) + [""] * (SHARED + MOST_LAYERS * matrix_inputs - len(node.input))
        step: dict[str, Any] = {
            "dtype": self._dtype,
            "result_dtype": "float32" if last else self._dtype,
            "inputs": x.width,
            "x": x.address,
            "norm": self._weights.address(inputs[NORM_WEIGHT] or x.norm),
            "epsilon": next((entry.f for entry in node.attribute if entry.name == "epsilon"), x.epsilon),
            "added": self._values[inputs[ADDED]].address if inputs[ADDED] else 0,
            "gated": gated,
            "rotated": rotated,
            "head_dim": self._geometry.head_dim,
            "cos": self._buffers[COS],
            "sin": self._buffers[SIN],
        }
        step["form"] = "plain" if plain else f"blocks{attribute(node, 'bits')}"
        matrices = []
        for layer in range(layers):
            first = SHARED + layer * matrix_inputs
            names = inputs[first : first + matrix_inputs]
            shape = self._weights.shapes[names[0]]
            outputs = shape[0]
            if not plain:
                step["block"] = shape[2] * 8 // attribute(node, "bits")
            parts = ("weights", "bias") if plain else ("weights", "scales", "zero_points", "bias")
            matrix = {
                part: self._weights.address(name) for part, name in zip(parts, names, strict=True) if name
            }
            matrix["outputs"] = outputs
            if not (gated and layer):
                result = self._buffers[LOGITS] if last else self._program.allocate(outputs, self._dtype)
                self._values[node.output[layer]] = _Value(result, outputs)
                matrix["result"] = result
            matrices.append(matrix)
        self._program.linear(step, matrices)

    def _attention(self, node: NodeProto) -> None:
        q, k, v = (self._values[name] for name in node.input[:3])
        output = self._program.allocate(q.width, self._dtype)
        self._program.attention(
            self._layers[node.input[3]], self._geometry.heads, q.address, k.address, v.address, output
        )
        self._values[node.output[0]] = _Value(output, q.width)


# Of one token a row, all rows' tokens are asked for: these hand their numbers on.
_SAME_NUMBERS = ("GatherND", "Reshape", "Cast")
_SHAPES = ("Unsqueeze", "Shape", "Concat")


def _source(model: ModelProto, name: str) -> str:
    """The tensor that `name` is another shape or format of."""
    made_by = producers(model.graph)
    while made_by[name].op_type in _SAME_NUMBERS:
        name = made_by[name].input[0]
    return name
