"""docs/options.md lists every option of a call, with the default that the code has."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from qwen2vl_rt.options import GenerationOptions
from qwen2vl_rt.processing import Processor, VisualOptions

DOCUMENT = Path(__file__).parents[2] / "docs" / "options.md"


def defaults(options: type) -> dict[str, str]:
    return {
        name: repr(parameter.default)
        for name, parameter in inspect.signature(options).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }


def test_the_document_lists_every_option_and_its_default():
    listed = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", DOCUMENT.read_text(), re.MULTILINE))
    prompt = defaults(Processor.tokenize)
    del prompt["max_tokens"]  # the session's own
    assert listed == {**defaults(GenerationOptions), **defaults(VisualOptions), **prompt}
