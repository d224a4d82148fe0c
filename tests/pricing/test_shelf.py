"""Which entry an id means, and which of its prices is in force."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import Decimal as D

import pytest

from lunar_proxy.core.pricing import Price
from lunar_proxy.pricing.shelf import Daily, Entry, Shelf, Since, Test

OLD, NEW = Price(D(1)), Price(D(2))


def entry(id_: str, *rules: Test, names: tuple[str, ...] = ()) -> Entry:
    return Entry(id_, ((None, OLD),), names=names, rules=rules)


def starts(prefix: str) -> Test:
    return lambda model: model.startswith(prefix)


FINE = entry("fine", names=("gpt-4o",))
BROAD = entry("broad", starts("gpt-"))
LATE = entry("late", names=("gpt-5", "o3"))
DATED = entry("dated", names=("o4-2025-12-11",))
SHELF = Shelf([FINE, BROAD, LATE, DATED], beyond=(Shelf([entry("lent", names=("claude",))]),))


@pytest.mark.parametrize(
    ("model", "id_"),
    [
        ("gpt-4o", "fine"),
        ("GPT-4o", "fine"),
        ("gpt-4", "broad"),
        ("gpt-5", "broad"),  # the rule stands before the name
        ("o3", "late"),
        ("o4-20251211", "dated"),
        ("o4-20251311", None),
        ("claude", "lent"),
        ("nothing", None),
        ("", None),
    ],
)
def test_the_first_entry_that_accepts_an_id_has_it(model: str, id_: str | None) -> None:
    found = SHELF.find(model)
    assert (found and found.id) == id_


@pytest.mark.parametrize(
    ("when", "day", "price"),
    [
        (Since(date(2026, 1, 1)), datetime(2025, 12, 31, 23, 59, tzinfo=UTC), OLD),
        (Since(date(2026, 1, 1)), datetime(2026, 1, 1, tzinfo=UTC), NEW),
        (Daily(time(1), time(4)), datetime(2026, 1, 1, 0, 59, tzinfo=UTC), OLD),
        (Daily(time(1), time(4)), datetime(2026, 1, 1, 1, tzinfo=UTC), NEW),
        (Daily(time(1), time(4)), datetime(2026, 1, 1, 4, tzinfo=UTC), OLD),
        (Daily(time(16, 30), time(0, 30)), datetime(2026, 1, 1, 0, 10, tzinfo=UTC), NEW),
        (Daily(time(16, 30), time(0, 30)), datetime(2026, 1, 1, 23, tzinfo=UTC), NEW),
        (Daily(time(16, 30), time(0, 30)), datetime(2026, 1, 1, 12, tzinfo=UTC), OLD),
    ],
)
def test_the_last_price_in_force_counts(when: Since | Daily, day: datetime, price: Price) -> None:
    assert Entry("x", ((None, OLD), (when, NEW))).price(day) == price


def test_the_first_price_counts_when_none_is_in_force() -> None:
    dated = Entry("x", ((Since(date(2026, 1, 1)), OLD), (Since(date(2027, 1, 1)), NEW)))
    assert dated.price(datetime(2025, 1, 1, tzinfo=UTC)) == OLD
