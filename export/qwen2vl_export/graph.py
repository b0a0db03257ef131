"""A small builder of ONNX graphs: readable names for nodes and tensors, and weights that stay on disk.

A node and its (first) output share one name, `layers.3.attention.q`: lowering passes, profilers and people
find things by it. A weight is only declared here: its name, shape and format in the graph, and the
checkpoint's tensor that it comes from. `weights.py` writes the bytes later, one tensor at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from qwen2vl_export.precisions import BLOCK, FORMS
from qwen2vl_rt.graph_format import IR_VERSION, OPSET
from qwen2vl_rt.number_formats import format_named

FOUR_BITS = (TensorProto.UINT4,)
SCALE, ZERO_POINT = ".scale", ".zero_point"  # behind a quantized matrix' name: the names of what goes with it

Dim = int | str


@dataclass(frozen=True)
class Weight:
    """One stored tensor of a graph and where it comes from.

    `source` is the tensor's name in the published checkpoints and `source_shape` its shape there. It is
    read as a matrix [source_shape[0], rest]; `transposed` stores that matrix the other way round. `shape`
    and `element_type` are those in the graph. `file` names the file of the bundle that holds the bytes.

    A quantized matrix is several of these with one source: its codes, and what SCALE and ZERO_POINT name.
    """

    name: str
    shape: tuple[int, ...]
    source: str
    source_shape: tuple[int, ...]
    transposed: bool
    file: str
    element_type: int = TensorProto.FLOAT

    @property
    def rows(self) -> int:
        """Rows of the source read as a matrix."""
        return self.source_shape[0]

    @property
    def columns(self) -> int:
        """Columns of the source read as a matrix."""
        return math.prod(self.source_shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes in its file; two numbers of 4 bits share one."""
        count = math.prod(self.shape)
        if self.element_type in FOUR_BITS:
            return (count + 1) // 2
        return count * helper.tensor_dtype_to_np_dtype(self.element_type).itemsize


