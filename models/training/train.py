"""Train the tiny Qwen2-VL from nothing, or go on from a state or a checkpoint.

    python -m models.training.train --out RUN --minutes 110 --compile       # 2 CPU cores: about two hours
    python -m models.training.train --out RUN --minutes 20 --device cuda --workers 12 --budget 40000
    python -m models.training.train --out RUN --resume RUN/state.pt --decay-minutes 15 --minutes 15
    python -m models.training.train --out RUN --init models/tiny            # weights alone; heads start anew

RUN gets state.pt every few minutes, log.txt, and at the end tiny/, a checkpoint that transformers loads.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file

from . import checkpoint, model, tokenizer
from .batches import Batch, box_edges, stream
from .heads import Heads
from .model import Geometry, Weights
from .muon import Muon

MUON_RATE, ADAM_RATE = 4e-3, 2e-3
TOWER_WEIGHTS = {
    "colour": 1.0,
    "shape": 1.0,
    "glyph": 1.5,
    "box": 1.0,
    "motion": 1.0,
    "place": 0.5,
    "edges": 0.5,
    "size": 0.3,
    "answer_box": 1.0,
}


class Stream(torch.utils.data.IterableDataset):
    """Batches drawn in other processes."""

    def __init__(
        self, tokenizer_file: Path, seed: int, ramp: float, done: int, workers: int, budget: float
    ) -> None:
        self.make = partial(stream, tokenizer_file, budget=budget)
        self.seed, self.ramp, self.done, self.workers = seed, ramp, done, max(1, workers)

    def __iter__(self):
        torch.set_num_threads(1)
        info = torch.utils.data.get_worker_info()
        number = info.id if info else 0
        return self.make(self.seed * 1000 + number, level_of=self.level)

    def level(self, drawn: int) -> float:
        """0..1: how far the curriculum has come after this worker drew so many samples."""
        samples = self.done + drawn * self.workers
        return min(1.0, samples / self.ramp)


def forward(w: Weights, g: Geometry, heads: Heads, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """Logits at the answers [A, vocabulary], the cross entropy, the dense losses by name."""
    tokens = [model.vision(w, g, frames) for frames in batch.frames]
    x = w["model.embed_tokens.weight"][batch.ids]
    x = x.index_copy(1, batch.visual, torch.cat(tokens, 1))
    last, middle = model.decoder(w, g, x, batch.positions, model.branch_mask(batch.branch), tap=2)
    at = last[batch.answers[:, 0], batch.answers[:, 1]]
    logits = (at @ w["model.embed_tokens.weight"].T).float()
    loss = F.cross_entropy(logits, batch.answers[:, 2])
    dense = (
        heads.tower_loss(tokens, batch) | heads.decoder_loss(middle, batch) | heads.answer_loss(last, batch)
    )
    return logits, loss, dense


class Meter:
    """Running share of right answers by task (every batch is new, so this is held-out accuracy, with the
    right answer's earlier tokens given)."""

    def __init__(self) -> None:
        self.right, self.asked = defaultdict(float), defaultdict(float)
        self.sums, self.count = defaultdict(float), defaultdict(int)

    def add(self, batch: Batch, logits: torch.Tensor) -> None:
        wrong = (logits.argmax(-1) != batch.answers[:, 2]).float()
        missed = (
            torch.zeros(len(batch.tasks), device=wrong.device)
            .index_add_(0, batch.answer_branch, wrong)
            .tolist()
        )
        for task, errors in zip(batch.tasks, missed, strict=True):
            self.right[task] += errors == 0
            self.asked[task] += 1

    def add_boxes(self, batch: Batch, logits: torch.Tensor, decode) -> None:
        """Mean IoU of the boxes of grounding answers."""
        guess = logits.argmax(-1).cpu()
        branch = batch.answer_branch.cpu()
        for b, (task, (_, answer)) in enumerate(zip(batch.tasks, batch.texts, strict=True)):
            if task == "grounding":
                found = box_edges(decode(guess[branch == b].tolist(), skip_special_tokens=False))
                self.note(iou=box_iou(found[0], box_edges(answer)[0]) if found else 0.0)

    def note(self, **values: float) -> None:
        for name, value in values.items():
            self.sums[name] += value
            self.count[name] += 1

    def line(self) -> str:
        shares = [f"{task} {100 * self.right[task] / self.asked[task]:.1f}" for task in sorted(self.asked)]
        return (
            " ".join(f"{name} {self.sums[name] / self.count[name]:.3f}" for name in self.sums)
            + " | "
            + " ".join(shares)
        )


def box_iou(a: list[float], b: list[float]) -> float:
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = sum(max(0.0, x[2] - x[0]) * max(0.0, x[3] - x[1]) for x in (a, b))
    return shared / (area - shared) if area > shared else 0.0


def optimizers(w: Weights, heads: Heads) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in w.items() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in w.items() if p.ndim != 2 or "embed" in name]
    return [
        Muon(matrices, MUON_RATE),
        torch.optim.AdamW(
            [{"params": others}, {"params": heads.parameters()}], ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=110, help="wall clock of this run")
    parser.add_argument(
        "--decay-minutes", type=float, default=0, help="the last minutes, in which the rate falls to zero"
    )
    parser.add_argument("--resume", type=Path, help="a state.pt of an earlier run")
    parser.add_argument(
        "--init", type=Path, help="a checkpoint folder whose weights and tokenizer to start from"
    )
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the learning rates")
    parser.add_argument("--warmup", type=int, default=150)
    parser.add_argument(
        "--ramp", type=float, default=160_000, help="samples until the curriculum is at its full level"
    )
    parser.add_argument("--dense", type=float, default=1.0, help="weight of the dense losses")
    parser.add_argument("--budget", type=float, default=6000, help="size of a batch, in patches")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--compile", action="store_true", help="compile element-wise functions; needs a C++ compiler"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-minutes", type=float, default=4)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if args.compile:
        model.compile_pointwise()
    device = torch.device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    geometry, vocabulary = Geometry(), args.out / "tokenizer"
    if args.init:
        vocabulary.mkdir(exist_ok=True)
        for name in checkpoint.TOKENIZER_FILES:
            shutil.copy(args.init / name, vocabulary / name)
    elif not (vocabulary / "tokenizer.json").exists():
        tokenizer.write(vocabulary)
    weights = (
        {name: tensor.float() for name, tensor in load_file(args.init / "model.safetensors").items()}
        if args.init
        else model.initial_weights(geometry, args.seed)
    )
    heads = Heads(geometry.hidden).to(device)
    done = {"step": 0, "samples": 0, "seconds": 0.0}
    state = torch.load(args.resume, weights_only=True, map_location="cpu") if args.resume else None
    if state:
        geometry, weights, done = Geometry(**state["geometry"]), state["weights"], state["done"]
        heads.load_state_dict(state["heads"])
    weights = {name: tensor.to(device).requires_grad_() for name, tensor in weights.items()}
    average = {
        name: (state["average"][name].to(device) if state else tensor.detach().clone())
        for name, tensor in weights.items()
    }
    steppers = optimizers(weights, heads)
    if state and "steppers" in state:
        for stepper, saved in zip(steppers, state["steppers"], strict=True):
            stepper.load_state_dict(saved)

    ramp_done = int(args.ramp) if args.init else done["samples"]
    data = Stream(
        vocabulary / "tokenizer.json",
        args.seed + done["step"],
        args.ramp,
        ramp_done,
        args.workers,
        args.budget,
    )
    loader = iter(
        torch.utils.data.DataLoader(
            data, batch_size=None, num_workers=args.workers, prefetch_factor=8 if args.workers else None
        )
    )
    encoder_decode = tokenizer.Tokenizer.from_file(str(vocabulary / "tokenizer.json")).decode
    began = last_log = last_save = time.time()
    meter, first, since_log = Meter(), done["step"], done["samples"]
    log = (args.out / "log.txt").open("a")

    def save() -> None:
        model.save_state(
            args.out / "state.pt",
            geometry,
            weights={n: t.detach().cpu() for n, t in weights.items()},
            average={n: t.cpu() for n, t in average.items()},
            heads=heads.state_dict(),
            done=done,
            steppers=[stepper.state_dict() for stepper in steppers],
        )

    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    while (elapsed := time.time() - began) < args.minutes * 60 and not stopping:
        batch = next(loader).to(device)
        rate = min(1.0, (done["step"] - first + 1) / args.warmup)
        left = (args.minutes * 60 - elapsed) / 60
        if left < args.decay_minutes:
            rate *= max(0.0, left / args.decay_minutes) * 0.98 + 0.02
        for stepper, full in zip(steppers, (MUON_RATE, ADAM_RATE), strict=True):
            for group in stepper.param_groups:
                group["lr"] = full * args.rate * rate
        low = {name: tensor.bfloat16() for name, tensor in weights.items()}
        logits, loss, dense = forward(low, geometry, heads, batch)
        total = loss + args.dense * sum(TOWER_WEIGHTS[name] * value for name, value in dense.items())
        if not math.isfinite(total.item()):
            raise SystemExit(
                f"loss is {total.item()} at step {done['step']}; resume from {args.out / 'state.pt'}"
            )
        total.backward()
        torch.nn.utils.clip_grad_norm_(list(weights.values()) + list(heads.parameters()), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        with torch.no_grad():
            keep = min(0.998, (done["step"] + 1) / (done["step"] + 10))
            torch._foreach_lerp_(list(average.values()), [t.detach() for t in weights.values()], 1 - keep)
        meter.add(batch, logits.detach())
        meter.note(loss=loss.item(), **{name: value.item() for name, value in dense.items()})
        if done["step"] % 6 == 0:
            meter.add_boxes(batch, logits.detach(), encoder_decode)
        done["step"] += 1
        done["samples"] += len(batch.ids)
        now = time.time()
        if now - last_log > 60 or elapsed == 0:
            line = (
                f"{time.strftime('%H:%M:%S')} step {done['step']} samples {done['samples']} "
                f"({(done['samples'] - since_log) / (now - last_log + 1e-9):.1f}/s) "
                f"level {min(1, done['samples'] / args.ramp):.2f} rate {rate:.3f} {meter.line()}"
            )
            print(line, file=log, flush=True)
            print(line, flush=True)
            done["seconds"] += now - last_log
            meter, last_log, since_log = Meter(), now, done["samples"]
        if now - last_save > args.save_minutes * 60:
            save()
            last_save = now
    save()
    for name, chosen in (("tiny", weights), ("tiny-average", average)):
        checkpoint.write(
            args.out / name, {n: t.detach().cpu() for n, t in chosen.items()}, geometry, vocabulary
        )
    os._exit(0)  # the drawing processes have nothing left to say


if __name__ == "__main__":
    main()
