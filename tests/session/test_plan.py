"""Memory plans: what a refusal advises."""

from __future__ import annotations

import pytest

from qwen2vl_rt import MemoryLimitError, Session
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.plan import plan_memory, session_limits


def test_a_length_that_leaves_no_room_for_a_prompt_is_not_advised_alone(bundle):
    opened = Bundle.open(bundle)
    fits = plan_memory(opened, session_limits(opened, max_length=500), None).total
    with pytest.raises(MemoryLimitError, match="max_length=448 with max_new_tokens lowered from 512"):
        Session(bundle, memory_limit=fits)
    fits = plan_memory(opened, session_limits(opened, max_length=600), None).total
    with pytest.raises(MemoryLimitError, match=r"max_length=576( or|\.)"):
        Session(bundle, memory_limit=fits)
