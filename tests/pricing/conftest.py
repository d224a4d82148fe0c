"""The bundled prices, read once for all tests: they never change."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from lunar_proxy.pricing import PriceTable, Shelf, load

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture(scope="session")
def shelves() -> Mapping[str, Shelf]:
    return load()


@pytest.fixture(scope="session")
def table(shelves: Mapping[str, Shelf]) -> PriceTable:
    return PriceTable(shelves, now=lambda: NOON)
