"""Numbers as JSON has them: what was counted, to the last digit."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.core.figures import INEXACT, decimal, dollars, milliseconds
from lunar_proxy.core.money import UNITS_PER_USD, units, usd


@given(st.integers(0, INEXACT - 1))
def test_a_float_of_dollars_has_all_decimals(spent: int) -> None:
    assert Decimal(json.dumps(dollars(spent))) == usd(spent)


@given(st.integers(0, 10**20))
def test_a_decimal_is_exact_and_a_float_to_json(spent: int) -> None:
    text = decimal(spent)
    assert Decimal(text) == usd(spent)
    assert set(text) <= set("0123456789.")
    assert isinstance(json.loads(text), float)


DECIMALS = {0: "0.0", 1: "0.0000000001", UNITS_PER_USD: "1.0", 12_345_000_000: "1.2345"}


@pytest.mark.parametrize(("spent", "text"), DECIMALS.items())
def test_a_decimal_has_the_digits_it_needs(spent: int, text: str) -> None:
    assert decimal(spent) == text


TIMES = {0.0: 0.0, 0.0000004: 0.0, 0.0000005: 0.001, 0.0123456: 12.346, 1.5: 1500.0}


@pytest.mark.parametrize(("seconds", "ms"), TIMES.items())
def test_times_are_whole_microseconds(seconds: float, ms: float) -> None:
    assert milliseconds(seconds) == ms


HALVES = {"0": 0, "1E-10": 1, "0.5E-10": 0, "1.5E-10": 2, "2.5E-10": 2, "1": UNITS_PER_USD}


@pytest.mark.parametrize(("amount", "expected"), HALVES.items())
def test_half_a_unit_rounds_to_even(amount: str, expected: int) -> None:
    assert units(Decimal(amount)) == expected
