"""The command line. Each command is a module with `add(subparsers)` and `run(args) -> exit code`.

Nothing else in the package prints. Exit codes: 0 as asked, 2 bad config or arguments, 1 the rest.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from lunar_proxy._version import __version__

# In the order of --help.
COMMANDS = ("serve", "check", "keys", "usage", "ca", "prices", "router")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="lunar-proxy",
        description="A sidecar for LLM traffic: forwards OpenAI-shaped calls byte for byte, and "
        "knows what each cost, how long the first token took, and what to do when a provider "
        "fails.",
        epilog="first steps: `lunar-proxy serve --demo`; `lunar-proxy COMMAND --help` tells more",
    )
    parser.add_argument("--version", action="version", version=f"lunar-proxy {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f".{name}", __package__).add(subparsers)
    args = parser.parse_args(argv)
    try:
        code: int = args.run(args)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; so do we, without a traceback
        return 1
    return code
