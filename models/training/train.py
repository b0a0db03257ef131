"""Train the tiny Qwen2-VL from nothing, or go on from a state or a checkpoint.

    python -m models.training.train --out RUN --minutes 120 --processes 2 --compile       # two CPU cores
    python -m models.training.train --out RUN --minutes 20 --device cuda --workers 12 --budget 20000
    python -m models.training.train --out RUN --resume RUN/state.pt --minutes 15 --decay-minutes 15
    python -m models.training.train --out RUN --init models/tiny            # weights alone; heads start anew

RUN gets state.pt every few minutes, log.txt, and at the end tiny/, a checkpoint that transformers loads.

On a CPU each process has one thread, its own batches, and a share of the parameters to update; weights and
gradients lie in shared memory. That beats threads inside each operation, above all beside other work.
"""

from __future__ import annotations

import argparse
import math
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import multiprocessing

from . import checkpoint, model, tokenizer
from .batches import Batch, box_edges, stream
from .heads import Heads
from .model import Geometry, Weights
from .muon import Muon

MUON_RATE, ADAM_RATE = 2e-3, 1.5e-3
PLACE_LAYER = 2  # the decoder layer whose tokens should know their places
DENSE_WEIGHTS = {
    "colour": 1.0,
    "shape": 1.0,
    "glyph": 1.5,
    "box": 1.0,
    "motion": 1.0,
    "beside": 1.0,
    "spelling": 1.0,
    "place": 0.5,
    "edges": 1.0,
    "size": 0.3,
    "answer_box": 2.0,
    "pointer": 0.5,
    "located": 1.0,
}


class Stream(torch.utils.data.IterableDataset):
    """Batches, drawn here or in a data loader's processes."""

    def __init__(self, args: argparse.Namespace, tokenizer_file: Path, seed: int, samples: int) -> None:
        self.make = partial(stream, tokenizer_file, budget=args.budget, mix=args.mix)
        self.seed, self.ramp, self.samples = seed, args.ramp, samples
        self.streams = args.processes * max(1, args.workers)

    def __iter__(self) -> Iterator[Batch]:
        info = torch.utils.data.get_worker_info()
        if info:
            torch.set_num_threads(1)
        return self.make(self.seed + (info.id if info else 0), level_of=self.level)

    def level(self, drawn: int) -> float:
        """0..1: how far the curriculum has come after this stream drew so many samples."""
        return min(1.0, (self.samples + drawn * self.streams) / self.ramp)


def forward(
    w: Weights, g: Geometry, heads: Heads, batch: Batch
) -> tuple[torch.Tensor | None, torch.Tensor, dict]:
    """Logits at the answers [A, vocabulary] if any, the cross entropy, the dense losses by name."""
    tokens = [model.vision(w, g, frames) for frames in batch.frames]
    if not batch.tasks:  # a drill: the vision tower alone
        return None, tokens[0].new_zeros(()), heads.tower_loss(tokens, batch)
    x = w["model.embed_tokens.weight"][batch.ids]
    x = x.index_copy(1, batch.visual, torch.cat(tokens, 1))
    last, hidden = model.decoder(w, g, x, batch.positions, model.branch_mask(batch.branch))
    at = last[batch.answers[:, 0], batch.answers[:, 1]]
    logits = (at @ w["model.embed_tokens.weight"].T).float()
    each = F.cross_entropy(logits, batch.answers[:, 2], reduction="none")
    loss = (each * batch.answer_weight).sum() / batch.answer_weight.sum()
    dense = heads.tower_loss(tokens, batch) | heads.decoder_loss(hidden[PLACE_LAYER], batch)
    dense |= heads.pointer_loss(hidden, batch) | heads.answer_loss(last, batch)
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


@dataclass
class Shared:
    """What the processes of one run have in common."""

    geometry: Geometry
    tokenizer_file: Path
    weights: Weights  # float32
    average: Weights  # running average of the weights
    heads: Heads
    gradients: list[list[torch.Tensor]]  # of each process: one for each tensor of parameters()
    signals: torch.Tensor  # [2 + processes] float64: 1 to stop, learning rate factor, squared gradient norms
    barrier: object
    done: dict[str, float]

    def parameters(self) -> list[torch.Tensor]:
        return [*self.weights.values(), *self.heads.parameters()]


