"""The command line: output for people and for programs, exit codes, no traceback for a user's mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from qwen2vl_rt.cli import main

TINY = Path(__file__).parents[2] / "models" / "tiny"


def test_run_streams_the_answer_and_reports_timings(bundle, desk, capsys):
    assert main(["run", str(bundle), "What is there?", "--image", str(desk), "--max-new-tokens", "20"]) == 0
    output = capsys.readouterr()
    assert output.out.endswith("\n")
    assert "tok/s" in output.err


def test_run_json_holds_the_whole_answer(bundle, desk, capsys):
    arguments = [
        "run",
        str(bundle),
        "What?",
        "--image",
        str(desk),
        "--max-new-tokens",
        "5",
        "--json",
        "--quiet",
    ]
    assert main(arguments) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["usage"]["visual_tokens"] == 35
    assert output.err == ""


def test_run_draws_boxes(bundle, desk, tmp_path):
    target = tmp_path / "drawn.png"
    arguments = ["run", str(bundle), "Where is the red block?", "--image", str(desk), "--draw", str(target)]
    assert main([*arguments, "--max-new-tokens", "60"]) == 0
    assert Image.open(target).size == (200, 140)


def test_info_reports_geometry_and_plan(bundle, capsys):
    assert main(["info", str(bundle), "--verify", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bundle"]["verified"] and report["plan"]["fits"]
    assert main(["info", str(bundle), "--memory-limit", "1M"]) == 0
    assert "refused" in capsys.readouterr().err


def test_bench_prints_a_table(bundle, tmp_path, capsys):
    file = tmp_path / "bench.json"
    small = ["--pictures", "56x56", "--lengths", "16", "--decode-tokens", "4", "--json", str(file)]
    assert main(["bench", str(bundle), *small]) == 0
    assert "decode after 16" in capsys.readouterr().out
    assert all(figure["value"] > 0 for figure in json.loads(file.read_text())["figures"])


def test_eval_asks_as_many_questions_as_its_limit(bundle, tmp_path, capsys):
    file = tmp_path / "report.json"
    arguments = ["eval", str(bundle), "--set", str(TINY / "eval"), "--json", str(file)]
    assert main([*arguments, "--limit", "3"]) == 0
    assert json.loads(file.read_text())["tasks"]["all"]["asked"] == 3
    with pytest.raises(SystemExit):
        main([*arguments, "--limit", "0"])
    assert "'0' is not a whole number" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "no-such-bundle", "Hello"],
        ["run", "{bundle}", "Hello", "--image", "no-such-picture.png"],
        ["run", "{bundle}", "Hello", "--draw", "x.png"],
        ["run", "{bundle}", "Hello", "--memory-limit", "1M"],
        ["run", "{bundle}", "Hello", "--backend", "tpu"],
        ["eval", "{bundle}", "--set", "no-such-folder"],
    ],
)
def test_a_mistake_is_one_message_and_exit_code_1(bundle, capsys, arguments):
    assert main([argument.format(bundle=bundle) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("qwen2vl: ")
    assert "Traceback" not in error


def test_the_installed_command_answers(bundle):
    command = [
        sys.executable,
        "-m",
        "qwen2vl_rt",
        "run",
        str(bundle),
        "Hello",
        "--max-new-tokens",
        "2",
        "--quiet",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""
