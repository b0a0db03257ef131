"""`qwen2vl eval`: score a bundle on an evaluation set, by task."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from qwen2vl_rt.cli.output import write_json
from qwen2vl_rt.cli.session_options import add_session_options, session_keywords
from qwen2vl_rt.cli.values import count, output_file


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser("eval", help="score a bundle on an evaluation set: exact match and box IoU")
    parser.add_argument("bundle", type=Path, help="folder that qwen2vl-export wrote")
    parser.add_argument(
        "--set", type=Path, required=True, metavar="DIR", help="evaluation set (models/tiny/eval)"
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the report as JSON")
    parser.add_argument("--limit", type=count, metavar="N", help="N questions only, spread over the set")
    add_session_options(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Answer the set's questions and print the table."""
    from qwen2vl_rt.evaluate import load_examples, score, spread
    from qwen2vl_rt.session import Session

    examples = load_examples(options.set)
    if options.limit is not None:
        examples = spread(examples, options.limit)
    with Session(options.bundle, **session_keywords(options)) as session:
        report = score(examples, lambda messages: session.generate(messages, max_new_tokens=128).raw_text)
    print(report.table())
    if options.json:
        write_json(options.json, report.to_json())
    return 0
