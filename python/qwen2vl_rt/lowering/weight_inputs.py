"""Weights as inputs of a graph: who holds them says where they are, and several graphs may read the same."""

from __future__ import annotations

from collections.abc import Container

import numpy as np
from onnx import ModelProto, helper


def to_weight_inputs(model: ModelProto, weights: dict[str, np.ndarray], names: Container[str]) -> None:
    """Make the initializers `names` inputs of the graph, in place; `weights` loses their external data."""
    graph = model.graph
    kept = []
    for tensor in graph.initializer:
        if tensor.name in names:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            graph.input.append(value)
            weights.pop(tensor.name, None)
        else:
            kept.append(tensor)
    del graph.initializer[:]
    graph.initializer.extend(kept)
