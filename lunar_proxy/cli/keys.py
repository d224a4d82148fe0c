"""`lunar-proxy keys`: make, list, revoke and rotate the keys of a store."""

from __future__ import annotations

import argparse
import json
from typing import Any, get_args

from lunar_proxy.core.limits import Budget, Limits, Per
from lunar_proxy.stores import KeyRecord, Store
from lunar_proxy.stores.keys import create, describe, revoke, rotate

from .stores import (
    Refused,
    add_store_options,
    count,
    dollars,
    duration_s,
    table,
    wall_clock,
    with_store,
)

_INSTEAD = (
    "no key can be put there from here. Set `store: sqlite:PATH` or `store: redis://HOST:PORT/DB` "
    "in the config (or give --store), or list the key under `auth.keys`."
)


def add(subparsers: Any) -> None:
    keys = subparsers.add_parser("keys", help="make, list, revoke and rotate API keys")
    commands = keys.add_subparsers(metavar="COMMAND", required=True)
    _add_create(commands)
    _command(commands, "list", _list, "every key: whose it is, what it may do, when it was used")
    revoked = _command(commands, "revoke", _revoke, "refuse a key from now on")
    rotated = _command(commands, "rotate", _rotate, "a new key in place of an old one")
    for parser in (revoked, rotated):
        parser.add_argument("key", metavar="ID-or-NAME")
    rotated.add_argument(
        "--grace", type=duration_s, default="24h", help="how long the old one stays good (24h)"
    )


def _add_create(commands: Any) -> None:
    parser = _command(commands, "create", _create, "make a key; it is shown once, on the last line")
    parser.add_argument("--name", required=True, help="whose it is; shown in logs and usage")
    parser.add_argument("--models", default="", help="globs it may ask for: 'openai/*,auto'")
    parser.add_argument("--rpm", type=count, help="requests per minute")
    parser.add_argument("--tpm", type=count, help="tokens per minute")
    parser.add_argument("--concurrent", type=count, help="calls in flight")
    parser.add_argument("--budget-usd", type=dollars, metavar="USD")
    parser.add_argument("--per", choices=get_args(Per), help="window of the budget (month)")
    parser.add_argument("--expires", type=duration_s, metavar="90d", help="how long it is good")
    parser.add_argument("--test", action="store_true", help="a pk_test_ key")


def _command(commands: Any, name: str, work: Any, help: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help)
    add_store_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run, work=work)
    return parser


def run(args: argparse.Namespace) -> int:
    async def work(store: Store) -> int:
        code: int = await args.work(args, store)
        return code

    return with_store(args, work, instead=_INSTEAD)


async def _create(args: argparse.Namespace, store: Store) -> int:
    now = wall_clock()
    if args.per is not None and args.budget_usd is None:
        raise Refused("--per is the window of a budget: give --budget-usd too")
    record, key = await create(
        store,
        args.name,
        now=now,
        models=tuple(glob.strip() for glob in args.models.split(",") if glob.strip()),
        limits=_limits(args),
        expires_at=None if args.expires is None else now + args.expires,
        test=args.test,
    )
    _show_key(args, record, key, f"made {record.id} for {record.name}; it is shown only here:")
    return 0


def _limits(args: argparse.Namespace) -> Limits | None:
    """None, which is the configured default, when no limit was given."""
    budget = None if args.budget_usd is None else Budget(args.budget_usd, args.per or "month")
    limits = Limits(args.rpm, args.tpm, args.concurrent, budget)
    return None if limits.empty else limits


async def _list(args: argparse.Namespace, store: Store) -> int:
    now = wall_clock()
    keys = [describe(record, now) for record in await store.keys()]
    if args.json:
        print(json.dumps(keys, indent=2))
        return 0
    head = ("ID", "NAME", "KEY", "STATE", "MODELS", "LIMITS", "EXPIRES", "LAST USED")
    print(table([head, *map(_row, keys)]))
    return 0


def _row(key: dict[str, Any]) -> tuple[str, ...]:
    return (
        key["id"],
        key["name"],
        key["prefix"] + "...",
        key["state"],
        ",".join(key["models"]) or "all",
        _short(key["limits"]),
        key["expires_at"] or "never",
        key["last_used_at"] or "never",
    )


_UNITS = {"requests_per_minute": "rpm", "tokens_per_minute": "tpm", "concurrent_requests": "slots"}


def _short(limits: dict[str, Any] | None) -> str:
    if limits is None:
        return "default"
    parts = [f"{limits[name]} {unit}" for name, unit in _UNITS.items() if name in limits]
    if "budget" in limits:
        parts.append("{usd} USD/{per}".format(**limits["budget"]))
    return ", ".join(parts)


async def _revoke(args: argparse.Namespace, store: Store) -> int:
    now = wall_clock()
    record = await revoke(store, args.key, now=now)
    print(json.dumps(describe(record, now)) if args.json else f"revoked {record.id} {record.name}")
    return 0


async def _rotate(args: argparse.Namespace, store: Store) -> int:
    now = wall_clock()
    record, key = await rotate(store, args.key, now=now, grace_s=args.grace)
    until = describe(record, now)["old_key_until"]
    _show_key(args, record, key, f"{record.id} {record.name}: the old key is good until {until}")
    return 0


def _show_key(args: argparse.Namespace, record: KeyRecord, key: str, says: str) -> None:
    if args.json:
        print(json.dumps(describe(record, wall_clock()) | {"key": key}))
    else:
        print(says)
        print(key)
