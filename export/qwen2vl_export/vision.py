"""The vision tower as an ONNX graph: patches of N equal-size pictures (or frame pairs) in, visual
embeddings out.

Shapes: N pictures of P patches each, C values a patch, E the tower's width, D its head size, H the
decoder's hidden size, m x m patches merged into one embedding. The patches of a picture come in merge
order (the m*m that will be merged stand side by side), with cos and sin of their row and column in that
order. Pictures never see each other and every patch of one sees all the others, so there is no mask.
"""

from __future__ import annotations

from qwen2vl_export.graph import Graph, float32_softmax
from qwen2vl_export.linear import linear
from qwen2vl_export.precisions import FORMS
from qwen2vl_rt.bundle import VISION_WEIGHTS
from qwen2vl_rt.geometry import VisionGeometry
from qwen2vl_rt.graph_format import COS, PATCHES, SIN, VISUAL_EMBEDDINGS

LAST = "visual.merger.mlp.2"
QUICK_GELU = 1.702


def vision_graph(geometry: VisionGeometry, hidden_size: int, precision: str) -> Graph:
    """Return the tower's graph, its weights declared; docs/bundle-format.md lists inputs and outputs.

    Quantized, its last layer has 8-bit blocks and takes activations as they are: behind a GELU nothing can
    smooth them, and rounding them there made half of the embeddings' squared error.
    """
    graph = Graph(
        "vision", precision, VISION_WEIGHTS, FORMS[precision].vision, lambda source: source.startswith(LAST)
    )
    half = geometry.head_dim // 2
    patches = graph.input(PATCHES, ["N", "P", geometry.patch_values])
    cos = graph.input(COS, ["N", "P", half])
    sin = graph.input(SIN, ["N", "P", half])

    x = _patch_embedding(graph, geometry, patches)  # [N, P, E]
    for i in range(geometry.depth):
        x = _attention(graph, geometry, i, x, cos, sin)
        x = _mlp(graph, geometry, i, x)
    merged = _merger(graph, geometry, x, hidden_size)
    graph.output(merged, ["N", "P_merged", hidden_size])
    return graph


def _patch_embedding(graph: Graph, geometry: VisionGeometry, patches: str) -> str:
    """A 3-D convolution whose stride is its kernel, so a matrix product: [N, P, C] -> [N, P, E]."""
    kernel = [geometry.in_channels, geometry.temporal_patch_size, geometry.patch_size, geometry.patch_size]
    weight = graph.linear_weight(
        "patch_embedding.weight", "visual.patch_embed.proj.weight", kernel, geometry.embed_dim
    )
    return graph.op("MatMul", "patch_embedding", patches, weight)


def _attention(graph: Graph, geometry: VisionGeometry, block: int, x: str, cos: str, sin: str) -> str:
    """x + proj(attention(q, k, v)), every patch of a picture with every other."""
    name, source = f"blocks.{block}.attention", f"visual.blocks.{block}"
    width, heads, head_dim = geometry.embed_dim, geometry.heads, geometry.head_dim

    normed = _norm(graph, geometry, f"{name}.norm", x, f"{source}.norm1")
    qkv = linear(
        graph, f"{name}.qkv", normed, f"{source}.attn.qkv", width, 3 * width, bias=True
    )  # [N, P, 3E]
    q, k, v = graph.split(f"{name}.qkv.split", qkv, [f"{name}.q", f"{name}.k", f"{name}.v"])  # [N, P, E] each

    q, k, v = (graph.to_heads(part, part, heads, head_dim) for part in (q, k, v))  # [N, heads, P, D]
    q = graph.op("RotaryEmbedding", f"{name}.q.rotated", q, cos, sin, interleaved=0)
    k = graph.op("RotaryEmbedding", f"{name}.k.rotated", k, cos, sin, interleaved=0)
    y = graph.op("Attention", f"{name}.scores", q, k, v, **float32_softmax(graph))
    y = graph.from_heads(name, y, width)  # [N, P, E]
    y = linear(graph, f"{name}.proj", y, f"{source}.attn.proj", width, width, bias=True)
    return graph.op("Add", f"{name}.residual", x, y)


def _mlp(graph: Graph, geometry: VisionGeometry, block: int, x: str) -> str:
    """x + fc2(quick_gelu(fc1(norm x))), with quick_gelu(a) = a * sigmoid(QUICK_GELU a)."""
    name, source = f"blocks.{block}.mlp", f"visual.blocks.{block}"
    width, inner = geometry.embed_dim, geometry.mlp_size

    normed = _norm(graph, geometry, f"{name}.norm", x, f"{source}.norm2")
    a = linear(graph, f"{name}.fc1", normed, f"{source}.mlp.fc1", width, inner, bias=True)
    steeper = graph.op("Mul", f"{name}.scaled", a, graph.number("constant.quick_gelu", QUICK_GELU))
    gelu = graph.op("Mul", f"{name}.quick_gelu", a, graph.op("Sigmoid", f"{name}.sigmoid", steeper))
    y = linear(graph, f"{name}.fc2", gelu, f"{source}.mlp.fc2", inner, width, bias=True)
    return graph.op("Add", f"{name}.residual", x, y)


def _merger(graph: Graph, geometry: VisionGeometry, x: str, hidden_size: int) -> str:
    """Join m*m neighbouring patches and project them: [N, P, E] -> [N, P/m^2, H]."""
    width = geometry.embed_dim * geometry.merge_size**2
    x = _norm(graph, geometry, "merger.norm", x, "visual.merger.ln_q")
    x = graph.op("Reshape", "merger.joined", x, graph.integers(0, -1, width))  # [N, P/m^2, m*m*E]
    x = linear(graph, "merger.fc1", x, "visual.merger.mlp.0", width, width, bias=True)
    x = graph.op("Gelu", "merger.gelu", x, approximate="none")
    return linear(graph, VISUAL_EMBEDDINGS, x, LAST, width, hidden_size, bias=True)


def _norm(graph: Graph, geometry: VisionGeometry, name: str, x: str, source: str) -> str:
    """Layer norm over the tower's width; the statistics are float32 in every precision (stash_type)."""
    scale = graph.weight(f"{name}.weight", [geometry.embed_dim], f"{source}.weight")
    bias = graph.weight(f"{name}.bias", [geometry.embed_dim], f"{source}.bias")
    return graph.op(
        "LayerNormalization", name, x, scale, bias, axis=-1, epsilon=geometry.layer_norm_eps, stash_type=1
    )
