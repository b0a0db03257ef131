"""OpenVINO GenAI, VLMPipeline; the checkpoint converted by optimum-intel with its default settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from bench.compare.worker import main


class OpenVino:
    """One pipeline, its scheduler left at its defaults."""

    packages = ("openvino-genai", "openvino", "openvino-tokenizers")

    @staticmethod
    def prepare(checkpoint: Path, folder: Path, precision: str) -> None:
        """int4 and int8 are weight formats of optimum-intel; the vision tower follows its rules for them."""
        command = [str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino"]
        command += ["--model", str(checkpoint), "--task", "image-text-to-text"]
        subprocess.run([*command, "--weight-format", precision, str(folder)], check=True)

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        import openvino
        import openvino_genai

        self._tensor = openvino.Tensor
        self._configuration = openvino_genai.GenerationConfig
        self._pipeline = openvino_genai.VLMPipeline(str(folder), "CPU", INFERENCE_NUM_THREADS=threads)

    def _options(self, new_tokens: int):
        options = self._configuration()
        options.max_new_tokens = new_tokens
        options.min_new_tokens = new_tokens
        options.ignore_eos = True
        options.do_sample = False
        options.apply_chat_template = False
        return options

    def text(self, ids: list[int], text: str, new_tokens: int) -> dict[str, float]:
        """Times are the pipeline's own metrics (milliseconds)."""
        metrics = self._pipeline.generate(text, generation_config=self._options(new_tokens)).perf_metrics
        if metrics.get_num_generated_tokens() != new_tokens:
            raise RuntimeError(f"generated {metrics.get_num_generated_tokens()} tokens, not {new_tokens}")
        return {
            "prompt_tokens": metrics.get_num_input_tokens(),
            "prefill_seconds": metrics.get_ttft().mean / 1e3,
            "decode_seconds": metrics.get_tpot().mean / 1e3 * (new_tokens - 1),
        }

    def vision(self, picture: np.ndarray) -> dict[str, float]:
        """The pipeline's time for preparing embeddings: resizing, vision tower and (tiny) text embedding."""
        result = self._pipeline.generate(
            "Describe.", images=[self._tensor(picture[None])], generation_config=self._options(1)
        )
        metrics = result.perf_metrics
        return {
            "seconds": metrics.get_prepare_embeddings_duration().mean / 1e3,
            "tokens": metrics.get_num_input_tokens(),
        }


if __name__ == "__main__":
    main(OpenVino)
