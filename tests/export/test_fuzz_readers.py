"""Readers of files that others wrote, fed with damage: only the project's own errors come out."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qwen2vl_export.export import export_checkpoint
from qwen2vl_export.safetensors_file import read_header
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.errors import BundleError, CheckpointError
from qwen2vl_rt.geometry import Geometry

bounded = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["F32", "BF16", 0, 1, 2**63]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F16", "I64", "F4"]) | values,
        "shape": st.lists(st.integers(-2, 2**66), max_size=4) | values,
        "data_offsets": st.lists(st.integers(-2, 2**66), max_size=3) | values,
    },
)


def read_all(file: Path, data: bytes) -> None:
    """Read a header and whatever rows it promises."""
    file.write_bytes(data)
    try:
        for tensor in read_header(file).values():
            tensor.read(0, tensor.shape[0] if tensor.shape else 0)
    except CheckpointError as error:
        assert str(file) in str(error)


@bounded
@given(
    header=st.dictionaries(st.text(max_size=6), entries | values, max_size=4) | values,
    tail=st.binary(max_size=64),
)
@example(header={"x": {"dtype": "F32", "shape": [2**40, 0], "data_offsets": [0, 0]}}, tail=b"")
@example(header={"x": {"dtype": "F32", "shape": [0, 2**66], "data_offsets": [0, 0]}}, tail=b"")
@example(header={"x": {"dtype": "F32", "shape": [2**30] * 3 + [0], "data_offsets": [0, 0]}}, tail=b"")
@example(header={"x": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, tail=b"1234")
@example(header={"x": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, tail=b"1234")
@example(header={"x": {"dtype": "F32", "shape": "12", "data_offsets": "12"}}, tail=b"1234")
def test_safetensors_headers(tmp_path, header, tail):
    text = json.dumps(header).encode()
    read_all(tmp_path / "fuzz.safetensors", len(text).to_bytes(8, "little") + text + tail)


@bounded
@given(data=st.binary(max_size=200))
@example(data=b"")
@example(data=b"\xff" * 8)
@example(data=(2**40).to_bytes(8, "little"))
@example(data=(60_000).to_bytes(8, "little") + b"[" * 60_000)
def test_safetensors_bytes(tmp_path, data):
    read_all(tmp_path / "fuzz.safetensors", data)


@bounded
@given(position=st.integers(0, 10**9), replacement=st.binary(min_size=1, max_size=4), cut=st.integers(0, 400))
def test_damaged_safetensors_file(pristine_checkpoint, tmp_path, position, replacement, cut):
    data = bytearray((pristine_checkpoint / "model.safetensors").read_bytes())
    position %= 6000  # mostly the header
    data[position : position + len(replacement)] = replacement
    read_all(tmp_path / "fuzz.safetensors", bytes(data[: len(data) - cut]))


@pytest.fixture(scope="module")
def bundle_folder(pristine_checkpoint, tmp_path_factory) -> Path:
    return export_checkpoint(pristine_checkpoint, tmp_path_factory.mktemp("fuzz") / "bundle").path


def paths(value: object, prefix: tuple = ()) -> list[tuple]:
    """Return the way to every entry of a JSON value."""
    here = [prefix] if prefix else []
    if isinstance(value, dict):
        return here + [path for key, inner in value.items() for path in paths(inner, (*prefix, key))]
    if isinstance(value, list):
        return here + [path for i, inner in enumerate(value) for path in paths(inner, (*prefix, i))]
    return here


def replaced(data: st.DataObject, original: object) -> object:
    """Return a copy with one entry replaced by some other value, or removed."""
    value = json.loads(json.dumps(original))
    *way, last = data.draw(st.sampled_from(paths(value)))
    inner = value
    for key in way:
        inner = inner[key]
    if isinstance(inner, dict) and data.draw(st.booleans()):
        del inner[last]
    else:
        inner[last] = data.draw(values)
    return value


@bounded
@given(data=st.data())
def test_manifests(bundle_folder, tmp_path, data):
    folder = tmp_path / "bundle"
    if not folder.exists():
        shutil.copytree(bundle_folder, folder)
    manifest = json.loads((bundle_folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(replaced(data, manifest)))
    with contextlib.suppress(BundleError):
        Bundle.open(folder).verify()


@bounded
@given(text=st.binary(max_size=100) | st.builds(lambda n: b"[" * n, st.integers(0, 200_000)))
def test_manifest_bytes(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError):
        Bundle.open(tmp_path)


@bounded
@given(data=st.data())
def test_configs(pristine_checkpoint, data):
    config = json.loads((pristine_checkpoint / "config.json").read_text())
    generation = json.loads((pristine_checkpoint / "generation_config.json").read_text())
    with contextlib.suppress(CheckpointError):
        Geometry.from_config(replaced(data, config), replaced(data, generation))
