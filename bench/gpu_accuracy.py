"""The tiny checkpoint on a GPU against the CPU: the same greedy tokens in float32, accuracy in bf16 and int4.

    python bench/gpu_accuracy.py --output accuracy.json

Exits with 1 when a float32 answer differs, or an accuracy by more than a point.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from qwen2vl_export.export import export_checkpoint
from qwen2vl_export.quantize.calibration import SHIPPED
from qwen2vl_rt.evaluate import Example, load_examples, score
from qwen2vl_rt.session import Session

TINY = Path(__file__).resolve().parent.parent / "models" / "tiny"
RUNS = (("fp32", "cpu"), ("fp32", "cuda"), ("bf16", "cuda"), ("int4", "cuda"))
POINT = 0.01


def answers(bundle: Path, backend: str, examples: list[Example]) -> tuple[float, list[str]]:
    """Accuracy, and every answer."""
    texts = []
    with Session(bundle, backend=backend) as session:

        def answer(messages: list[dict]) -> str:
            texts.append(session.generate(messages, max_new_tokens=64).raw_text)
            return texts[-1]

        report = score(examples, answer, progress=False)
    return report.tasks()["all"]["accuracy"], texts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("out/gpu-bench"), help="where bundles are made")
    parser.add_argument("--output", type=Path, required=True, help="JSON")
    parser.add_argument("--limit", type=int, help="the first N questions only")
    parser.add_argument("--backend", default="cuda", choices=("cuda", "cpu"), help="cpu: to try this script")
    options = parser.parse_args()
    examples = load_examples(TINY / "eval")[: options.limit]
    figures, reference, failed = [], None, []
    for precision, backend in RUNS:
        bundle = options.work / f"tiny-{precision}"
        if not (bundle / "manifest.json").exists():
            export_checkpoint(TINY, bundle, precision, calibration=SHIPPED if precision == "int4" else None)
        where = options.backend if backend == "cuda" else backend
        accuracy, texts = answers(bundle, where, examples)
        name = f"tiny checkpoint, {precision}, {where}"
        figures.append({"name": f"{name}: accuracy", "value": 100 * accuracy, "unit": "%"})
        if reference is None:
            reference = accuracy, texts
            continue
        same = sum(a == b for a, b in zip(texts, reference[1], strict=True))
        figures.append({"name": f"{name}: answers equal to fp32's", "value": same, "unit": "answers"})
        if abs(accuracy - reference[0]) > POINT or (precision == "fp32" and same < len(texts)):
            failed.append(name)
        # After every run: what was found is kept if a later one fails.
        options.output.write_text(json.dumps({"figures": figures, "failed": failed}, indent=2) + "\n")
        print(figures[-2:], flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
