"""What the subcommands' arguments have in common, and what a failed one says."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORMAT = """\
A data file holds one JSON object a line, plain or .gz; several files and "-" (stdin) may be given:
  {"prompt": "...", "scores": {"MODEL": 0..1}, "tok": {"MODEL": output tokens}, "in_tok": tokens}
A row about one model may be flat: {"prompt": "...", "score": 1, "tokens": 79}."""


def command(commands: Any, name: str, work: Callable[..., int], **texts: str) -> Any:
    parser = commands.add_parser(
        name, formatter_class=argparse.RawDescriptionHelpFormatter, **texts
    )
    parser.set_defaults(run=run, work=work)
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument(
        "--embedder",
        metavar="minilm|static|DIR",
        help="the sentence encoder: one of the shipped ones (default: minilm) or a directory",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="where embeddings are kept between runs (default: $XDG_CACHE_HOME/lunar-proxy)",
    )
    parser.add_argument("--no-cache", action="store_true", help="keep no embeddings")
    return parser


def run(args: argparse.Namespace) -> int:
    """0; 2 with what is wrong on stderr."""
    from lunar_proxy.scoring.errors import ScoringError

    try:
        code: int = args.work(args)
    except ScoringError as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return code


def _refuse(what: str) -> int:
    print(f"lunar-proxy router: {what}", file=sys.stderr)
    return 2


def files(parser: Any, *flags: str, **options: Any) -> None:
    parser.add_argument(
        *flags, nargs="+", action="extend", type=Path, metavar="FILE", default=[], **options
    )


def draws(parser: Any) -> None:
    parser.add_argument(
        "--models",
        type=model_names,
        action="extend",
        default=[],
        metavar="A,B,C",
        help="which models",
    )
    parser.add_argument(
        "--labels", type=count, metavar="N", help="draw N graded prompts at random (default: all)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of all that is drawn")


def model_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("no model named")
    return names


def count(text: str) -> int | None:
    if text == "all":
        return None
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more, or all")
    return number
