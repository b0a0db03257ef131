"""The emulated GPU finds races: kernels that have one on purpose, and the same ones without it."""

from __future__ import annotations

import pytest

from tests.gpu import emulation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not emulation.is_emulated(), reason="needs the emulated GPU (make test-emulated)"),
]
EXAMPLES = emulation.race_examples()


@pytest.mark.parametrize("number", range(len(EXAMPLES)), ids=EXAMPLES)
def test_a_race_is_found(number):
    found = emulation.find_race(number, wrong=True)
    assert found.startswith("a race in ")
    assert "race_examples.cu:" in found


@pytest.mark.parametrize("number", range(len(EXAMPLES)), ids=EXAMPLES)
def test_what_is_ordered_is_no_race(number):
    assert emulation.find_race(number, wrong=False) == ""
