"""bench/compare: every runtime gets the same, one that breaks down or is missing doesn't stop the others."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from bench.compare import report, worker
from bench.compare.material import Prompts
from bench.compare.rounds import Found, Group, Protocol, to_json
from bench.compare.runtimes import OURS, ROOT, Contestant, Worker


def test_prompts_have_the_exact_length_and_never_repeat(bundle):
    prompts = Prompts(bundle)
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    seen = set()
    for _ in range(5):
        ids, text = prompts.next(40)
        assert ids == tokenizer.encode(text).ids and len(ids) == 40
        seen.add(text)
    assert len(seen) == 5
    assert Prompts(bundle).next(40)[1] in seen  # the next group's contestants read the same


def test_rounds_measure_what_is_there_and_go_on_past_a_breakdown(bundle, tmp_path):
    protocol = Protocol(prompt_tokens=24, new_tokens=5, pictures=((56, 56), (84, 56)), rounds=2)
    workers, lines = [], []
    for name, precision in (("good", "fp32"), ("broken", "fp32")):
        contestant = Contestant(OURS, precision)
        process = Worker(sys.executable, contestant, bundle, 1, tmp_path / f"{name}.log")
        workers.append((process, Found(contestant, {}, process.load_seconds)))
    workers[1][0]._process.kill()
    try:
        Group(workers, protocol, Prompts(bundle), tmp_path, lines.append).run()
    finally:
        for process, _ in workers:
            process.close()
    good, broken = (found for _, found in workers)
    assert good.error is None and broken.error in lines
    assert {name: len(values) for name, values in good.values.items()} == {
        "prefill": 2,
        "decode": 2,
        "vision 56x56": 2,
        "vision 84x56": 2,
    }
    assert all(value > 0 for values in good.values.values() for value in values)
    assert 50 << 20 < good.peak_bytes["vision 84x56"] < 8 << 30


def test_a_stopped_worker_ends_with_the_process_that_started_it(bundle, tmp_path):
    script = f"""
import os, signal, sys
from pathlib import Path
from bench.compare.runtimes import OURS, Contestant, Worker
contestant = Contestant(OURS, "fp32")
worker = Worker(sys.executable, contestant, Path({str(bundle)!r}), 1, Path({str(tmp_path / "log")!r}))
print(worker._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    parent = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.returncode == -signal.SIGKILL
    status = Path("/proc") / parent.stdout.strip() / "stat"
    for _ in range(100):
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the worker is still there")


def contestant(runtime: str, precision: str, **values: float) -> dict[str, object]:
    found = to_json(Found(Contestant(runtime, precision), {}, 1.0))
    return found | {"values": {name.replace("_", " "): [value] for name, value in values.items()}}


def test_ratios_are_against_the_best_of_all_and_of_as_many_bits():
    contestants = [
        contestant(OURS, "int4", prefill=300.0, vision=2.0),
        contestant(OURS, "int4-int8", prefill=900.0),
        contestant("A", "int4", prefill=200.0, vision=6.0),
        contestant("B", "q4_0", prefill=100.0, vision=4.0),
        contestant("C", "int8", prefill=600.0),
    ]
    found = report.ratios(contestants)
    assert found["int4"]["prefill"]["any"]["ratio"] == pytest.approx(0.5)
    assert found["int4"]["prefill"]["same"] == {"ratio": 1.5, "peer": "A int4", "peer_value": 200.0}
    assert found["int4"]["vision"]["any"]["ratio"] == pytest.approx(2.0)  # less time is better
    assert found["int4-int8"]["prefill"]["any"]["peer"] == "C int8"
    assert found["int4-int8"]["prefill"]["same"] is None


def test_a_runtime_that_is_not_installed_has_no_versions():
    assert worker._versions(("numpy", "no-such-runtime")) is None
    assert set(worker._versions(("numpy",))) == {"numpy"}
