"""What an engine is and what it was made from: the description that lies beside it as a JSON file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qwen2vl_rt._fields import Fields
from qwen2vl_rt.backends.tensorrt import ATTENTION_FORMS, GRAPHS
from qwen2vl_rt.backends.tensorrt.profiles import Profile, Shape
from qwen2vl_rt.errors import BackendError
from qwen2vl_rt.lowering.tensorrt import Form
from qwen2vl_rt.number_formats import NUMBER_FORMATS, NumberFormat, format_named

DESCRIPTION_VERSION = 3


@dataclass(frozen=True)
class EngineTensor:
    """An input or output."""

    name: str
    type: str
    """TensorRT's name for it, such as "bf16" or "int64"."""
    shape: tuple[int, ...]
    """-1 for a size that varies."""


@dataclass(frozen=True)
class Figures:
    """What a build took and what its engine will; bytes and seconds."""

    seconds: float
    peak_bytes: int
    """Resident memory of the building process at most."""
    engine_bytes: int
    weights_bytes: int | None
    """Of device memory for the weights; None where this TensorRT does not say."""
    activation_bytes: tuple[int, ...]
    """Device memory of one execution, by profile, as TensorRT logs it; empty where it does not say, and of
    another number of figures where it says something else."""


@dataclass(frozen=True)
class EngineKey:
    """What an engine depends on: a build whose key has the same digest may be reused."""

    recipe: int
    """`engines.RECIPE_VERSION`."""
    graph: str
    """SHA-256 of the lowered graph."""
    sources: dict[str, str]
    """SHA-256 of the bundle's files that it was made from, by name."""
    edition: str
    """Module of the TensorRT that built it."""
    version: str
    """Its version."""
    target: str
    """`Target.name`."""
    form: Form
    profiles: tuple[Profile, ...]

    @property
    def digest(self) -> str:
        """16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def profile(self, name: str) -> Profile:
        """The profile of this name. Raises BackendError if there is none."""
        for profile in self.profiles:
            if profile.name == name:
                return profile
        raise BackendError(f"An engine for {self.target} has no profile {name!r}: build it again.")

    def to_json(self) -> dict[str, Any]:
        """As the file has it."""
        return asdict(self) | {"profiles": {profile.name: profile.shapes for profile in self.profiles}}

    @staticmethod
    def from_json(fields: Fields) -> EngineKey:
        """Raises the error of `fields`."""
        form, sources, profiles = (fields.child(name) for name in ("form", "sources", "profiles"))
        return EngineKey(
            recipe=fields.integer("recipe"),
            graph=fields.text("graph"),
            sources={name: sources.text(name) for name in sources.value},
            edition=fields.text("edition"),
            version=fields.text("version"),
            target=fields.text("target"),
            form=Form(
                form.choice("number_format", [each.precision for each in NUMBER_FORMATS]),
                form.choice("attention", ATTENTION_FORMS),
                form.flag("fp8"),
                form.flag("split_codes"),
            ),
            profiles=tuple(_profile(name, profiles.child(name)) for name in profiles.value),
        )


@dataclass(frozen=True)
class EngineDescription:
    """One engine."""

    graph: str
    """One of GRAPHS."""
    bundle: str
    """The bundle's name."""
    precision: str
    """The bundle's."""
    key: EngineKey
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    shared: dict[str, str]
    """Outputs that must be bound to the memory of an input: the cache, written in place. Empty in the form
    "primitives"."""
    figures: Figures

    def tensors(self) -> Sequence[EngineTensor]:
        """Inputs and outputs."""
        return (*self.inputs, *self.outputs)

    def number_format(self, name: str) -> NumberFormat:
        """Of a floating-point input or output."""
        return format_named(next(tensor.type for tensor in self.tensors() if tensor.name == name))

    def to_json(self) -> dict[str, Any]:
        """As the file has it."""
        return {"description_version": DESCRIPTION_VERSION} | asdict(self) | {"key": self.key.to_json()}

    @staticmethod
    def from_json(value: Any) -> EngineDescription:
        """Raises ValueError: another version's, or an entry is missing or not what it should be."""
        fields = Fields(value, "description", ValueError)
        version = fields.integer("description_version")
        if version != DESCRIPTION_VERSION:
            raise ValueError(f"description_version is {version}, expected {DESCRIPTION_VERSION}")
        shared = fields.child("shared")
        return EngineDescription(
            graph=fields.choice("graph", GRAPHS),
            bundle=fields.text("bundle"),
            precision=fields.text("precision"),
            key=EngineKey.from_json(fields.child("key")),
            inputs=_tensors(fields, "inputs"),
            outputs=_tensors(fields, "outputs"),
            shared={name: shared.text(name) for name in shared.value},
            figures=_figures(fields.child("figures")),
        )


def _tensors(fields: Fields, name: str) -> tuple[EngineTensor, ...]:
    return tuple(
        EngineTensor(one.text("name"), one.text("type"), one.integers("shape", least=-1))
        for one in fields.children(name)
    )


def _profile(name: str, fields: Fields) -> Profile:
    return Profile(name, {tensor: _range(fields, tensor) for tensor in fields.value})


def _range(fields: Fields, name: str) -> tuple[Shape, Shape, Shape]:
    match fields.get(name):
        case [list(least), list(usual), list(most)] if all(
            isinstance(size, int) for size in (*least, *usual, *most)
        ):
            return tuple(least), tuple(usual), tuple(most)
    raise fields.error(f"{fields.where}: {name} is no range of shapes")


def _figures(fields: Fields) -> Figures:
    return Figures(
        seconds=fields.number("seconds"),
        peak_bytes=fields.integer("peak_bytes"),
        engine_bytes=fields.integer("engine_bytes"),
        weights_bytes=fields.integer("weights_bytes") if fields.has("weights_bytes") else None,
        activation_bytes=fields.integers("activation_bytes"),
    )
