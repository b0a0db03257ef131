"""What the parts of a session take on the CPU: `python -m tests.support.memory_by_part BUNDLE MEASUREMENT`.

A measurement is a process of its own, to which nothing else has left memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import numpy as np

from qwen2vl_rt import Session
from qwen2vl_rt.benchmark.inputs import random_visual
from qwen2vl_rt.peak_memory import peak_memory, reset_peak, resident_memory

SIDE, SMALL, SMALL_PICTURE = 672, 56, 280  # of pictures
LENGTH, ROWS = 1024, 4  # of long prompts, computed in one step
SHORT, MANY_ROWS = 32, 128

Parts = dict[str, tuple[int, int]]  # planned and taken, bytes


def taken(call: Callable[[], object]) -> int:
    """Bytes that a call needs beyond those in use before."""
    reset_peak()
    before = resident_memory()
    call()
    return peak_memory() - before


def open_session(bundle: str, **limits: int) -> Session:
    """A session whose weights have been read."""
    session = Session(bundle, backend="cpu", threads=2, **limits)
    picture = np.zeros((SMALL, SMALL, 3), np.uint8)
    session.generate("?", images=[picture], max_new_tokens=2, ignore_eos=True)
    return session


def picture(bundle: str) -> Parts:
    """The weights, and the largest picture."""
    length = (SIDE // 28) ** 2  # no more patches in a call than the picture has
    with open_session(bundle, max_length=length, max_pixels=SIDE**2, prefill_chunk=SHORT) as session:
        planned = session.plan().parts
        weights = sum(size for name, size in planned.items() if "weights" in name or name == "lm_head")
        parts = {"weights": (weights, resident_memory())}
        visual = random_visual(session.bundle.geometry, SIDE, SIDE, np.random.default_rng(0))
        return parts | {"vision": (planned["vision"], taken(lambda: session._model.encode([visual])))}


def logits(bundle: str) -> Parts:
    """Logits and samplers of many rows, and their little cache."""
    limits = {"max_length": SHORT, "max_batch": MANY_ROWS, "max_pixels": SMALL**2, "prefill_chunk": SHORT}
    with open_session(bundle, **limits) as session:
        planned = session.plan().parts
        options = {"max_new_tokens": 4, "ignore_eos": True, "presence_penalty": 0.1}
        rows = taken(lambda: session.generate_batch(["?"] * MANY_ROWS, **options))
        return {"logits": (planned["prefill and decode"] + planned["KV cache"], rows)}


def prompts(bundle: str) -> Parts:
    """Prompts of many lengths in one row, then long ones in all rows."""
    limits = {"max_length": LENGTH, "max_batch": ROWS, "max_pixels": SMALL**2, "prefill_chunk": LENGTH}
    with open_session(bundle, **limits) as session:
        plan = session.plan()
        row = plan.parts["KV cache"] // ROWS
        options = {"max_new_tokens": 2, "ignore_eos": True}

        def text(tokens: int, row: int = 0) -> str:
            return f"{row} {tokens}" + "x " * (tokens // 2 - 16)

        def one_row() -> None:
            for tokens in (LENGTH, 350, 900, 175, LENGTH):
                session.generate(text(tokens), **options)

        def all_rows() -> None:
            session.generate_batch([text(LENGTH, row) for row in range(ROWS)], **options)

        prefill = taken(one_row)
        return {
            "prefill": (plan.parts["prefill and decode"] + row, prefill),
            "KV cache": (plan.parts["KV cache"] - row, taken(all_rows)),
        }


def pictures(bundle: str) -> Parts:
    """Prompts that are small pictures only, in all rows: with that, everything."""
    limits = {"max_length": LENGTH, "max_batch": ROWS, "max_pixels": SMALL_PICTURE**2, "prefill_chunk": SHORT}
    with open_session(bundle, **limits) as session:
        plan = session.plan()
        rng, shape = np.random.default_rng(0), (SMALL_PICTURE, SMALL_PICTURE, 3)
        count = LENGTH // ((SMALL_PICTURE // 28) ** 2 + 8)
        prompt = {"prompt": "?", "images": [rng.integers(0, 256, shape, np.uint8) for _ in range(count)]}
        rows = taken(
            lambda: session.generate_batch(
                [prompt] * ROWS, max_new_tokens=2, ignore_eos=True, max_pixels=SMALL_PICTURE**2
            )
        )
        parts = ("pictures of prompts", "vision", "prefill and decode", "KV cache")
        planned = sum(plan.parts[name] for name in parts)
        return {"pictures": (planned, rows), "all": (plan.total, peak_memory())}


if __name__ == "__main__":
    measurements = {"picture": picture, "logits": logits, "prompts": prompts, "pictures": pictures}
    measure = measurements[sys.argv[2]]
    json.dump(measure(sys.argv[1]), sys.stdout)
