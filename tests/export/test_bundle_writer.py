"""A bundle appears whole or not at all: killed exports, full disks, existing outputs."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections import namedtuple
from pathlib import Path

import pytest

from qwen2vl_export import bundle_writer, weights
from qwen2vl_export.errors import ExportError
from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt.bundle import MANIFEST, Bundle

Usage = namedtuple("Usage", "total used free")

# Runs the command, but stops for good in the middle of the decoder's weights and says so on stdout.
STALLING = textwrap.dedent("""
    import sys, time
    from qwen2vl_export import cli, sources
    blocks = sources.CheckpointSource.blocks
    def stalling(self, weight):
        if weight.name == "layers.0.mlp.gate.weight":
            print("stalled", flush=True)
            time.sleep(600)
        return blocks(self, weight)
    sources.CheckpointSource.blocks = stalling
    sys.exit(cli.main(sys.argv[1:]))
""")


def stalled_export(checkpoint: Path, output: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", STALLING, "--checkpoint", str(checkpoint), "--output", str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs with Ctrl-C ignored, and their children inherit it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "stalled\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_killed_export_leaves_no_bundle_and_the_next_one_cleans_up(pristine_checkpoint, tmp_path):
    output = tmp_path / "bundle"
    process = stalled_export(pristine_checkpoint, output)
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()
    assert not output.exists()
    (left,) = names(tmp_path)
    assert left.startswith(".bundle.partial-")
    assert not (tmp_path / left / MANIFEST).exists()

    export_checkpoint(pristine_checkpoint, output).verify()
    assert names(tmp_path) == ["bundle"]


def test_export_beside_a_living_one_leaves_it_alone(pristine_checkpoint, tmp_path):
    output = tmp_path / "bundle"
    process = stalled_export(pristine_checkpoint, output)
    try:
        export_checkpoint(pristine_checkpoint, output)
        assert len(names(tmp_path)) == 2
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", ["bundle", "bundle [1]", "*"])
def test_what_a_killed_export_left_is_removed_whatever_the_name(name, pristine_checkpoint, tmp_path):
    for left in (f".{name}.partial-x", ".other.partial-y"):
        (tmp_path / left).mkdir()
        (tmp_path / left / ".lock").touch()
    export_checkpoint(pristine_checkpoint, tmp_path / name)
    assert names(tmp_path) == sorted([".other.partial-y", name])


@pytest.mark.parametrize("force", [False, True], ids=["plain", "force"])
def test_what_appears_at_the_target_meanwhile_is_left_alone(force, pristine_checkpoint, tmp_path):
    """An export may take hours: the target is looked at again before anything there is replaced."""
    target = tmp_path / "bundle"

    def appear(_total):
        target.mkdir()
        (target / "thesis.txt").write_text("do not delete")

    with pytest.raises(ExportError, match="bundle exists"):
        export_checkpoint(pristine_checkpoint, target, force=force, progress=once(appear))
    assert (target / "thesis.txt").read_text() == "do not delete"
    assert names(tmp_path) == ["bundle"]


def once(call):
    """A function that passes on its first call only."""
    calls = []

    def called(*arguments):
        if not calls:
            call(*arguments)
        calls.append(arguments)

    return called


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT], ids=["terminated", "interrupted"])
def test_polite_kill_leaves_nothing(which, pristine_checkpoint, tmp_path):
    process = stalled_export(pristine_checkpoint, tmp_path / "bundle")
    process.send_signal(which)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr == "qwen2vl-export: interrupted; no bundle was written\n"
    assert names(tmp_path) == []


def test_full_disk_is_known_before_writing(pristine_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_writer.shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(ExportError, match=r"0\.0 GB free, the bundle needs 0\.1 GB"):
        export_checkpoint(pristine_checkpoint, tmp_path / "bundle")
    assert names(tmp_path) == []


class FullDisk:
    """A file whose disk has room for `room` more bytes."""

    def __init__(self, stream, room: int):
        self.stream, self.room = stream, room

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()

    def write(self, data) -> int:
        count = min(len(data), self.room, 50_000)  # and a write may take only a part
        if data and not count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= count
        return self.stream.write(data[:count])


def full_disk(room: int):
    """Return an `open` whose files find a disk with so much room."""

    def open_on_it(*arguments, **options):
        return FullDisk(open(*arguments, **options), room)

    return open_on_it


@pytest.mark.parametrize("existing", [False, True], ids=["new", "replacing"])
def test_disk_that_fills_up_while_writing(existing, pristine_checkpoint, tmp_path, monkeypatch):
    output = tmp_path / "bundle"
    if existing:
        before = export_checkpoint(pristine_checkpoint, output)
    monkeypatch.setattr(weights, "open", full_disk(200_000), raising=False)
    with pytest.raises(ExportError, match="the disk is full"):
        export_checkpoint(pristine_checkpoint, output, force=existing)
    assert names(tmp_path) == (["bundle"] if existing else [])
    if existing:
        assert Bundle.open(output) == before


def test_partial_writes_are_completed(pristine_checkpoint, tmp_path, monkeypatch):
    expected = export_checkpoint(pristine_checkpoint, tmp_path / "expected").files
    monkeypatch.setattr(weights, "open", full_disk(10**9), raising=False)
    found = export_checkpoint(pristine_checkpoint, tmp_path / "found")
    found.verify()
    assert found.files == expected


def test_existing_output_needs_force(pristine_checkpoint, tmp_path):
    output = tmp_path / "bundle"
    export_checkpoint(pristine_checkpoint, output)
    with pytest.raises(ExportError, match=r"bundle exists.*--force"):
        export_checkpoint(pristine_checkpoint, output)
    assert export_checkpoint(pristine_checkpoint, output, "bf16", force=True).precision == "bf16"
    assert names(tmp_path) == ["bundle"]


def test_force_replaces_bundles_only(pristine_checkpoint, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("do not delete")
    with pytest.raises(ExportError, match="is not a bundle"):
        export_checkpoint(pristine_checkpoint, precious, force=True)
    with pytest.raises(ExportError, match="is not a folder"):
        export_checkpoint(pristine_checkpoint, precious / "thesis.txt", force=True)
    (tmp_path / "link").symlink_to(precious)
    with pytest.raises(ExportError, match="is not a folder"):
        export_checkpoint(pristine_checkpoint, tmp_path / "link", force=True)
    assert (precious / "thesis.txt").read_text() == "do not delete"


def failing(path: Path, name: str, monkeypatch):
    """Let `Path.name` of this path be forbidden: tests may run as root, who may do everything."""
    method = getattr(Path, name)

    def forbidden(self, *arguments):
        if self == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return method(self, *arguments)

    monkeypatch.setattr(Path, name, forbidden)


@pytest.mark.parametrize("forbidden", ["iterdir", "rename"])
def test_a_bundle_that_may_not_be_replaced(forbidden, pristine_checkpoint, tmp_path, monkeypatch):
    before = export_checkpoint(pristine_checkpoint, tmp_path / "bundle")
    failing(tmp_path / "bundle", forbidden, monkeypatch)
    with pytest.raises(ExportError, match="bundle cannot be written: Permission denied"):
        export_checkpoint(pristine_checkpoint, tmp_path / "bundle", force=True)
    monkeypatch.undo()
    assert names(tmp_path) == ["bundle"]
    assert Bundle.open(tmp_path / "bundle") == before


def test_the_folder_one_is_in_can_be_the_output(pristine_checkpoint, tmp_path, monkeypatch):
    """Replacing it leaves the process without a working folder; the bundle is found all the same."""
    (tmp_path / "bundle").mkdir()
    monkeypatch.chdir(tmp_path / "bundle")
    bundle = export_checkpoint(pristine_checkpoint, ".", force=True)
    assert bundle == Bundle.open(tmp_path / "bundle")


def test_output_below_a_file(pristine_checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"):
        export_checkpoint(pristine_checkpoint, tmp_path / "file" / "bundle")


def test_missing_parents_are_made_and_the_bundle_is_readable(pristine_checkpoint, tmp_path):
    bundle = export_checkpoint(pristine_checkpoint, tmp_path / "a" / "b" / "bundle")
    mask = os.umask(0)
    os.umask(mask)
    assert bundle.path.stat().st_mode & 0o777 == 0o777 & ~mask
    assert names(tmp_path / "a" / "b") == ["bundle"]


def test_abandoned_folder_is_only_removed_for_its_own_target(pristine_checkpoint, tmp_path):
    for name in (".bundle.partial-x", ".other.partial-y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".lock").touch()
    export_checkpoint(pristine_checkpoint, tmp_path / "bundle")
    assert names(tmp_path) == [".other.partial-y", "bundle"]
