"""`lunar-proxy router`: make, measure and look into what the router decides by.

One module a subcommand, each with `add(commands)`; `command` holds what their arguments have in
common, `inputs` what they read, `tables` how they print.

The work is done in `lunar_proxy.scoring`, imported only when a command runs: it needs numpy and the
sentence encoder, which no other command does.
"""

from __future__ import annotations

import argparse

from . import distill, eval, fit, inspect, profile, route

# In the order of --help.
COMMANDS = (fit, profile, eval, route, inspect, distill)


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    router = subparsers.add_parser(
        "router", help="fit, profile, evaluate and inspect the model router"
    )
    commands = router.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
