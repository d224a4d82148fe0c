"""`lunar-proxy check [FILE]`: is this config good, and what is in force when it is loaded?"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from lunar_proxy.config import Config, ConfigError, ResolvedProvider, load, providers, resolved


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "check",
        help="validate a config and print it resolved, secrets masked",
        description="Validate a config and print every setting in force, secrets masked. "
        "Without FILE: the defaults and what the environment turns on.",
    )
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0, or 2 with `file:line: path: what is wrong` on stderr, a line for each problem."""
    try:
        config = load(args.file, os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    sys.stdout.write(render(config, providers(config, os.environ)))
    return 0


def render(config: Config, found: tuple[ResolvedProvider, ...]) -> str:
    """The config as YAML, then its providers as comments: on, or off and why."""
    text = yaml.safe_dump(resolved(config), sort_keys=False, allow_unicode=True)
    return text + "\n# providers\n" + "".join(f"#   {_state(provider)}\n" for provider in found)


def _state(provider: ResolvedProvider) -> str:
    if provider.enabled:
        return f"{provider.id}: on, {provider.base_url}"
    callers = "; a caller's own key is passed on" if provider.bring_key else ""
    return f"{provider.id}: off, {provider.why_disabled}{callers}"
