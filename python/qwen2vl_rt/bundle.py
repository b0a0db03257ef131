"""A bundle, the folder that the exporter writes and a session opens (docs/bundle-format.md)."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwen2vl_rt._fields import Fields
from qwen2vl_rt.errors import BundleError, Qwen2VLError
from qwen2vl_rt.geometry import Geometry

SCHEMA_VERSION = 1
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "int4", "int4-int8")

MANIFEST = "manifest.json"
DECODER_GRAPH, DECODER_WEIGHTS = "decoder.onnx", "decoder.weights"
PREFILL_GRAPH, PREFILL_WEIGHTS = "prefill.onnx", "prefill.weights"  # of int4-int8 only
VISION_GRAPH, VISION_WEIGHTS = "vision.onnx", "vision.weights"
EMBEDDING = "embedding.bin"
TOKENIZER = "tokenizer.json"
PREPROCESSOR_CONFIG = "preprocessor_config.json"
GENERATION_CONFIG = "generation_config.json"
CHAT_TEMPLATE = "chat_template.json"  # {"chat_template": "..."}; absent when the checkpoint had none
CONFIG = "config.json"
REQUIRED_FILES = (
    DECODER_GRAPH,
    DECODER_WEIGHTS,
    VISION_GRAPH,
    VISION_WEIGHTS,
    EMBEDDING,
    TOKENIZER,
    PREPROCESSOR_CONFIG,
    GENERATION_CONFIG,
    CONFIG,
)

# Too large to be read whenever a bundle is opened. The others are graphs, settings and the tokenizer: a few
# milliseconds, after which nothing that parses them meets damage.
_HASHED_ON_DEMAND = (DECODER_WEIGHTS, PREFILL_WEIGHTS, VISION_WEIGHTS, EMBEDDING)

_MANIFEST_LIMIT = 16 * 2**20  # bytes; a manifest is a few KB
_HASH_BLOCK = 2**22  # bytes read at a time


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 (64 hexadecimal digits) of one file of the bundle."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its manifest, checked against the files' sizes and the hashes of all but weights.

    `precision`, one of PRECISIONS, says what the weights are. The graphs' floating-point inputs are 16-bit
    with "bf16" and "fp16" and float32 otherwise; logits are always float32.
    """

    path: Path
    schema_version: int
    name: str
    precision: str
    geometry: Geometry
    files: dict[str, FileEntry]
    exporter_version: str

    @property
    def quantized(self) -> bool:
        """Whether matrices and tables are stored as integers."""
        return self.precision.startswith("int")

    @staticmethod
    def open(path: str | Path) -> Bundle:
        """Open the bundle in folder `path`; of weights and tables only the sizes are checked (see `verify`).

        Raises BundleError if the folder is no bundle, is incomplete or damaged, has a path that is no UTF-8,
        or was written by an exporter with another schema version.
        """
        if not isinstance(path, str | os.PathLike):
            raise BundleError(f"{path!r:.80} is no path; give the folder that qwen2vl-export wrote")
        path = Path(path)
        require_folder(path, "a bundle, the folder that qwen2vl-export writes", BundleError)
        if not is_utf8(path):
            raise BundleError(f"{str(path)!r} is no UTF-8, and ONNX Runtime opens no other path; rename it")
        bundle = _read_manifest(path)
        for name, entry in bundle.files.items():
            bundle._check_size(name, entry)
        for name, entry in bundle.files.items():
            if name not in _HASHED_ON_DEMAND:
                bundle._check_hash(name, entry)
        return bundle

    def file(self, name: str) -> Path:
        """Return where file `name` lies. Raises BundleError if the manifest does not list it."""
        if name not in self.files:
            raise BundleError(f"{self.path}: the bundle has no {name}; export the checkpoint again")
        return self.path / name

    def verify(self, progress: Callable[[int], None] | None = None) -> None:
        """Compare every file with its SHA-256, reading all of them (gigabytes).

        `progress` is called with the number of bytes read since its last call. Raises BundleError naming
        the first file that differs.
        """
        for name, entry in self.files.items():
            self._check_size(name, entry)
            self._check_hash(name, entry, progress)

    def _check_size(self, name: str, entry: FileEntry) -> None:
        file = self.path / name
        if not file.is_file():
            raise BundleError(f"{file} is missing; copy the bundle again or export the checkpoint again")
        if (size := file.stat().st_size) != entry.size:
            raise BundleError(
                f"{file} has {size} bytes, the manifest says {entry.size}; "
                "copy the bundle again or export the checkpoint again"
            )

    def _check_hash(self, name: str, entry: FileEntry, progress: Callable[[int], None] | None = None) -> None:
        digest = hashlib.sha256()
        try:
            with open(self.path / name, "rb") as stream:
                while block := stream.read(_HASH_BLOCK):
                    digest.update(block)
                    if progress:
                        progress(len(block))
        except OSError as error:
            raise BundleError(f"{self.path / name} cannot be read: {error.strerror}") from error
        if digest.hexdigest() != entry.sha256:
            raise BundleError(
                f"{self.path / name} is damaged: its SHA-256 is {digest.hexdigest()}, "
                f"the manifest says {entry.sha256}; copy the bundle again or export the checkpoint again "
                "(`qwen2vl info BUNDLE --verify` compares every file)"
            )


