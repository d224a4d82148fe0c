"""What `keys` and `usage` share: which store, and how times and amounts are written."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

from lunar_proxy.config import ConfigError, load
from lunar_proxy.core import durations
from lunar_proxy.core.errors import InvalidRequest, ProxyError
from lunar_proxy.stores import Store, open_store


class Refused(Exception):
    """A sentence for the user; exit 2."""


def wall_clock() -> float:
    return datetime.now(UTC).timestamp()


def add_store_options(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--config", type=Path, metavar="FILE", help="whose `store:` it is")
    where.add_argument("--store", metavar="URL", help="sqlite:PATH or redis://HOST:PORT/DB")


def duration_s(text: str) -> float:
    try:
        return durations.duration_s(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def dollars(text: str) -> Decimal:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount above 0")
    return amount


def with_store(
    args: argparse.Namespace, work: Callable[[Store], Awaitable[int]], *, instead: str
) -> int:
    """Open the store, do the work, close it. 2 for bad arguments, 1 for anything else.

    `instead` says what to do where the store is that of another process's memory.
    """
    try:
        return asyncio.run(_work(_open(args, instead), work))
    except (Refused, ConfigError, InvalidRequest) as error:
        print(error, file=sys.stderr)
        return 2
    except ProxyError as error:
        print(error, file=sys.stderr)
        return 1


def _open(args: argparse.Namespace, instead: str) -> Store:
    url = args.store if args.store is not None else load(args.config, os.environ).store.url
    try:
        store = open_store(url, wall_clock)
    except ValueError as error:
        raise Refused(f"--store: {error}") from None
    if not store.shared:
        raise Refused(f"the store `memory` lives inside the running proxy: {instead}")
    return store


async def _work(store: Store, work: Callable[[Store], Awaitable[int]]) -> int:
    await store.start()
    try:
        return await work(store)
    finally:
        await store.close()


def table(rows: list[tuple[str, ...]], *, right: frozenset[int] = frozenset()) -> str:
    """Rows in columns as wide as their widest cell; `right`: the columns that hold numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if n in right else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
