"""The tiny Qwen2-VL as plain functions of its published tensors, written for fast training.

Same numbers as transformers' Qwen2VLForConditionalGeneration (tests/models checks it); faster on a CPU: the
patch embedding is a matrix product, pictures of one size are one batch, and the language head runs at answers
only. Shapes: B samples, S patches of one picture, D vision width, L tokens, H decoder width.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, in 0..1
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Geometry:
    vocabulary: int = 768
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 640
    # With few positions, the family's section [8, 12, 12] and base 1e6 would leave the width axis nearly
    # constant. Here height and width have middle frequencies, which tell rows and columns apart, and the low
    # ones stay, which let a word find its object wherever it is.
    mrope_section: tuple[int, int, int] = (4, 8, 20)
    rope_theta: float = 1000.0
    rms_eps: float = 1e-6
    vision_dim: int = 192
    vision_layers: int = 6
    vision_heads: int = 6
    vision_mlp_ratio: int = 4

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


Weights = dict[str, Tensor]


def initial_weights(g: Geometry, seed: int = 0) -> Weights:
    """float32 tensors under their published names."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float | None = None) -> Tensor:
        return torch.randn(*shape, generator=generator) * (std or shape[-1] ** -0.5)

    d, m, h = g.vision_dim, g.vision_dim * g.vision_mlp_ratio, g.hidden
    w: Weights = {"visual.patch_embed.proj.weight": normal(d, 3, 2, 14, 14, std=0.03)}
    for i in range(g.vision_layers):
        p = f"visual.blocks.{i}."
        for norm in ("norm1", "norm2"):
            w[p + norm + ".weight"], w[p + norm + ".bias"] = torch.ones(d), torch.zeros(d)
        for name, shape in (
            ("attn.qkv", (3 * d, d)),
            ("attn.proj", (d, d)),
            ("mlp.fc1", (m, d)),
            ("mlp.fc2", (d, m)),
        ):
            out = name in ("attn.proj", "mlp.fc2")
            w[p + name + ".weight"] = normal(*shape) * (0.3 if out else 1.0)
            w[p + name + ".bias"] = torch.zeros(shape[0])
    look_around(w, g)
    w["visual.merger.ln_q.weight"], w["visual.merger.ln_q.bias"] = torch.ones(d), torch.zeros(d)
    for name, shape in (("0", (4 * d, 4 * d)), ("2", (h, 4 * d))):
        w[f"visual.merger.mlp.{name}.weight"] = normal(*shape)
        w[f"visual.merger.mlp.{name}.bias"] = torch.zeros(shape[0])
    w["model.embed_tokens.weight"] = normal(g.vocabulary, h, std=0.08)
    kv = g.kv_heads * g.head_dim
    for i in range(g.layers):
        p = f"model.layers.{i}."
        w[p + "input_layernorm.weight"], w[p + "post_attention_layernorm.weight"] = (
            torch.ones(h),
            torch.ones(h),
        )
        for name, shape in (
            ("self_attn.q_proj", (h, h)),
            ("self_attn.k_proj", (kv, h)),
            ("self_attn.v_proj", (kv, h)),
            ("self_attn.o_proj", (h, h)),
            ("mlp.gate_proj", (g.mlp, h)),
            ("mlp.up_proj", (g.mlp, h)),
            ("mlp.down_proj", (h, g.mlp)),
        ):
            out = name in ("self_attn.o_proj", "mlp.down_proj")
            w[p + name + ".weight"] = normal(*shape) * (0.3 if out else 1.0)
            if name[10:] in ("q_proj", "k_proj", "v_proj"):
                w[p + name + ".bias"] = torch.zeros(shape[0])
    w["model.norm.weight"] = torch.ones(h)
    return w


