"""The engine files of a bundle: their names, what they were made from, and the description beside each.

An engine can't be opened without a GPU. So each has a JSON file of the same name that says what it is:
inputs, outputs and which of them share memory, profiles, target, edition, figures of the build.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, TensorProto

from qwen2vl_rt.backends.tensorrt.description import EngineDescription, EngineKey
from qwen2vl_rt.backends.tensorrt.edition import Edition
from qwen2vl_rt.backends.tensorrt.files import write_whole
from qwen2vl_rt.backends.tensorrt.profiles import Profile
from qwen2vl_rt.backends.tensorrt.target import Target
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.errors import BackendError
from qwen2vl_rt.lowering.tensorrt import Form

FOLDER = "engines"  # of a bundle

# How an engine is made from a lowered graph. Raise it when the builder's settings change, or what `Network`
# sets after parsing: engines from before are then built again. A changed graph or profile shows by itself.
RECIPE_VERSION = 1


@dataclass(frozen=True)
class EngineFile:
    """One engine and its description; they exist together or not at all."""

    path: Path

    @property
    def description_path(self) -> Path:
        """The JSON file beside the engine."""
        return self.path.with_suffix(".json")

    @property
    def exists(self) -> bool:
        """Whether both files are there: the description is written last."""
        return self.path.is_file() and self.description_path.is_file()

    def describe(self) -> EngineDescription:
        """The description.

        Raises:
            BackendError: it is damaged.
        """
        try:
            description = EngineDescription.from_json(json.loads(self.description_path.read_text()))
            if self.path.stat().st_size != description.figures.engine_bytes:
                raise ValueError(f"{self.path.name} has another size")
        except (OSError, ValueError, RecursionError) as error:
            raise BackendError(
                f"{self.description_path} does not describe its engine ({error}): build it again."
            ) from error
        return description

    def write(self, partial: Path, description: EngineDescription) -> None:
        """Put a finished engine, at `partial`, in its place, then its description."""
        self.description_path.unlink(missing_ok=True)
        os.replace(partial, self.path)
        text = json.dumps(description.to_json(), indent=1)
        write_whole(self.description_path, f"{text}\n".encode())


def engine_key(
    bundle: Bundle,
    graph: str,
    model: ModelProto,
    edition: Edition,
    target: Target,
    form: Form,
    profiles: Sequence[Profile],
) -> EngineKey:
    """What an engine depends on.

    Args:
        bundle: whose manifest names the hashes of graphs and weights.
        graph: "decoder", "prefill" or "vision".
        model: the lowered graph.
        edition: what builds it.
        target: what it is built for.
        form: what the graph was lowered to.
        profiles: the shapes it takes.
    """
    files = {f"{graph}.onnx"} | {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return EngineKey(
        recipe=RECIPE_VERSION,
        graph=hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest(),
        sources={name: bundle.files[name].sha256 for name in sorted(files) if name in bundle.files},
        edition=edition.module_name,
        version=edition.version,
        target=target.name,
        form=form,
        profiles=tuple(profiles),
    )


def engine_file(folder: Path, graph: str, key: EngineKey) -> EngineFile:
    """Where the engine of `graph` ("decoder", "prefill", "vision") with this key belongs."""
    return EngineFile(folder / f"{graph}.{key.target}.{key.digest}.engine")
