"""What holds for all tests: no clock decides whether one passes, and the long ones begin first."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

SLOW = Path(__file__).parent / "e2e"


def pytest_configure() -> None:
    # A busy machine is no failure: how fast something is, benchmarks tell.
    settings.register_profile(
        "unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Several processes (`make unit`) end together when what takes longest is begun first."""
    items.sort(key=lambda item: SLOW not in item.path.parents)