def look_around(w: Weights, g: Geometry) -> None:
    """Point four heads of each of the first vision layers left, right, up and down.

    A constant in the biases of q and k, turned by the rotary positions, is an attention to one relative
    place: what a small tower needs to see strokes and outlines. Adds to w in place.
    """
    head_dim = g.vision_dim // g.vision_heads
    quarter = head_dim // 4  # frequencies of an axis; rows come first
    for layer in range(g.vision_layers - 2):
        bias = w[f"visual.blocks.{layer}.attn.qkv.bias"].view(3, g.vision_heads, 2, 2, quarter)
        far = 1 + layer // 2
        for head, offset in enumerate(((0, -far), (0, far), (-far, 0), (far, 0))):
            for axis in range(2):
                for i, strength in enumerate((4.5, 3.5)):
                    angle = torch.tensor(offset[axis] * 10000.0 ** (-i / quarter))
                    bias[0, head, 0, axis, i] += strength * angle.cos()
                    bias[0, head, 1, axis, i] += strength * angle.sin()
                    bias[1, head, 0, axis, i] += strength


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[name + ".weight"], w.get(name + ".bias"))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., head_dim]; cos, sin [..., head_dim / 2]: halves are the real and imaginary parts."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """q [B, heads, L, head_dim], k and v [B, kv_heads, L, head_dim], mask bool [B, 1, L, L] -> like q"""
    b, heads, length, width = q.shape
    kv_heads = k.shape[1]
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=heads != kv_heads)
    # Plain products: three times as fast on a CPU as its fused kernel's backward pass.
    q = (q * width**-0.5).reshape(b, kv_heads, -1, width)
    scores = (q @ k.transpose(-1, -2)).view(b, heads, length, length)
    if mask is not None:
        scores = scores + torch.where(mask, 0.0, -30000.0).to(scores.dtype)
    return (scores.softmax(-1).view(b, kv_heads, -1, length) @ v).view(b, heads, length, width)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


def compile_pointwise() -> None:
    """Replace element-wise functions by compiled ones: 4-6 times as fast on a CPU; needs a C++ compiler."""
    global rotate, rms_norm
    rotate, rms_norm = (torch.compile(f, dynamic=True) for f in (rotate, rms_norm))


def patchify(frames: Tensor, dtype: torch.dtype) -> tuple[Tensor, int, int]:
    """uint8 [B, F, height, width, 3] -> [B * t, S, 1176] (cell by cell), rows and columns of patches."""
    b, f, height, width, _ = frames.shape
    if f == 1:
        frames = frames.expand(b, 2, height, width, 3)
    mean, std = (torch.tensor(values, device=frames.device) * 255 for values in (MEAN, STD))
    x = ((frames.float() - mean) / std).to(dtype)
    t, rows, columns = max(1, f // 2), height // 14, width // 14
    x = x.view(b, t, 2, rows // 2, 2, 14, columns // 2, 2, 14, 3)
    # -> b, t, cell row, cell column, patch row, patch column, channel, frame, y, x
    x = x.permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8)
    return x.reshape(b * t, rows * columns, 3 * 2 * 14 * 14), rows, columns


def vision_angles(rows: int, columns: int, head_dim: int, device: torch.device) -> Tensor:
    """[S, head_dim / 2]: the first half turns with the patch's row, the second with its column."""
    frequencies = 10000.0 ** (
        -torch.arange(0, head_dim // 2, 2, device=device, dtype=torch.float32) / (head_dim // 2)
    )
    row = torch.arange(rows, device=device)[:, None].expand(rows, columns)
    column = torch.arange(columns, device=device)[None, :].expand(rows, columns)
    place = (
        torch.stack((row, column), -1).view(rows // 2, 2, columns // 2, 2, 2).transpose(1, 2).reshape(-1, 2)
    )
    return (place[:, :, None] * frequencies).flatten(1)


def vision(w: Weights, g: Geometry, frames: Tensor) -> Tensor:
    """uint8 [B, F, height, width, 3] -> visual tokens [B, t * cells, H]"""
    patches, rows, columns = patchify(frames, w["visual.merger.ln_q.weight"].dtype)
    x = patches @ w["visual.patch_embed.proj.weight"].flatten(1).T  # [N, S, D]
    n, s, d = x.shape
    head_dim = d // g.vision_heads
    angles = vision_angles(rows, columns, head_dim, x.device)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    for i in range(g.vision_layers):
        p = f"visual.blocks.{i}."
        y = F.layer_norm(x, (d,), w[p + "norm1.weight"], w[p + "norm1.bias"], 1e-6)
        q, k, v = linear(w, p + "attn.qkv", y).view(n, s, 3, g.vision_heads, head_dim).permute(2, 0, 3, 1, 4)
        y = attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        x = x + linear(w, p + "attn.proj", y.transpose(1, 2).reshape(n, s, d))
        y = F.layer_norm(x, (d,), w[p + "norm2.weight"], w[p + "norm2.bias"], 1e-6)
        # quick-gelu y * sigmoid(1.702 y) is silu(1.702 y) / 1.702: the factors go to the small weights.
        y = F.silu(F.linear(y, w[p + "mlp.fc1.weight"] * 1.702, w[p + "mlp.fc1.bias"] * 1.702))
        x = x + F.linear(y, w[p + "mlp.fc2.weight"] * (1 / 1.702), w[p + "mlp.fc2.bias"])
    x = F.layer_norm(x, (d,), w["visual.merger.ln_q.weight"], w["visual.merger.ln_q.bias"], 1e-6)
    x = x.reshape(n, s // 4, 4 * d)
    x = linear(w, "visual.merger.mlp.2", F.gelu(linear(w, "visual.merger.mlp.0", x)))
    return x.reshape(len(frames), -1, g.hidden)


def mrope_angles(g: Geometry, positions: Tensor) -> Tensor:
    """positions [3, B, L] -> [B, L, head_dim / 2]: each section of frequencies turns with its own axis."""
    half = g.head_dim // 2
    frequencies = g.rope_theta ** (-torch.arange(half, device=positions.device, dtype=torch.float32) / half)
    axis = torch.repeat_interleave(
        torch.arange(3, device=positions.device), torch.tensor(g.mrope_section, device=positions.device)
    )
    return positions[axis].permute(1, 2, 0) * frequencies


def decoder(
    w: Weights, g: Geometry, x: Tensor, positions: Tensor, mask: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """x [B, L, H], positions [3, B, L], mask bool [B, 1, L, L] -> last hidden states, those of each layer."""
    b, length, h = x.shape
    angles = mrope_angles(g, positions)[:, None]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    hidden = []
    for i in range(g.layers):
        p = f"model.layers.{i}."
        y = rms_norm(x, w[p + "input_layernorm.weight"], g.rms_eps)
        q = linear(w, p + "self_attn.q_proj", y).view(b, length, g.heads, g.head_dim).transpose(1, 2)
        k = linear(w, p + "self_attn.k_proj", y).view(b, length, g.kv_heads, g.head_dim).transpose(1, 2)
        v = linear(w, p + "self_attn.v_proj", y).view(b, length, g.kv_heads, g.head_dim).transpose(1, 2)
        y = attention(rotate(q, cos, sin), rotate(k, cos, sin), v, mask)
        x = x + linear(w, p + "self_attn.o_proj", y.transpose(1, 2).reshape(b, length, h))
        y = rms_norm(x, w[p + "post_attention_layernorm.weight"], g.rms_eps)
        y = F.silu(linear(w, p + "mlp.gate_proj", y)) * linear(w, p + "mlp.up_proj", y)
        x = x + linear(w, p + "mlp.down_proj", y)
        hidden.append(x)
    return rms_norm(x, w["model.norm.weight"], g.rms_eps), hidden


def branch_mask(branch: Tensor) -> Tensor:
    """[B, L] branch numbers -> bool [B, 1, L, L]: causal, and a branch sees only the prefix and itself."""
    length = branch.shape[1]
    order = torch.arange(length, device=branch.device)
    sees = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    return (sees & (order[:, None] >= order[None, :]))[:, None]


def config(g: Geometry, special: dict[str, int]) -> dict:
    """config.json in the layout of the family's published checkpoints."""
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": special["endoftext"],
        "eos_token_id": special["im_end"],
        "vision_start_token_id": special["vision_start"],
        "vision_end_token_id": special["vision_end"],
        "vision_token_id": special["vision_pad"],
        "image_token_id": special["image_pad"],
        "video_token_id": special["video_pad"],
        "hidden_act": "silu",
        "hidden_size": g.hidden,
        "initializer_range": 0.02,
        "intermediate_size": g.mlp,
        "max_position_embeddings": 4096,
        "max_window_layers": g.layers,
        "model_type": "qwen2_vl",
        "num_attention_heads": g.heads,
        "num_hidden_layers": g.layers,
        "num_key_value_heads": g.kv_heads,
        "rms_norm_eps": g.rms_eps,
        "rope_theta": g.rope_theta,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.57.6",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": g.vision_layers,
            "embed_dim": g.vision_dim,
            "mlp_ratio": g.vision_mlp_ratio,
            "num_heads": g.vision_heads,
            "in_chans": 3,
            "in_channels": 3,
            "hidden_act": "quick_gelu",
            "hidden_size": g.hidden,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": list(g.mrope_section)},
        "vocab_size": g.vocabulary,
    }


def save_state(path: Path, g: Geometry, **parts: object) -> None:
    """Everything that training needs to go on, written whole or not at all."""
    torch.save({"geometry": asdict(g), **parts}, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
