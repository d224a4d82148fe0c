"""`lunar-proxy keys` against a real file."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lunar_proxy.cli import main
from lunar_proxy.cli.stores import wall_clock
from lunar_proxy.core.errors import Unauthorized
from lunar_proxy.core.model import Identity
from lunar_proxy.stores import open_store
from lunar_proxy.stores.keys import Keyring

Command = Callable[..., str]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'lunar.db'}"


@pytest.fixture
def keys(url: str, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command that must succeed, and returns what it printed."""

    def command(*args: str) -> str:
        assert main(["keys", *args, "--store", url]) == 0
        return capsys.readouterr().out

    return command


def last_line(text: str) -> str:
    return text.rstrip("\n").rpartition("\n")[2]


def identify(url: str, key: str) -> Identity:
    async def find() -> Identity:
        store = open_store(url, wall_clock)
        await store.start()
        try:
            return Keyring(store).identify(key, wall_clock())
        finally:
            await store.close()

    return asyncio.run(find())


def test_create_prints_the_key_alone_on_its_last_line(keys: Command, url: str) -> None:
    key = last_line(keys("create", "--name", "team-a"))
    assert re.fullmatch(r"pk_live_[0-9A-Za-z]{32,}", key)
    assert identify(url, key).name == "team-a"


def test_create_takes_models_limits_and_an_end(keys: Command) -> None:
    flags = "--models openai/*,auto --rpm 60 --tpm 9000 --concurrent 3 --budget-usd 0.5 --per day"
    shown = json.loads(
        keys("create", "--name", "a", *flags.split(), "--expires", "90d", "--test", "--json")
    )
    assert shown["key"].startswith("pk_test_")
    assert shown["models"] == ["openai/*", "auto"]
    assert shown["limits"] == {
        "requests_per_minute": 60,
        "tokens_per_minute": 9000,
        "concurrent_requests": 3,
        "budget": {"usd": "0.5", "per": "day"},
    }
    assert shown["expires_at"] > shown["created_at"]


def test_list_shows_no_key_and_no_digest(keys: Command) -> None:
    key = last_line(keys("create", "--name", "team-a", "--rpm", "5"))
    listed = keys("list")
    assert "team-a" in listed
    assert "5 rpm" in listed
    assert key[:12] in listed
    for text in (listed, keys("list", "--json")):
        assert key not in text
        assert not re.search(r"[0-9a-f]{64}", text)


def test_revoke_and_rotate_take_an_id_or_a_name(keys: Command, url: str) -> None:
    first = last_line(keys("create", "--name", "a"))
    (shown,) = json.loads(keys("list", "--json"))
    second = last_line(keys("rotate", shown["id"], "--grace", "1h"))
    assert identify(url, first) == identify(url, second)
    third = last_line(keys("rotate", "a", "--grace", "0"))
    for old in (first, second):
        with pytest.raises(Unauthorized):
            identify(url, old)
    keys("revoke", "a")
    with pytest.raises(Unauthorized, match="revoked"):
        identify(url, third)
    (shown,) = json.loads(keys("list", "--json"))
    assert shown["state"] == "revoked"


def test_the_store_may_come_from_a_config(
    tmp_path: Path, keys: Command, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    keys("create", "--name", "a")
    config = tmp_path / "lunar.yaml"
    config.write_text(f"store: {url}\n")
    assert main(["keys", "list", "--config", str(config), "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert shown["name"] == "a"


REFUSED: dict[str, tuple[list[str], int, str]] = {
    "memory": (["create", "--name", "a", "--store", "memory"], 2, "auth.keys"),
    "no store named": (["create", "--name", "a"], 2, "sqlite:PATH"),
    "another store": (["list", "--store", "mysql://u:secret@h"], 2, "unknown store"),
    "nowhere": (["list", "--store", "sqlite:/nonexistent/lunar.db"], 1, "cannot be opened"),
    "no such config": (["list", "--config", "/nonexistent.yaml"], 2, "nonexistent"),
    "no such key": (["revoke", "nobody", "--store", "URL"], 1, "no key 'nobody'"),
    "a window of nothing": (
        ["create", "--name", "a", "--per", "day", "--store", "URL"],
        2,
        "--per",
    ),
    "no name": (["create", "--name", " ", "--store", "URL"], 2, "name"),
}


@pytest.mark.parametrize(("args", "code", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses_with_a_sentence(
    args: list[str], code: int, says: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", *(url if arg == "URL" else arg for arg in args)]) == code
    said = capsys.readouterr()
    assert says in said.err
    assert said.out == ""
    assert "secret" not in said.err


@pytest.mark.parametrize(
    "args",
    [
        ["--rpm", "0"],
        ["--tpm", "-1"],
        ["--concurrent", "many"],
        ["--budget-usd", "nan"],
        ["--expires", "soon"],
        ["--per", "year"],
    ],
)
def test_bad_arguments_exit_with_2(args: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["keys", "create", "--name", "a", "--store", "sqlite:x", *args])
    assert exit_.value.code == 2
