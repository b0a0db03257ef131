"""A small checkpoint that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="session")
def pristine_checkpoint(tmp_path_factory) -> Path:
    from tests.support.random_model import random_model, save_checkpoint

    return save_checkpoint(random_model(21, layers=1, vision_depth=1), tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def checkpoint(pristine_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to change at will: untied, float32, one file, the newer tensor names."""
    return Path(shutil.copytree(pristine_checkpoint, tmp_path / "checkpoint"))
