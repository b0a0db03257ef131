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
from qwen2vl_rt.errors import BundleError


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


@pytest.mark.parametrize("checkpoint", ["nowhere", ".", "x" * 300, "loop"])
def test_mistakes_are_one_line_and_exit_1(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    assert main(["--checkpoint", checkpoint, "--output", "bundle"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("qwen2vl-export: ")
    assert printed.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


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


def test_a_line_that_cannot_be_printed_is_no_traceback(pristine_checkpoint, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")

    def export(stdout, output: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "qwen2vl_export.cli", "--checkpoint", pristine_checkpoint]
        return subprocess.run(
            [*command, "--output", tmp_path / output],
            stdout=stdout,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            timeout=120,
        )

    with open("/dev/full", "w") as full:
        done = export(full, "full")
    assert done.returncode == 1
    assert done.stderr == b"qwen2vl-export: cannot write the output: No space left on device\n"
    reading, writing = os.pipe()
    os.close(reading)
    done = export(writing, "pipe")
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
    done = export(subprocess.PIPE, "b\u00fcndel")
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"b\xfcndel: " in done.stdout


def test_paths_beyond_utf8(checkpoint, tmp_path, monkeypatch, capsys):
    """Of a checkpoint they may be, of a bundle not: ONNX Runtime would not open it."""
    place = tmp_path / os.fsdecode(b"lat\xe9")
    checkpoint.rename(place)
    bundle = tmp_path / "bundle"
    assert main(["--checkpoint", str(place), "--output", str(bundle)]) == 0
    monkeypatch.chdir(place)
    for output in (place / "bundle", "bundle"):
        assert main(["--checkpoint", str(place), "--output", str(output)]) == 1
        assert "is no UTF-8" in capsys.readouterr().err
    assert not (place / "bundle").exists()
    bundle.rename(place / "bundle")
    with pytest.raises(BundleError, match="is no UTF-8"):
        Bundle.open(place / "bundle")
