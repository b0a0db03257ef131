"""Score answers on an evaluation set: exact match by task, and box IoU where the answer is a box.

    examples = load_examples("models/tiny/eval")
    report = score(examples, lambda messages: my_model(messages))    # the answer's text, special tokens kept
    print(report.table())

The set is a folder with questions.jsonl (one question a line: id, task, messages, answer) and the pictures
it names.
Nothing here knows which runtime answers, so the reference and every backend are judged by the same rules.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen2vl_rt.boxes import Box, parse_boxes
from qwen2vl_rt.errors import InputError
from qwen2vl_rt.processing.conversation_file import read_conversations
from qwen2vl_rt.progress import progress_bar

QUESTIONS = "questions.jsonl"

Message = dict[str, Any]
Edges = tuple[float, float, float, float]  # x1, y1, x2, y2

TOTAL = "all"  # what a report calls the tasks together

_ENDS = ("<|im_end|>", "<|endoftext|>")
_GROUNDING = re.compile(r"<\|(?:object_ref|box|quad)_(?:start|end)\|>")


@dataclass(frozen=True)
class Example:
    """One question. messages is the content-list form; pictures and frames in it are absolute paths."""

    id: str
    task: str
    messages: list[Message]
    answer: str

    @property
    def box(self) -> Box | None:
        """The expected box, 0..999 of each side, where the answer is one."""
        boxes = _boxes(self.answer)
        return boxes[0] if boxes else None


@dataclass(frozen=True)
class Verdict:
    """What came of one question; iou is None where no box was asked for."""

    id: str
    task: str
    expected: str
    got: str
    right: bool
    iou: float | None = None


@dataclass
class Report:
    """All verdicts of one run, and how long the answers took together."""

    verdicts: list[Verdict] = field(default_factory=list)
    seconds: float = 0.0

    def tasks(self) -> dict[str, dict[str, float | int | None]]:
        """By task and for all: asked, right, accuracy; for boxes mean_iou and iou_50 (share of >= 0.5)."""
        names = list(dict.fromkeys(verdict.task for verdict in self.verdicts))
        groups = {name: [v for v in self.verdicts if v.task == name] for name in names}
        return {name: _summary(group) for name, group in {**groups, TOTAL: self.verdicts}.items()}

    def mistakes(self) -> list[Verdict]:
        """Every verdict that is not right."""
        return [verdict for verdict in self.verdicts if not verdict.right]

    def table(self) -> str:
        """The figures as a Markdown table."""
        lines = [
            "| task | questions | right | accuracy | mean IoU | IoU >= 0.5 |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for name, row in self.tasks().items():
            boxes = (
                ["", ""] if row["mean_iou"] is None else [f"{row['mean_iou']:.3f}", f"{row['iou_50']:.1%}"]
            )
            cells = [_cell(name), str(row["asked"]), str(row["right"]), f"{row['accuracy']:.1%}", *boxes]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The figures and every mistake, ready for json.dump."""
        return {
            "seconds": round(self.seconds, 3),
            "tasks": self.tasks(),
            "mistakes": [
                {"id": v.id, "task": v.task, "expected": v.expected, "got": v.got, "iou": v.iou}
                for v in self.mistakes()
            ],
        }


def load_examples(folder: str | Path) -> list[Example]:
    """Read an evaluation set; raises InputError naming the line that can't be used."""
    path = Path(folder) / QUESTIONS
    if not path.is_file():
        raise InputError(f"{folder} is no evaluation set: it has no {QUESTIONS}")
    return read_conversations(path, _example, "a question")


def _example(raw: dict[str, Any]) -> Example:
    for name in ("task", "answer"):
        if not isinstance(raw[name], str):
            raise TypeError(f"{name} must be a str, not {type(raw[name]).__name__}")
    if raw["task"] == TOTAL:
        raise ValueError(f"a task must not be called {TOTAL!r}, as the report calls the tasks together")
    return Example(raw["id"], raw["task"], raw["messages"], raw["answer"])


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` of the questions (at least 1) at even distances, so that every large task keeps its share.

    All of them where there are no more.
    """
    total = len(examples)
    count = min(count, total)
    return [examples[index * total // count] for index in range(count)]


def score(
    examples: Sequence[Example], answer: Callable[[list[Message]], str], *, progress: bool = True
) -> Report:
    """Ask every question through `answer`, which returns the answer's text with special tokens kept.

    Raises:
        Whatever `answer` raises.
    """
    report = Report()
    bar = progress_bar("evaluate", len(examples), unit="question") if progress else None
    for example in examples:
        began = time.perf_counter()
        got = answer(example.messages)
        report.seconds += time.perf_counter() - began
        report.verdicts.append(judge(example, got))
        if bar is not None:
            right = sum(verdict.right for verdict in report.verdicts)
            bar.set_postfix_str(f"{right / len(report.verdicts):.1%} right", refresh=False)
            bar.update()
    if bar is not None:
        bar.close()
    return report


def judge(example: Example, got: str) -> Verdict:
    """Is the answer right?

    It is when it is the expected text. A box is right when what it names is the expected text and its IoU
    with the expected box is at least 0.5.
    """
    expected_box = example.box
    if expected_box is None:
        right = plain_text(got) == plain_text(example.answer)
        return Verdict(example.id, example.task, example.answer, got, right)
    boxes = _boxes(got)
    overlap = iou(expected_box.normalized, boxes[0].normalized) if len(boxes) == 1 else 0.0
    right = overlap >= 0.5 and boxes[0].label == expected_box.label
    return Verdict(example.id, example.task, example.answer, got, right, overlap)


def plain_text(answer: str) -> str:
    """The answer without end and grounding tokens and surrounding space."""
    for end in _ENDS:
        answer = answer.split(end)[0]
    return _GROUNDING.sub("", answer).strip()


def _boxes(answer: str) -> list[Box]:
    """The answer's boxes; how large the picture is doesn't matter to their overlap."""
    return parse_boxes(answer, [(1000, 1000)])


def iou(a: Edges, b: Edges) -> float:
    """Shared area over the area of both; 0 for a box that is empty or turned inside out."""
    area_a, area_b = (
        (box[2] - box[0]) * (box[3] - box[1]) if box[0] < box[2] and box[1] < box[3] else 0.0
        for box in (a, b)
    )
    if not area_a or not area_b:
        return 0.0
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / (area_a + area_b - shared)


def _cell(text: str) -> str:
    """The text as a cell of a Markdown table: on one line, its bars no borders."""
    return " ".join(text.split()).replace("|", r"\|")


def _summary(verdicts: Sequence[Verdict]) -> dict[str, float | int | None]:
    asked, right = len(verdicts), sum(verdict.right for verdict in verdicts)
    ious = [verdict.iou for verdict in verdicts if verdict.iou is not None]
    return {
        "asked": asked,
        "right": right,
        "accuracy": right / asked if asked else 0.0,
        "mean_iou": sum(ious) / len(ious) if ious else None,
        "iou_50": sum(value >= 0.5 for value in ious) / len(ious) if ious else None,
    }
