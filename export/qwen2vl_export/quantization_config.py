"""What config.json's quantization_config says about how a checkpoint's quantized layers are stored.

The entries' names are those of transformers' GPTQConfig and AwqConfig, which AutoGPTQ, GPTQModel and AutoAWQ
write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qwen2vl_rt._fields import Fields
from qwen2vl_rt.errors import CheckpointError

GPTQ, AWQ = "gptq", "awq"
_BITS = {GPTQ: (4, 8), AWQ: (4,)}
_ADVICE = "; use another release of the checkpoint"


@dataclass(frozen=True)
class QuantizationConfig:
    """How every quantized layer of a checkpoint is stored."""

    method: str  # GPTQ or AWQ
    bits: int  # of a code
    group: int  # inputs that share a scale and a zero point
    symmetric: bool  # every zero point is the middle, 2**(bits - 1)
    act_order: bool  # g_idx may assign inputs to groups in any order
    zero_point_offset: int  # true zero point minus stored one: GPTQ's first format stores them less 1

    @staticmethod
    def from_config(config: Any, where: str) -> QuantizationConfig | None:
        """Read it from a parsed config.json, or return None if there is none.

        `where` names the file in messages. Raises CheckpointError for a method, width or format that the
        exporter cannot read.
        """
        root = Fields(config, where, CheckpointError)
        if not root.has("quantization_config") and root.has("text_config"):
            root = root.child("text_config")
        if not root.has("quantization_config"):
            return None
        fields = root.child("quantization_config")

        method = fields.text("quant_method").lower()
        if method not in _BITS:
            _refuse(fields, "quant_method", method, " or ".join(_BITS))
        bits, group = fields.integer("bits"), fields.get("group_size", 128)
        if bits not in _BITS[method]:
            _refuse(fields, "bits", bits, " or ".join(map(str, _BITS[method])) + f" for {method}")
        if type(group) is not int or group < 32 or group % 32:
            _refuse(fields, "group_size", group, "a multiple of 32")
        if fields.get("pack_dtype", "int32") != "int32":
            _refuse(fields, "pack_dtype", fields.get("pack_dtype"), "int32")
        return _awq(fields, bits, group) if method == AWQ else _gptq(fields, bits, group)


def _gptq(fields: Fields, bits: int, group: int) -> QuantizationConfig:
    layout = fields.text("checkpoint_format", fields.get("format", "gptq")).lower()
    if fields.flag("is_marlin_format", False):
        layout = "marlin"
    if layout not in ("gptq", "gptq_v2"):
        _refuse(fields, "checkpoint_format", layout, "gptq or gptq_v2")
    return QuantizationConfig(
        GPTQ,
        bits,
        group,
        symmetric=fields.flag("sym", False),
        act_order=fields.flag("desc_act", False),
        zero_point_offset=1 if layout == "gptq" else 0,
    )


def _awq(fields: Fields, bits: int, group: int) -> QuantizationConfig:
    layout = fields.text("version", fields.get("checkpoint_format", "gemm")).lower()
    if layout != "gemm":
        _refuse(fields, "version", layout, "gemm")
    if fields.get("backend", None) == "llm-awq":  # another packing
        _refuse(fields, "backend", "llm-awq", "autoawq")
    if not fields.flag("zero_point", True):
        _refuse(fields, "zero_point", False, "True, which the gemm layout always has")
    return QuantizationConfig(AWQ, bits, group, symmetric=False, act_order=False, zero_point_offset=0)


def _refuse(fields: Fields, name: str, value: object, expected: str) -> None:
    raise CheckpointError(f"{fields.where}: {name} {value!r} cannot be read, expected {expected}{_ADVICE}")
