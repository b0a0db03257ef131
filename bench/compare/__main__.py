"""Compare this project with the runtimes that are installed, on one random checkpoint.

    python -m bench.compare --work out/bench-2b --peer-python PEERS/bin/python

Peers may live in an environment of their own (--peer-python); one that isn't installed is skipped, and said
so. The checkpoint, this project's bundles and the peers' conversions are made in --work, once. Results:
bench/results/compare-NAME.md and .json. Peers install with

    pip install openvino-genai optimum-intel nncf llama-cpp-python gguf transformers==4.57.6 torch

and llama.cpp's converter needs its source: LLAMA_CPP_SOURCE=DIR (see peer_llama_cpp.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
import tempfile
from pathlib import Path

from bench.compare.material import Prompts
from bench.compare.report import markdown, ratios
from bench.compare.rounds import Found, Group, Protocol, to_json
from bench.compare.runtimes import GROUPS, OURS, Contestant, Worker, installed, prepare
from bench.random_checkpoint import random_checkpoint
from bench.tiny import TINY
from qwen2vl_rt.benchmark.limits import measure_limits
from qwen2vl_rt.benchmark.measure import machine
from qwen2vl_rt.cli.bench import size

RESULTS = Path(__file__).resolve().parents[1] / "results"


def main() -> None:
    """Prepare, measure, write."""
    options = _parser().parse_args()
    protocol = Protocol(
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        pictures=tuple(options.pictures),
        rounds=options.rounds,
        threads=options.threads,
    )
    checkpoint = options.checkpoint or random_checkpoint(options.size, options.work, options.tokenizer)
    skipped: list[str] = []
    groups = _groups(options, checkpoint, skipped)
    if options.prepare_only:
        return
    limits = measure_limits(options.threads, quantized=True)
    found: list[Found] = []
    with tempfile.TemporaryDirectory() as temporary:
        for group in groups:
            found += _run(group, options, protocol, checkpoint, Path(temporary), skipped)
    limits = limits.best(measure_limits(options.threads, quantized=True))
    contestants = [to_json(one) for one in found]
    report = {
        "model": f"Qwen2-VL {options.size} shapes" if options.checkpoint is None else checkpoint.name,
        "date": datetime.date.today().isoformat(),
        "machine": machine(options.threads),
        "limits": dataclasses.asdict(limits),
        "protocol": dataclasses.asdict(protocol),
        "contestants": contestants,
        "ratios": ratios(contestants),
        "skipped": skipped,
    }
    page = markdown(report)
    print(page)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / f"compare-{options.name}.md").write_text(page)
    (options.output / f"compare-{options.name}.json").write_text(json.dumps(report, indent=2) + "\n")


def _groups(
    options: argparse.Namespace, checkpoint: Path, skipped: list[str]
) -> list[list[tuple[Contestant, str, Path, dict[str, str]]]]:
    """The contestants that are installed and converted: with their Python, folder and versions."""
    versions: dict[str, dict[str, str] | None] = {}
    groups = []
    for group in GROUPS:
        groups.append([])
        for contestant in group:
            if options.only and not any(word in contestant.slug for word in options.only):
                continue
            runtime = contestant.runtime
            own = runtime == OURS
            python = sys.executable if own else options.peer_python
            if runtime not in versions:
                versions[runtime] = installed(python, runtime)
                if versions[runtime] is None:
                    _skip(skipped, f"{runtime}: not installed for {python}")
            if versions[runtime] is None:
                continue
            peers = options.peer_files or options.work / "peers"
            folder = options.work / f"bundle-{contestant.precision}" if own else peers / contestant.slug
            folder.parent.mkdir(parents=True, exist_ok=True)
            if prepare(python, contestant, checkpoint, folder):
                groups[-1].append((contestant, python, folder, versions[runtime]))
            else:
                _skip(skipped, f"{contestant.name}: its converter failed")
    return groups


def _run(
    group: list[tuple[Contestant, str, Path, dict[str, str]]],
    options: argparse.Namespace,
    protocol: Protocol,
    checkpoint: Path,
    temporary: Path,
    skipped: list[str],
) -> list[Found]:
    workers: list[tuple[Worker, Found]] = []
    try:
        for contestant, python, folder, versions in group:
            log = temporary / f"{contestant.slug}.log"
            try:
                worker = Worker(python, contestant, folder, options.threads, log)
            except RuntimeError as error:
                _skip(skipped, str(error))
                continue
            workers.append((worker, Found(contestant, versions, worker.load_seconds)))
            print(f"{contestant.name}: loaded in {worker.load_seconds:.1f} s", file=sys.stderr, flush=True)
        if workers:
            Group(workers, protocol, Prompts(checkpoint), temporary).run()
    finally:
        for worker, _ in workers:
            worker.close()
    return [found for _, found in workers]


def _skip(skipped: list[str], line: str) -> None:
    skipped.append(line)
    print(f"skipped: {line}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="See the module's own text for the peers' installation."
    )
    parser.add_argument("--size", choices=("2b", "7b"), default="2b", help="of the random checkpoint")
    parser.add_argument(
        "--tokenizer", type=Path, default=TINY, help="llama.cpp's converter knows the published one only"
    )
    parser.add_argument("--checkpoint", type=Path, help="another checkpoint instead")
    parser.add_argument("--work", type=Path, default=Path("out/bench-2b"), help="where models are kept")
    parser.add_argument("--peer-files", type=Path, help="where the peers' are kept (WORK/peers)")
    parser.add_argument("--peer-python", default=sys.executable, help="the peers' environment")
    parser.add_argument("--only", nargs="+", help="parts of contestants' names, such as int4 openvino")
    parser.add_argument("--threads", type=int, default=Protocol.threads)
    parser.add_argument("--rounds", type=int, default=Protocol.rounds)
    parser.add_argument("--prompt-tokens", type=int, default=Protocol.prompt_tokens)
    parser.add_argument("--new-tokens", type=int, default=Protocol.new_tokens)
    parser.add_argument("--pictures", type=size, nargs="+", default=Protocol.pictures, metavar="WxH")
    parser.add_argument("--prepare-only", action="store_true", help="convert what is missing, then stop")
    parser.add_argument("--name", default="cpu", help="of the results: compare-NAME.md and .json")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser


if __name__ == "__main__":
    main()
