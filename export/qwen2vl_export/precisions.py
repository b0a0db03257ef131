"""What each precision of a bundle means: which form its matrices take, and its graphs' number format."""

from __future__ import annotations

from dataclasses import dataclass

from qwen2vl_rt import _core

BLOCK = _core.BLOCK  # numbers along a matrix' inputs that share a scale, in int4 layers and 8-bit tables


@dataclass(frozen=True)
class Forms:
    """The forms of a bundle's matrices.

    `number` is the format of everything that is not quantized and of the graphs' inputs and outputs.
    `decoder`, `prefill` and `vision` name the form of a graph's linear layers: "float" (in `number`), "int4"
    (weights in blocks; the last layers' have 8 bit) or "int8" (weights by output, activations by token).
    Without `prefill` the decoder's graph takes the prompt too. `table` is the form of the embedding table and
    of lm_head: "float" or "int8" (in blocks).
    """

    number: str
    decoder: str = "float"
    prefill: str | None = None
    vision: str = "float"
    table: str = "float"


FORMS = {
    "fp32": Forms("fp32"),
    "bf16": Forms("bf16"),
    "fp16": Forms("fp16"),
    "int8": Forms("fp32", decoder="int8", vision="int8", table="int8"),
    "int4": Forms("fp32", decoder="int4", vision="int8", table="int8"),
    "int4-int8": Forms("fp32", decoder="int4", prefill="int8", vision="int8", table="int8"),
}