class Graph:
    """Collects nodes, constants, weights, inputs and outputs; `model()` makes the ONNX model of them.

    `precision` is the bundle's; `linear_form` and `table_form` say what its matrices look like (`Forms`).
    Floating-point values have the number format that goes with it unless said otherwise. In a
    quantized graph the matrices whose `source` passes `eight_bits` have 8-bit codes in blocks.
    """

    def __init__(
        self,
        name: str,
        precision: str,
        weights_file: str,
        linear_form: str,
        eight_bits: Callable[[str], bool] = lambda source: False,
    ):
        self.name = name
        self.weights_file = weights_file
        self.number_format = FORMS[precision].number
        self.element_type = format_named(self.number_format).element_type
        self.linear_form = linear_form
        self.eight_bits = eight_bits
        self.table_form = FORMS[precision].table
        self.weights: list[Weight] = []
        self._nodes: list[onnx.NodeProto] = []
        self._names: set[str] = set()
        self._constants: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: Sequence[Dim], element_type: int | None = None) -> str:
        """Declare a graph input; a string in `shape` is a size that varies from call to call."""
        self._inputs.append(helper.make_tensor_value_info(name, element_type or self.element_type, shape))
        return name

    def output(self, name: str, shape: Sequence[Dim], element_type: int | None = None) -> None:
        """Declare the existing tensor `name` a graph output."""
        self._outputs.append(helper.make_tensor_value_info(name, element_type or self.element_type, shape))

    def op(self, kind: str, name: str, *inputs: str, **attributes: object) -> str:
        """Add a node called `name` and return its output, of the same name. An empty input is left out."""
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        self._names.add(name)
        return name

    def has(self, name: str) -> bool:
        """Return whether there is a node of that name."""
        return name in self._names

    def split(self, name: str, x: str, outputs: Sequence[str]) -> list[str]:
        """Cut the last axis into equal parts."""
        self._nodes.append(
            helper.make_node("Split", [x], list(outputs), name=name, axis=-1, num_outputs=len(outputs))
        )
        return list(outputs)

    def integers(self, *values: int) -> str:
        """Return a constant int64 vector; equal ones are stored once."""
        name = "constant." + "_".join(str(value) for value in values)
        self._constants[name] = helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
        return name

    def number(self, name: str, value: float) -> str:
        """Return a constant scalar of the graph's number format."""
        return self.constant(name, self.element_type, value)

    def constant(self, name: str, element_type: int, value: float) -> str:
        """Return a constant scalar."""
        self._constants[name] = helper.make_tensor(name, element_type, [], [value])
        return name

    def weight(
        self,
        name: str,
        shape: Sequence[int],
        source: str,
        file: str | None = None,
        element_type: int | None = None,
        source_shape: Sequence[int] | None = None,
    ) -> str:
        """Declare a weight that keeps the checkpoint's order of rows; its shape is `shape` in both unless
        `source_shape` says otherwise.
        """
        return self._declare(name, shape, source, source_shape or shape, False, file, element_type)

    def linear_weight(
        self, name: str, source: str, inputs: Sequence[int], outputs: int, element_type: int | None = None
    ) -> str:
        """Declare a linear layer's matrix: [outputs, *inputs] in the checkpoint, [product of inputs,
        outputs] here.

        `MatMul` then takes it as it is, with one column an output.
        """
        shape = (math.prod(inputs), outputs)
        return self._declare(name, shape, source, (outputs, *inputs), True, None, element_type)

    def blocks(
        self, name: str, source: str, rows: int, columns: int, element_type: int, file: str | None = None
    ) -> str:
        """Declare a matrix [rows, columns] that shares a scale and a zero point among BLOCK numbers of a row;
        return it dequantized.
        """
        of_blocks = (rows, -(-columns // BLOCK))
        for part, shape, kind in (
            (name, (rows, columns), element_type),
            (f"{name}{SCALE}", of_blocks, TensorProto.FLOAT),
            (f"{name}{ZERO_POINT}", of_blocks, element_type),
        ):
            self.weight(part, shape, source, file, kind, (rows, columns))
        parts = (name, f"{name}{SCALE}", f"{name}{ZERO_POINT}")
        return self.op("DequantizeLinear", f"{name}.dequantized", *parts, axis=1, block_size=BLOCK)

    def _declare(
        self,
        name: str,
        shape: Sequence[int],
        source: str,
        source_shape: Sequence[int],
        transposed: bool,
        file: str | None,
        element_type: int | None,
    ) -> str:
        file, element_type = file or self.weights_file, element_type or self.element_type
        shape, source_shape = tuple(shape), tuple(source_shape)
        self.weights.append(Weight(name, shape, source, source_shape, transposed, file, element_type))
        return name

    def to_heads(self, name: str, x: str, heads: int, head_dim: int) -> str:
        """Split the last axis into heads: [B, T, heads * head_dim] -> [B, heads, T, head_dim]."""
        x = self.op("Reshape", f"{name}.split", x, self.integers(0, 0, heads, head_dim))
        return self.op("Transpose", f"{name}.heads", x, perm=[0, 2, 1, 3])

    def from_heads(self, name: str, x: str, width: int) -> str:
        """Undo `to_heads`: [B, heads, T, head_dim] -> [B, T, width]."""
        x = self.op("Transpose", f"{name}.tokens", x, perm=[0, 2, 1, 3])
        return self.op("Reshape", f"{name}.merged", x, self.integers(0, 0, width))

    def model(self, places: dict[str, tuple[int, int]]) -> onnx.ModelProto:
        """Return the ONNX model; `places` gives every weight's offset and length in its file."""
        initializers = [
            *self._constants.values(),
            *(self._initializer(w, *places[w.name]) for w in self.weights),
        ]
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, initializers)
        return helper.make_model(
            graph,
            producer_name="qwen2vl_export",
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )

    def _initializer(self, weight: Weight, offset: int, length: int) -> onnx.TensorProto:
        tensor = TensorProto(name=weight.name, data_type=weight.element_type, dims=weight.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", weight.file), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor


def float32_softmax(graph: Graph) -> dict[str, int]:
    """Return the attribute that keeps a 16-bit graph's softmax in float32, as the reference computes it.

    TensorRT's parser refuses the attribute (its kernels accumulate in float32 anyway): its lowering drops it.
    """
    return {} if graph.element_type == TensorProto.FLOAT else {"softmax_precision": TensorProto.FLOAT}
