"""One random checkpoint in every precision, shared by the tests of this folder."""

from __future__ import annotations

import pytest

from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt.bundle import PRECISIONS, Bundle
from tests.support.random_model import random_model, save_checkpoint


@pytest.fixture(scope="session")
def bundles(tmp_path_factory) -> dict[str, Bundle]:
    """Three query heads on each key/value head; sizes that blocks of 128 divide."""
    folder = tmp_path_factory.mktemp("tensorrt")
    model = random_model(
        3, tied=True, hidden_size=384, heads=6, kv_heads=2, mlp_size=512, mrope_section=(8, 12, 12)
    )
    checkpoint = save_checkpoint(model.bfloat16().float(), folder / "checkpoint")
    return {
        precision: export_checkpoint(checkpoint, folder / precision, precision) for precision in PRECISIONS
    }
