"""A benchmark's curves as a picture: what was measured, beside what the machine's limits allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen2vl_rt.benchmark.report import DECODE, PREFILL, VISION, Figure, Report
from qwen2vl_rt.errors import InputError
from qwen2vl_rt.plan import GIB

PANELS = (
    (VISION, "vision tower", "patches", "seconds"),
    (PREFILL, "prefill", "tokens of a prompt", "tokens a second"),
    (DECODE, "decode", "tokens of context", "tokens a second"),
)


def require_matplotlib() -> Any:
    """matplotlib.figure, which draws without a display.

    Raises:
        InputError: it is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise InputError(
            "A plot needs matplotlib, which is not installed: pip install 'qwen2vl_rt[plot]', or leave the "
            f"plot out ({error})."
        ) from error
    return matplotlib.figure


def write_plot(report: Report, file: Path) -> None:
    """Draw time or rate over size for the vision tower, prefill and decode, and memory for all, as PNG.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    figure = require_matplotlib().Figure(figsize=(11, 8), layout="constrained")
    limits = report.limits
    figure.suptitle(
        f"{report.bundle}, {report.precision}: {report.machine['cpu']}, {report.machine['threads']} threads; "
        f"reads {limits.read_bytes_per_second / 1e9:.0f} GB/s, {limits.product} products "
        f"{limits.rate / 1e9:.0f} G/s"
    )
    panels = list(figure.subplots(2, 2).flat)
    for axes, (kind, title, size, unit) in zip(panels, PANELS, strict=False):
        for batch in sorted({found.batch for found in report.figures if found.kind == kind}):
            line = _series(report, kind, batch)
            label = "measured" if batch == 1 else f"measured, {batch} side by side"
            (drawn,) = axes.plot([f.size for f in line], [f.value for f in line], "o-", label=label)
            bounds = [(f.size, f.limit) for f in line if f.limit is not None]
            axes.plot(*zip(*bounds, strict=True), "--", color=drawn.get_color(), label="machine's limit")
        _scales(axes, title, size, unit)
    for kind, title, size, _ in PANELS[:2]:
        line = [f for f in _series(report, kind, 1) if f.memory is not None]
        panels[3].plot(
            [f.size for f in line], [f.memory / GIB for f in line], "o-", label=f"{title}, by {size}"
        )
    _scales(panels[3], "memory beyond the loaded bundle", "patches or tokens", "GiB")
    try:
        figure.savefig(file, format="png", dpi=110)
    except OSError as error:
        raise InputError(f"Cannot write {file}: {error}") from error


def _series(report: Report, kind: str, batch: int) -> list[Figure]:
    """The figures of one kind and batch, by size."""
    found = [figure for figure in report.figures if figure.kind == kind and figure.batch == batch]
    return sorted(found, key=lambda figure: figure.size)


def _scales(axes: Any, title: str, size: str, unit: str) -> None:
    """Sizes double and double again, and times with them; a rate or an amount of memory begins at zero."""
    axes.set(title=title, xlabel=size, ylabel=unit, xscale="log")
    if unit == "seconds":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(True, which="both", alpha=0.3)
    if axes.lines:
        sizes = sorted({x for line in axes.lines for x in line.get_xdata()})
        axes.set_xticks(sizes, [f"{x:,}" for x in sizes], rotation=30)
        axes.minorticks_off()
        axes.legend()
