"""What is memory's own: how much of it, and for how long."""

from __future__ import annotations

from decimal import Decimal

from lunar_proxy.core.limits import Budget, Limits
from lunar_proxy.stores.base import Reservation
from lunar_proxy.stores.memory import MemoryLimits

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
    store.settle(spent, 0, Decimal(1), T0)
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
