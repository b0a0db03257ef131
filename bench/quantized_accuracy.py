"""Compare quantized bundles with float32 on an evaluation set: accuracy by task, logits, greedy agreement.

    python -m bench.quantized_accuracy --reference FP32_BUNDLE BUNDLE... [--output bench/results --name NAME]

Each bundle answers every question greedily, in a Session on the CPU. Then its portable graphs (no lowering)
are shown float32's own answers, token by token, and the logits there are compared: the KL divergence from
float32's distribution, and the largest difference of a logit. Writes the table and the figures to
bench/results/NAME.{md,json}.
"""

from __future__ import annotations

import argparse
import itertools
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime

from bench.portable_graphs import DecoderSteps, open_portable
from bench.tiny import TINY
from qwen2vl_rt import _core
from qwen2vl_rt.bundle import DECODER_GRAPH, PREFILL_GRAPH, VISION_GRAPH, Bundle
from qwen2vl_rt.evaluate import Example, Report, judge, load_examples
from qwen2vl_rt.processing.processor import PreparedPrompt, Processor
from qwen2vl_rt.processing.visuals import Visual
from qwen2vl_rt.progress import progress_bar
from qwen2vl_rt.session import Session
from qwen2vl_rt.weights import embedding_table

RESULTS = Path(__file__).parent / "results"


class PortableModel:
    """A bundle's portable graphs and its embedding table, for one prompt at a time."""

    def __init__(self, bundle: Bundle, threads: int):
        self.bundle, self.processor = bundle, Processor(bundle.path, bundle.geometry)
        self.session = Session(bundle.path, threads=threads, max_length=4096)
        self.vision, self.decoder = (
            open_portable(bundle, graph, threads) for graph in (VISION_GRAPH, DECODER_GRAPH)
        )
        self.prefill = self.decoder
        if PREFILL_GRAPH in bundle.files:
            self.prefill = open_portable(bundle, PREFILL_GRAPH, threads)
        self.table = embedding_table(bundle)

    def embed(self, prompt: PreparedPrompt) -> np.ndarray:
        """Input embeddings [T, H], visual ones in the place of the pads."""
        ids, special = prompt.token_ids, self.bundle.geometry.special_ids
        x = self.table.gather(ids)
        if prompt.visuals:
            parts = [self.encode(visual) for visual in prompt.visuals]
            x[(ids == special.image_pad) | (ids == special.video_pad)] = np.concatenate(parts)
        return x

    def encode(self, visual: Visual) -> np.ndarray:
        """Visual embeddings [t * h * w / 4, H]."""
        v, (t, h, w) = self.bundle.geometry.vision, visual.grid_thw
        tables = _core.vision_rope_table(h, w, v.head_dim, v.merge_size, v.rope_theta)
        cos, sin = (np.repeat(table[None], t, axis=0) for table in tables)
        feed = {"patches": visual.patches.reshape(t, h * w, -1), "cos": cos, "sin": sin}
        out = self.vision.run(None, feed)[0]
        return out.reshape(-1, out.shape[-1])


class Run:
    """One prompt in a model: positions, cache, how far it is."""

    def __init__(self, model: PortableModel, prompt: PreparedPrompt, room: int):
        g, ids = model.bundle.geometry, model.bundle.geometry.special_ids
        self.model, self.prompt, self.past = model, prompt, 0
        tokens = len(prompt.token_ids)
        positions, delta = _core.mrope_positions(
            prompt.token_ids, prompt.grids, ids.image_pad, ids.video_pad, g.vision.merge_size
        )
        later = np.tile(np.arange(tokens, tokens + room) + delta, (3, 1))
        d = g.decoder
        self.cos, self.sin = _core.rope_table(
            np.concatenate([positions, later], axis=1), d.head_dim, d.rope_theta, list(d.mrope_section)
        )
        self.steps = DecoderSteps(d, 1, tokens + room)

    def start(self) -> np.ndarray:
        """Run the prompt; logits [V] of its last token."""
        return self._step(self.model.prefill, self.model.embed(self.prompt), 1)[0]

    def feed(self, ids: np.ndarray) -> np.ndarray:
        """Run more tokens; logits [n, V] of each."""
        return self._step(self.model.decoder, self.model.table.gather(ids), len(ids))

    def _step(self, session: onnxruntime.InferenceSession, x: np.ndarray, wanted: int) -> np.ndarray:
        past, span = np.array([self.past]), slice(self.past, self.past + len(x))
        cos, sin, logit_rows = self.cos[None, span], self.sin[None, span], np.arange(len(x) - wanted, len(x))
        self.past += len(x)
        return self.steps.step(session, x[None], cos, sin, past, logit_rows[None])[0]


def answer(session: Session, example: Example, most: int) -> str:
    """The greedy answer's text, special tokens kept."""
    return session.generate(example.messages, max_new_tokens=most).raw_text


def shown(model: PortableModel, example: Example, ids: np.ndarray) -> np.ndarray:
    """Logits [n, V] where each of the n tokens of an answer is to come, the answer given."""
    run = Run(model, model.processor.prepare(example.messages), len(ids))
    first = run.start()[None]
    return np.concatenate([first, run.feed(ids[:-1])]) if len(ids) > 1 else first


