"""A checkpoint folder: its settings and its tensors under the names of the published checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen2vl_export.graph import Weight
from qwen2vl_export.group_quantized import GroupQuantized
from qwen2vl_export.packed_layer import PARTS, PackedLayer
from qwen2vl_export.quantization_config import QuantizationConfig
from qwen2vl_export.safetensors_file import DTYPES, StoredTensor, read_header
from qwen2vl_rt.bundle import CONFIG, GENERATION_CONFIG, require_folder
from qwen2vl_rt.errors import CheckpointError
from qwen2vl_rt.geometry import Geometry

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

# Newer transformers save visual.* as model.visual.* and model.* as model.language_model.*.
_RENAMED = (("model.visual.", "visual."), ("model.language_model.", "model."))


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: `tensors` by their published names, whatever layout the files use.

    `packed` holds the quantized layers of a GPTQ or AWQ checkpoint, by the published name of the weight that
    each stands for.
    """

    path: Path
    geometry: Geometry
    tensors: dict[str, StoredTensor]
    packed: dict[str, PackedLayer]

    @staticmethod
    def open(path: str | Path) -> Checkpoint:
        """Open the checkpoint in folder `path`: reads config.json and the headers of its safetensors files.

        Raises CheckpointError if it is not a Qwen2-VL checkpoint, is quantized in a way that cannot be read,
        or a file is missing, damaged or truncated.
        """
        path = Path(path)
        require_folder(path, "a checkpoint folder with config.json and safetensors files", CheckpointError)
        file, generation = path / CONFIG, path / GENERATION_CONFIG
        config = read_json(file)
        geometry = Geometry.from_config(
            config, read_json(generation) if generation.exists() else None, str(file)
        )
        quantization = QuantizationConfig.from_config(config, str(file))
        tensors = _tensors(path)
        return Checkpoint(path, geometry, tensors, _take_packed(tensors, quantization, file))

    def check(self, weights: Iterable[Weight]) -> None:
        """Compare the tensors with what the graphs take, before anything is written.

        Raises CheckpointError naming tensors that are missing, have another shape or format, or that no
        graph takes. Of quantized layers the scales and zero points are read and checked as well.
        """
        wanted = {weight.source: weight.source_shape for weight in weights}
        if missing := [name for name in wanted if name not in self.tensors and name not in self.packed]:
            raise CheckpointError(
                f"{self.path}: {_counted(missing)} missing, the first: {_some(missing)}; "
                "is the download complete, and is this a Qwen2-VL checkpoint?"
            )
        for name, shape in wanted.items():
            if name in self.packed:
                self.packed[name].check((shape[0], math.prod(shape[1:])))
                continue
            tensor = self.tensors[name]
            if tensor.shape != shape:
                raise CheckpointError(
                    f"{tensor.file}: tensor {tensor.name} has shape {list(tensor.shape)}, "
                    f"config.json asks for {list(shape)}"
                )
            _ = tensor.number  # refuses other formats
        extra = [
            self.tensors[name].name
            for name in self.tensors
            if name not in wanted and not self._harmless(name)
        ] + [layer.name for name, layer in self.packed.items() if name not in wanted]
        if extra:
            raise CheckpointError(
                f"{self.path}: {_counted(extra)} not part of a Qwen2-VL model of these sizes, "
                f"the first: {_some(extra)}; "
                "is config.json the one of these weights?"
            )

    def read_rows(self, weight: Weight, start: int, stop: int) -> np.ndarray:
        """Read rows of a weight's source, as the matrix [stop - start, weight.columns].

        A quantized layer's come dequantized, in float32.
        """
        if layer := self.packed.get(weight.source):
            return layer.read(start, stop).dequantized()
        return self.tensors[weight.source].read(start, stop).reshape(stop - start, weight.columns)

    def quantized(self, source: str) -> GroupQuantized | None:
        """Return the weight `source` as the checkpoint quantized it, or None if it did not."""
        layer = self.packed.get(source)
        return layer and layer.read(0, layer.outputs)

    def _harmless(self, name: str) -> bool:
        """Return whether an unused tensor changes nothing: rotary tables, the tied table's twin, and biases
        of 0 that some quantizers give every layer.
        """
        if name.endswith(".inv_freq"):
            return True
        if name == "lm_head.weight":
            return self.geometry.decoder.tied_embedding
        layer, _, part = name.rpartition(".")
        if part == "bias" and f"{layer}.weight" in self.packed:
            bias = self.tensors[name]
            return bias.dtype in DTYPES and len(bias.shape) == 1 and not bias.read(0, bias.shape[0]).any()
        return False


def read_json(file: Path) -> Any:
    """Read a JSON file of a checkpoint. Raises CheckpointError if it is missing or damaged."""
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing; is {file.parent} a complete checkpoint folder?") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error


def _tensors(path: Path) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file in _files(path):
        for name, tensor in read_header(file).items():
            published = _published_name(name)
            if published in tensors:
                raise CheckpointError(f"{file}: tensor {name} is also in {tensors[published].file}")
            tensors[published] = tensor
    return tensors


def _take_packed(
    tensors: dict[str, StoredTensor], quantization: QuantizationConfig | None, config: Path
) -> dict[str, PackedLayer]:
    """Move the parts of quantized layers out of `tensors` and return the layers by their weights' names."""
    parts: dict[str, dict[str, StoredTensor]] = {}
    for name in list(tensors):
        layer, _, part = name.rpartition(".")
        if part in PARTS:
            parts.setdefault(layer, {})[part] = tensors.pop(name)
    for layer, found in parts.items():
        tensor = next(iter(found.values()))
        if quantization is None:
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name} belongs to a quantized layer, but {config} has no "
                "quantization_config; is it the one of these weights?"
            )
        if f"{layer}.weight" in tensors:
            raise CheckpointError(f"{tensor.file}: layer {layer} has both a weight and quantized parts")
    return {f"{layer}.weight": PackedLayer(layer, found, quantization) for layer, found in parts.items()}


def _files(path: Path) -> list[Path]:
    """Return the checkpoint's safetensors files: the one, or those of the index.

    The one comes first, as in transformers: saving it leaves the index of shards that were there before.
    """
    if (path / SINGLE).exists():
        return [path / SINGLE]
    if not (path / INDEX).exists():
        others = sorted(file.name for file in path.glob("*.bin")) + sorted(
            file.name for file in path.glob("*.gguf")
        )
        hint = f" (found {others[0]}, which is not read)" if others else ""
        raise CheckpointError(f"{path} holds neither {INDEX} nor {SINGLE}{hint}")
    index = read_json(path / INDEX)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path / INDEX}: weight_map is missing or empty")
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(
                f"{path / INDEX}: {name} is said to be in {file!r}, which is no file of the folder"
            )
    files = [path / name for name in sorted(set(weight_map.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of {len(files)} weight files are missing: {_some(missing)}"
        )
    return files


def _published_name(name: str) -> str:
    for prefix, published in _RENAMED:
        if name.startswith(prefix):
            return published + name[len(prefix) :]
    return name


def _counted(names: list[str]) -> str:
    return "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
