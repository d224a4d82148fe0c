"""`lunar-proxy usage`: what each key, model or provider has spent, from the ledger."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, get_args

import orjson

from lunar_proxy.stores import Spend, Store, report
from lunar_proxy.stores.base import Dimension

from .stores import add_store_options, duration_s, table, wall_clock, with_store

_INSTEAD = "ask its admin listener, at /-/usage, or set `store: sqlite:PATH` in the config."


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "usage",
        help="what was spent, by key, model or provider",
        description="What was spent, from the ledger. It is kept by the hour, so --since counts "
        "from the start of an hour (UTC).",
    )
    parser.add_argument("--by", choices=get_args(Dimension), default="key")
    parser.add_argument("--since", type=duration_s, default="7d", help="how far back (7d)")
    parser.add_argument("--format", choices=tuple(_FORMATS), default="table")
    parser.add_argument(
        "--json", dest="format", action="store_const", const="json", help="--format json"
    )
    add_store_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    async def work(store: Store) -> int:
        spends = await store.query(wall_clock() - args.since, args.by)
        names = {record.id: record.name for record in await store.keys()}
        _FORMATS[args.format](spends, args.by, names if args.by == "key" else {})
        return 0

    return with_store(args, work, instead=_INSTEAD)


def _json(spends: list[Spend], by: Dimension, names: dict[str, str]) -> None:
    rows = report.rows(spends, by, names)
    print(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())


def _csv(spends: list[Spend], by: Dimension, _names: dict[str, str]) -> None:
    sys.stdout.write(report.as_csv(spends, by))


def _table(spends: list[Spend], by: Dimension, names: dict[str, str]) -> None:
    head = (by.upper(), *(name.replace("_", " ").upper() for name in report.HEAD))
    rows = [(names.get(spend.name, spend.name), *report.cells(spend)) for spend in spends]
    print(
        table([head, *rows, ("total", *report.cells(_sum(spends)))], right=frozenset(range(1, 7)))
    )


def _sum(spends: list[Spend]) -> Spend:
    def of(name: str) -> int:
        return sum(getattr(spend, name) for spend in spends)

    return Spend(
        "total",
        of("requests"),
        of("input_tokens"),
        of("output_tokens"),
        of("cached_tokens"),
        of("cost"),
        of("unpriced"),
    )


_FORMATS: dict[str, Callable[[list[Spend], Dimension, dict[str, str]], None]] = {
    "table": _table,
    "json": _json,
    "csv": _csv,
}
