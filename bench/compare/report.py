"""Medians, ratios and the table of a comparison."""

from __future__ import annotations

import statistics
from typing import Any

from bench.compare.rounds import picture_name
from bench.compare.runtimes import OURS

HIGHER_IS_BETTER = ("prefill", "decode")
PEERS_BITS = {"q4_0": "int4", "q8_0": "int8"}


def medians(found: dict[str, Any]) -> dict[str, float]:
    """Median of each measurement of one contestant."""
    return {name: statistics.median(values) for name, values in found["values"].items() if values}


def ratios(contestants: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """By our precision and measurement: how many times faster than the best peer, and which that is.

    Compared with all peers under "any", and under "same" with those of as many bits (int4-int8 has none).
    """
    ours = [found for found in contestants if found["runtime"] == OURS]
    peers = [found for found in contestants if found["runtime"] != OURS]
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for own in ours:
        rows = table.setdefault(own["precision"], {})
        for name, value in medians(own).items():
            rivals = [(medians(peer).get(name), peer) for peer in peers]
            rivals = [(rate, peer) for rate, peer in rivals if rate is not None]
            alike = [(rate, peer) for rate, peer in rivals if _bits(peer) == own["precision"]]
            rows[name] = {"any": _against(name, value, rivals), "same": _against(name, value, alike)}
    return table


def _bits(found: dict[str, Any]) -> str:
    return PEERS_BITS.get(found["precision"], found["precision"])


def _against(name: str, value: float, rivals: list[tuple[float, dict[str, Any]]]) -> dict[str, Any] | None:
    if not rivals:
        return None
    higher = name in HIGHER_IS_BETTER
    best, peer = (max if higher else min)(rivals, key=lambda rival: rival[0])
    return {
        "ratio": value / best if higher else best / value,
        "peer": f"{peer['runtime']} {peer['precision']}",
        "peer_value": best,
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    protocol, machine, limits = report["protocol"], report["machine"], report["limits"]
    contestants = report["contestants"]
    columns = ["prefill", "decode", *map(picture_name, protocol["pictures"])]
    lines = [
        f"# Runtimes compared: {machine['cpu']}, {protocol['threads']} threads",
        "",
        f"{report['model']}, random weights; {machine['memory'] / 2**30:.0f} GiB of memory; "
        f"{report['date']}. The same prompts ({protocol['prompt_tokens']} tokens, then "
        f"{protocol['new_tokens'] - 1} decoded one by one) and pictures for all; runtimes of a group are "
        f"loaded side by side and take turns, {protocol['rounds']} rounds after a warm-up; medians (in "
        f"parentheses: measured once, because it takes more than {protocol['slow_seconds']:.0f} s). In the "
        f"same run the machine read up to {limits['read_bytes_per_second'] / 1e9:.1f} GB/s and multiplied, "
        f"with all operands in registers or by ONNX Runtime if that was faster, float32 at up to "
        f"{limits['float32_rate'] / 1e9:.0f} GFLOP/s and u8 x s8 at up to {limits['rate'] / 1e9:.0f} GOP/s. "
        "Written by `python -m bench.compare`.",
        "",
        "| | prefill, tok/s | decode, tok/s | "
        + " | ".join(f"{column}, s" for column in columns[2:])
        + " | peak memory with a picture, GiB | load, s |",
        "|" + "---|" * (len(columns) + 3),
    ]
    for found in contestants:
        values = medians(found)
        cells = [_cell(found, name, values) for name in columns]
        peaks = " / ".join(
            f"{found['peak_bytes'][name] / 2**30:.2f}" for name in columns[2:] if name in found["peak_bytes"]
        )
        name = f"{found['runtime']} {found['precision']}"
        if found["error"]:
            name += " (broke down)"
        lines.append(f"| {name} | {' | '.join(cells)} | {peaks} | {found['load_seconds']:.1f} |")
    lines += [
        "",
        "Peak memory is the process's largest resident set up to and with the picture of each size.",
        "",
        "## Times faster than the best peer",
        "",
        "| | " + " | ".join(columns) + " |",
        "|" + "---|" * (len(columns) + 1),
    ]
    for precision, rows in report["ratios"].items():
        for kind, title in (("any", "than any peer"), ("same", "than peers of as many bits")):
            cells = [_ratio(rows.get(name, {}).get(kind)) for name in columns]
            if any(cells):
                lines.append(f"| {precision} {title} | {' | '.join(cells)} |")
    lines.append("")
    lines += [f"Left out: {line}" for line in report["skipped"]] + [""] * bool(report["skipped"])
    seen = {}
    for found in contestants:
        seen[found["runtime"]] = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines += ["Versions: " + "; ".join(seen.values()) + f"; Python {machine['python']}."]
    lines += [f"Broke down: {found['error']}" for found in contestants if found["error"]]
    return "\n".join(lines) + "\n"


def _cell(found: dict[str, Any], name: str, values: dict[str, float]) -> str:
    if name not in values:
        return ""
    text = f"{values[name]:.3g}" if values[name] < 1000 else f"{values[name]:.0f}"
    return f"({text})" if len(found["values"][name]) == 1 else text


def _ratio(found: dict[str, Any] | None) -> str:
    return "" if found is None else f"{found['ratio']:.2f} ({found['peer']})"
