"""Memory plans: what a refusal advises, and what a session takes beside what was planned for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.random_bundle import write_random_bundle
from bench.random_checkpoint import published_config
from qwen2vl_rt import MemoryLimitError, Session
from qwen2vl_rt.backends.cpu.plan import plan_cpu
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.plan import PROCESS_BYTES
from qwen2vl_rt.session_limits import AskedLimits


def test_a_length_that_leaves_no_room_for_a_prompt_is_not_advised_alone(bundle):
    opened = Bundle.open(bundle)
    fits = plan_cpu(opened, AskedLimits(max_length=500).for_bundle(opened)).total
    with pytest.raises(MemoryLimitError, match="max_length=448 with max_new_tokens lowered from 512"):
        Session(bundle, memory_limit=fits)
    fits = plan_cpu(opened, AskedLimits(max_length=600).for_bundle(opened)).total
    with pytest.raises(MemoryLimitError, match=r"max_length=576( or|\.)"):
        Session(bundle, memory_limit=fits)


def test_sizes_of_a_refusal_differ(bundle):
    opened = Bundle.open(bundle)
    needed = plan_cpu(opened, AskedLimits().for_bundle(opened)).total
    with pytest.raises(MemoryLimitError, match=f"needs {needed:,} bytes and may use {needed - 1:,} bytes"):
        Session(bundle, memory_limit=needed - 1)
    with pytest.raises(MemoryLimitError, match=r"MiB and may use 1024 bytes\."):
        Session(bundle, memory_limit=1024)


ROOT = Path(__file__).parents[2]

# Narrow, so that it computes little, and wide where memory is: caches, vocabulary, activations.
DECODER = {"hidden_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 2048}
VISION = {"depth": 1, "hidden_size": 512, "embed_dim": 320, "num_heads": 4}


def measured(bundle: Path, measurement: str) -> dict[str, tuple[int, int]]:
    """Bytes planned and taken, by part."""
    command = [sys.executable, "-m", "tests.support.memory_by_part", bundle, measurement]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=120)
    return json.loads(run.stdout)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_a_session_takes_what_was_planned(tmp_path, precision):
    """By part, each within a factor that shows if half of it, or twice as much, were planned."""
    config = published_config("2b", layers=4) | DECODER | {"vocab_size": 32768}
    config["vision_config"] |= VISION
    bundle = write_random_bundle(tmp_path / precision, config, precision, distinct=True).path
    parts = {}
    for measurement in ("picture", "logits", "prompts", "pictures"):
        parts |= measured(bundle, measurement)
    for name, (planned, taken) in parts.items():
        print(f"{name}: {taken >> 20} MiB of {planned >> 20}")
    planned, taken = parts.pop("weights")
    assert planned <= taken <= planned + PROCESS_BYTES
    shares = {name: taken / planned for name, (planned, taken) in parts.items()}
    assert 0.95 < shares["KV cache"] < 1.1
    assert 0.7 < shares["logits"] < 1.1
    assert 0.52 < shares["vision"] < 1  # quantized towers take less than float ones
    assert 0.55 < shares["prefill"] < 1
    assert 0.6 < shares["all"] < 1
    assert 0.6 < shares["pictures"] < 1
