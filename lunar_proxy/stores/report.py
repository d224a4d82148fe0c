"""Sums of the ledger as documents: the same from the command line and from the admin listener."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

from .base import Dimension, Spend
from .codec import spend_as_dict

HEAD = ("requests", "input_tokens", "output_tokens", "cached_tokens", "cost_usd", "unpriced")


def rows(spends: Iterable[Spend], by: Dimension, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """For `orjson`. `names` are those of keys by id; a key that is gone has none."""
    named = by == "key"
    return [
        {by: spend.name} | ({"name": names.get(spend.name)} if named else {}) | spend_as_dict(spend)
        for spend in spends
    ]


def cells(spend: Spend) -> tuple[str, ...]:
    """Its numbers in the order of `HEAD`."""
    counts = (spend.requests, spend.input_tokens, spend.output_tokens, spend.cached_tokens)
    return (*map(str, counts), f"{spend.usd:.10f}", str(spend.unpriced))


def as_csv(spends: Iterable[Spend], by: Dimension) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((by, *HEAD))
    writer.writerows((spend.name, *cells(spend)) for spend in spends)
    return text.getvalue()
