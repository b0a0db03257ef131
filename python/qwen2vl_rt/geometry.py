"""What a Qwen2-VL model looks like: the sizes and ids that a checkpoint's config.json or a bundle's
manifest states.

Everything that depends on a model's size reads it from `Geometry`; nothing else in the project knows a
number such as 1536 or 151655. `Geometry.from_config` reads a checkpoint's config.json,
`Geometry.from_json` a manifest.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from qwen2vl_rt._fields import Fields
from qwen2vl_rt.errors import BundleError, CheckpointError

MODEL_TYPE = "qwen2_vl"
ARCHITECTURE = "Qwen2VLForConditionalGeneration"
# Ids of the family's vocabulary, for configs that leave them out (the defaults of the reference's
# Qwen2VLConfig).
IMAGE_PAD, VIDEO_PAD, VISION_START, VISION_END, END_OF_TEXT, IM_END = (
    151655,
    151656,
    151652,
    151653,
    151643,
    151645,
)


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
    def from_config(config: Any, generation_config: Any = None) -> Geometry:
        """Read a checkpoint's config.json (and generation_config.json, for the ids that end an answer).

        Takes the flat form of the published checkpoints and the nested form (`text_config`) of newer
        transformers. Raises CheckpointError for another architecture, a missing or impossible value.
        """
        return _read_config(config, generation_config)

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


def _read_config(config: Any, generation_config: Any) -> Geometry:
    root = Fields(config, "config.json", CheckpointError)
    _require_qwen2_vl(root)
    text = root.child("text_config") if root.has("text_config") else root
    vision = root.child("vision_config")

    # Newer transformers keep the rotary settings in "rope_parameters", the published files in "rope_scaling".
    rope = text.child("rope_parameters") if text.has("rope_parameters") else text.child("rope_scaling")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "mrope"):
        raise CheckpointError(f"{rope.where}: rotary type {rope_type!r} is not supported, expected 'mrope'")
    theta_at = rope if rope.has("rope_theta") else text

    heads, hidden_size = text.size("num_attention_heads"), text.size("hidden_size")
    if hidden_size % heads:
        raise CheckpointError(f"{text.where}: hidden_size {hidden_size} does not split into {heads} heads")
    # Older files write tie_word_embeddings once, at the top; nested ones may repeat it, and the inner one
    # counts.
    tied_at = text if text.has("tie_word_embeddings") else root

    embed_dim = vision.size("embed_dim", 1280)
    mlp_size = embed_dim * vision.positive("mlp_ratio", 4)
    if vision.has("hidden_size") and vision.size("hidden_size") != hidden_size:
        raise CheckpointError(
            f"{vision.where}: hidden_size {vision.size('hidden_size')}, the decoder's is {hidden_size}"
        )

    answers = Fields(
        generation_config if generation_config is not None else {}, "generation_config.json", CheckpointError
    )
    eos_at = next((at for at in (answers, text, root) if at.has("eos_token_id")), None)
    pad_at = next((at for at in (answers, text, root) if at.has("pad_token_id")), None)

    geometry = Geometry(
        decoder=DecoderGeometry(
            hidden_size=hidden_size,
            layers=text.size("num_hidden_layers"),
            heads=heads,
            kv_heads=text.size("num_key_value_heads", heads),
            head_dim=hidden_size // heads,
            mlp_size=text.size("intermediate_size"),
            vocab_size=text.size("vocab_size"),
            rope_theta=theta_at.positive("rope_theta", 1e6),
            mrope_section=rope.three("mrope_section"),
            rms_norm_eps=text.positive("rms_norm_eps", 1e-5),
            tied_embedding=tied_at.flag("tie_word_embeddings", False),
        ),
        vision=VisionGeometry(
            depth=vision.size("depth", 32),
            embed_dim=embed_dim,
            heads=vision.size("num_heads", 16),
            mlp_size=int(mlp_size),
            patch_size=vision.size("patch_size", 14),
            temporal_patch_size=vision.size("temporal_patch_size", 2),
            merge_size=vision.size("spatial_merge_size", 2),
            in_channels=vision.size("in_channels" if vision.has("in_channels") else "in_chans", 3),
        ),
        special_ids=SpecialIds(
            image_pad=root.id("image_token_id", IMAGE_PAD),
            video_pad=root.id("video_token_id", VIDEO_PAD),
            vision_start=root.id("vision_start_token_id", VISION_START),
            vision_end=root.id("vision_end_token_id", VISION_END),
            eos=eos_at.ids("eos_token_id") if eos_at else (IM_END,),
            pad=pad_at.id("pad_token_id") if pad_at else END_OF_TEXT,
        ),
    )
    if problem := geometry.problem():
        raise CheckpointError(f"config.json: {problem}")
    return geometry


def _require_qwen2_vl(root: Fields) -> None:
    """Refuse other architectures, and variants of this one that the graphs do not express."""
    model_type, architectures = (
        root.get("model_type", None),
        root.get("architectures", None) or [ARCHITECTURE],
    )
    if model_type != MODEL_TYPE or architectures != [ARCHITECTURE]:
        raise CheckpointError(
            f"config.json: this is a {model_type!r} checkpoint ({architectures!r}); "
            f"expected a Qwen2-VL one, model_type {MODEL_TYPE!r} with {ARCHITECTURE!r}"
        )
    text = root.child("text_config") if root.has("text_config") else root
    vision = root.child("vision_config")
    if root.has("quantization_config"):
        method = Fields(root.get("quantization_config", None), "quantization_config", CheckpointError).get(
            "quant_method", None
        )
        raise CheckpointError(
            f"config.json: the checkpoint is already quantized ({method!r}); use the unquantized release"
        )
    for at, name, only in (
        (text, "hidden_act", "silu"),
        (vision, "hidden_act", "quick_gelu"),
        (text, "use_sliding_window", False),
    ):
        if at.get(name, only) != only:
            raise CheckpointError(
                f"{at.where}: {name} {at.get(name, only)!r} is not supported, expected {only!r}"
            )
