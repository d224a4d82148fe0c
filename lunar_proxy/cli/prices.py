"""`lunar-proxy prices show MODEL`: who sells a model, and for how much."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from lunar_proxy.config import Config, ConfigError, load
from lunar_proxy.core.pricing import AnyPrice, HourlyPrice, Price
from lunar_proxy.pricing import PriceTable, price_from
from lunar_proxy.pricing import load as load_shelves

DEPLOYMENTS = ("lunar", "pureai")  # CONTRACT 2: a deployment is called lunar/NAME or pureai/NAME

# Column -> the field of `Price` it shows.
RATES: Mapping[str, str] = {
    "input_per_million": "input",
    "output_per_million": "output",
    "cache_input_per_million": "cache_read",
    "cache_write_per_million": "cache_write",
    "reasoning_per_million": "reasoning",
    "input_audio_per_million": "input_audio",
    "output_audio_per_million": "output_audio",
    "cache_audio_per_million": "cache_audio_read",
    "per_request": "per_request",
}
ALWAYS_SHOWN = ("input_per_million", "output_per_million", "cache_input_per_million")

Row = dict[str, Any]


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    prices = subparsers.add_parser("prices", help="look models up in the price table")
    commands = prices.add_subparsers(metavar="COMMAND", required=True)
    show = commands.add_parser(
        "show",
        help="who sells MODEL, and for how much",
        description="Print what MODEL costs at each provider that sells it, in US dollars per "
        "million tokens. MODEL may be a model id or PROVIDER/MODEL.",
    )
    show.add_argument("model", metavar="MODEL")
    show.add_argument("--config", type=Path, metavar="FILE", help="whose own prices come first")
    show.add_argument("--json", action="store_true", help="a JSON array instead of a table")
    show.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0; 1 for a model nobody lists; 2 for a bad config."""
    try:
        config = None if args.config is None else load(args.config, os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    table = PriceTable(
        load_shelves(),
        now=lambda: datetime.now(UTC),
        overrides={} if config is None else configured(config),
    )
    rows = list(find(table, args.model))
    if not rows:
        print(unknown(args.model, table.names), file=sys.stderr)
        return 1
    print(json.dumps(rows, indent=2) if args.json else render(rows))
    return 0


def configured(config: Config) -> dict[str, dict[str, AnyPrice]]:
    """The prices a config gives, by provider; those of deployments under `lunar`."""
    found: dict[str, dict[str, AnyPrice]] = {
        id_: {model: price_from(price.model_dump()) for model, price in provider.prices.items()}
        for id_, provider in config.providers.items()
    }
    for name, deployment in config.deployments.items():
        own = found.setdefault(DEPLOYMENTS[0], {})
        if deployment.cost_per_hour is not None:
            own[name] = HourlyPrice(deployment.cost_per_hour)
        elif deployment.price is not None:
            own[name] = price_from(deployment.price.model_dump())
    return found


def find(table: PriceTable, asked: str) -> Iterator[Row]:
    """A row for each seller of a model id; for PROVIDER/MODEL, that provider's own."""
    provider, _, model = asked.partition("/")
    provider = DEPLOYMENTS[0] if provider in DEPLOYMENTS else provider
    if model and (price := table.price(provider, model)) is not None:
        yield _row(provider, model, price, table.window(provider, model))
        return
    for seller, spelled in table.providers_of(asked):
        yield _row(seller, spelled, table.price(seller, spelled), table.window(seller, spelled))


def unknown(asked: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(asked.lower(), list(names), n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"no provider lists {asked!r}{hint}"


def _row(provider: str, model: str, price: AnyPrice | None, window: int | None) -> Row:
    row: Row = {"provider": provider, "model_id": model, "max_input_tokens": window}
    if isinstance(price, HourlyPrice):
        return row | {"cost_per_hour": float(price.usd_per_hour)}
    row |= _rates(price or Price())
    if price is not None and price.tiers:
        row["tiers"] = [{"above_tokens": n, **_rates(tier)} for n, tier in price.tiers]
    return row


def _rates(price: Price) -> Row:
    amounts: dict[str, Decimal | None] = {name: getattr(price, of) for name, of in RATES.items()}
    return {
        name: None if amount is None else float(amount)
        for name, amount in amounts.items()
        if amount is not None or name in ALWAYS_SHOWN
    }


def render(rows: Iterable[Row]) -> str:
    """The rows as a table; tiers and rarer prices on lines of their own."""
    lines = [("PROVIDER", "MODEL", "INPUT", "OUTPUT", "CACHED", "WINDOW")]
    for row in rows:
        lines += _lines(row)
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    table = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    return "\n".join(table) + "\nUS dollars per million tokens; - is unknown."


def _lines(row: Row) -> Iterator[tuple[str, str, str, str, str, str]]:
    window = _cell(row["max_input_tokens"])
    if "cost_per_hour" in row:
        hourly = f"{_cell(row['cost_per_hour'])} an hour"
        yield row["provider"], row["model_id"], hourly, "", "", window
        return
    yield row["provider"], row["model_id"], *_main_rates(row), window
    for tier in row.get("tiers", ()):
        yield "", f"  prompts above {tier['above_tokens']}", *_main_rates(tier), ""
    for name in RATES:
        if name in row and name not in ALWAYS_SHOWN:
            yield "", f"  {name.removesuffix('_per_million')}", _cell(row[name]), "", "", ""


def _main_rates(rates: Row) -> tuple[str, str, str]:
    input_, output, cached = (_cell(rates[name]) for name in ALWAYS_SHOWN)
    return input_, output, cached


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{Decimal(str(value)).normalize():f}"
