"""Opening and verifying bundles: complete ones, and every way of being incomplete."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from qwen2vl_export.export import export_checkpoint
from qwen2vl_rt import __version__
from qwen2vl_rt.bundle import REQUIRED_FILES, SCHEMA_VERSION, Bundle
from qwen2vl_rt.errors import BundleError
from qwen2vl_rt.generation_config import generation_defaults
from qwen2vl_rt.weights import load_graph

LARGE = ("decoder.weights", "vision.weights", "embedding.bin")


@pytest.fixture(scope="module")
def pristine(pristine_checkpoint, tmp_path_factory) -> Path:
    return export_checkpoint(pristine_checkpoint, tmp_path_factory.mktemp("bundle") / "bundle").path


@pytest.fixture
def folder(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))


def edit(folder: Path, change) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_open_and_verify(folder):
    bundle = Bundle.open(str(folder))
    assert bundle.schema_version == SCHEMA_VERSION
    assert bundle.precision == "fp32"
    assert bundle.exporter_version == __version__
    assert bundle.geometry.decoder.layers == 1
    assert bundle.file("decoder.onnx") == folder / "decoder.onnx"
    read = []
    bundle.verify(read.append)
    assert sum(read) == sum(entry.size for entry in bundle.files.values())
    assert set(bundle.files) == {path.name for path in folder.iterdir()} - {"manifest.json"}


def test_a_bundle_can_be_moved(folder):
    Bundle.open(folder.rename(folder.parent / "elsewhere")).verify()


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_file_that_the_manifest_leaves_out(folder, name):
    edit(folder, lambda manifest: manifest["files"].pop(name))
    with pytest.raises(BundleError, match=f"does not list {name}"):
        Bundle.open(folder)


def test_truncated_file(folder):
    size = (folder / "decoder.weights").stat().st_size
    with open(folder / "decoder.weights", "r+b") as stream:
        stream.truncate(size - 1)
    with pytest.raises(BundleError, match=f"weights has {size - 1} bytes, the manifest says {size}"):
        Bundle.open(folder)


def test_one_flipped_bit_is_found_on_demand(folder):
    data = bytearray((folder / "vision.weights").read_bytes())
    data[len(data) // 2] ^= 4
    (folder / "vision.weights").write_bytes(data)
    bundle = Bundle.open(folder)
    with pytest.raises(BundleError, match=r"vision\.weights is damaged"):
        bundle.verify()


@pytest.mark.parametrize("name", [name for name in REQUIRED_FILES if name not in LARGE])
def test_one_flipped_bit_of_a_small_file_is_found_at_once(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 4
    (folder / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{re.escape(name)} is damaged: .*info BUNDLE --verify"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "expected an object"),
        ('{"repetition_penalty": "x"}', "repetition_penalty is 'x'"),
        ('{"repetition_penalty": -1}', "repetition_penalty is -1"),
        ('{"repetition_penalty": true}', "repetition_penalty is True"),
        ("\\xff", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_generation_settings_that_cannot_be_used(tmp_path, text, words):
    file = tmp_path / "generation_config.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=words) as caught:
        generation_defaults(file)
    assert str(file) in str(caught.value)


def test_generation_settings_left_open(tmp_path):
    file = tmp_path / "generation_config.json"
    for text, penalty in (
        ("{}", 1),
        ('{"repetition_penalty": null}', 1),
        ('{"repetition_penalty": 1.05}', 1.05),
    ):
        file.write_text(text)
        assert generation_defaults(file) == {"repetition_penalty": penalty}
    with pytest.raises(BundleError, match="cannot be read"):
        generation_defaults(tmp_path / "missing.json")


MANIFESTS = {
    "another schema": (lambda m: m.update(schema_version=2), "schema version 2"),
    "no schema": (lambda m: m.pop("schema_version"), "schema_version is missing"),
    "precision": (lambda m: m.update(precision="int3"), "int3"),
    "name": (lambda m: m.update(name=None), "name is missing"),
    "geometry": (lambda m: m["geometry"]["decoder"].update(layers=0), "layers is 0"),
    "no geometry": (lambda m: m.pop("geometry"), "geometry is missing"),
    "impossible geometry": (lambda m: m["geometry"]["decoder"].update(kv_heads=3), "3 key/value heads"),
    "files": (lambda m: m.update(files=[]), "files: expected an object"),
    "outside the folder": (lambda m: m["files"].update({"../x": m["files"]["config.json"]}), "'../x'"),
    "absolute": (lambda m: m["files"].update({"/etc/passwd": m["files"]["config.json"]}), "'/etc/passwd'"),
    "negative size": (lambda m: m["files"]["config.json"].update(size=-1), "size is -1"),
    "hash": (lambda m: m["files"]["config.json"].update(sha256="abc"), "'abc'"),
}


@pytest.mark.parametrize(("change", "words"), MANIFESTS.values(), ids=MANIFESTS)
def test_damaged_manifests(folder, change, words):
    edit(folder, change)
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    assert words in str(caught.value)


@pytest.mark.parametrize("change", [{"layers": 2}, {"heads": 8, "kv_heads": 8}], ids=["layers", "kv_heads"])
def test_a_geometry_of_another_model(folder, change):
    edit(folder, lambda manifest: manifest["geometry"]["decoder"].update(change))
    with pytest.raises(
        BundleError, match=r"decoder\.onnx and the manifest's geometry are of different models"
    ):
        load_graph(Bundle.open(folder), "decoder.onnx")


def test_what_is_no_bundle(folder, tmp_path):
    with pytest.raises(BundleError, match="does not exist"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="is a file"):
        Bundle.open(folder / "config.json")
    (folder / "manifest.json").write_bytes(b"\xff{")
    with pytest.raises(BundleError, match="not valid JSON"):
        Bundle.open(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.open(folder)


def test_a_path_that_cannot_be_looked_at(tmp_path):
    with pytest.raises(BundleError, match=r"cannot be read \(File name too long\); expected a bundle"):
        Bundle.open(tmp_path / ("x" * 300))


def test_unknown_file(folder):
    with pytest.raises(BundleError, match=r"no engine\.plan"):
        Bundle.open(folder).file("engine.plan")