def prepare(args: argparse.Namespace) -> Shared:
    """Weights, tokenizer and heads from nothing, a state or a checkpoint."""
    geometry, folder = Geometry(), args.out / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    done = {"step": 0, "samples": 0, "seconds": 0.0}
    heads = Heads(geometry.hidden)
    weights = average = None
    if args.resume:
        state = torch.load(args.resume, weights_only=True, map_location="cpu")
        geometry, weights, average = Geometry(**state["geometry"]), state["weights"], state["average"]
        done = state["done"]
        heads.load_state_dict(state["heads"], strict=False)  # a head added since starts anew
    elif args.init:
        for name in checkpoint.TOKENIZER_FILES:
            shutil.copy(args.init / name, folder / name)
        stored = load_file(args.init / "model.safetensors")
        weights = {name: tensor.float() for name, tensor in stored.items()}
        done["samples"] = int(args.ramp)
    else:
        tokenizer.write(folder)
        weights = model.initial_weights(geometry, args.seed)
    average = average or {name: tensor.clone() for name, tensor in weights.items()}
    device = torch.device(args.device)
    weights, average = ({n: t.to(device) for n, t in group.items()} for group in (weights, average))
    heads = heads.to(device).requires_grad_(False)
    shared = Shared(
        geometry,
        folder / "tokenizer.json",
        weights,
        average,
        heads,
        [],
        torch.zeros(2 + args.processes, dtype=torch.float64),
        multiprocessing.get_context("spawn").Barrier(args.processes),
        done,
    )
    shared.gradients = [[torch.zeros_like(p) for p in shared.parameters()] for _ in range(args.processes)]
    if args.processes > 1:
        for tensor in (*shared.parameters(), *average.values(), *chain(*shared.gradients), shared.signals):
            tensor.share_memory_()
    return shared


