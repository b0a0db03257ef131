"""`qwen2vl-export --size`: the real huggingface_hub client against a hub-shaped server on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from qwen2vl_rt.bundle import Bundle
from tests.support.hub_server import HubServer, hub_server
from tests.support.random_model import random_model, save_checkpoint

REPOSITORY = "Qwen/Qwen2-VL-2B-Instruct"
CLIENT_BLOCK = 10 * 2**20  # the client writes to disk in blocks of this size


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A repository whose weights take more than one of the client's blocks."""
    folder = tmp_path_factory.mktemp("hub") / "repository"
    save_checkpoint(random_model(3, vocab_size=60_000, tied=True), folder)
    (folder / "README.md").write_text("a model card")
    assert (folder / "model.safetensors").stat().st_size > CLIENT_BLOCK * 3 // 2
    return folder


@pytest.fixture
def hub(repository):
    with hub_server(REPOSITORY, repository) as server:
        yield server


def export(hub_url: str, home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    proxies = {name: "" for name in os.environ if name.lower().endswith("_proxy")}
    return subprocess.run(
        [sys.executable, "-m", "qwen2vl_export.cli", "--size", "2b", *arguments],
        cwd=home,
        env={**os.environ, **proxies, "HF_ENDPOINT": hub_url, "HF_HOME": str(home / "hf"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_refused(result: subprocess.CompletedProcess, *words: str) -> None:
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("qwen2vl-export: ")
    for word in words:
        assert word in result.stderr


def test_interrupted_download_goes_on(hub: HubServer, tmp_path: Path):
    hub.cut["model.safetensors"] = CLIENT_BLOCK + 1000
    first = export(hub.url, tmp_path)
    assert_refused(first, REPOSITORY, "run the command again")
    assert not list(tmp_path.glob("*qwen2-vl*"))

    second = export(hub.url, tmp_path)
    assert second.returncode == 0, second.stderr
    assert second.stderr == ""  # not a terminal: no progress bars
    assert hub.ranges("model.safetensors") == [None, f"bytes={CLIENT_BLOCK}-"]
    assert not hub.ranges("README.md")
    bundle = Bundle.open(tmp_path / "qwen2-vl-2b-instruct-fp32")
    bundle.verify()
    assert bundle.name == "Qwen2-VL-2B-Instruct"

    # A third export fetches nothing, and works without the hub.
    hub.requests.clear()
    third = export(hub.url, tmp_path, "--output", "again")
    assert third.returncode == 0, third.stderr
    assert not [path for method, path, _ in hub.requests if method == "GET" and "resolve" in path]
    offline = export("http://127.0.0.1:9", tmp_path, "--output", "offline", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr


def test_existing_output_is_refused_before_the_download(hub: HubServer, tmp_path: Path):
    (tmp_path / "there").mkdir()
    assert_refused(export(hub.url, tmp_path, "--output", "there"), "there exists", "--force")
    assert not hub.requests


def test_hub_that_cannot_be_reached(tmp_path: Path):
    assert_refused(
        export("http://127.0.0.1:9", tmp_path), "http://127.0.0.1:9 cannot be reached", "HF_ENDPOINT"
    )


def test_offline_with_an_empty_cache(tmp_path: Path):
    result = export("http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    assert_refused(result, "HF_HUB_OFFLINE is set", str(tmp_path / "hf"))


@pytest.mark.parametrize("status", [403, 503])
def test_hub_that_answers_an_error(hub: HubServer, tmp_path: Path, status: int):
    hub.status = status
    assert_refused(export(hub.url, tmp_path), REPOSITORY, f"with status {status}")


def test_repository_that_does_not_exist(hub: HubServer, tmp_path: Path):
    hub.repository = "Qwen/another"
    assert_refused(export(hub.url, tmp_path), "no such repository")
