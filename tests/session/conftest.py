"""One exported tiny checkpoint and one session over it, shared by the tests of this folder."""

from pathlib import Path

import pytest
from PIL import Image

from bench.tiny import TINY
from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt import Session


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "bundle"
    export_checkpoint(TINY, folder, "fp32")
    return folder


@pytest.fixture(scope="session")
def session(bundle) -> Session:
    with Session(bundle, max_length=2048, max_batch=2, threads=2) as session:
        yield session


@pytest.fixture(scope="session")
def desk(tmp_path_factory) -> Path:
    """A picture file with one red block."""
    picture = Image.new("RGB", (200, 140), (120, 130, 90))
    picture.paste((220, 20, 20), (40, 50, 90, 100))
    path = tmp_path_factory.mktemp("pictures") / "desk.png"
    picture.save(path)
    return path
