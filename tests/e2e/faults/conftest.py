from __future__ import annotations

from collections.abc import Iterator

import pytest

from .world import Scene, World, world


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The proxy that nearly all scenarios share."""
    with world(tmp_path_factory.mktemp("faults")) as running:
        yield running


@pytest.fixture
def scene(plain: World) -> Scene:
    return plain.scene()
