"""Which GPUs an engine is for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from qwen2vl_rt.backends.tensorrt.edition import INSTALL, Edition, installed_editions
from qwen2vl_rt.backends.tensorrt.gpu import compute_capability
from qwen2vl_rt.errors import BackendError

PORTABLE = "portable"
PORTABLE_SINCE = (8, 0)  # every GPU from this compute capability on
THIS = "this"
BFLOAT16_SINCE = (8, 0)
INT4_SINCE = (8, 0)
FP8_SINCE = (8, 9)
FLOAT32_SINCE = (8, 0)  # products, in TensorRT for RTX


@dataclass(frozen=True)
class Target:
    """A GPU architecture, or all of them from SM 8.0 on."""

    capability: tuple[int, int] | None
    """Compute capability such as (8, 9); None for the portable target."""
    is_this: bool
    """Whether it is the GPU in this machine."""

    @property
    def name(self) -> str:
        """Such as "sm89", or "portable"."""
        return PORTABLE if self.capability is None else "sm{}{}".format(*self.capability)

    def has(self, since: tuple[int, int]) -> bool:
        """Whether every GPU of the target has what came with the compute capability `since`."""
        return (self.capability or PORTABLE_SINCE) >= since


def choose_target(text: str, edition: Edition) -> Target:
    """`named_target`, and check that the edition builds for it.

    Raises:
        BackendError: not a target, or one that this edition does not build for on this machine.
    """
    target = named_target(text)
    _check(target, edition, compute_capability())
    return target


def named_target(text: str) -> Target:
    """Parse "sm89" (also "8.9" or "89"), "portable" or "this".

    Raises:
        BackendError: not a target, or there is no GPU here for "this".
    """
    here = compute_capability()
    if text == PORTABLE:
        return Target(None, is_this=False)
    if text == THIS:
        if here is None:
            raise BackendError("There is no NVIDIA GPU here to build for: name one with --gpu or --portable.")
        return Target(here, is_this=True)
    match = re.fullmatch(r"(?:sm)?_?(\d{1,2})\.?(\d)", text.lower())
    if match is None:
        raise BackendError(f"{text!r} is not a GPU target: write sm89 (or 8.9), portable or this.")
    capability = int(match[1]), int(match[2])
    return Target(capability, is_this=capability == here)


def edition_problem(here: tuple[int, int] | None) -> str:
    """Why no installed TensorRT runs engines on the GPU with compute capability `here`; "" if one does."""
    if here is None:
        return "the driver finds no NVIDIA GPU"
    problems = []
    for edition in installed_editions():
        try:
            _check(Target(here, is_this=True), edition, here)
            return ""
        except BackendError as error:
            problems.append(str(error))
    return "; ".join(problems) or f"TensorRT is not installed: {INSTALL}"


def _check(target: Target, edition: Edition, here: tuple[int, int] | None) -> None:
    if edition.builds_for_others:
        known = _known(edition)
        if target.capability is not None and target.name not in known:
            raise BackendError(
                f"{edition} does not build for {target.name}, only for {', '.join(known)} and {PORTABLE}: "
                "use the cuda backend, or NVIDIA's full TensorRT."
            )
    elif here is None or not (target.is_this or target.capability is None):
        found = "there is none" if here is None else "here is sm{}{}".format(*here)
        raise BackendError(
            f"{edition} builds only on a machine with the GPU that the engine is for, and {found}: "
            "run the build there."
        )


def _known(edition: Edition) -> list[str]:
    """The architectures that the edition itself lists."""
    names = [name for name in dir(edition.module.ComputeCapability) if re.fullmatch(r"SM\d+", name)]
    return sorted((name.lower() for name in names), key=lambda name: int(name[2:]))


def configure(config: Any, target: Target, edition: Edition) -> None:
    """Set the target, and what the executor asks of every engine, in a builder's configuration."""
    trt = edition.module
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 stays float32
    # Scratch memory comes from the executor: without this flag a step may not be recordable as a CUDA graph.
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if edition.builds_for_others:
        if target.capability is not None:  # left unset, the engine runs on all from SM 8.0 on
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, target.name.upper()), 0)
    elif target.capability is None:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
