"""From a lowered graph to a TensorRT network, with what the parser drops set again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto

from qwen2vl_rt.backends.tensorrt.build_memory import stored_bytes
from qwen2vl_rt.backends.tensorrt.description import EngineTensor
from qwen2vl_rt.backends.tensorrt.edition import Edition
from qwen2vl_rt.backends.tensorrt.logger import first_error
from qwen2vl_rt.errors import BackendError
from qwen2vl_rt.graph_format import PRESENT_LENGTH
from qwen2vl_rt.lowering.graph import Weights


class Network:
    """A parsed, strongly typed network and all that must live as long as it does."""

    weights_bytes: int
    """Of the graph that it was parsed from."""

    def __init__(self, edition: Edition, model: ModelProto, weights: Weights) -> None:
        """Parse `model`; the weights are read where they lie, mapped files included. A parser that takes only
        files leaves `weights` empty.

        Raises:
            BackendError: the parser refuses a node.
        """
        trt = edition.module
        edition.logger.take()
        self.edition = edition
        self.builder = trt.Builder(edition.logger)
        flags = trt.NetworkDefinitionCreationFlag
        # Full TensorRT also has loosely typed networks, RTX and the newest only this kind.
        self.network = self.builder.create_network(1 << int(flags.STRONGLY_TYPED))
        self._parser = trt.OnnxParser(self.network, edition.logger)
        self.weights_bytes = stored_bytes(model, weights)
        self._weights = weights  # TensorRT keeps pointers into them
        self._load(model)

    def _load(self, model: ModelProto) -> None:
        takes_memory = hasattr(self._parser, "load_initializer")  # since TensorRT 10.13
        parse = parse_from_memory if takes_memory else parse_from_files
        if not parse(self._parser, model, self._weights):
            raise BackendError(f"{self.edition} cannot take {model.graph.name}: {self._problem()}")

    def _problem(self) -> str:
        if self._parser.num_errors:
            error = self._parser.get_error(0)
            node = f"{error.node_operator()} {error.node_name()!r}: " if error.node_name() else ""
            return node + " ".join(error.desc().split())
        return first_error(self.edition.logger.take()) or "the parser gives no reason"

    def align_attention(self) -> None:
        """Let every attention of the decoder see its row's positions up to its own token, and no others.

        The parser ignores `nonpad_kv_seqlen` and aligns `is_causal` to the first position. Set here: keys
        and values count up to past_length + T, and the last query is aligned with the last of them.
        """
        trt = self.edition.module
        present = self._parser.get_layer_output_tensor(PRESENT_LENGTH, 0)
        lengths = self.network.add_cast(present, trt.int32).get_output(0)  # [B]
        for index in range(self.network.num_layers):
            layer = self.network.get_layer(index)
            if layer.type == trt.LayerType.ATTENTION_INPUT:
                layer.__class__ = trt.IAttentionInputLayer  # TensorRT's way to a layer's own interface
                layer.attention.causal_kind = trt.CausalMaskKind.LOWER_RIGHT
                layer.attention.key_value_lengths = lengths

    def tensors(self) -> tuple[tuple[EngineTensor, ...], tuple[EngineTensor, ...]]:
        """Inputs and outputs."""
        network = self.network
        inputs = (network.get_input(index) for index in range(network.num_inputs))
        outputs = (network.get_output(index) for index in range(network.num_outputs))
        return tuple(map(_described, inputs)), tuple(map(_described, outputs))


def parse_from_memory(parser: Any, model: ModelProto, weights: Weights) -> bool:
    """Parse with weights that are read where they lie; whether the parser took it."""
    # The path is only looked at for data that is not given here.
    if not parser.load_model_proto(model.SerializeToString(), f"{model.graph.name}.onnx"):
        return False
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            array = weights[tensor.name]
            if not parser.load_initializer(tensor.name, array.ctypes.data, array.nbytes):
                return False
    return parser.parse_model_proto()


def parse_from_files(parser: Any, model: ModelProto, weights: Weights) -> bool:
    """Parse by way of a temporary model and weights file, which TensorRT has read when this returns.

    `weights` is emptied as they are written: boards with such a parser have no memory for two copies.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    with tempfile.TemporaryDirectory() as folder:  # the page cache of its files goes with them
        _write_weights(copy, weights, Path(folder, "weights"))
        path = Path(folder, f"{model.graph.name}.onnx")
        path.write_bytes(copy.SerializeToString())
        return parser.parse_from_file(str(path))


def _write_weights(model: ModelProto, weights: Weights, path: Path) -> None:
    """Write the weights to one file, let go of them, and let `model` name it."""
    with open(path, "wb") as file:
        for tensor in model.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                del tensor.external_data[:]
                array = weights.pop(tensor.name)
                entries = (("location", path.name), ("offset", file.tell()), ("length", array.nbytes))
                for key, value in entries:
                    tensor.external_data.add(key=key, value=str(value))
                # bfloat16 and fp8 are no types of Python's buffers: bytes are.
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    weights.clear()


def _described(tensor: Any) -> EngineTensor:
    return EngineTensor(tensor.name, tensor.dtype.name.lower(), tuple(tensor.shape))