def optimizers(shared: Shared, rank: int, processes: int) -> tuple[list[int], list[torch.optim.Optimizer]]:
    """The indices of the parameters that this process updates, and their optimizers."""
    parameters = shared.parameters()
    muon = [p.ndim == 2 and "embed" not in name for name, p in shared.weights.items()]
    muon += [False] * (len(parameters) - len(muon))
    matrices = [i for i, chosen in enumerate(muon) if chosen][rank::processes]
    others = [i for i, chosen in enumerate(muon) if not chosen][rank::processes]
    adam = torch.optim.AdamW([parameters[i] for i in others], ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    return matrices + others, [Muon([parameters[i] for i in matrices], MUON_RATE), adam]


def run(rank: int, args: argparse.Namespace, shared: Shared) -> None:
    """One process: draw and learn from batches, and update its share of the parameters."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed + rank)
    if args.compile:
        model.compile_pointwise()
    device, geometry, done = torch.device(args.device), shared.geometry, dict(shared.done)
    seed = 1_000_000 * args.seed + 1000 * int(done["step"]) + 100 * rank
    data = Stream(args, shared.tokenizer_file, seed, done["samples"])
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=args.workers, prefetch_factor=8 if args.workers else None
    )
    batches = iter(loader)
    decode = Tokenizer.from_file(str(shared.tokenizer_file)).decode
    parameters = shared.parameters()
    mine, steppers = optimizers(shared, rank, args.processes)
    chief = rank == 0
    log = (args.out / "log.txt").open("a") if chief else None
    meter, first, since_log = Meter(), done["step"], done["samples"]
    began = last_log = last_save = time.time()
    if chief:
        signal.signal(signal.SIGTERM, lambda *_: shared.signals[0].fill_(1))

    def save() -> None:
        parts = {"weights": shared.weights, "average": shared.average, "heads": shared.heads.state_dict()}
        parts = {name: {n: t.detach().cpu() for n, t in part.items()} for name, part in parts.items()}
        model.save_state(args.out / "state.pt", geometry, done=done, **parts)

    while not shared.signals[0]:
        low = {name: tensor.bfloat16().requires_grad_() for name, tensor in shared.weights.items()}
        for head in shared.heads.parameters():
            head.requires_grad_().grad = None
        for _ in range(args.accumulate):
            batch = next(batches).to(device)
            logits, loss, dense = forward(low, geometry, shared.heads, batch)
            total = loss + args.dense * sum(DENSE_WEIGHTS[name] * value for name, value in dense.items())
            if not math.isfinite(total.item()):
                raise SystemExit(
                    f"loss is {total.item()} at step {done['step']}; resume from {args.out}/state.pt"
                )
            (total / (args.accumulate * args.processes)).backward()
            if logits is not None:
                meter.add(batch, logits.detach())
                meter.note(loss=loss.item())
                if done["step"] % 4 == 0:
                    meter.add_boxes(batch, logits.detach(), decode)
            meter.note(**{name: value.item() for name, value in dense.items()})
            done["samples"] += len(batch.ids) * args.processes
        for kept, leaf in zip(
            shared.gradients[rank], [*low.values(), *shared.heads.parameters()], strict=True
        ):
            kept.zero_() if leaf.grad is None else kept.copy_(leaf.grad)
        shared.heads.requires_grad_(False)
        elapsed = time.time() - began
        if chief:
            rate = min(1.0, (done["step"] - first + 1) / args.warmup)
            left = args.minutes - elapsed / 60
            if left < args.decay_minutes:
                rate *= max(0.0, left / args.decay_minutes) * 0.98 + 0.02
            shared.signals[1] = rate * args.rate
            if left <= 0:
                shared.signals[0] = 1
        shared.barrier.wait()  # all gradients are there
        squares = 0.0
        for i in mine:
            parameters[i].grad = torch.stack([each[i] for each in shared.gradients]).sum(0)
            squares += float(parameters[i].grad.square().sum())
        shared.signals[2 + rank] = squares
        stop = bool(shared.signals[0])
        shared.barrier.wait()  # all norms are there
        clip = min(1.0, 1.0 / (float(shared.signals[2:].sum()) ** 0.5 + 1e-6))
        for i in mine:
            parameters[i].grad.mul_(clip)
        for stepper, full in zip(steppers, (MUON_RATE, ADAM_RATE), strict=True):
            for group in stepper.param_groups:
                group["lr"] = full * float(shared.signals[1])
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        keep = min(0.998, (done["step"] + 1) / (done["step"] + 10))
        names = list(shared.weights)
        for i in mine:
            if i < len(names):
                shared.average[names[i]].lerp_(parameters[i], 1 - keep)
        shared.barrier.wait()  # all parameters are updated
        done["step"] += 1
        now = time.time()
        if chief and (now - last_log > 60 or done["step"] == first + 1):
            done["seconds"] += now - last_log
            line = (
                f"{time.strftime('%H:%M:%S')} step {done['step']} samples {done['samples']} "
                f"({(done['samples'] - since_log) / (now - last_log + 1e-9):.1f}/s) "
                f"level {min(1, done['samples'] / args.ramp):.2f} rate {float(shared.signals[1]):.3f} "
                f"{meter.line()}"
            )
            print(line, file=log, flush=True)
            print(line, flush=True)
            meter, last_log, since_log = Meter(), now, done["samples"]
        if chief and now - last_save > args.save_minutes * 60:
            save()
            last_save = now
        if stop:
            break
    if chief:
        save()
        for name, chosen in (("tiny", shared.weights), ("tiny-average", shared.average)):
            checkpoint.write(
                args.out / name,
                {n: t.cpu() for n, t in chosen.items()},
                geometry,
                shared.tokenizer_file.parent,
            )


def mix(text: str) -> dict[str, float]:
    return {kind: float(factor) for kind, factor in (part.split(":") for part in text.split(","))}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=120, help="wall clock of this run")
    parser.add_argument(
        "--decay-minutes", type=float, default=0, help="the last minutes, in which the rate falls to zero"
    )
    parser.add_argument("--resume", type=Path, help="a state.pt of an earlier run")
    parser.add_argument(
        "--init", type=Path, help="a checkpoint folder whose weights and tokenizer to start from"
    )
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the learning rates")
    parser.add_argument("--warmup", type=int, default=100, help="steps in which the rate rises")
    parser.add_argument(
        "--ramp", type=float, default=160_000, help="samples until the curriculum is at its full level"
    )
    parser.add_argument("--dense", type=float, default=1.0, help="weight of the dense losses")
    parser.add_argument("--budget", type=float, default=4500, help="size of a batch, in patches")
    parser.add_argument(
        "--accumulate", type=int, default=1, help="batches (of different tasks) a step and process"
    )
    parser.add_argument("--mix", type=mix, default={}, help="factors on kinds' shares, as scene:2,video:0.5")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--compile", action="store_true", help="compile element-wise functions; needs a C++ compiler"
    )
    parser.add_argument("--processes", type=int, default=1, help="on a CPU: one for each core")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that draw batches ahead, for each process"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-minutes", type=float, default=4)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    shared = prepare(args)
    others = [
        multiprocessing.get_context("spawn").Process(target=run, args=(rank, args, shared), daemon=True)
        for rank in range(1, args.processes)
    ]
    for process in others:
        process.start()
    run(0, args, shared)
    for process in others:
        process.join(30)


if __name__ == "__main__":
    main()
