"""Which TensorRT is installed. Both editions have one Python interface; what differs is asked of it here."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType

from qwen2vl_rt.backends.tensorrt.logger import Logger, make_logger
from qwen2vl_rt.errors import BackendError

INSTALL = "pip install 'qwen2vl_rt[tensorrt-rtx]' (desktop GPUs), or NVIDIA's tensorrt (Jetson, data centre)"
MODULES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}


@dataclass(frozen=True)
class Edition:
    """An installed TensorRT."""

    module_name: str
    """"tensorrt" or "tensorrt_rtx"."""
    module: ModuleType
    logger: Logger

    @property
    def version(self) -> str:
        """The installed version, such as "1.7.1.116"."""
        return self.module.__version__

    @property
    def builds_for_others(self) -> bool:
        """Whether it builds for GPUs that are not in this machine: TensorRT for RTX does."""
        return self.module_name == "tensorrt_rtx"

    @property
    def compiles_at_run_time(self) -> bool:
        """Whether kernels are compiled where the engine runs, and can be kept: TensorRT for RTX's are."""
        return hasattr(self.module, "IRuntimeCache")

    @property
    def has_cache_operators(self) -> bool:
        """Whether it knows Attention, RotaryEmbedding and TensorScatter: TensorRT 10.15 and later does, 10.14
        only the first.
        """
        return hasattr(self.module.INetworkDefinition, "add_kv_cache_update")

    @property
    def aligns_attention(self) -> bool:
        """Whether a parsed attention's causal alignment and lengths can be set."""
        return hasattr(self.module, "CausalMaskKind")

    @property
    def attends_in_float32(self) -> bool:
        """Whether its attention operator takes float32: TensorRT for RTX has 16-bit kernels only."""
        return self.module_name != "tensorrt_rtx"

    def __str__(self) -> str:
        return f"{MODULES[self.module_name]} {self.version}"


_loaded: dict[str, Edition] = {}  # a library keeps the first logger that it is given


def find_edition(name: str | None = None) -> Edition:
    """The installed edition; NVIDIA's full TensorRT if both are, since it knows this machine's GPU best.

    Args:
        name: "tensorrt" or "tensorrt_rtx" to insist on one.

    Raises:
        BackendError: it is not installed, or its libraries do not load.
    """
    for candidate in [name] if name else MODULES:
        if candidate not in MODULES:
            raise BackendError(f"There is no TensorRT edition {candidate!r}: choose one of {list(MODULES)}.")
        if candidate in _loaded:
            return _loaded[candidate]
        if importlib.util.find_spec(candidate) is None:
            continue
        try:
            module = importlib.import_module(candidate)
            _loaded[candidate] = Edition(candidate, module, make_logger(module))
        except Exception as error:  # a stub package or a missing driver library fails in its own ways
            if name:
                raise BackendError(f"{MODULES[candidate]} is installed but does not load: {error}") from error
            continue
        return _loaded[candidate]
    wanted = MODULES.get(name, "TensorRT")
    raise BackendError(f"{wanted} is not installed: {INSTALL}.")


def installed_editions() -> list[Edition]:
    """Every TensorRT that is installed and loads; NVIDIA's full one first."""
    found = []
    for name in MODULES:
        try:
            found.append(find_edition(name))
        except BackendError:
            continue
    return found
