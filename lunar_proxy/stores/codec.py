"""Records as JSON, for the stores that keep bytes and for those who read them.

Money travels as a decimal string: a JSON number is a float to most readers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import fields
from decimal import Decimal, InvalidOperation
from typing import Any, get_args

import orjson

from lunar_proxy.core.limits import Budget, Limits, Per

from .base import KeyRecord, Spend

logger = logging.getLogger(__name__)

_FIELDS = tuple(field.name for field in fields(KeyRecord) if field.init)
_COUNTS = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")


def dump_key(record: KeyRecord) -> bytes:
    return orjson.dumps(key_as_dict(record))


def load_key(data: bytes | str) -> KeyRecord:
    """Fields of a newer version are ignored, so that versions may share a store.

    Raises ValueError.
    """
    doc = orjson.loads(data)
    if not isinstance(doc, dict):
        raise ValueError("not an object")
    doc = {name: value for name, value in doc.items() if name in _FIELDS}
    limits = doc.pop("limits", None)
    try:
        models = tuple(doc.pop("models", ()))
        limits = None if limits is None else load_limits(limits)
        return KeyRecord(**doc, models=models, limits=limits)
    except TypeError as error:
        raise ValueError("a field is missing, or of another type") from error


def readable(records: Iterable[bytes | str]) -> Iterator[KeyRecord]:
    """Those that can be read. One that cannot must hide no other: they tell of revocations."""
    for data in records:
        try:
            yield load_key(data)
        except ValueError as error:
            logger.error("a key in the store cannot be read, and is passed over: %s", error)


def key_as_dict(record: KeyRecord) -> dict[str, Any]:
    doc = {name: getattr(record, name) for name in _FIELDS}
    doc["limits"] = None if record.limits is None else limits_as_dict(record.limits)
    return doc


def limits_as_dict(limits: Limits) -> dict[str, Any]:
    """In the shape of the config's `limits:`, without what is not set."""
    doc: dict[str, Any] = {name: getattr(limits, name) for name in _COUNTS}
    if limits.budget is not None:
        doc["budget"] = {"usd": str(limits.budget.usd), "per": limits.budget.per}
    return {name: value for name, value in doc.items() if value is not None}


def load_limits(doc: object) -> Limits:
    """The other way. Raises ValueError with the name of what is wrong, never with its value."""
    if not isinstance(doc, dict):
        raise ValueError("limits: not an object")
    if unknown := doc.keys() - {*_COUNTS, "budget"}:
        raise ValueError(f"limits: unknown {', '.join(sorted(map(str, unknown)))}")
    counts = {name: _count(name, doc[name]) for name in _COUNTS if doc.get(name) is not None}
    budget = doc.get("budget")
    return Limits(**counts, budget=None if budget is None else _budget(budget))


def _count(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"limits.{name}: not a whole number above 0")
    return value


def _budget(doc: object) -> Budget:
    if not isinstance(doc, dict) or doc.get("per", "month") not in get_args(Per):
        raise ValueError(f"limits.budget: not {{usd, per}} with per one of {get_args(Per)}")
    try:
        usd = Decimal(str(doc.get("usd")))
    except InvalidOperation:
        raise ValueError("limits.budget.usd: not a number") from None
    if not usd.is_finite() or usd < 0:
        raise ValueError("limits.budget.usd: not an amount")
    return Budget(usd, doc.get("per", "month"))


def spend_as_dict(spend: Spend) -> dict[str, Any]:
    """For `orjson`. The cost is a JSON number with all its ten decimals, not a float's."""
    return {
        "requests": spend.requests,
        "input_tokens": spend.input_tokens,
        "output_tokens": spend.output_tokens,
        "cached_tokens": spend.cached_tokens,
        "cost_usd": orjson.Fragment(f"{spend.usd:.10f}"),
        "unpriced": spend.unpriced,
    }
