"""The cache's capacity as a constant: TensorRT updates a cache in place only if its length is known."""

from __future__ import annotations

from onnx import ModelProto

CAPACITY = "S"  # the dimension's name in the portable graph


def fix_capacity(model: ModelProto, capacity: int) -> None:
    """Set the length of every cache input and output to `capacity` positions, in place."""
    graph = model.graph
    for value in (*graph.input, *graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == CAPACITY:
                dimension.dim_value = capacity
