"""Reading the geometry from a checkpoint's config.json, in its published and its newer form."""

from __future__ import annotations

from typing import Any

from qwen2vl_rt._fields import Fields
from qwen2vl_rt.errors import CheckpointError
from qwen2vl_rt.geometry import DecoderGeometry, Geometry, SpecialIds, VisionGeometry

MODEL_TYPE = "qwen2_vl"
ARCHITECTURE = "Qwen2VLForConditionalGeneration"
# Ids of the family's vocabulary, for files that leave them out, as the reference's Qwen2VLConfig does.
IMAGE_PAD, VIDEO_PAD, VISION_START, VISION_END = 151655, 151656, 151652, 151653
END_OF_TEXT, IM_END = 151643, 151645


def read_config(config: Any, generation_config: Any, where: str) -> Geometry:
    """Read config.json and generation_config.json (or None); see `Geometry.from_config`."""
    root = Fields(config, where, CheckpointError)
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
    # Nested files may write tie_word_embeddings at the top and inside; the inner one counts.
    tied_at = text if text.has("tie_word_embeddings") else root

    embed_dim = vision.size("embed_dim", 1280)
    mlp_size = embed_dim * vision.positive("mlp_ratio", 4)
    if vision.has("hidden_size") and vision.size("hidden_size") != hidden_size:
        raise CheckpointError(
            f"{vision.where}: hidden_size {vision.size('hidden_size')}, the decoder's is {hidden_size}"
        )

    answers = Fields(generation_config or {}, "generation_config.json", CheckpointError)
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
        raise CheckpointError(f"{where}: {problem}")
    return geometry


def _require_qwen2_vl(root: Fields) -> None:
    """Refuse other architectures, and variants of this one that the graphs do not express."""
    model_type, architectures = (
        root.get("model_type", None),
        root.get("architectures", None) or [ARCHITECTURE],
    )
    if model_type != MODEL_TYPE or architectures != [ARCHITECTURE]:
        raise CheckpointError(
            f"{root.where}: not a Qwen2-VL checkpoint: model_type {model_type!r} with {architectures!r}, "
            f"expected {MODEL_TYPE!r} with {[ARCHITECTURE]!r}"
        )
    text = root.child("text_config") if root.has("text_config") else root
    vision = root.child("vision_config")
    for at, name, only in (
        (text, "hidden_act", "silu"),
        (vision, "hidden_act", "quick_gelu"),
        (text, "use_sliding_window", False),
    ):
        if at.get(name, only) != only:
            raise CheckpointError(
                f"{at.where}: {name} {at.get(name, only)!r} is not supported, expected {only!r}"
            )
