"""The demo: a tiny trained Qwen2-VL answers questions about pictures and videos that it was not trained on.

    python models/demo.py BUNDLE --output DIR

Prints questions, answers and timings; where an answer holds boxes, the picture with them drawn lands in DIR.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import qwen2vl_rt
from qwen2vl_rt.evaluate import Example, load_examples

EVALUATION_SET = Path(__file__).parent / "tiny" / "eval"
QUESTIONS_A_TASK = 2


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer questions about held-out pictures.")
    parser.add_argument("bundle", type=Path, help="the exported models/tiny")
    parser.add_argument("--output", type=Path, required=True, help="folder for pictures with boxes drawn")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with qwen2vl_rt.Session(options.bundle) as session:
        for example in pick(load_examples(EVALUATION_SET)):
            show(session, example, options.output)


def pick(examples: list[Example]) -> list[Example]:
    """The first few questions of every task."""
    tasks: dict[str, list[Example]] = {}
    for example in examples:
        tasks.setdefault(example.task, []).append(example)
    return [example for group in tasks.values() for example in group[:QUESTIONS_A_TASK]]


def show(session: qwen2vl_rt.Session, example: Example, output: Path) -> None:
    """Ask one question and print what came of it."""
    content = example.messages[-1]["content"]
    pictures = [Path(part["image"]) for part in content if part["type"] == "image"]
    frames = sum(len(part["video"]) for part in content if part["type"] == "video")
    shown = ", ".join(picture.name for picture in pictures) or f"a video of {frames} frames"
    question = " ".join(part["text"] for part in content if part["type"] == "text").strip()

    answer = session.generate(example.messages)
    timings = answer.timings
    print(f"\n[{example.task}] {shown}: {question}")
    print(f"  {answer.text}")
    print(
        f"  first token after {1e3 * timings.first_token:.0f} ms, "
        f"{timings.decode_tokens_per_second:.0f} tokens/s after it"
    )
    if answer.boxes and len(pictures) == 1:
        drawn = output / f"boxes-{pictures[0].name}"
        qwen2vl_rt.draw_boxes(pictures[0], answer.boxes).save(drawn)
        print(f"  boxes drawn in {drawn}")


if __name__ == "__main__":
    main()
