"""Calibration inputs: conversations with pictures, prepared as a session would prepare them.

A set is a folder with conversations.jsonl, one conversation a line: {"messages": [...]} in the content-list
form, answers included; pictures and frames are named relative to the folder.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen2vl_export.checkpoint import Checkpoint
from qwen2vl_export.errors import ExportError
from qwen2vl_export.quantize.network import Sequences, bounds
from qwen2vl_rt import _core
from qwen2vl_rt.errors import InputError
from qwen2vl_rt.processing.conversation_file import read_conversations
from qwen2vl_rt.processing.processor import PreparedPrompt, Processor
from qwen2vl_rt.processing.visuals import Visual

SHIPPED = Path(__file__).parent / "calibration_set"
CONVERSATIONS = "conversations.jsonl"
TEXT_WEIGHT = 8  # of an error at a token of text, 1 at a visual one: there are many, and answers come at text


@dataclass(frozen=True)
class Calibration:
    """What flows into both graphs: prompts, and the patches of their pictures and frame pairs, each once."""

    prompts: Sequence[PreparedPrompt]
    patches: np.ndarray  # float32 [P, values], picture after picture
    shown: np.ndarray  # rows of the visual embeddings [P / 4, H] that the prompts' pads take, in order
    pictures: Sequences  # of `patches`
    sequences: Sequences  # of the prompts' tokens, side by side
    pads: np.ndarray  # bool [T], which of the tokens are visual

    @property
    def token_ids(self) -> np.ndarray:
        """Token ids of all prompts side by side, int [T]."""
        return np.concatenate([prompt.token_ids for prompt in self.prompts])

    @property
    def weights(self) -> np.ndarray:
        """How much an error at each token counts, float32 [T]."""
        return np.where(self.pads, np.float32(1), np.float32(TEXT_WEIGHT))


def load_calibration(folder: Path, checkpoint: Checkpoint) -> Calibration:
    """Prepare the calibration set in `folder` for a checkpoint.

    Raises ExportError if it is no calibration set, is empty or has no pictures, or the checkpoint has no chat
    template; what the processor refuses (an unreadable picture, a damaged tokenizer) passes through as
    InputError or BundleError.
    """
    geometry = checkpoint.geometry
    processor = Processor(checkpoint.path, geometry)
    if processor.template is None:
        raise ExportError(
            f"{checkpoint.path} has no chat template to calibrate with; add chat_template.json, or round to "
            "nearest with --calibration none"
        )
    prompts = [
        processor.prepare(messages, add_generation_prompt=False) for messages in _conversations(folder)
    ]
    ids, special = np.concatenate([prompt.token_ids for prompt in prompts]), geometry.special_ids
    visuals = {visual.digest: visual for prompt in prompts for visual in prompt.visuals}
    if not visuals:
        raise ExportError(f"{folder / CONVERSATIONS} has no pictures; the vision tower needs some")
    return Calibration(
        prompts,
        np.concatenate([visual.patches.reshape(-1, visual.patches.shape[-1]) for visual in visuals.values()]),
        _shown(prompts, visuals, geometry.vision.merge_size),
        _pictures(visuals.values(), geometry.vision),
        _sequences(prompts, geometry),
        (ids == special.image_pad) | (ids == special.video_pad),
    )


def _conversations(folder: Path) -> list[list[dict[str, Any]]]:
    file = folder / CONVERSATIONS
    try:
        found = read_conversations(file, lambda raw: raw["messages"], "a conversation")
    except InputError as error:
        raise ExportError(f"{error}; --calibration takes a folder of conversations") from error
    if not found:
        raise ExportError(f"{file} has no conversations; write one a line, or leave --calibration out")
    return found


def _shown(prompts: Sequence[PreparedPrompt], visuals: dict[bytes, Visual], merge: int) -> np.ndarray:
    """Return which rows of the embeddings of `visuals`, side by side, appear in the prompts."""
    starts = bounds([visual.tokens(merge) for visual in visuals.values()])
    places = dict(zip(visuals, itertools.pairwise(starts), strict=True))
    found = [np.arange(*places[visual.digest]) for prompt in prompts for visual in prompt.visuals]
    return np.concatenate(found)


def _pictures(visuals: Iterable[Visual], vision: Any) -> Sequences:
    lengths, tables = [], []
    for visual in visuals:
        t, h, w = visual.grid_thw
        table = _core.vision_rope_table(h, w, vision.head_dim, vision.merge_size, vision.rope_theta)
        lengths += [h * w] * t
        tables += [table] * t
    cos, sin = (np.concatenate(parts) for parts in zip(*tables, strict=True))
    return Sequences(bounds(lengths), cos, sin)


def _sequences(prompts: Sequence[PreparedPrompt], geometry: Any) -> Sequences:
    decoder, ids, merge = geometry.decoder, geometry.special_ids, geometry.vision.merge_size
    tables = []
    for prompt in prompts:
        positions, _ = _core.mrope_positions(
            prompt.token_ids, prompt.grids, ids.image_pad, ids.video_pad, merge
        )
        tables.append(
            _core.rope_table(positions, decoder.head_dim, decoder.rope_theta, list(decoder.mrope_section))
        )
    cos, sin = (np.concatenate(parts) for parts in zip(*tables, strict=True))
    return Sequences(bounds([len(prompt.token_ids) for prompt in prompts]), cos, sin)
