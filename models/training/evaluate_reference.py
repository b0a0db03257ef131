"""Score a checkpoint on an evaluation set through transformers, the reference:

    python -m models.training.evaluate_reference models/tiny models/tiny/eval --json report.json
    python -m models.training.evaluate_reference models/tiny models/tiny/eval --positions flat

--positions gives the decoder wrong positions on purpose: `flat` counts tokens on all three axes, `swapped`
exchanges rows and columns, `rotated` gives time the rows, rows the columns and columns the time. A runtime
with such a fault would show such a score.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessor

AXES = {"right": (0, 1, 2), "swapped": (0, 2, 1), "rotated": (1, 2, 0)}


def scorer() -> ModuleType:
    """qwen2vl_rt.evaluate, from the source folder if the package isn't built: it needs no compiled part."""
    try:
        import qwen2vl_rt  # noqa: F401
    except ImportError:
        package = sys.modules["qwen2vl_rt"] = ModuleType("qwen2vl_rt")
        package.__path__ = [str(Path(__file__).parents[2] / "python" / "qwen2vl_rt")]
    return importlib.import_module("qwen2vl_rt.evaluate")


class Reference:
    """The checkpoint in transformers: float32, eager attention, greedy."""

    def __init__(self, folder: Path, positions: str = "right") -> None:
        self.model = Qwen2VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.processor = Qwen2VLImageProcessor.from_pretrained(folder)
        if positions != "right":
            self._break_positions(positions)

    def _break_positions(self, kind: str) -> None:
        inner = self.model.model
        rule: Callable = inner.get_rope_index

        def broken(input_ids: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
            positions, delta = rule(input_ids, *args, **kwargs)
            if kind == "flat":
                positions = torch.arange(input_ids.shape[1]).expand_as(positions)
                return positions, torch.zeros_like(delta)
            return positions[list(AXES[kind])], delta

        inner.get_rope_index = broken

    def __call__(self, messages: list[dict]) -> str:
        """The answer's text, special tokens kept."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs: dict[str, torch.Tensor] = {}
        for kind, name in (("image", "image"), ("video", "video")):
            parts = [
                part[kind] for message in messages for part in message["content"] if part["type"] == kind
            ]
            if not parts:
                continue
            if kind == "image":
                found = self.processor(
                    images=[Image.open(path).convert("RGB") for path in parts], return_tensors="pt"
                )
                inputs["pixel_values"], grids = found["pixel_values"], found["image_grid_thw"]
            else:
                frames = [[Image.open(path).convert("RGB") for path in video] for video in parts]
                found = self.processor(images=None, videos=frames, return_tensors="pt")
                inputs["pixel_values_videos"], grids = found["pixel_values_videos"], found["video_grid_thw"]
            inputs[f"{kind}_grid_thw"] = grids
            pad = f"<|{name}_pad|>"
            pieces = text.split(pad)
            text = pieces[0] + "".join(
                pad * (int(grid.prod()) // 4) + piece for grid, piece in zip(grids, pieces[1:], strict=True)
            )
        encoded = self.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            out = self.model.generate(**encoded, **inputs, max_new_tokens=160, do_sample=False)
        return self.tokenizer.decode(out[0, encoded.input_ids.shape[1] :], skip_special_tokens=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("examples", type=Path)
    parser.add_argument("--positions", choices=("right", "flat", "swapped", "rotated"), default="right")
    parser.add_argument("--tasks", help="only these, separated by commas")
    parser.add_argument("--json", type=Path, help="write the report here too")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    evaluate = scorer()
    examples = evaluate.load_examples(args.examples)
    if args.tasks:
        examples = [example for example in examples if example.task in args.tasks.split(",")]
    report = evaluate.score(examples, Reference(args.checkpoint, args.positions))
    print(report.table())
    if args.json:
        args.json.write_text(json.dumps(report.to_json(), indent=2) + "\n")


if __name__ == "__main__":
    main()
