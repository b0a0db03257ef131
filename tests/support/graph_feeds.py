"""Random inputs for the decoder's and the vision tower's graph, and a lowered graph run on ONNX Runtime."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper
from onnx.reference import ReferenceEvaluator

from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.weights import load_graph


def decoder_feed(bundle: Bundle, past: list[int], tokens: int, rows: list[int], capacity: int) -> dict:
    """A step of `tokens` tokens over a float32 cache whose rows hold `past` positions."""
    decoder, rng = bundle.geometry.decoder, np.random.default_rng(tokens)
    batch, half = len(past), decoder.head_dim // 2
    angles = rng.uniform(0, 6, (batch, tokens, half))
    feed = {
        "inputs_embeds": rng.standard_normal((batch, tokens, decoder.hidden_size), dtype=np.float32),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
        "past_length": np.array(past, np.int64),
        "logit_rows": np.array([rows] * batch, np.int64),
    }
    for layer in range(decoder.layers):
        for part in ("k", "v"):
            cache = np.full((batch, decoder.kv_heads, capacity, decoder.head_dim), 1e3, np.float32)
            for row, length in enumerate(past):  # beyond the past lies rubbish that nothing may read
                cache[row, :, :length] = rng.standard_normal((decoder.kv_heads, length, decoder.head_dim))
            feed[f"past_{part}.{layer}"] = cache
    return feed


def vision_feed(bundle: Bundle, pictures: int, patches: int) -> dict:
    """`pictures` pictures of `patches` patches each, float32."""
    vision, rng = bundle.geometry.vision, np.random.default_rng(patches)
    angles = rng.uniform(0, 6, (pictures, patches, vision.head_dim // 2))
    return {
        "patches": rng.standard_normal((pictures, patches, vision.patch_values), dtype=np.float32),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
    }


def with_weights(model: onnx.ModelProto, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The model with its weights inside, in place."""
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.raw_data = weights[tensor.name].tobytes()
    return model


def run(model: onnx.ModelProto, weights: dict[str, np.ndarray], feed: dict) -> dict[str, np.ndarray]:
    """Outputs of a lowered graph by name, each operator computed as it stands: nothing is fused."""
    model = with_weights(model, weights)
    onnx.checker.check_model(model, full_check=True)
    _multiply_exactly(model)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    types = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
    feed = {
        entry.name: feed[entry.name].astype(types.get(entry.type, feed[entry.name].dtype))
        for entry in session.get_inputs()
    }
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def _multiply_exactly(model: onnx.ModelProto) -> None:
    """MatMulInteger as a product of float64, in place.

    ONNX Runtime's own overflows on some CPUs where nothing is fused (see EXACT_INT8); another engine
    would round some activations to the next of 255 steps.
    """
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        if node.op_type != "MatMulInteger":
            model.graph.node.append(node)
            continue
        wide = [f"{node.name}/wide{i}" for i in range(len(node.input))]
        for name, result in zip(node.input, wide, strict=True):
            model.graph.node.append(helper.make_node("Cast", [name], [result], to=onnx.TensorProto.DOUBLE))
        for i, zero in enumerate(wide[2:]):
            centered = f"{node.name}/centered{i}"
            model.graph.node.append(helper.make_node("Sub", [wide[i], zero], [centered]))
            wide[i] = centered
        product = f"{node.name}/product"
        model.graph.node.append(helper.make_node("MatMul", wide[:2], [product]))
        model.graph.node.append(helper.make_node("Cast", [product], node.output, to=onnx.TensorProto.INT32))


def evaluate_bfloat16(
    model: onnx.ModelProto, weights: dict[str, np.ndarray], feed: dict
) -> dict[str, np.ndarray]:
    """Outputs of a bfloat16 graph by name, from onnx's reference implementation."""
    model = with_weights(model, weights)
    onnx.checker.check_model(model, full_check=True)
    feed = {
        name: value.astype(ml_dtypes.bfloat16) if value.dtype == np.float32 else value
        for name, value in feed.items()
    }
    names = [output.name for output in model.graph.output]
    return dict(zip(names, ReferenceEvaluator(model).run(names, feed), strict=True))


def portable(bundle: Bundle, graph: str, feed: dict) -> dict[str, np.ndarray]:
    """Outputs of the unchanged graph by name."""
    return run(*load_graph(bundle, graph), feed)
