"""Bundle folders for the tests of preparation: a tokenizer, a processor configuration, a chat template."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import tokenizers

from qwen2vl_rt.processing import Processor
from tests.support.preparation import PREPROCESSOR, TEMPLATE, byte_level_tokenizer, geometry_for


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bundle")
    byte_level_tokenizer().save(str(path / "tokenizer.json"))
    (path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    (path / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return path


@pytest.fixture(scope="session")
def processor(folder) -> Processor:
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return Processor(folder, geometry_for(tokenizer))


@pytest.fixture(scope="session")
def real_tokenizer_folder() -> Path:
    """The family's published tokenizer, where this machine has it."""
    default = Path(__file__).resolve().parents[3] / "shared" / "qwen2-tokenizer"
    path = Path(os.environ.get("QWEN2VL_TEST_TOKENIZER", default))
    if not (path / "tokenizer.json").is_file():
        pytest.skip(f"no tokenizer.json in {path}; name a folder with it in QWEN2VL_TEST_TOKENIZER")
    return path


@pytest.fixture(scope="session")
def real_folder(real_tokenizer_folder, tmp_path_factory) -> Path:
    """A bundle's processing files with the family's tokenizer and template."""
    path = tmp_path_factory.mktemp("real")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.json"):
        shutil.copy(real_tokenizer_folder / name, path)
    (path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return path


@pytest.fixture(scope="session")
def real_processor(real_folder) -> Processor:
    return Processor(
        real_folder, geometry_for(tokenizers.Tokenizer.from_file(str(real_folder / "tokenizer.json")))
    )
