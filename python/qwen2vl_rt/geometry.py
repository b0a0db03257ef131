"""What a Qwen2-VL model looks like: the sizes and ids that a checkpoint's config.json or a bundle's
manifest states.

Everything that depends on a model's size reads it from `Geometry`. `Geometry.from_config` reads a
checkpoint's config.json, `Geometry.from_json` a manifest. Numbers of the published models, such as 151655,
stand only where a file may leave them out, in `_config.py` and `processing/pixels.py`, and behind the picture
sizes that `benchmark/measure.py` and `cli/bench.py` measure.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from qwen2vl_rt._fields import Fields
from qwen2vl_rt.errors import BundleError


@dataclass(frozen=True)
class DecoderGeometry:
    """The language model: a Qwen2 decoder whose rotary embedding has three axes (M-RoPE).

    `mrope_section` says how many of the `head_dim / 2` rotary frequencies follow the time, height and width
    position; `mlp_size` is the width between gate/up and down projection.
    """

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_size: int
    vocab_size: int
    rope_theta: float
    mrope_section: tuple[int, int, int]
    rms_norm_eps: float
    tied_embedding: bool

    def problem(self) -> str | None:
        """Return what makes these sizes impossible, or None."""
        if self.heads % self.kv_heads:
            return f"{self.heads} attention heads cannot share {self.kv_heads} key/value heads"
        if self.head_dim % 2 or 2 * sum(self.mrope_section) != self.head_dim:
            section = list(self.mrope_section)
            return f"mrope_section {section} must add up to half of the head size {self.head_dim}"
        return None


@dataclass(frozen=True)
class VisionGeometry:
    """The vision tower: a ViT with 2-D rotary embedding whose output merges `merge_size` x `merge_size`
    patches.

    Its output width is the decoder's `hidden_size`.
    """

    depth: int
    embed_dim: int
    heads: int
    mlp_size: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    in_channels: int
    layer_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.embed_dim // self.heads

    @property
    def patch_values(self) -> int:
        """Numbers in one patch: channels x frames x height x width (1176 in the published models)."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def pixels_per_token(self) -> int:
        """Pixels of a resized picture behind one visual embedding (784 in the published models)."""
        return (self.patch_size * self.merge_size) ** 2

    def problem(self) -> str | None:
        """Return what makes these sizes impossible, or None."""
        if self.embed_dim % self.heads or self.head_dim % 4:
            return f"vision width {self.embed_dim} does not split into {self.heads} heads of a multiple of 4"
        return None


@dataclass(frozen=True)
class SpecialIds:
    """Token ids with a meaning of their own; each of `eos` ends an answer."""

    image_pad: int
    video_pad: int
    vision_start: int
    vision_end: int
    eos: tuple[int, ...]
    pad: int

    def problem(self, vocab_size: int) -> str | None:
        """Return which id lies outside the vocabulary, or None."""
        for name, value in dataclasses.asdict(self).items():
            for token in value if isinstance(value, tuple) else (value,):
                if token >= vocab_size:
                    return f"special id {name} = {token} lies outside the vocabulary of {vocab_size}"
        return None


@dataclass(frozen=True)
class Geometry:
    """All sizes and special ids of one model."""

    decoder: DecoderGeometry
    vision: VisionGeometry
    special_ids: SpecialIds

    def problem(self) -> str | None:
        """Return what makes these sizes impossible, or None."""
        return (
            self.decoder.problem()
            or self.vision.problem()
            or self.special_ids.problem(self.decoder.vocab_size)
        )

    @staticmethod
    def from_config(config: Any, generation_config: Any = None, where: str = "config.json") -> Geometry:
        """Read a checkpoint's config.json (and generation_config.json, for the ids that end an answer).

        `where` stands in error messages for the file.

        Takes the flat form of the published checkpoints and the nested form (`text_config`) of newer
        transformers. Raises CheckpointError for another architecture, a missing or impossible value.
        """
        from qwen2vl_rt._config import read_config  # which builds on this module

        return read_config(config, generation_config, where)

    def to_json(self) -> dict[str, Any]:
        """Return a dict that json.dumps takes and `from_json` reads back."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(value: Any) -> Geometry:
        """Read what `to_json` wrote. Raises BundleError naming the entry that is missing or wrong."""
        root = Fields(value, "geometry", BundleError)
        decoder, vision, ids = root.child("decoder"), root.child("vision"), root.child("special_ids")
        geometry = Geometry(
            decoder=DecoderGeometry(
                hidden_size=decoder.size("hidden_size"),
                layers=decoder.size("layers"),
                heads=decoder.size("heads"),
                kv_heads=decoder.size("kv_heads"),
                head_dim=decoder.size("head_dim"),
                mlp_size=decoder.size("mlp_size"),
                vocab_size=decoder.size("vocab_size"),
                rope_theta=decoder.positive("rope_theta"),
                mrope_section=decoder.three("mrope_section"),
                rms_norm_eps=decoder.positive("rms_norm_eps"),
                tied_embedding=decoder.flag("tied_embedding"),
            ),
            vision=VisionGeometry(
                depth=vision.size("depth"),
                embed_dim=vision.size("embed_dim"),
                heads=vision.size("heads"),
                mlp_size=vision.size("mlp_size"),
                patch_size=vision.size("patch_size"),
                temporal_patch_size=vision.size("temporal_patch_size"),
                merge_size=vision.size("merge_size"),
                in_channels=vision.size("in_channels"),
                layer_norm_eps=vision.positive("layer_norm_eps"),
                rope_theta=vision.positive("rope_theta"),
            ),
            special_ids=SpecialIds(
                image_pad=ids.id("image_pad"),
                video_pad=ids.id("video_pad"),
                vision_start=ids.id("vision_start"),
                vision_end=ids.id("vision_end"),
                eos=ids.ids("eos"),
                pad=ids.id("pad"),
            ),
        )
        if problem := geometry.problem():
            raise BundleError(f"geometry: {problem}")
        return geometry
