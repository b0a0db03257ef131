"""The emulated GPU checks what kernels load and store: some with a mistake, and the same ones without."""

from __future__ import annotations

import pytest

from tests.gpu import emulation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not emulation.is_emulated(), reason="needs the emulated GPU (make test-emulated)"),
]
EXAMPLES = emulation.examples()
OTHERS = {
    "different instructions": "at different instructions",
    "misaligned": "at a multiple of their bytes",
    "read behind": "outside of its memory",
    "read in front": "outside of its memory",
    "never written": "shared memory that nobody has written",
}


@pytest.mark.parametrize("number", range(len(EXAMPLES)), ids=EXAMPLES)
def test_a_mistake_is_found(number):
    found = emulation.run_example(number, wrong=True)
    assert OTHERS.get(EXAMPLES[number], "a race in ") in found


def test_a_race_is_named_by_both_lines():
    assert emulation.run_example(EXAMPLES.index("barrier"), wrong=True).count("access_examples.cu:") == 2


@pytest.mark.parametrize("number", range(len(EXAMPLES)), ids=EXAMPLES)
def test_what_is_right_is_left_alone(number):
    assert emulation.run_example(number, wrong=False) == ""
