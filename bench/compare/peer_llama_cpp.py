"""llama.cpp through llama-cpp-python's low-level bindings (libllama, libmtmd)."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from bench.compare.worker import main

# The converter comes with llama.cpp's source (also inside llama-cpp-python's source distribution), not with
# the package.
CONVERTER = "LLAMA_CPP_SOURCE"
FILE_TYPES = {"q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0", "q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0"}
MODEL, PROJECTOR = "model.gguf", "mmproj.gguf"
CONTEXT = 4096


class LlamaCpp:
    """A context for text and one for pictures. The vision tower is float16, as its converter writes it."""

    packages = ("llama-cpp-python",)

    @staticmethod
    def prepare(checkpoint: Path, folder: Path, precision: str) -> None:
        """Convert to GGUF in bfloat16 (kept beside, for other precisions), then quantize."""
        import llama_cpp

        source = os.environ.get(CONVERTER)
        if not source:
            raise SystemExit(f"set {CONVERTER} to a folder of llama.cpp's source with convert_hf_to_gguf.py")
        folder.mkdir(parents=True, exist_ok=True)
        whole, projector = folder.parent / "llama.cpp-bf16.gguf", folder.parent / "llama.cpp-mmproj.gguf"
        converter = [sys.executable, str(Path(source) / "convert_hf_to_gguf.py"), str(checkpoint)]
        for file, flags in ((whole, ["--outtype", "bf16"]), (projector, ["--outtype", "f16", "--mmproj"])):
            if not file.exists():
                subprocess.run([*converter, *flags, "--outfile", str(file)], check=True)
        (folder / PROJECTOR).symlink_to(projector.resolve())
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype = getattr(llama_cpp, FILE_TYPES[precision])
        files = (str(file).encode() for file in (whole, folder / MODEL))
        if llama_cpp.llama_model_quantize(*files, ctypes.byref(parameters)):
            raise SystemExit(f"llama.cpp could not quantize {whole}")

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        import llama_cpp
        from llama_cpp import mtmd_cpp

        self._llama, self._mtmd = llama_cpp, mtmd_cpp
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(folder / MODEL).encode(), llama_cpp.llama_model_default_params()
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = CONTEXT
        settings.n_batch = settings.n_ubatch = 512
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        pictures = mtmd_cpp.mtmd_context_params_default()
        pictures.use_gpu, pictures.n_threads = False, threads
        self._vision = mtmd_cpp.mtmd_init_from_file(str(folder / PROJECTOR).encode(), self._model, pictures)
        if not (self._context and self._vision):
            raise RuntimeError(f"llama.cpp could not load {folder}")

    def text(self, ids: list[int], text: str, new_tokens: int) -> dict[str, float]:
        """Greedy; llama.cpp computes logits of the last token only."""
        llama = self._llama
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)
        started = time.perf_counter()
        token = self._step(ids)
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            token = self._step([token])
        end = time.perf_counter()
        return {"prompt_tokens": len(ids), "prefill_seconds": first - started, "decode_seconds": end - first}

    def _step(self, ids: list[int]) -> int:
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        if self._llama.llama_decode(self._context, self._llama.llama_batch_get_one(tokens, len(ids))):
            raise RuntimeError("llama_decode failed")
        logits = self._llama.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())

    def vision(self, picture: np.ndarray) -> dict[str, float]:
        """Preparation (part of tokenizing) and encoding of one picture."""
        mtmd = self._mtmd
        height, width, _ = picture.shape
        pixels = np.ascontiguousarray(picture).ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        started = time.perf_counter()
        bitmap = mtmd.mtmd_bitmap_init(width, height, pixels)
        chunks = mtmd.mtmd_input_chunks_init()
        marker = mtmd.mtmd_default_marker()
        text = mtmd.mtmd_input_text(marker, len(marker), False, True)
        bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        if mtmd.mtmd_tokenize(self._vision, chunks, ctypes.byref(text), bitmaps, 1):
            raise RuntimeError("mtmd_tokenize failed")
        tokens = 0
        for index in range(mtmd.mtmd_input_chunks_size(chunks)):
            chunk = mtmd.mtmd_input_chunks_get(chunks, index)
            if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                if mtmd.mtmd_encode_chunk(self._vision, chunk):
                    raise RuntimeError("mtmd_encode_chunk failed")
                tokens += mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        seconds = time.perf_counter() - started
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)
        return {"seconds": seconds, "tokens": tokens}


if __name__ == "__main__":
    main(LlamaCpp)
