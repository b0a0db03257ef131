"""The command line: output for people and for programs, exit codes, no traceback for a user's mistake."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.tiny import TINY
from qwen2vl_rt.boxes import Box, draw_boxes
from qwen2vl_rt.cli import info, main, output
from qwen2vl_rt.errors import BackendError


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


def test_run_draws_boxes(bundle, desk, tmp_path, capsys):
    target = tmp_path / "drawn.png"
    arguments = ["run", str(bundle), "Where is the red block?", "--image", str(desk), "--draw", str(target)]
    assert main([*arguments, "--max-new-tokens", "60", "--json"]) == 0
    (box,) = (Box(**found) for found in json.loads(capsys.readouterr().out)["boxes"])
    drawn, original = (np.asarray(Image.open(file)) for file in (target, desk))
    np.testing.assert_array_equal(drawn, np.asarray(draw_boxes(desk, [box])))
    changed = (drawn != original).any(axis=-1)
    assert changed[75, int(box.x1)] and changed[75, int(box.x2)] and not changed[60:90, 50:80].any()


def test_info_reports_geometry_and_plan(bundle, capsys):
    assert main(["info", str(bundle), "--verify", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bundle"]["verified"] and report["plan"]["fits"]
    assert main(["info", str(bundle), "--memory-limit", "1M"]) == 0
    assert "refused" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threads", "-1"], "threads is -1"),
        (["--threads", "99999"], "threads is 99999"),
        (["--memory-limit", "0"], "memory_limit is 0"),
        (["--backend", "foo"], "no backend 'foo'"),
    ],
)
def test_info_refuses_what_a_session_does(bundle, capsys, options, message):
    assert main(["info", str(bundle), *options]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["cuda", "tensorrt"])
def test_info_plans_no_other_backend_than_the_one_asked_for(bundle, monkeypatch, capsys, backend):
    def missing(*_):
        raise BackendError("nothing is plugged in")

    monkeypatch.setattr("qwen2vl_rt.backends.select.select_backend", missing)
    assert main(["info", str(bundle), "--backend", backend]) == 0
    printed = capsys.readouterr().out
    assert "no memory plan: nothing is plugged in" in printed and "KV cache" not in printed
    assert main(["info", str(bundle), "--backend", backend, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["plan"] is None and report["runtime"]["backend"]["name"] is None


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "b", "Hello", "--memory-limit", "inf"], "'inf' is not a size"),
        (["run", "b", "Hello", "--draw", "{folder}"], "is a folder"),
        (["run", "b", "Hello", "--draw", "{folder}/x.xyz"], "'.xyz' names no format for pictures"),
        (["run", "b", "Hello", "--draw", "{folder}/x"], "'' names no format for pictures"),
        (["run", "b", "Hello", "--draw", "{folder}/x.psd"], "'.psd' names no format for pictures"),
        (["run", "b", "Hello", "--draw", "{folder}/x.xbm"], "'.xbm' names no format for pictures"),
        (["eval", "b", "--set", "s", "--json", "{folder}/none/report.json"], "there is no folder"),
        (["bench", "b", "--json", "{folder}/none/report.json"], "there is no folder"),
        (["bench", "b", "--markdown", "{folder}/locked/report.md"], "permission denied"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_runs(tmp_path, capsys, monkeypatch, arguments, message):
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path).name != "locked")  # root may do all
    with pytest.raises(SystemExit):
        main([argument.format(folder=tmp_path) for argument in arguments])
    assert message in capsys.readouterr().err


def test_a_file_that_cannot_be_written_after_all_is_one_message(bundle, desk, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: True)  # a folder may be taken away during the run
    arguments = ["eval", str(bundle), "--set", str(TINY / "eval"), "--limit", "1", "--json", "/proc/report"]
    assert main(arguments) == 1
    assert "qwen2vl: Cannot write /proc/report" in capsys.readouterr().err


def test_a_pictures_limit_is_the_sessions_too(bundle, desk, capsys):
    """A limit over the bundle's own is a larger plan, not a refusal that only Python can answer."""
    arguments = ["run", str(bundle), "Hello", "--image", str(desk), "--max-new-tokens", "1", "--json"]
    assert main([*arguments, "--max-pixels", "1000000", "--min-pixels", "900000"]) == 0
    assert json.loads(capsys.readouterr().out)["usage"]["visual_tokens"] > 1000


def test_output_that_nobody_takes_is_no_traceback():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    command = [sys.executable, "-m", "qwen2vl_rt", "info"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr == "qwen2vl: cannot write the output: No space left on device\n"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_letters_that_the_terminal_lacks(bundle, tmp_path, monkeypatch):
    place = tmp_path / "b\u00fcndel"
    place.symlink_to(bundle)
    taken = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(taken, encoding="ascii"))
    assert main(["info", str(place), "--json"]) == 0
    assert json.loads(taken.getvalue())["bundle"]["path"] == str(place)
    output.accept_any_text()
    print("b\u00fcndel", end="", flush=True)
    assert taken.getvalue().endswith(b"b\\xfcndel")


def test_standard_input_that_is_no_text(bundle, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff"), encoding="utf-8"))
    assert main(["run", str(bundle), "-"]) == 1
    assert "Standard input is not utf-8 text" in capsys.readouterr().err


def test_an_interrupt_ends_with_130_from_the_imports_on(monkeypatch):
    def interrupted(_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "execute", interrupted)
    assert main(["info"]) == 130
    # What takes long to import is imported inside the handler, most of it by the commands as they run.
    long = {"PIL", "jinja2", "numpy", "onnx", "onnxruntime", "tokenizers", "tqdm"}
    code = f"import sys, qwen2vl_rt.cli.main; print({long} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("seed", ["-1", str(2**64)])
def test_a_seed_out_of_range_is_one_message(bundle, capsys, seed):
    assert main(["run", str(bundle), "Hello", "--seed", seed]) == 1
    assert f"qwen2vl: seed is {seed}" in capsys.readouterr().err
