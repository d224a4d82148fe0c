"""What is memory's own: how much of it, and for how long."""

from __future__ import annotations

from decimal import Decimal

from lunar_proxy.core.limits import Budget, Limits
from lunar_proxy.core.money import UNITS_PER_USD
from lunar_proxy.stores.base import Entry, Reservation
from lunar_proxy.stores.memory import MemoryLedger, MemoryLimits

from .backends import T0

PER_MINUTE = Limits(requests_per_minute=60)


def test_subjects_are_forgotten_once_their_limits_have_refilled() -> None:
    store = MemoryLimits()
    for n in range(1000):
        reservation = Reservation(f"address:{n}", PER_MINUTE)
        store.take(reservation, T0 + n)
        store.settle(reservation, 0, None, T0 + n)
    assert len(store) < 10


def test_what_is_in_flight_or_spent_is_not_forgotten() -> None:
    store = MemoryLimits()
    budget = Limits(budget=Budget(Decimal(1), "total"))
    spent, flying = Reservation("spent", budget), Reservation("flying", PER_MINUTE)
    for reservation in (spent, flying):
        store.take(reservation, T0)
    store.settle(spent, 0, UNITS_PER_USD, T0)
    for n in range(1000):
        other = Reservation(f"address:{n}", PER_MINUTE)
        store.take(other, T0 + n)
        store.settle(other, 0, None, T0 + n)
    assert store.state("flying").calls == 1
    assert not store.take(Reservation("spent", budget), T0 + 1000).allowed


def test_a_flood_of_addresses_takes_only_so_much() -> None:
    store = MemoryLimits(max_subjects=100)
    for n in range(1000):
        store.take(Reservation(f"address:{n}", PER_MINUTE), T0)
    assert len(store) == 100


def test_names_that_clients_make_up_do_not_fill_the_ledger() -> None:
    ledger = MemoryLedger(most_rows=2)
    ledger.add(Entry(0, "k", "openai", f"made-up-{n}", 1, cost=n) for n in range(10))
    ledger.add([Entry(0, "k", "openai", "made-up-1", 1, cost=100)])
    assert [(row.model, row.requests, row.cost) for row in ledger.rows(0)] == [
        ("made-up-0", 1, 0),
        ("made-up-1", 2, 101),
        ("other", 8, sum(range(2, 10))),
    ]
