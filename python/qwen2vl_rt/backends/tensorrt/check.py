"""The self-check of an engine on the machine that it runs on: its numbers beside the cpu backend's.

An engine can't be run where it is built. So its first session compares, on inputs from a seed, vision
features and the logits of a prefill, of its second chunk, of decode steps against a warm cache and of some
over rows of different lengths, queued by the engine and replayed from a recording, and looks at the largest
picture's features, which must be finite; what came of it lies beside the engine, and an engine that differs
is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from qwen2vl_rt.backends.tensorrt.check_files import (
    CheckResult,
    keep_expected,
    result_file,
    store_result,
    stored_result,
)
from qwen2vl_rt.backends.tensorrt.check_inputs import (
    LARGEST,
    VISION,
    check_steps,
    largest_picture,
    pictures,
    step_inputs,
)
from qwen2vl_rt.backends.tensorrt.check_recording import Recordings
from qwen2vl_rt.backends.tensorrt.executors import Engines, TensorRTVision, tensorrt_decoder
from qwen2vl_rt.backends.tensorrt.find import EngineSet
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.errors import BackendError, EngineRefusedError, MemoryLimitError
from qwen2vl_rt.graph_format import LOGITS, STEP_INPUTS
from qwen2vl_rt.number_formats import format_named
from qwen2vl_rt.session_limits import SessionLimits

# The error that a format's rounding explains, by what the engine computes in; more where activations are
# rounded to 8 bit besides. A wrong position, length or mask is beyond all (tests/tensorrt/test_check.py).
ALLOWED = {"float32": 0.02, "float16": 0.05, "bfloat16": 0.15}
ALLOWED_INT8, ALLOWED_FP8 = 0.25, 0.35

RUBBISH = 8.0  # behind the filled part of every row: read once, it shows


def error(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest relative error of a row: |a - e| / |e| of the rows' deviations from their means.

    What all values of a row share changes no choice of a token, and would hide what differs. NaN and infinity
    give infinity.
    """
    actual, expected = (array.reshape(-1, array.shape[-1]).astype(np.float64) for array in (actual, expected))
    if not np.isfinite(actual).all():
        return float("inf")
    actual, expected = (array - array.mean(-1, keepdims=True) for array in (actual, expected))
    norms = np.linalg.norm(expected, axis=-1)
    return float((np.linalg.norm(actual - expected, axis=-1) / np.maximum(norms, 1e-30)).max())


def run_check(
    bundle: Bundle,
    chosen: EngineSet,
    engines: Engines,
    machine: str,
    expected: dict[str, list[np.ndarray]],
) -> CheckResult:
    """Run the engines on the check's inputs and compare.

    Args:
        bundle: the model.
        chosen: the engines' files.
        engines: opened; nothing else runs on their device meanwhile.
        machine: for the result.
        expected: see `expected_for`.
    """
    vision, limits = TensorRTVision(bundle, engines), check_limits(chosen)
    actual = _actual_values(bundle, limits, engines, vision)
    largest = vision.encode(*largest_picture(bundle, limits, format_named(engines.dtype).numpy)).numpy()
    figures = {LARGEST: 0.0 if np.isfinite(largest).all() else float("inf")} | {
        name: max(error(*pair) for pair in zip(actual[name], values, strict=True))
        for name, values in expected.items()
    }
    files = [chosen.files[graph].path.name for graph in sorted(chosen.files)]
    return CheckResult(machine, files, _allowed(bundle, chosen, engines.dtype), figures)


def check_limits(chosen: EngineSet) -> SessionLimits:
    """What the check's steps are made for: all that the engines hold, of four rows at most."""
    return replace(chosen.limits, max_batch=min(chosen.limits.max_batch, 4))


def _allowed(bundle: Bundle, chosen: EngineSet, dtype: str) -> float:
    if chosen.decoder.form.fp8:
        return ALLOWED_FP8
    return ALLOWED_INT8 if bundle.quantized else ALLOWED[dtype]  # an int4 bundle's vision tower is int8