def require_folder(path: Path, expected: str, error: type[Qwen2VLError]) -> None:
    """Raise `error` if `path` is no folder, or cannot be looked at; `expected` is what should be there."""
    try:
        if path.is_dir():
            return
        found = "is a file" if path.exists() else "does not exist"
    except OSError as problem:  # a folder above that may not be entered, or a name that is too long
        found = f"cannot be read ({problem.strerror})"
    raise error(f"{path} {found}; expected {expected}")


def is_utf8(path: Path) -> bool:
    """Whether a path's bytes are UTF-8, which ONNX and ONNX Runtime ask for."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_manifest(path: Path) -> Bundle:
    file = path / MANIFEST
    try:
        with open(file, "rb") as stream:
            raw = stream.read(_MANIFEST_LIMIT + 1)
        if len(raw) > _MANIFEST_LIMIT:
            raise BundleError(f"{file} is larger than {_MANIFEST_LIMIT} bytes, which no manifest is")
        value = json.loads(raw)
    except FileNotFoundError:
        raise BundleError(
            f"{path} has no {MANIFEST}: it is not a bundle, or its export did not finish"
        ) from None
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is not valid JSON: {error}") from error

    manifest = Fields(value, str(file), BundleError)
    version = manifest.integer("schema_version")
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{file}: schema version {version}, this package reads {SCHEMA_VERSION}; "
            "export the checkpoint again with this version, or install the version that wrote it"
        )
    precision = manifest.text("precision")
    if precision not in PRECISIONS:
        raise BundleError(f"{file}: precision {precision!r}, expected one of {', '.join(PRECISIONS)}")
    files = {}
    entries = manifest.child("files")
    for name in entries.value:
        # A bundle holds its own files and nothing else: a manifest cannot point outside its folder.
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
            raise BundleError(f"{file}: {name!r} is not the name of a file in the bundle")
        entry = entries.child(name)
        sha256 = entry.text("sha256")
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise BundleError(f"{file}: sha256 of {name} is {sha256[:70]!r}, expected 64 hexadecimal digits")
        files[name] = FileEntry(size=entry.integer("size"), sha256=sha256)
    prefill = (PREFILL_GRAPH, PREFILL_WEIGHTS) if precision == "int4-int8" else ()
    for name in (*REQUIRED_FILES, *prefill):
        if name not in files:
            raise BundleError(f"{file} does not list {name}; export the checkpoint again")
    return Bundle(
        path=path,
        schema_version=version,
        name=manifest.text("name"),
        precision=precision,
        geometry=Geometry.from_json(manifest.get("geometry")),
        files=files,
        exporter_version=manifest.text("exporter_version"),
    )
