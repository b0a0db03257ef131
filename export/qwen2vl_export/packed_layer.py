"""One quantized linear layer of a GPTQ or AWQ checkpoint: codes packed into 32-bit words.

N outputs, K inputs, G groups of inputs, P = 32 / bits codes a word, the first in the lowest bits:

              GPTQ (AutoGPTQ)                      AWQ (AutoAWQ's gemm)
    qweight   int32 [K / P, N], P inputs a word    int32 [K, N / 8], 8 outputs a word, shuffled
    qzeros    int32 [G, N / P], P outputs a word   int32 [G, N / 8], 8 outputs a word, shuffled
    scales    float16 [G, N]                       float16 [G, N]
    g_idx     int32 [K], the input's group         none

G is ceil(K / group) in GPTQ, whose last group may be short; AWQ's groups fill K. g_idx is k // group, or with
act-order (desc_act) any assignment that fills the same groups.
GPTQ's first format stores zero points less 1. AWQ's word holds the outputs 0 2 4 6 1 3 5 7 of its eight.
Sources: AutoGPTQ's nn_modules/qlinear/qlinear_cuda.py, AutoAWQ's modules/linear/gemm.py and
utils/packing_utils.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwen2vl_export.group_quantized import GroupQuantized
from qwen2vl_export.quantization_config import AWQ, GPTQ, QuantizationConfig
from qwen2vl_export.safetensors_file import StoredTensor
from qwen2vl_rt.errors import CheckpointError

PARTS = ("qweight", "qzeros", "scales", "g_idx")
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in its word AWQ keeps output 0, 1, 2, ...
_BLOCK_WORDS = 2**14  # unpacked at a time: their codes stay in the cache while they are transposed


@dataclass(frozen=True)
class PackedLayer:
    """A layer's packed tensors by what they are: PARTS without the layer's name."""

    name: str  # of the layer, as published: "model.layers.0.mlp.up_proj"
    parts: dict[str, StoredTensor]
    config: QuantizationConfig

    @property
    def outputs(self) -> int:
        """N, for a layer that `check` has passed."""
        return self.parts["scales"].shape[1]

    def check(self, shape: tuple[int, int]) -> None:
        """Compare the layer with the matrix [N, K] that config.json asks for.

        Raises CheckpointError for a missing part, a wrong shape or format, and an order of groups, scales and
        zero points that no quantizer writes.
        """
        config, (outputs, inputs) = self.config, shape
        per_word = 32 // config.bits
        if config.method == AWQ and inputs % config.group:
            self._refuse(f"group_size {config.group} does not divide its {inputs} inputs")
        if outputs % per_word or inputs % per_word:
            self._refuse(f"{config.bits}-bit codes of [{outputs}, {inputs}] do not fill 32-bit words")
        groups = -(-inputs // config.group)
        wanted = {
            "qweight": (inputs // per_word, outputs)
            if config.method == GPTQ
            else (inputs, outputs // per_word),
            "qzeros": (groups, outputs // per_word),
            "scales": (groups, outputs),
        }
        if "g_idx" in self.parts or config.act_order:
            wanted["g_idx"] = (inputs,)
        for part, part_shape in wanted.items():
            if part not in self.parts:
                self._refuse(f"{part} is missing; is the download complete?")
            tensor = self.parts[part]
            if tensor.shape != part_shape:
                raise CheckpointError(
                    f"{tensor.file}: tensor {tensor.name} has shape {list(tensor.shape)}, "
                    f"config.json asks for {list(part_shape)}: {config.method}, {config.bits} bits, "
                    f"group_size {config.group}"
                )
            _ = tensor.number if part == "scales" else tensor.words  # refuses other formats
        if "g_idx" in self.parts:
            self._check_order(groups)
        if not np.isfinite(self._scales(0, outputs)).all():
            self._refuse("scales holds a number that is not finite; download it again")
        self._zero_points(0, outputs)

    def read(self, start: int, stop: int) -> GroupQuantized:
        """Return the outputs `start` to `stop` of a layer that `check` has passed.

        Memory beside the result: the layer's scales and zero points as stored, and 1 MB.
        """
        return GroupQuantized(
            self._codes(start, stop),
            self._scales(start, stop),
            self._zero_points(start, stop),
            self.config.group,
            self._order(),
        )

    @property
    def in_order(self) -> bool:
        """Whether each group is a run of consecutive inputs."""
        return self._order() is None

    def _order(self) -> np.ndarray | None:
        """Return each input's group [K], or None where groups are runs of inputs."""
        if "g_idx" not in self.parts:
            return None
        g_idx = self.parts["g_idx"]
        order = g_idx.read_words(0, g_idx.shape[0])
        return None if (order == self._runs).all() else order

    @property
    def _runs(self) -> np.ndarray:
        return np.arange(self.parts["g_idx"].shape[0]) // self.config.group

    def _codes(self, start: int, stop: int) -> np.ndarray:
        """Unpack qweight: uint8 [stop - start, K]."""
        qweight, bits = self.parts["qweight"], self.config.bits
        per_word, awq = 32 // bits, self.config.method == AWQ
        # Words of the outputs asked for, a row of them, and the inputs that a row holds.
        first, last = (start // per_word, -(-stop // per_word)) if awq else (start, stop)
        inputs = 1 if awq else per_word
        codes = np.empty((stop - start, qweight.shape[0] * inputs), np.uint8)
        step = max(1, _BLOCK_WORDS // max(1, last - first))
        for row in range(0, qweight.shape[0], step):
            words = qweight.read_words(row, min(row + step, qweight.shape[0]), first, last)
            if awq:
                block = self._outputs(words, start, stop).T
            else:  # [rows, n, P] -> [n, rows * P]
                block = unpack(words, bits).transpose(1, 0, 2).reshape(stop - start, len(words) * inputs)
            codes[:, row * inputs : (row + len(words)) * inputs] = block
        return codes

    def _scales(self, start: int, stop: int) -> np.ndarray:
        """Read the scales of some outputs: float32 [stop - start, G]."""
        scales = self.parts["scales"]
        return np.ascontiguousarray(scales.read(0, scales.shape[0])[:, start:stop].T.astype(np.float32))

    def _zero_points(self, start: int, stop: int) -> np.ndarray:
        """Unpack the zero points of some outputs: uint8 [stop - start, G].

        Raises CheckpointError for impossible ones.
        """
        qzeros, config = self.parts["qzeros"], self.config
        words = qzeros.read_words(0, qzeros.shape[0], start * config.bits // 32, -(-stop * config.bits // 32))
        zeros = self._outputs(words, start, stop).T.astype(np.int32) + config.zero_point_offset
        # GPTQ's first format cannot hold a 0: its packer's 0 less 1 overwrites the word's other zero points.
        largest, middle = 2**config.bits - 1, 2 ** (config.bits - 1)
        if config.symmetric and (zeros != middle).any():
            wrong = zeros[zeros != middle][0]
            self._refuse(f"qzeros holds the zero point {wrong}, {middle} in a symmetric layer; it is damaged")
        if (zeros > largest).any():
            self._refuse(
                f"qzeros holds the zero point {largest + 1}, beyond {config.bits} bits; it is damaged"
            )
        return np.ascontiguousarray(zeros.astype(np.uint8))

    def _outputs(self, words: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Unpack words that hold several outputs each, from the one of output `start` on: uint8 [rows, n]."""
        values = unpack(words, self.config.bits)
        if self.config.method == AWQ:
            values = values[..., _AWQ_PLACES]
        skipped = start % values.shape[-1]
        return values.reshape(len(words), -1)[:, skipped : skipped + stop - start]

    def _check_order(self, groups: int) -> None:
        if (order := self._order()) is None:
            return
        if not self.config.act_order:
            self._refuse("g_idx assigns inputs to groups out of order, but config.json says desc_act false")
        if (order >= groups).any() or (np.sort(order) != self._runs).any():
            self._refuse(f"g_idx does not fill groups of {self.config.group} inputs; it is damaged")

    def _refuse(self, problem: str) -> None:
        file = next(iter(self.parts.values())).file
        raise CheckpointError(f"{file}: quantized layer {self.name}: {problem}")


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """Split uint32 words [...] into their 4- or 8-bit values, lowest bits first: uint8 [..., 32 / bits]."""
    values = np.ascontiguousarray(words, "<u4").view(np.uint8).reshape(*words.shape, 4)
    if bits == 8:
        return values
    return np.stack([values & 15, values >> 4], axis=-1).reshape(*words.shape, 8)
