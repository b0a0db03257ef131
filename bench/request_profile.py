"""Where one request's time goes on the CPU, by stage and operator: a picture, a prompt, an answer.

    python -m bench.request_profile BUNDLE --picture 448x448 --answer 64 [--output FILE.md]

ONNX Runtime's profiler times every operator; what a stage takes beyond its operators is the project's own
code (embedding, sampling, text, handing over) and ONNX Runtime's between them. Profiling itself costs a few
percent at one token a step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from qwen2vl_rt.backends.cpu import executors, onnx_session
from qwen2vl_rt.backends.cpu.backend import CpuBackend
from qwen2vl_rt.benchmark import random_picture
from qwen2vl_rt.bundle import PREFILL_GRAPH, VISION_GRAPH, Bundle
from qwen2vl_rt.cli.bench import size
from qwen2vl_rt.loaded_model import LoadedModel
from qwen2vl_rt.options import GenerationOptions
from qwen2vl_rt.processing.processor import Processor
from qwen2vl_rt.session_limits import AskedLimits

QUESTION = "What is in the picture? Name every object, its colour and its place."
FEW = 0.01  # of a stage: operators below are summed up


class ProfiledOptions(ort.SessionOptions):
    """Session options that switch the profiler on; each writes a file of its own."""

    folder = ""
    number = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.enable_profiling = True
        name = f"profile-{next(ProfiledOptions.number)}"
        self.profile_file_prefix = os.path.join(ProfiledOptions.folder, name)


class ProfiledSession(onnx_session.OnnxSession):
    """Keeps every session, to read its profile at the end."""

    made: list[tuple[str, ort.InferenceSession]] = []  # noqa: RUF012

    def __init__(self, model: Any, *arguments: Any, **keywords: Any) -> None:
        super().__init__(model, *arguments, **keywords)
        ProfiledSession.made.append((model.graph.name, self._session))


def runs_of(session: ort.InferenceSession) -> list[Counter]:
    """Microseconds by operator for each run of a session, in order."""
    events = json.loads(Path(session.end_profiling()).read_text())
    runs = [e for e in events if e.get("cat") == "Session" and e["name"] == "model_run"]
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    runs.sort(key=lambda event: event["ts"])
    starts = np.array([run["ts"] for run in runs])
    times = [Counter() for _ in runs]
    for node in nodes:
        index = int(np.searchsorted(starts, node["ts"], side="right")) - 1
        if index >= 0:
            times[index][node["args"]["op_name"]] += node["dur"]
    return times


def profile(
    path: Path, picture: tuple[int, int], answer_tokens: int, threads: int
) -> tuple[dict[str, float], dict[str, Counter], int]:
    """Seconds by stage, seconds by stage and operator, and the prompt's length."""
    bundle = Bundle.open(path)
    processor = Processor(bundle.path, bundle.geometry)
    limits = AskedLimits(max_length=4096).for_bundle(bundle)
    rng = np.random.default_rng(0)
    width, height = picture
    with tempfile.TemporaryDirectory() as folder:
        ProfiledOptions.folder = folder
        ort.SessionOptions, executors.OnnxSession = ProfiledOptions, ProfiledSession
        model = LoadedModel(bundle, limits, processor.tokenizer, threads, CpuBackend("measured"))
        options = [GenerationOptions(max_new_tokens=answer_tokens, ignore_eos=True)]
        for _ in range(2):  # the first warms up; both are in the profile
            prompt_started = time.perf_counter()
            prompt = processor.prepare(
                QUESTION,
                images=[random_picture(width, height, rng)],
                resized_width=width,
                resized_height=height,
            )
            prepared = time.perf_counter() - prompt_started
            (result,), vision = model.generate([prompt], options)
        operators: dict[str, Counter] = defaultdict(Counter)
        steps = len(result.token_ids) - 1
        for name, session in ProfiledSession.made:
            _sort_into(operators, name, runs_of(session), steps)
    seconds = {
        "preparation": prepared,
        "vision": vision,
        "prefill": result.prefill_seconds,
        "decode": result.decode_seconds,
    }
    return seconds, operators, len(prompt.token_ids)


def _sort_into(operators: dict[str, Counter], name: str, runs: list[Counter], steps: int) -> None:
    """Add a session's second request: it ran either one stage only, or prompts and then `steps` tokens."""
    second = runs[len(runs) // 2 :]
    if name.startswith(Path(VISION_GRAPH).stem):
        parts = {"vision": second}
    elif name.startswith(Path(PREFILL_GRAPH).stem):
        parts = {"prefill": second}
    else:
        parts = {"prefill": second[: len(second) - steps], "decode": second[len(second) - steps :]}
    for stage, part in parts.items():
        for run in part:
            operators[stage].update({kind: duration / 1e6 for kind, duration in run.items()})


def markdown(title: str, seconds: dict[str, float], operators: dict[str, Counter]) -> str:
    """A table of stages and their operators."""
    total = sum(seconds.values())
    lines = [title, "", "| stage | operator | seconds | of the stage |", "|---|---|---|---|"]
    for stage, spent in seconds.items():
        lines.append(f"| **{stage}** | | **{spent:.3f}** | **{spent / total:.0%} of the request** |")
        rest = spent
        for kind, duration in operators.get(stage, Counter()).most_common():
            if duration < FEW * spent:
                break
            rest -= duration
            lines.append(f"| | {kind} | {duration:.3f} | {duration / spent:.0%} |")
        if stage in operators:
            lines.append(f"| | everything else | {rest:.3f} | {rest / spent:.0%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Profile, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--picture", type=size, default=(448, 448), metavar="WxH")
    parser.add_argument("--answer", type=int, default=64, help="tokens")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    seconds, operators, tokens = profile(options.bundle, options.picture, options.answer, options.threads)
    width, height = options.picture
    title = (
        f"{Bundle.open(options.bundle).precision}: a picture of {width}x{height}, a prompt of {tokens} "
        f"tokens with it, an answer of {options.answer}"
    )
    page = markdown(title, seconds, operators)
    print(page)
    if options.output:
        options.output.write_text(page)


if __name__ == "__main__":
    main()
