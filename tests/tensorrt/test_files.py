"""Files that are written whole or not at all."""

from __future__ import annotations

import os

import pytest

from qwen2vl_rt.backends.tensorrt.files import write_whole


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "kept.check.json"
    write_whole(file, b"first")
    write_whole(file, memoryview(b"second"))

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_whole(file, b"third")
    assert file.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [file]
