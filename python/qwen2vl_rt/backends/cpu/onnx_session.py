"""ONNX Runtime sessions over a bundle's graphs: loading, weights in place, errors in the project's words."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from qwen2vl_rt import _core
from qwen2vl_rt.backends.onnx_failures import FAILURES
from qwen2vl_rt.errors import BackendError
from qwen2vl_rt.weights import drop_pages

SMALL = 1 << 18
"""Bytes of a weight that is nothing beside a matrix."""
EXACT_INT8 = ("session.x64quantprecision", "1")
"""An option of a session. On x86-64 without VNNI, ONNX Runtime's kernel for u8 x s8 adds pairs of products in
16 bits, which overflow; with this it takes u8 x u8 there."""


class OnnxSession:
    """A loaded graph whose large weights stay where they are, usually in the bundle's mapped files.

    Args:
        model: the (lowered) graph, without its external data.
        weights: the external data by initializer name, in the model's dtypes; others' are left alone.
        folder: the bundle's folder, which the model's external data name.
        threads: threads of one operator; 0 lets ONNX Runtime choose.
        pack: let the kernels keep the weights in a layout of their own. The rule: integer weights are packed
            (their kernels would otherwise do it again at every call), and the mapped originals leave memory;
            float weights are read from the mapping, where a packed copy would hold them twice (measured
            cost: 13% at one token, nothing at 512).
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        weights: dict[str, np.ndarray],
        folder: Path,
        threads: int,
        pack: bool = False,
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # Sequences change length all the time: planning one memory pattern a shape would only pile up.
        options.enable_mem_pattern = False
        # Threads of a session that is done must not spin on while the next one runs: int4-int8's decode step
        # goes through two, and takes half the time this way.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry(*EXACT_INT8)
        options.add_session_config_entry("session.disable_prepacking", "0" if pack else "1")
        model, top = _with_real_files(model, folder)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", top)
        options.log_severity_level = 3
        if any(opset.domain == _core.OPERATOR_DOMAIN for opset in model.opset_import):
            options.register_custom_ops_library(_core.__file__)
        # ONNX Runtime reads these arrays in place for as long as the session lives, so they are kept here.
        own = {
            tensor.name: weights[tensor.name] for tensor in model.graph.initializer if tensor.name in weights
        }
        if pack:
            # Biases and norms are read at every run: where they lie, each would keep the pages around it.
            own = {name: array.copy() if array.nbytes < SMALL else array for name, array in own.items()}
        self._values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in own.items()}
        for name, value in self._values.items():
            options.add_initializer(name, value)
        try:
            self._session = ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except (*FAILURES, ValueError) as error:
            raise BackendError(
                f"ONNX Runtime {ort.__version__} cannot load {model.graph.name}: {error}"
            ) from error
        if pack:
            drop_pages(weights.values())

    def binding(self) -> ort.IOBinding:
        """A new set of bound inputs and outputs."""
        return self._session.io_binding()

    def run(self, binding: ort.IOBinding) -> None:
        """Run once on bound memory.

        Raises:
            BackendError: the engine failed.
        """
        try:
            self._session.run_with_iobinding(binding)
        except FAILURES as error:
            raise BackendError(f"ONNX Runtime failed: {error}") from error


def _with_real_files(model: onnx.ModelProto, folder: Path) -> tuple[onnx.ModelProto, str]:
    """A copy of the model whose external data name the files behind links, and the folder that holds them.

    ONNX Runtime refuses links out of that folder; in the hub's cache every file of a bundle is one.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensors = copy.graph.initializer
    locations = [entry for tensor in tensors for entry in tensor.external_data if entry.key == "location"]
    files = {entry.value: os.path.realpath(folder / entry.value) for entry in locations}
    top = os.path.commonpath([os.path.realpath(folder), *map(os.path.dirname, files.values())])
    for entry in locations:
        entry.value = os.path.relpath(files[entry.value], top)
    return copy, top


def bind(
    binding: ort.IOBinding, array: np.ndarray, input: str | None = None, output: str | None = None
) -> None:
    """Bind `array`'s memory as an input, an output, or both at once (a cache updated in place)."""
    if input is not None:
        binding.bind_input(input, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    if output is not None:
        binding.bind_output(output, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
