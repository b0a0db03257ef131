"""One random checkpoint in several precisions, shared by the tests of this folder."""

from __future__ import annotations

import pytest

from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt.bundle import Bundle
from tests.support.random_model import random_model, save_checkpoint


@pytest.fixture(scope="session")
def bundles(tmp_path_factory) -> dict[str, Bundle]:
    """Of weights that bfloat16 holds exactly."""
    folder = tmp_path_factory.mktemp("lowering")
    model = random_model(3, tied=True).bfloat16().float()
    checkpoint = save_checkpoint(model, folder / "checkpoint")
    return {
        precision: export_checkpoint(checkpoint, folder / precision, precision)
        for precision in ("fp32", "bf16", "fp16", "int8", "int4")
    }