def _actual_values(
    bundle: Bundle, limits: SessionLimits, engines: Engines, vision: TensorRTVision
) -> dict[str, list[np.ndarray]]:
    """What the engines make of the inputs, as `expected_values`."""
    number_format = format_named(engines.dtype).numpy
    actual = {VISION: [vision.encode(*one).numpy() for one in pictures(bundle, limits, number_format)]}
    device, geometry = engines.device, bundle.geometry.decoder
    decoder, cache, engine = tensorrt_decoder(bundle, limits, engines)
    rubbish = np.random.default_rng(0).standard_normal(
        (cache.rows, geometry.kv_heads, cache.capacity, geometry.head_dim), dtype=np.float32
    )
    rubbish = _words(rubbish * RUBBISH, number_format)
    for layer in range(geometry.layers):
        device.upload(cache.keys(layer), rubbish)
        device.upload(cache.values(layer), rubbish)
    buffers, steps, recordings = decoder.buffers, check_steps(limits), Recordings(engines, engine)
    for step, inputs in zip(steps, step_inputs(bundle, steps, number_format), strict=True):
        for name in STEP_INPUTS:
            array = getattr(inputs, name)
            floats = array.dtype == np.float32
            device.upload(buffers[name], _words(array, number_format) if floats else array)
        longest = step.past[0] + step.tokens if step.prompt else cache.capacity
        queue = partial(engine.enqueue, step.first_row, step.rows, step.tokens, longest, step.prompt)
        if step.replayed:
            recordings.run(step.rows, queue)
        else:
            queue()
        logits = np.empty((step.rows, geometry.vocab_size), np.float32)
        device.download(logits, buffers[LOGITS])
        actual.setdefault(step.name, []).append(logits)
        if not step.prompt:
            recordings.record(step.rows, queue)
    return actual


def _words(array: np.ndarray, number_format: np.dtype) -> np.ndarray:
    """The bytes of an array in a number format."""
    return np.ascontiguousarray(array.astype(number_format)).reshape(-1).view(np.uint8)


def expected_for(bundle: Bundle, chosen: EngineSet, threads: int = 0) -> dict[str, list[np.ndarray]]:
    """The cpu backend's values for these engines: from the file beside them, or computed and written there.

    Raises:
        BackendError: they have to be computed, and ONNX Runtime is not installed or the memory too small.
    """
    key = chosen.decoder
    try:
        return keep_expected(
            bundle,
            check_limits(chosen),
            key.form.number_format,
            chosen.files["decoder"].path.parent,
            threads,
        )
    except (ImportError, MemoryLimitError) as error_:
        missing = f"ONNX Runtime is not installed ({error_})" if isinstance(error_, ImportError) else error_
        raise BackendError(
            f"The self-check of {chosen.files['decoder'].path.name} needs the cpu backend's values, which "
            f"can't be computed here: {missing}. On another machine, `qwen2vl build BUNDLE --gpu "
            f"{key.target} --arithmetic {key.form.number_format} --expected` with the same limits does it: "
            "copy its file beside the engines."
        ) from error_


def refusal(chosen: EngineSet, result: CheckResult) -> EngineRefusedError:
    """What a failed check is reported as."""
    differing = ", ".join(f"{name} by {value:.3g}" for name, value in result.differing.items())
    return EngineRefusedError(
        f"The engine {chosen.files['decoder'].path} (attention {chosen.attention!r}) does not compute what "
        f"the model does on {result.machine}. Off from the cpu backend: {differing}, where "
        f"{result.allowed:g} is rounding. It is not used. Build another form with --attention, or delete "
        f"{result_file(chosen)} to check it again"
    )


def checked(
    bundle: Bundle,
    candidates: Sequence[EngineSet],
    machine: str,
    open_engines: Callable[[EngineSet], Engines],
    build_masked: Callable[[EngineSet], EngineSet],
    threads: int = 0,
) -> tuple[EngineSet, Engines]:
    """The first of a bundle's engine sets whose numbers are right on this machine, opened.

    Where attention aligned on the parsed network ("lengths") is wrong, the form with its mask in the graph is
    tried: one of the candidates, or else built.

    Args:
        bundle: the model.
        candidates: `find.find_engines`.
        machine: the GPU and driver, as results name them.
        open_engines: opens a set on the device.
        build_masked: builds the decoders of a set again, in the form with a mask.
        threads: of the cpu backend.

    Raises:
        EngineRefusedError: all of them are wrong: what differed in the first.
        BackendError: one can't be opened, checked or built.
    """
    refused: EngineRefusedError | None = None
    candidates = list(candidates)
    others = any(one.attention != "lengths" for one in candidates)
    while candidates:
        chosen = candidates.pop(0)
        result = stored_result(chosen, machine)
        engines = None
        if result is None:
            expected = expected_for(bundle, chosen, threads)  # before the engines take memory
            engines = open_engines(chosen)
            result = run_check(bundle, chosen, engines, machine, expected)
            store_result(chosen, result)
        if result.passed:
            return chosen, engines or open_engines(chosen)
        del engines  # their memory is the next ones'
        refused = refused or refusal(chosen, result)
        if chosen.attention == "lengths" and not others:
            candidates.insert(0, build_masked(chosen))
            others = True
    raise refused or EngineRefusedError(f"{bundle.path} has no engines to check.")
