"""`qwen2vl run`: one question about pictures or videos, answered."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen2vl_rt.cli.output import print_json
from qwen2vl_rt.cli.session_options import add_session_options, session_keywords
from qwen2vl_rt.cli.values import picture_file
from qwen2vl_rt.errors import InputError

if TYPE_CHECKING:
    from qwen2vl_rt.answer import Answer


def add_parser(commands: Any) -> None:
    """Register the command."""
    from qwen2vl_rt.options import GenerationOptions

    parser = commands.add_parser("run", help="answer a question about pictures or videos")
    parser.add_argument("bundle", type=Path, help="folder that qwen2vl-export wrote")
    parser.add_argument("prompt", help="the question; - reads it from standard input")
    parser.add_argument(
        "--image", action="append", default=[], metavar="SOURCE", help="path or URL; repeatable"
    )
    parser.add_argument(
        "--video", action="append", default=[], metavar="SOURCE", help="path or URL; repeatable"
    )
    parser.add_argument("--system", help="system prompt instead of the template's own")
    parser.add_argument(
        "--draw", type=picture_file, metavar="FILE", help="write the picture with the answer's boxes"
    )
    parser.add_argument("--json", action="store_true", help="print the whole answer as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no timings on standard error")
    preparation = parser.add_argument_group("preparation")
    preparation.add_argument("--min-pixels", type=int, metavar="N", help="smallest picture after resizing")
    preparation.add_argument("--max-pixels", type=int, metavar="N", help="largest picture after resizing")
    preparation.add_argument("--fps", type=float, metavar="F", help="video frames a second (2)")
    preparation.add_argument(
        "--picture-ids", action="store_true", help="call pictures 'Picture 1:' and so on"
    )
    generation = parser.add_argument_group("generation")
    most = GenerationOptions.max_new_tokens
    generation.add_argument("--max-new-tokens", type=int, metavar="N", help=f"end after N ({most})")
    generation.add_argument("--temperature", type=float, metavar="T", help="0 (default) is greedy")
    generation.add_argument("--top-k", type=int, metavar="K")
    generation.add_argument("--top-p", type=float, metavar="P")
    generation.add_argument("--min-p", type=float, metavar="P")
    generation.add_argument("--repetition-penalty", type=float, metavar="R")
    generation.add_argument("--seed", type=int, metavar="N")
    generation.add_argument(
        "--prompt-lookup", type=int, metavar="N", help="guess up to N tokens ahead, for copied text"
    )
    generation.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before TEXT")
    add_session_options(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Load the bundle, answer, print."""
    from qwen2vl_rt.session import Session  # after argument errors: loading an engine takes a moment

    if options.draw and len(options.image) != 1:
        raise InputError(
            f"--draw marks boxes on one picture, and {len(options.image)} were given with --image."
        )
    prompt = _standard_input() if options.prompt == "-" else options.prompt
    # What a picture may become is planned for: a call's own max_pixels could only be smaller.
    with Session(options.bundle, max_pixels=options.max_pixels, **session_keywords(options)) as session:
        stream = session.stream(prompt, **_call_keywords(options))
        with stream:
            for piece in stream:
                if not options.json:
                    print(piece, end="", flush=True)
            answer = stream.answer
    if options.json:
        print_json(answer.to_json())
    else:
        print()
    if options.draw:
        _draw(options, answer)
    if not options.quiet:
        print(describe_timings(answer), file=sys.stderr)
    return 0


def _standard_input() -> str:
    if sys.stdin is None:  # the shell closed it
        raise InputError("The prompt is -, and standard input is closed.")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InputError(f"Standard input is not {sys.stdin.encoding} text: {error.reason}.") from error


def _call_keywords(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `Session.stream`: what was not given keeps its default there."""
    names = (
        "system",
        "max_new_tokens",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "seed",
        "prompt_lookup",
        "min_pixels",
        "max_pixels",
        "fps",
    )
    keywords = {name: value for name in names if (value := getattr(options, name)) is not None}
    keywords |= {"images": options.image, "videos": options.video, "stop": options.stop}
    return keywords | {"add_vision_id": options.picture_ids}


def _draw(options: argparse.Namespace, answer: Answer) -> None:
    from qwen2vl_rt.boxes import draw_boxes

    try:
        draw_boxes(options.image[0], answer.boxes).save(options.draw)
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot write {options.draw}: {error}") from error
    if not options.quiet:
        print(f"{len(answer.boxes)} boxes drawn in {options.draw}", file=sys.stderr)


def describe_timings(answer: Answer) -> str:
    """One line: tokens and seconds by stage."""
    usage, timings = answer.usage, answer.timings
    drafted = usage.drafted_tokens
    guessed = f" ({drafted} guessed ahead, {usage.accepted_tokens} rightly)" if drafted else ""
    return (
        f"prompt {usage.prompt_tokens} tokens ({usage.visual_tokens} visual, {usage.cached_tokens} cached), "
        f"answer {usage.answer_tokens}{guessed} | load {timings.load:.3f} s, resize {timings.resize:.3f} s, "
        f"vision {timings.vision:.3f} s, "
        f"prefill {timings.prefill:.3f} s ({timings.prefill_tokens_per_second:.0f} tok/s), "
        f"decode {timings.decode:.3f} s ({timings.decode_tokens_per_second:.1f} tok/s)"
    )
