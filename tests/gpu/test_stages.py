"""What `make bench-gpu` runs on another machine: stages and their states, wheels in pieces."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import gpu, gpu_report
from bench.gpu_report import Settings, Stage
from qwen2vl_rt.tensorrt import target

ROOT = Path(__file__).parents[2]


def stage(code: str, measures: bool = True) -> Stage:
    return Stage(lambda settings: [settings.python, "-c", code], 60, measures)


STAGES = {
    "passes": stage("import sys; open(sys.argv[1], 'w').write('{\"figures\": []}')"),
    "is skipped": stage("import sys; open(sys.argv[1], 'w').write('{\"skipped\": \"no use\"}')"),
    "fails": stage("raise SystemExit('broken')", measures=False),
    "fails later": stage("import sys; open(sys.argv[1], 'w').write('{\"skipped\": \"no use\"}'); exit(3)"),
}


@pytest.mark.parametrize(
    ("names", "status"), [(["passes", "is skipped"], 0), (["passes", "fails"], 1), (["fails later"], 1)]
)
def test_a_stage_that_is_skipped_is_no_failure(tmp_path, monkeypatch, names, status):
    monkeypatch.setattr(gpu_report, "STAGES", STAGES)
    arguments = ["--stages", *names, "--output", str(tmp_path / "report"), "--work", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gpu_report.py", *arguments])
    assert gpu_report.main() == status
    found = json.loads((tmp_path / "report.json").read_text())
    states = {"passes": "passed", "is skipped": "skipped", "fails": "failed", "fails later": "failed"}
    assert {name: one["state"] for name, one in found.items()} == {name: states[name] for name in names}
    report = (tmp_path / "report.md").read_text()
    assert ("| is skipped | skipped |" in report and "| no use |" in report) == ("is skipped" in names)


def test_tensorrt_is_skipped_where_it_does_not_support_the_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "compute_capability", lambda: (9, 0))
    monkeypatch.setattr(target, "installed_editions", list)
    settings = Settings(sys.executable, tmp_path, tmp_path, tmp_path)
    _, *command = gpu_report.STAGES["2b-bf16-tensorrt"].command(settings)
    monkeypatch.setattr(sys, "argv", [*command, str(tmp_path / "result.json")])
    gpu.main()
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["skipped"].startswith("TensorRT is not installed")
    assert not (tmp_path / "bundles").exists()


def test_wheels_are_joined_when_all_their_pieces_are_there(tmp_path):
    whole = bytes(range(256)) * 40
    (tmp_path / "a.whl.sha256").write_text(f"{hashlib.sha256(whole).hexdigest()}  -\n")
    for piece, begin in (("ab", 4000), ("aa", 0), ("ac", 8000)):  # carried in any order
        (tmp_path / f"a.whl.part-{piece}").write_bytes(whole[begin : begin + 4000])
        joined = subprocess.run(
            ["sh", ROOT / "cmake" / "join-wheels.sh", tmp_path], capture_output=True, text=True, check=False
        )
        complete = piece == "ac"
        assert joined.returncode == (0 if complete else 1), joined.stderr
        assert ("a piece or its .sha256 is missing" in joined.stderr) != complete
        assert (tmp_path / "a.whl").exists() == complete
    assert (tmp_path / "a.whl").read_bytes() == whole
    assert not (tmp_path / "a.whl.partial").exists()
