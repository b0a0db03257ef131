"""transformers on torch: bfloat16, scaled-dot-product attention, its Pillow image processor."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from bench.compare.worker import main


class Transformers:
    """The model itself, driven step by step with its own cache."""

    packages = ("transformers", "torch")

    @staticmethod
    def prepare(checkpoint: Path, folder: Path, precision: str) -> None:
        """The checkpoint is read as it is: the folder is a link to it."""
        folder.symlink_to(checkpoint.resolve(), target_is_directory=True)

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        import torch
        from transformers import Qwen2VLForConditionalGeneration, Qwen2VLImageProcessor

        torch.set_num_threads(threads)
        self._torch = torch
        self._processor = Qwen2VLImageProcessor.from_pretrained(folder)
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
        model = Qwen2VLForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa"
        )
        self._model = model.eval()

    def text(self, ids: list[int], text: str, new_tokens: int) -> dict[str, float]:
        """Greedy, with logits of the last position only."""
        with self._torch.inference_mode():
            started = time.perf_counter()
            step = self._model(input_ids=self._torch.tensor([ids]), use_cache=True, logits_to_keep=1)
            token = step.logits[:, -1].argmax(-1, keepdim=True)
            first = time.perf_counter()
            for position in range(len(ids), len(ids) + new_tokens - 1):
                step = self._model(
                    input_ids=token,
                    past_key_values=step.past_key_values,
                    cache_position=self._torch.tensor([position]),
                    use_cache=True,
                )
                token = step.logits[:, -1].argmax(-1, keepdim=True)
            end = time.perf_counter()
        return {"prompt_tokens": len(ids), "prefill_seconds": first - started, "decode_seconds": end - first}

    def vision(self, picture: np.ndarray) -> dict[str, float]:
        """Image processor and vision tower."""
        from PIL import Image

        with self._torch.inference_mode():
            started = time.perf_counter()
            inputs = self._processor(images=[Image.fromarray(picture)], return_tensors="pt")
            pixels = inputs["pixel_values"].to(self._model.dtype)
            embeddings = self._model.model.visual(pixels, grid_thw=inputs["image_grid_thw"])
            return {"seconds": time.perf_counter() - started, "tokens": len(embeddings)}


if __name__ == "__main__":
    main(Transformers)
