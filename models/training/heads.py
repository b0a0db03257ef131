"""Throw-away heads that say densely, at every visual token, what is there.

They teach far faster than answers alone. On the vision tower's tokens: what covers each patch, and where the
edges of the object there are. The tower can't know where in the picture a cell is (its rotary positions
are relative); that comes from M-RoPE in the decoder, so the heads there ask for row, column, time, edges from
the picture's corner, and the picture's size where an answer begins.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .batches import CELL_LABELS, MOST_CELLS, Batch
from .phrases import COLOUR_NAMES, DIRECTIONS, SHAPES
from .sample import BESIDE, GLYPHS, IGNORE, MOST_COUNTED

# Decoder layers (their outputs) after which the object in mind should be found: in answers, and earlier in
# questions, whose objects later layers compare.
POINTER_LAYERS = (3, 2)
CLASSES = {"colour": len(COLOUR_NAMES) + 1, "shape": len(SHAPES) + 1, "glyph": len(GLYPHS) + 1}


BESIDE_CLASSES = [
    CLASSES[name.partition("_")[2]] if name.startswith(("left", "right")) else MOST_COUNTED + 1
    for name in BESIDE
]
SPELLING_CLASSES = [MOST_COUNTED + 1, CLASSES["glyph"]]


class Heads(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.patches = nn.ModuleDict({name: nn.Linear(hidden, 4 * n) for name, n in CLASSES.items()})
        self.box = nn.Linear(hidden, 4)
        self.motion = nn.Linear(hidden, len(DIRECTIONS) + 1)
        self.beside = nn.Linear(hidden, sum(BESIDE_CLASSES))
        self.spelling = nn.Linear(hidden, 4 * sum(SPELLING_CLASSES))
        self.place = nn.Linear(hidden, 2 * MOST_CELLS + 8)
        self.edges = nn.Linear(hidden, 4)
        self.size = nn.Linear(hidden, 2 * MOST_CELLS)
        self.answer_box = nn.Linear(hidden, 4)
        self.pointers = nn.ModuleList(Pointer(hidden) for _ in range(2))

    def tower_loss(self, tokens: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """tokens of each block: [B, t * h * w, H]"""
        losses: dict[str, Tensor] = {}
        x = torch.cat([block.flatten(0, 1) for block in tokens]).float()
        labels = {
            name: torch.cat([block[i].flatten(0, 3) for block in batch.cells])
            for i, name in enumerate(CELL_LABELS)
        }
        for name in CLASSES:
            label = labels[name]
            if name != "glyph" or (label > 0).any():
                logits = self.patches[name](x).view(-1, CLASSES[name])
                weight = torch.full((CLASSES[name],), 1.0, device=x.device)
                weight[0] = 0.2
                losses[name] = F.cross_entropy(logits, label.flatten(), weight, ignore_index=IGNORE)
        losses["box"] = _edge_loss(self.box(x) * 4, labels["box"])
        if any(block.shape[1] > 1 for block in batch.frames):
            weight = torch.tensor([0.1, 1, 1, 1, 1], device=x.device)
            losses["motion"] = F.cross_entropy(self.motion(x), labels["motion"], weight)
        if (labels["beside"] != IGNORE).any():
            losses["beside"] = _group_loss(self.beside(x), labels["beside"], BESIDE_CLASSES)
        if (labels["spelling"] != IGNORE).any():
            logits = self.spelling(x).view(-1, sum(SPELLING_CLASSES))
            losses["spelling"] = _group_loss(logits, labels["spelling"].flatten(0, 1), SPELLING_CLASSES)
        return losses

    def decoder_loss(self, hidden: Tensor, batch: Batch) -> dict[str, Tensor]:
        """hidden [B, L, H] of a middle layer."""
        losses: dict[str, Tensor] = {}
        x = hidden[:, batch.visual].float()
        t, row, column = (batch.places[:, i].expand(len(x), -1).flatten() for i in range(3))
        logits = self.place(x).flatten(0, 1)
        losses["place"] = (
            F.cross_entropy(logits[:, :MOST_CELLS], row)
            + F.cross_entropy(logits[:, MOST_CELLS : 2 * MOST_CELLS], column)
            + F.cross_entropy(logits[:, 2 * MOST_CELLS :], t)
        ) / 3
        box = torch.cat([block[3].flatten(1, 3) for block in batch.cells], 1)
        corner = batch.places[:, [2, 1, 2, 1]].float() + 0.5
        losses["edges"] = _edge_loss(self.edges(x) * 8, box + corner)
        if len(batch.frames) == 1:
            _, height, width = batch.frames[0].shape[1:4]
            asks = self.size(hidden[batch.asks[:, 0], batch.asks[:, 1]].float())
            label = torch.tensor([height // 28 - 1, width // 28 - 1], device=x.device).expand(len(asks), 2)
            losses["size"] = (
                F.cross_entropy(asks[:, :MOST_CELLS], label[:, 0])
                + F.cross_entropy(asks[:, MOST_CELLS:], label[:, 1])
            ) / 2
        return losses

    def pointer_loss(self, hidden: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """hidden of each layer [B, L, H]: the share of attention that misses the cells of the object in mind,
        and how far off its edges are a layer later."""
        sums: dict[str, list[Tensor]] = {"pointer": [], "located": []}
        for head, layer, named in zip(self.pointers, POINTER_LAYERS, (False, True), strict=True):
            if (chosen := batch.pointer_named == named).any():
                at, cells = batch.pointers[chosen], batch.pointed[chosen]
                sums["pointer"].append(head.misses(hidden[layer], at, batch.visual, cells).sum())
                edges = batch.pointed_box[chosen]
                if not edges.isnan().all():
                    sums["located"].append(head.edge_loss(hidden[layer + 1], at, edges) * chosen.sum())
        return {name: sum(values) / len(batch.pointers) for name, values in sums.items() if values}

    def answer_loss(self, last: Tensor, batch: Batch) -> dict[str, Tensor]:
        """last hidden states [B, L, H]"""
        if not len(batch.boxes):
            return {}
        guess = self.answer_box(last[batch.boxes[:, 0], batch.boxes[:, 1]].float()) * 0.3 + 0.5
        return {"answer_box": 8 * F.smooth_l1_loss(guess, batch.box_edges, beta=0.05)}


class Pointer(nn.Module):
    """From a text token that has an object in mind to the cells that show it, and to its edges."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.pointer, self.pointee = nn.Linear(hidden, 64), nn.Linear(hidden, 64)
        self.located = nn.Linear(hidden, 4)
        nn.init.zeros_(self.located.weight)

    def misses(self, hidden: Tensor, at: Tensor, visual: Tensor, cells: Tensor) -> Tensor:
        """hidden [B, L, H], tokens at [n, 2], visual columns [V], cells bool [n, V] -> minus log share [n]"""
        hidden = F.rms_norm(hidden, hidden.shape[-1:])
        keys = self.pointee(hidden[:, visual].float())[at[:, 0]]
        query = self.pointer(hidden[at[:, 0], at[:, 1]].float())
        logs = F.log_softmax(torch.einsum("pvk,pk->pv", keys, query) * 0.25, -1)
        return -logs.masked_fill(~cells, -30.0).logsumexp(-1)

    def edge_loss(self, hidden: Tensor, at: Tensor, edges: Tensor) -> Tensor:
        """hidden [B, L, H] of a later layer, edges [n, 4] in 0..1 or nan"""
        x = hidden[at[:, 0], at[:, 1]].float()
        return 8 * _edge_loss(self.located(F.rms_norm(x, x.shape[-1:])) * 0.3 + 0.5, edges, beta=0.05)


def _group_loss(logits: Tensor, labels: Tensor, classes: list[int]) -> Tensor:
    """Mean cross entropy of several questions at once: logits [n, sum(classes)], labels [n, len(classes)]"""
    groups = zip(logits.split(classes, -1), labels.unbind(-1), strict=True)
    return sum(F.cross_entropy(group, label, ignore_index=IGNORE) for group, label in groups) / len(classes)


def _edge_loss(guess: Tensor, edges: Tensor, beta: float = 0.2) -> Tensor:
    """Mean smooth L1 over the edges that are known."""
    known = ~edges.isnan().any(-1)
    if not known.any():
        return guess.sum() * 0
    return F.smooth_l1_loss(guess[known], edges[known], beta=beta)
