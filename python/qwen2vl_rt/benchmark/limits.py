"""The machine's own limits: how fast it reads memory and multiplies, with as many threads.

A limit has to be one: the rate of multiplying is that of the processor's instruction with all operands in
registers (csrc/common/multiply_rate.h), which no product that uses it exceeds. A product that uses another
one, such as tiles, may: so the engine's product is measured as well, and the better of both counts.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from qwen2vl_rt import _core
from qwen2vl_rt.benchmark.timing import repeated
from qwen2vl_rt.benchmark.work import Work
from qwen2vl_rt.graph_format import IR_VERSION, OPSET
from qwen2vl_rt.machine import usable_cores

READ_BYTES = 256 << 20
PRODUCT = 2048  # rows, columns and depth of the measured product


@dataclass(frozen=True)
class Limits:
    """The best of a few measurements each."""

    read_bytes_per_second: float
    """Reading memory, all threads."""
    float32_rate: float
    """Multiplications and additions of float32 a second, all threads: in registers, or in the engine's
    product of 2048 x 2048 x 2048 if that is faster."""
    rate: float
    """The same at the bundle's precision: the float32 rate, or that of u8 x s8."""
    product: str
    """What `rate` multiplies: "float32" or "int8"."""

    def seconds(self, work: Work) -> float:
        """The least time for `work`: multiplying and reading side by side.

        Attention counts like the rest, though its sums of values need more precise products than int8 and its
        softmax is no product at all: a strict limit.
        """
        return max(work.operations / self.rate, work.read_bytes / self.read_bytes_per_second)

    def best(self, other: Limits) -> Limits:
        """The higher of each rate."""
        return Limits(
            max(self.read_bytes_per_second, other.read_bytes_per_second),
            max(self.float32_rate, other.float32_rate),
            max(self.rate, other.rate),
            self.product,
        )


def measure_limits(threads: int, quantized: bool) -> Limits:
    """Measure memory and products; threads 0 takes all cores."""
    threads = threads or usable_cores()
    float32 = _rate(threads, False)
    return Limits(
        _read_rate(threads),
        float32,
        _rate(threads, True) if quantized else float32,
        "int8" if quantized else "float32",
    )


def _rate(threads: int, integers: bool) -> float:
    """Operations a second: the better of the instruction, where it is known, and the engine's product."""
    return max(_core.multiply_rate(integers, threads), _product_rate(threads, integers))


def _read_rate(threads: int) -> float:
    """Bytes a second."""
    block = np.ones(READ_BYTES, np.uint8).view(np.uint64)
    slices = np.array_split(block, threads)
    with ThreadPoolExecutor(threads) as pool:
        return block.nbytes / min(repeated(lambda: list(pool.map(np.add.reduce, slices))))


def _product_rate(threads: int, integers: bool) -> float:
    """Operations a second of one product whose second operand is a weight, packed at load as a model's is."""
    rng = np.random.default_rng(0)
    shape = (PRODUCT, PRODUCT)
    if integers:
        x = rng.integers(1, 256, shape, np.uint8)
        weights = {"w": rng.integers(-127, 128, shape, np.int8), "zero": np.uint8(128)}
        node = helper.make_node("MatMulInteger", ["x", "w", "zero"], ["y"])
        kinds = TensorProto.UINT8, TensorProto.INT32
    else:
        x = rng.standard_normal(shape, np.float32)
        weights = {"w": rng.standard_normal(shape, np.float32)}
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        kinds = TensorProto.FLOAT, TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "limit",
        [helper.make_tensor_value_info("x", kinds[0], shape)],
        [helper.make_tensor_value_info("y", kinds[1], shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return 2 * PRODUCT**3 / min(repeated(lambda: session.run(None, {"x": x})))
