"""docs/options.md lists every option, with the default that the code has."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen2vl_rt.options import GenerationOptions
from qwen2vl_rt.processing import Processor, VisualOptions
from qwen2vl_rt.session import Session

DOCUMENT = Path(__file__).parents[2] / "docs" / "options.md"


def listed(name: str) -> dict[str, str]:
    """Options and defaults under the heading that names something."""
    _, _, section = DOCUMENT.read_text().partition(f": `{name}`\n")
    return dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", section.partition("\n## ")[0], re.MULTILINE))


@pytest.mark.parametrize("options", [Session, GenerationOptions, VisualOptions, Processor.tokenize])
def test_the_document_lists_every_option_and_its_default(options: Callable[..., Any]):
    defaults = {
        name: repr(parameter.default)
        for name, parameter in inspect.signature(options).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    defaults.pop("max_tokens", None)  # the session's own
    assert listed(options.__qualname__) == defaults
