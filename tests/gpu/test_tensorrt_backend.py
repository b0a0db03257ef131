"""The tensorrt backend on a GPU: engines are built, checked and run here, or refused in our own words."""

from __future__ import annotations

import json

import numpy as np
import pytest

import qwen2vl_rt
from bench.tiny import TINY
from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt.backends.select import select_backend
from qwen2vl_rt.backends.tensorrt.build import build_engines
from qwen2vl_rt.backends.tensorrt.edition import installed_editions
from qwen2vl_rt.backends.tensorrt.gpu import compute_capability
from qwen2vl_rt.backends.tensorrt.target import choose_target, edition_problem
from qwen2vl_rt.errors import BackendError
from qwen2vl_rt.session_limits import SessionLimits

pytestmark = pytest.mark.gpu

LIMITS = SessionLimits(max_length=512, max_batch=2, max_pixels=112 * 112, prefill_chunk=64)
QUESTIONS = [
    {"prompt": "Describe the picture.", "images": [np.full((56, 84, 3), 90, np.uint8)]},
    {"prompt": "What colour is the circle?", "images": [np.zeros((84, 56, 3), np.uint8)]},
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int4"])
@pytest.mark.parametrize("attention", ["lengths", "mask", "primitives"])
def test_self_check_and_answers(tmp_path, precision, attention):
    """Every form passes; answers repeat through recorded steps, and are the CPU's where float32 computes."""
    if problem := edition_problem(compute_capability()):
        pytest.skip(problem)
    edition = installed_editions()[0]
    bundle = export_checkpoint(TINY, tmp_path / precision, precision)
    exact = precision == "fp32" and (edition.attends_in_float32 or attention == "primitives")
    build_engines(
        bundle,
        edition,
        choose_target("this", edition),
        LIMITS,
        attention=attention,
        number_format="fp32" if exact else None,
    )
    answers = []
    for backend in ("tensorrt", "tensorrt", "cpu"):
        with qwen2vl_rt.Session(bundle.path, backend=backend, max_batch=2, max_pixels=112 * 112) as session:
            for _ in range(3):
                found = session.generate_batch(QUESTIONS, max_new_tokens=24)
                answers.append([answer.token_ids for answer in found])
    assert all(answer == answers[0] for answer in answers[:6])
    if exact:
        assert answers[0] == answers[-1]
    reports = [json.loads(path.read_text()) for path in (bundle.path / "engines").glob("*.check.json")]
    print(json.dumps(reports))
    assert len(reports) == 1, f"attention {attention!r} was wrong here, and the mask took over: {reports}"
    assert all(value <= reports[0]["allowed"] for value in reports[0]["figures"].values())


def test_a_gpu_that_no_edition_supports(tmp_path):
    """An H100 or H200 with TensorRT for RTX."""
    if not edition_problem(compute_capability()):
        pytest.skip("the installed TensorRT supports this GPU")
    bundle = export_checkpoint(TINY, tmp_path / "bf16", "bf16")
    with pytest.raises(BackendError, match="The tensorrt backend can't run here: "):
        qwen2vl_rt.Session(bundle.path, backend="tensorrt")
    assert select_backend("auto", bundle).name in ("cuda", "cpu")
