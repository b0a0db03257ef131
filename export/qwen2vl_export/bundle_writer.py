"""Where a bundle is written: a hidden folder beside the target, renamed when it is complete.

So an export that is killed, fails or fills the disk leaves no half-written bundle. What a killed one
leaves behind is its hidden folder; the next export to the same target removes it (a lock tells whether its
writer still lives).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen2vl_export.errors import ExportError
from qwen2vl_rt.bundle import MANIFEST, SCHEMA_VERSION, FileEntry, is_utf8
from qwen2vl_rt.geometry import Geometry

_LOCK = ".lock"


class BundleWriter:
    """Collects the files of a bundle in `folder`; use through `writing`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, FileEntry] = {}

    def add(self, name: str, data: bytes) -> None:
        """Write a small file."""
        (self.folder / name).write_bytes(data)
        self.files[name] = FileEntry(len(data), hashlib.sha256(data).hexdigest())

    def add_json(self, name: str, value: Any) -> None:
        """Write a small JSON file."""
        self.add(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def finish(self, name: str, precision: str, geometry: Geometry, exporter_version: str) -> None:
        """Write the manifest, which makes the folder a bundle."""
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "name": name,
            "precision": precision,
            "exporter_version": exporter_version,
            "geometry": geometry.to_json(),
            "files": {file: {"size": e.size, "sha256": e.sha256} for file, e in sorted(self.files.items())},
        }
        (self.folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def writing(target: Path, force: bool, needed_bytes: int) -> Iterator[BundleWriter]:
    """Give a writer for the bundle `target`; on leaving without an error the bundle appears there, whole.

    Raises ExportError if `target` exists (unless `force`, which replaces a bundle or an empty folder and
    nothing else), if the disk has less than `needed_bytes` free, or if writing fails.
    """
    check_target(target, force)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        free = shutil.disk_usage(target.parent).free
        if free < needed_bytes:
            raise ExportError(
                f"{target.parent} has {free / 1e9:.1f} GB free, "
                f"the bundle needs {needed_bytes / 1e9:.1f} GB; "
                "make room or give another --output"
            )
        folder = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
    except OSError as error:
        raise _write_error(target, error) from error
    lock = None
    try:
        lock = _lock(folder)
        writer = BundleWriter(folder)
        yield writer
        check_target(target, force)  # again: something may have appeared there since
        (folder / _LOCK).unlink()
        folder.chmod(0o777 & ~_umask())  # mkdtemp's are private
        _publish(folder, target)
    except OSError as error:
        raise _write_error(target, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # nothing is left of it after the rename
        if lock is not None:
            os.close(lock)


def check_target(target: Path, force: bool) -> None:
    """Refuse a target before any work is done: one that exists, with `force` only what is not a bundle, and
    one whose path no session could open.
    """
    whole = target.absolute()
    if not is_utf8(whole):
        raise ExportError(
            f"{str(whole)!r} is no UTF-8, and ONNX Runtime opens no other path; give another --output"
        )
    if not os.path.lexists(target):
        return
    if not force:
        raise ExportError(f"{target} exists; give another --output, or --force to replace it")
    if not target.is_dir() or target.is_symlink():
        raise ExportError(f"{target} exists and is not a folder; --force replaces bundles only")
    try:
        replaceable = not any(target.iterdir()) or (target / MANIFEST).is_file()
    except OSError as error:
        raise _write_error(target, error) from error
    if not replaceable:
        raise ExportError(
            f"{target} exists and is not a bundle (no {MANIFEST}); --force replaces bundles only"
        )


def _publish(folder: Path, target: Path) -> None:
    """Put the finished folder in the target's place; an old bundle goes only once the new one is there."""
    if not target.exists():
        folder.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
    try:
        target.rename(old / "old")
        try:
            folder.rename(target)
        except OSError:
            (old / "old").rename(target)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _prefix(target: Path) -> str:
    return f".{target.name}.partial-"


def _lock(folder: Path) -> int:
    """Lock the folder for as long as this process lives; returns the lock's file descriptor."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _remove_abandoned(target: Path) -> None:
    """Remove what killed exports to this target left behind."""
    for folder in target.parent.glob(f"{glob.escape(_prefix(target))}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(folder / _LOCK, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its writer lives
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_error(target: Path, error: OSError) -> ExportError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ExportError(
            f"the disk is full ({error.strerror}) while writing {target}; make room or give another --output"
        )
    return ExportError(f"{target} cannot be written: {error.strerror or error}")
