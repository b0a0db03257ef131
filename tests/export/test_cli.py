"""The command qwen2vl-export: outputs, exit codes, silence off a terminal, progress on one."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios

import pytest

from qwen2vl_export.cli import main
from qwen2vl_rt.bundle import Bundle


def test_export_prints_one_line(pristine_checkpoint, tmp_path, capsys):
    output = tmp_path / "bundle"
    assert (
        main(["--checkpoint", str(pristine_checkpoint), "--output", str(output), "--precision", "bf16"]) == 0
    )
    printed = capsys.readouterr()
    assert printed.out == f"{output}: {pristine_checkpoint.name}, bf16, 0.00 GB\n"
    assert printed.err == ""
    assert Bundle.open(output).precision == "bf16"


def test_default_output_is_named_after_the_model(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.rename("My-Model")
    assert main(["--checkpoint", "My-Model"]) == 0
    assert Bundle.open("my-model-fp32").name == "My-Model"


@pytest.mark.parametrize("arguments", [["--checkpoint", "nowhere"], ["--checkpoint", "."]])
def test_mistakes_are_one_line_and_exit_1(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--output", "bundle"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("qwen2vl-export: ")
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--size", "3b"],
        ["--size", "2b", "--checkpoint", "x"],
        ["--checkpoint", "x", "--precision", "int3"],
    ],
    ids=" ".join,
)
def test_wrong_options_exit_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: qwen2vl-export" in capsys.readouterr().err


def test_the_signal_handler_is_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    main(["--checkpoint", str(tmp_path / "nowhere")])
    assert signal.getsignal(signal.SIGTERM) is before


def test_progress_on_a_terminal(pristine_checkpoint, tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # 24 rows, 100 columns
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "qwen2vl_export.cli",
            "--checkpoint",
            pristine_checkpoint,
            "--output",
            "bundle",
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 4096):
            shown += block
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(ours)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert b"writing bundle: 100%" in shown