@dataclass
class Figures:
    """What one bundle did on the whole set."""

    report: Report = field(default_factory=Report)
    kl: list[float] = field(default_factory=list)  # of each answer token
    largest: float = 0.0  # difference of a logit
    same_tokens: int = 0  # answer tokens whose most likely token is float32's, the answer so far given
    tokens: int = 0
    same_answers: int = 0

    def add(self, other: Figures) -> None:
        """Take in what another run found on other questions."""
        self.report.verdicts += other.report.verdicts
        self.kl += other.kl
        self.largest = max(self.largest, other.largest)
        self.same_tokens += other.same_tokens
        self.tokens += other.tokens
        self.same_answers += other.same_answers

    def to_json(self, reference: Figures) -> dict[str, object]:
        """The figures, and how much accuracy the worst task lost to `reference`."""
        tasks, exact = self.report.tasks(), reference.report.tasks()
        return {
            "tasks": tasks,
            "worst_task_loss": max(exact[name]["accuracy"] - tasks[name]["accuracy"] for name in tasks),
            "mean_kl": float(np.mean(self.kl)),
            "largest_logit_difference": self.largest,
            "greedy_tokens_agree": self.same_tokens / self.tokens,
            "answers_equal": self.same_answers / len(self.report.verdicts),
        }


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64) - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def compare(
    models: list[PortableModel], reference: PortableModel, examples: list[Example], most: int
) -> list[Figures]:
    """Figures of the reference, then of each model."""
    figures = [Figures() for _ in range(len(models) + 1)]
    bar = progress_bar("compare", len(examples), unit="question")
    for example in examples:
        expected = answer(reference.session, example, most)
        ids = np.append(
            reference.processor.tokenizer.encode(expected), reference.bundle.geometry.special_ids.eos[0]
        )
        exact = shown(reference, example, ids)
        for model, found in zip([reference, *models], figures, strict=True):
            text = expected if model is reference else answer(model.session, example, most)
            found.report.verdicts.append(judge(example, text))
            found.same_answers += text == expected
            logits = exact if model is reference else shown(model, example, ids)
            p, q = log_softmax(exact), log_softmax(logits)
            found.kl += (np.exp(p) * (p - q)).sum(axis=1).tolist()
            found.largest = max(found.largest, float(np.abs(logits - exact).max()))
            found.same_tokens += int((logits.argmax(axis=1) == exact.argmax(axis=1)).sum())
            found.tokens += len(ids)
        bar.update()
    bar.close()
    return figures


def run(options: argparse.Namespace, process: int = 0) -> list[Figures]:
    """Compare on a process' share of the questions."""
    reference = PortableModel(Bundle.open(options.reference), options.threads)
    models = [PortableModel(Bundle.open(path), options.threads) for path in options.bundles]
    share = load_examples(options.set)[:: options.every][process :: options.processes]
    return compare(models, reference, share, options.most)


def table(names: list[str], figures: list[Figures]) -> str:
    """The comparison as Markdown."""
    rows = [figure.to_json(figures[0]) for figure in figures]
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for task in rows[0]["tasks"]:
        cells = []
        for row in rows:
            change = row["tasks"][task]["accuracy"] - rows[0]["tasks"][task]["accuracy"]
            cells.append(f"{row['tasks'][task]['accuracy']:.1%}" + (f" ({change:+.1%})" if change else ""))
        lines.append(f"| {task} ({rows[0]['tasks'][task]['asked']}) | " + " | ".join(cells) + " |")
    for title, key, form in (
        ("answers equal to float32's", "answers_equal", ".1%"),
        ("most likely token equal, float32's answer given", "greedy_tokens_agree", ".2%"),
        ("KL divergence from float32, mean over answer tokens", "mean_kl", ".5f"),
        ("largest difference of a logit", "largest_logit_difference", ".2f"),
    ):
        lines.append(f"| {title} | " + " | ".join(format(row[key], form) for row in rows) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--reference", type=Path, required=True, help="the float32 bundle")
    parser.add_argument("--set", type=Path, default=TINY / "eval")
    parser.add_argument("--most", type=int, default=96, help="tokens of an answer")
    parser.add_argument("--every", type=int, default=1, help="take one question in so many")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, help="folder for the results; not written without")
    parser.add_argument("--name", default="quantized-accuracy", help="of the results' files")
    options = parser.parse_args()
    with ProcessPoolExecutor(options.processes) as pool:
        parts = list(pool.map(run, itertools.repeat(options), range(options.processes)))
    figures = parts[0]
    for part in parts[1:]:
        for whole, found in zip(figures, part, strict=True):
            whole.add(found)
    asked = len(figures[0].report.verdicts)
    names = ["fp32", *(path.name for path in options.bundles)]
    text = table(names, figures)
    print(text)
    if options.output:
        model = Bundle.open(options.reference).name
        title = f"# Quantized bundles against float32\n\n{model}, {asked} questions of `{options.set}`, "
        title += f"on a CPU with ONNX Runtime {onnxruntime.__version__}.\n\n"
        (options.output / f"{options.name}.md").write_text(title + text + "\n")
        found = {name: figure.to_json(figures[0]) for name, figure in zip(names, figures, strict=True)}
        (options.output / f"{options.name}.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
