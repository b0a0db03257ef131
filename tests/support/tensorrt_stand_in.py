"""Engines as TensorRT's, computed by ONNX Runtime on the CPU as a device, and a build that only describes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto

from qwen2vl_rt import _core
from qwen2vl_rt.backends.device.steps import Tensor
from qwen2vl_rt.backends.tensorrt import build
from qwen2vl_rt.backends.tensorrt.description import EngineTensor, Figures
from qwen2vl_rt.backends.tensorrt.edition import Edition
from qwen2vl_rt.backends.tensorrt.engines import EngineFile
from qwen2vl_rt.backends.tensorrt.executors import Engines
from qwen2vl_rt.backends.tensorrt.find import EngineSet, find_engines
from qwen2vl_rt.backends.tensorrt.runtime import ALIGNMENT
from qwen2vl_rt.backends.tensorrt.target import Target
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.errors import BackendError
from qwen2vl_rt.lowering.tensorrt import lower_decoder, lower_vision
from qwen2vl_rt.session_limits import AskedLimits, SessionLimits
from qwen2vl_rt.weights import load_graph
from tests.support.graph_feeds import with_weights

TYPES = {TensorProto.FLOAT: "float", TensorProto.FLOAT16: "half", TensorProto.INT64: "int64"}
NUMPY = {"float": np.float32, "half": np.float16, "int64": np.int64}
HERE = (8, 9)

# Called with a step's profile, the shape of its embeddings [B, T, hidden] and its rows' past lengths; gives
# others that the logits are computed with, or None.
Misread = Callable[[str, tuple[int, ...], np.ndarray], "np.ndarray | None"]


class _WholeEdition(Edition):
    attends_in_float32 = True


def stand_in_edition(version: str = "1.0") -> Edition:
    """An edition that has everything and does nothing."""
    module = SimpleNamespace(
        __version__=version,
        INetworkDefinition=SimpleNamespace(add_kv_cache_update=None),
        CausalMaskKind=None,
        ComputeCapability=SimpleNamespace(SM86=86, SM89=89, SM120=120),
    )
    return _WholeEdition("tensorrt_rtx", module, None)


class _Network:
    """Stands in for `tensorrt.network.Network`: knows the graph's inputs and outputs."""

    def __init__(self, edition: Edition, model: ModelProto, weights: dict) -> None:
        self.edition, self._model = edition, model
        self.aligned = False

    def align_attention(self) -> None:
        self.aligned = True

    def tensors(self) -> tuple[tuple[EngineTensor, ...], tuple[EngineTensor, ...]]:
        graph = self._model.graph
        return tuple(tuple(map(self._described, part)) for part in (graph.input, graph.output))

    @staticmethod
    def _described(value: onnx.ValueInfoProto) -> EngineTensor:
        kind = value.type.tensor_type
        shape = tuple(dimension.dim_value or -1 for dimension in kind.shape.dim)
        return EngineTensor(value.name, TYPES[kind.elem_type], shape)


def build_stand_ins(
    monkeypatch: pytest.MonkeyPatch,
    bundle: Bundle,
    limits: SessionLimits,
    folder: Path | None = None,
    attention: str | None = None,
    target: Target | None = None,
    version: str = "1.0",
) -> None:
    """What `qwen2vl build` leaves behind, with engines that hold nothing.

    An fp32 bundle's are in float32: ONNX Runtime has no bfloat16 on the CPU.
    """
    patch_build(monkeypatch)
    build.build_engines(
        bundle,
        stand_in_edition(version),
        target or Target(HERE, is_this=True),
        limits,
        attention=attention,
        number_format="fp32" if bundle.precision == "fp32" else None,
        output=folder,
    )


