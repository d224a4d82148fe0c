"""`lunar-proxy usage` against a real file."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from pathlib import Path

import pytest

from lunar_proxy.cli import main
from lunar_proxy.cli.stores import wall_clock
from lunar_proxy.stores import Entry, open_store
from lunar_proxy.stores.keys import create


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A ledger of one key and one stranger, now and ten days ago."""
    url = f"sqlite:{tmp_path / 'lunar.db'}"

    async def write() -> None:
        store = open_store(url, wall_clock)
        await store.start()
        now = wall_clock()
        hour = int(now) // 3600 * 3600
        record, _ = await create(store, "team-a", now=now)
        store.add(
            [
                Entry(hour, record.id, "openai", "gpt-4o", 2, 100, 50, 10, 123_456_789),
                Entry(hour, "anonymous", "groq", "llama", 1, 7, 3, 0, 0, unpriced=1),
                Entry(hour - 10 * 86_400, record.id, "openai", "gpt-4o", 1, 1, 1, 0, 10**10),
            ]
        )
        await store.close()

    asyncio.run(write())
    return url


def usage(url: str, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["usage", "--store", url, *args]) == 0
    return capsys.readouterr().out


def test_a_table_adds_up(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split() for line in usage(url, capsys).splitlines()]
    assert lines[1:] == [
        ["team-a", "2", "100", "50", "10", "0.0123456789", "0"],
        ["anonymous", "1", "7", "3", "0", "0.0000000000", "1"],
        ["total", "3", "107", "53", "10", "0.0123456789", "1"],
    ]


def test_json_keeps_all_decimals(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = usage(url, capsys, "--json", "--since", "30d")
    assert text == usage(url, capsys, "--format", "json", "--since", "30d")
    first, second = json.loads(text, parse_float=Decimal)
    assert first["name"] == "team-a"
    assert first["key"].startswith("key_")
    assert first["cost_usd"] == Decimal("1.0123456789")
    assert (second["key"], second["name"], second["unpriced"]) == ("anonymous", None, 1)


@pytest.mark.parametrize(
    ("by", "names"), [("model", ["gpt-4o", "llama"]), ("provider", ["openai", "groq"])]
)
def test_csv_by_model_and_provider(
    url: str, capsys: pytest.CaptureFixture[str], by: str, names: list[str]
) -> None:
    head, *rows = usage(url, capsys, "--by", by, "--format", "csv").splitlines()
    assert head.split(",")[:2] == [by, "requests"]
    assert [row.split(",")[0] for row in rows] == names


def test_a_ledger_in_memory_is_asked_for_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["usage", "--store", "memory"]) == 2
    assert "/-/usage" in capsys.readouterr().err
