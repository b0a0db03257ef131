"""The tiny checkpoint on a GPU against the CPU: the same greedy tokens in float32, accuracy in bf16 and int4.

    python -m bench.gpu_accuracy --output accuracy.json
    python -m bench.gpu_accuracy --prepare --work DIR      (on any machine: bundles and the CPU's answers)

What --prepare leaves in --work is taken from there, so that a GPU need not wait for it. A run that breaks is
recorded, and the others go on. Exits with 1 when one did, or when a float32 answer differs, or an accuracy by
more than a point.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from bench.gpu_figures import Figures, write_json
from bench.tiny import TINY
from qwen2vl_export.export import export_checkpoint
from qwen2vl_export.quantize.calibration import SHIPPED
from qwen2vl_rt.evaluate import Example, load_examples, score, spread
from qwen2vl_rt.session import Session

REFERENCE = "fp32"
PRECISIONS = (REFERENCE, "bf16", "int4")  # on the GPU
ANSWERS = "tiny-reference-answers.json"  # the CPU's in float32, by the question's id
POINT = 0.01
PROGRESS = 20  # answers between two reports


def bundle(precision: str, work: Path) -> Path:
    """The tiny checkpoint's bundle, made once."""
    folder = work / f"tiny-{precision}"
    if not (folder / "manifest.json").exists():
        export_checkpoint(TINY, folder, precision, calibration=SHIPPED if precision == "int4" else None)
    return folder


def answers(
    bundle: Path, backend: str, examples: list[Example], progress: Callable[[dict[str, str]], None]
) -> dict[str, str]:
    """Every question's answer, by its id. `progress` is called with those so far."""
    texts: dict[str, str] = {}
    with Session(bundle, backend=backend) as session:
        for example in examples:
            texts[example.id] = session.generate(example.messages, max_new_tokens=64).raw_text
            if len(texts) % PROGRESS == 0:
                progress(texts)
    return texts


def accuracy(examples: list[Example], texts: dict[str, str]) -> float:
    """Of the answers to these questions, by the project's own rules."""
    given = iter([texts[example.id] for example in examples])
    return score(examples, lambda _: next(given), progress=False).tasks()["all"]["accuracy"]


def reference_answers(examples: list[Example], work: Path) -> dict[str, str]:
    """The CPU's, from an earlier call if it asked these questions."""
    file = work / ANSWERS
    known: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    if missing := [example for example in examples if example.id not in known]:
        known |= answers(bundle(REFERENCE, work), "cpu", missing, lambda _: None)
        write_json(file, known)
    return known


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("out/gpu-bench"), help="where bundles are made")
    parser.add_argument("--output", type=Path, help="JSON")
    parser.add_argument("--limit", type=int, metavar="N", help="N questions only, evenly spread")
    parser.add_argument("--backend", default="cuda", choices=("cuda", "cpu"), help="cpu: to try this script")
    parser.add_argument("--prepare", action="store_true", help="only what needs no GPU")
    options = parser.parse_args()
    if options.limit is not None and options.limit < 1:
        parser.error("--limit must be at least 1")
    examples = load_examples(TINY / "eval")
    if options.limit is not None:
        examples = spread(examples, options.limit)
    expected = reference_answers(examples, options.work)
    if options.prepare:
        for precision in PRECISIONS:
            print(bundle(precision, options.work))
        return 0
    if options.output is None:
        parser.error("--output is missing")
    figures, different = Figures(options.output), []
    reference = accuracy(examples, expected)
    figures.add(f"tiny checkpoint, {REFERENCE}, cpu: accuracy", 100 * reference, "%")
    for precision in PRECISIONS:
        name = f"tiny checkpoint, {precision}, {options.backend}"

        def equal(texts: dict[str, str]) -> int:
            return sum(texts[key] == expected[key] for key in texts)

        def progress(texts: dict[str, str], name: str = name, equal: Callable = equal) -> None:
            figures.note(name, f"{len(texts)} of {len(examples)} answers, {equal(texts)} equal to fp32's")

        try:
            texts = answers(bundle(precision, options.work), options.backend, examples, progress)
        except Exception as error:
            figures.fail(name, error)
            continue
        right, same = accuracy(examples, texts), equal(texts)
        figures.add(f"{name}: accuracy", 100 * right, "%")
        figures.add(f"{name}: answers equal to fp32's", same, f"of {len(examples)}")
        if abs(right - reference) > POINT or (precision == REFERENCE and same < len(texts)):
            different.append(name)
    if different:
        print(f"different from the CPU's: {'; '.join(different)}")
    return 1 if different or figures.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