def patch_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, builds write engines that hold nothing."""

    def build_engine(network, target, profiles, title, file, timings=None) -> Figures:
        file.write_bytes(b"stand-in")
        return Figures(0.0, 0, 8, 1000, tuple(100 for _ in profiles))

    monkeypatch.setattr(build, "Network", _Network)
    monkeypatch.setattr(build, "build_engine", build_engine)


def found(bundle: Bundle, folder: Path | None = None, asked: AskedLimits | None = None) -> list[EngineSet]:
    """The stand-ins that a session would be offered."""
    edition = stand_in_edition()
    return find_engines(bundle, HERE, asked or AskedLimits(), lambda _name: edition, folder)


class StandInEngine:
    """An engine of the lowered graph in ONNX Runtime, as strict about its bindings as TensorRT."""

    def __init__(
        self,
        bundle: Bundle,
        file: EngineFile,
        *,
        misread: Misread | None = None,
        spoil_vision: bool = False,
        overflow_above: int | None = None,
        upper_left: bool = False,
        queue: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        self.description = file.describe()
        self.scratch_bytes = 4096
        self.misread, self.spoil_vision = misread, spoil_vision
        self.overflow_above = overflow_above  # patches of a picture
        self.queue = queue or (lambda compute: compute())
        self.kept = 0
        self.executions: list[StandInExecution] = []
        graph, key = self.description.graph, self.description.key
        model, weights = load_graph(bundle, f"{graph}.onnx")
        if graph == "vision":
            lower_vision(model, weights, bundle.geometry, key.form)
        else:
            capacity = key.profiles[0].largest["past_k.0"][2]
            lower_decoder(model, weights, bundle.geometry, key.form, capacity)
        if upper_left and key.form.attention == "lengths":  # what TensorRT's parser makes of it
            for node in model.graph.node:
                if node.op_type == "Attention":
                    del node.input[3:]
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = ort.InferenceSession(
            with_weights(model, weights).SerializeToString(), options, ["CPUExecutionProvider"]
        )
        parts = self.description.inputs, self.description.outputs
        self.inputs, self.outputs = ({one.name: NUMPY[one.type] for one in part} for part in parts)

    def execution(self, profile: str, scratch: tuple[int, int], *, fixed: bool) -> StandInExecution:
        if scratch[0] == 0 or scratch[1] < self.scratch_bytes:
            raise BackendError("too little scratch memory")
        self.executions.append(
            StandInExecution(self, profile, self.description.key.profile(profile).shapes, fixed)
        )
        return self.executions[-1]

    def has(self, name: str) -> bool:
        return name in self.inputs or name in self.outputs

    def keep_kernels(self) -> None:
        self.kept += 1


class StandInExecution:
    def __init__(self, engine: StandInEngine, profile: str, ranges: dict, fixed: bool) -> None:
        self.engine, self.profile, self.ranges, self.fixed = engine, profile, ranges, fixed
        self.bound: dict[str, tuple[tuple[int, ...], int]] = {}
        self.runs = 0

    def bind(self, tensors: Sequence[Tensor]) -> None:
        if self.fixed and self.bound:
            raise BackendError("bound a second time: a recording of it would be void")
        names = {*self.engine.inputs, *self.engine.outputs}
        self.bound = {one.name: (one.shape, one.pointer) for one in tensors if one.name in names}
        wrong = [
            one for one in tensors if one.name in names and one.output != (one.name in self.engine.outputs)
        ]
        if wrong:
            raise BackendError(f"{wrong} are bound the wrong way round")
        if crooked := [name for name, (_, pointer) in self.bound.items() if pointer % ALIGNMENT]:
            raise BackendError(f"{crooked} don't begin at multiples of {ALIGNMENT} bytes")
        if missing := names - set(self.bound):
            raise BackendError(f"nothing is bound to {missing}")
        for name, (smallest, _, largest) in self.ranges.items():
            shape = self.bound[name][0]
            inside = zip(smallest, shape, largest, strict=True)
            if not all(low <= size <= high for low, size, high in inside):
                raise BackendError(f"{name} {shape} is outside {smallest} to {largest}")
        for output, name in self.engine.description.shared.items():
            if self.bound[output] != self.bound[name]:
                raise BackendError(f"{output} does not share {name}'s memory")

    def enqueue(self) -> None:
        self.runs += 1
        self.engine.queue(self._compute)

    def _compute(self) -> None:
        wrong = logits = None
        if self.engine.misread and "past_length" in self.bound:
            wrong = self.engine.misread(
                self.profile, self.bound["inputs_embeds"][0], self.array("past_length")
            )
        if wrong is not None:
            logits = self._logits_with(np.asarray(wrong, np.int64))
        self._run({})
        if logits is not None:
            self.array("logits")[...] = logits
        if self.engine.spoil_vision and "visual_embeddings" in self.bound:
            self.array("visual_embeddings")[-1, -1] = 0
        most = self.engine.overflow_above
        if most is not None and "patches" in self.bound and self.bound["patches"][0][1] > most:
            self.array("visual_embeddings")[0, 0, 0] = np.inf

    def capturable(self) -> bool:
        return True

    def _logits_with(self, past: np.ndarray) -> np.ndarray:
        """The logits over a copy of the cache, each row's past taken for another."""
        copies = {name: self.array(name).copy() for name in self.bound if name.startswith("past_k")}
        copies |= {name: self.array(name).copy() for name in self.bound if name.startswith("past_v")}
        shared = self.engine.description.shared
        copies |= {output: copies[name] for output, name in shared.items()}
        copies |= {
            name: np.empty_like(self.array(name)) for name in self.engine.outputs if name not in copies
        }
        self._run(copies | {"past_length": past})
        return copies["logits"]

    def _run(self, others: dict[str, np.ndarray]) -> None:
        binding = self.engine.session.io_binding()
        for name in (*self.engine.inputs, *self.engine.outputs):
            array = others[name] if name in others else self.array(name)
            call = binding.bind_input if name in self.engine.inputs else binding.bind_output
            call(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self.engine.session.run_with_iobinding(binding)

    def array(self, name: str) -> np.ndarray:
        """The bound memory."""
        shape, pointer = self.bound[name]
        dtype = np.dtype({**self.engine.inputs, **self.engine.outputs}[name])
        count = int(np.prod(shape))
        memory = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(pointer)
        return np.frombuffer(memory, dtype, count).reshape(shape)


def open_stand_ins(
    bundle: Bundle, chosen: EngineSet, device: _core.Device | None = None, **options
) -> Engines:
    """A set of engines on a device, by default the CPU as one; `options`: see StandInEngine."""
    return Engines.open(
        chosen, device or _core.HostDevice(), lambda file: StandInEngine(bundle, file, **options)
    )
