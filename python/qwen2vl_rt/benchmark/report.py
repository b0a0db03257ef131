"""What a benchmark found, as a table and as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from qwen2vl_rt.benchmark.limits import Limits
from qwen2vl_rt.plan import GIB

VISION, PREFILL, DECODE, OTHER = "vision", "prefill", "decode", "other"


@dataclass(frozen=True)
class Figure:
    """One measured median."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    """What the machine's limits allow, in the same unit; of memory, what the machine has."""
    kind: str = OTHER
    size: int = 0
    """Of a vision figure the patches, of a prefill or decode figure the tokens of one prompt."""
    batch: int = 1
    repeats: int = 1
    """How many measurements the median is of."""
    memory: int | None = None
    """Largest resident bytes meanwhile, beyond what the loaded bundle takes at rest; None if not measured."""

    @property
    def ratio(self) -> float | None:
        """Share of the limit: limit over value for seconds, value over limit otherwise."""
        if self.limit is None:
            return None
        return self.limit / self.value if self.unit == "s" else self.value / self.limit


@dataclass
class Report:
    """All figures of one run."""

    bundle: str
    precision: str
    machine: dict[str, Any]
    limits: Limits
    figures: list[Figure] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The report as plain lists, dicts, strings and numbers."""
        report = asdict(self)
        report["figures"] = [asdict(figure) | {"ratio": figure.ratio} for figure in self.figures]
        return report

    def table(self) -> str:
        """The report as markdown."""
        limits, integer = self.limits, self.limits.product == "int8"
        products = f"float32 at up to {limits.float32_rate / 1e9:.0f} GFLOP/s"
        if integer:
            products += f" and int8 at up to {limits.rate / 1e9:.0f} GOP/s"
        with_memory = any(figure.memory is not None for figure in self.figures)
        heads = ["", "median", "machine's limit", "share"] + ["memory beyond weights"] * with_memory
        lines = [
            f"{self.bundle}, {self.precision}; {self.machine['cpu']}, {self.machine['threads']} threads, "
            f"ONNX Runtime {self.machine['onnxruntime']}. The machine reads up to "
            f"{limits.read_bytes_per_second / 1e9:.1f} GB/s and multiplies {products}.",
            "",
            f"| {' | '.join(heads)} |",
            f"|{'---|' * len(heads)}",
        ]
        for figure in self.figures:
            cells = [
                figure.name,
                f"{figure.value:.3g} {figure.unit}",
                "" if figure.limit is None else f"{figure.limit:.3g} {figure.unit}",
                "" if figure.ratio is None else f"{figure.ratio:.0%}",
            ]
            if with_memory:
                cells.append("" if figure.memory is None else f"{figure.memory / GIB:.2f} GiB")
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)
