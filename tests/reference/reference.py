"""The reference: transformers in float32 with eager attention and the Pillow picture processor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tokenizers
import torch
from PIL import Image
from transformers import Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.utils.chat_template_utils import render_jinja_template


class Reference:
    """A transformers model with the processor and tokenizer of its checkpoint folder."""

    def __init__(self, folder: Path, model: Qwen2VLForConditionalGeneration | None = None):
        self.model = model or Qwen2VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        self.model.eval()
        self.images = Qwen2VLImageProcessor.from_pretrained(folder)
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.template = json.loads((folder / "chat_template.json").read_text())["chat_template"]

    def inputs(self, messages: list[dict]) -> dict[str, torch.Tensor]:
        """Model inputs for messages whose pictures are PIL images and whose videos are lists of frames."""
        (text, *_), _ = render_jinja_template(
            [messages], chat_template=self.template, add_generation_prompt=True
        )
        items = [
            item
            for message in messages
            if isinstance(message["content"], list)
            for item in message["content"]
        ]
        pictures = [item["image"] for item in items if item["type"] == "image"]
        videos = [[np.asarray(f) for f in item["video"]] for item in items if item["type"] == "video"]
        inputs: dict[str, torch.Tensor] = {}
        if pictures:
            inputs |= self.images(images=pictures, return_tensors="pt")
        for video in videos:
            part = self.images(images=None, videos=[video], return_tensors="pt")
            for name in ("pixel_values_videos", "video_grid_thw"):
                inputs[name] = torch.cat([inputs[name], part[name]]) if name in inputs else part[name]
        for token, name in (("<|image_pad|>", "image_grid_thw"), ("<|video_pad|>", "video_grid_thw")):
            pieces = text.split(token)
            counts = [int(grid.prod()) // 4 for grid in inputs.get(name, [])]
            assert len(pieces) == len(counts) + 1
            text = pieces[0] + "".join(
                token * count + rest for count, rest in zip(counts, pieces[1:], strict=True)
            )
        inputs["input_ids"] = torch.tensor([self.tokenizer.encode(text).ids])
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return inputs

    def positions(self, inputs: dict[str, torch.Tensor]) -> tuple[np.ndarray, int]:
        """M-RoPE positions [3, T] and the rope delta."""
        positions, delta = self.model.model.get_rope_index(
            inputs["input_ids"], inputs.get("image_grid_thw"), inputs.get("video_grid_thw")
        )
        return positions[:, 0].numpy(), int(delta)

    @torch.no_grad()
    def generate(self, messages: list[dict], max_new_tokens: int = 64) -> list[int]:
        """Greedy tokens, the stop token included."""
        inputs = self.inputs(messages)
        length = inputs["input_ids"].shape[1]
        output = self.model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, repetition_penalty=1.0
        )
        return output[0, length:].tolist()

    @torch.no_grad()
    def last_logits(self, messages: list[dict]) -> np.ndarray:
        """Logits of the answer's first token, float32 [vocab]."""
        return self.model(**self.inputs(messages), logits_to_keep=1).logits[0, -1].numpy()

    @torch.no_grad()
    def features(self, pixels: torch.Tensor, grid: torch.Tensor) -> np.ndarray:
        """Visual embeddings, float32 [tokens, hidden]."""
        return self.model.model.visual(pixels, grid_thw=grid).numpy()


def picture(seed: int, width: int, height: int) -> Image.Image:
    """A smooth random RGB picture (pure noise would look alike at every size)."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(2, height // 12), max(2, width // 12), 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def frames(seed: int, count: int, width: int, height: int) -> list[Image.Image]:
    """A random video, each frame different."""
    return [picture(1000 * seed + index, width, height) for index in range(count)]
