"""Keys and the ledger on the admin listener, and who may ask there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lunar_proxy.testing import chat

from .guarded import ADMIN, KEYS, MINI, TEAM, USAGE, admin, bearer, config
from .harness import Proxy, Stage, ask, serving
from .harness import chat as chat_doc


@pytest.fixture(scope="module")
def proxy(shared_stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    settings = config(shared_stage.upstream.url, auth={"required": True, "keys": KEYS})
    with serving(tmp_path_factory.mktemp("admin"), settings) as running:
        yield running


@pytest.fixture(scope="module")
def tokenless(shared_stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    settings = config(shared_stage.upstream.url) | {"admin": {}}
    with serving(tmp_path_factory.mktemp("tokenless"), settings) as running:
        yield running


def status(proxy: Proxy, key: str) -> int:
    return ask(proxy.url, chat_doc("own/m"), headers=bearer(key)).status


def test_a_key_lives_from_its_making_to_its_end(proxy: Proxy, stage: Stage) -> None:
    stage.play(chat("Hello", USAGE))
    wanted = {
        "name": "ann",
        "models": ["own/*"],
        "rpm": 100,
        "tpm": 100000,
        "concurrent": 3,
        "budget_usd": 1.5,
        "per": "day",
        "expires": "90d",
        "test": True,
    }
    made = admin(proxy, "/-/keys", wanted)
    assert made.status == 201
    assert made.headers["cache-control"] == "no-store"
    id, key = made.doc["id"], made.doc["key"]
    assert key.startswith("pk_test_")
    assert made.doc["prefix"] == key[:12]
    assert made.doc["limits"] == {
        "requests_per_minute": 100,
        "tokens_per_minute": 100000,
        "concurrent_requests": 3,
        "budget": {"usd": "1.5", "per": "day"},
    }
    assert status(proxy, key) == 200
    rotated = admin(proxy, f"/-/keys/{id}/rotate", {"grace_s": 0})
    assert rotated.status == 200
    assert rotated.doc["id"] == id
    assert (status(proxy, key), status(proxy, rotated.doc["key"])) == (401, 200)
    assert listed(proxy)["ann"]["last_used_at"] is not None
    gone = admin(proxy, f"/-/keys/{id}", method="DELETE")
    assert (gone.status, gone.doc["state"]) == (200, "revoked")
    assert status(proxy, rotated.doc["key"]) == 401
    assert listed(proxy)["ann"]["state"] == "revoked"


def listed(proxy: Proxy) -> dict[str, dict[str, Any]]:
    answer = admin(proxy, "/-/keys")
    assert answer.status == 200
    assert TEAM not in answer.body.decode()
    return {row["name"]: row for row in answer.doc["keys"]}


def test_keys_of_the_config_are_shown_and_left_alone(proxy: Proxy) -> None:
    row = listed(proxy)["mini"]
    assert (row["id"], row["source"]) == ("config:mini", "config")
    assert (row["prefix"], row["models"]) == (MINI[:12], ["own/*", "smart"])
    assert row["created_at"] is None
    for path, method in (("", "DELETE"), ("/rotate", "POST")):
        answer = admin(proxy, f"/-/keys/config:mini{path}", {}, method=method)
        assert answer.status == 400
        assert "config" in answer.error["message"]
    assert admin(proxy, "/-/keys", {"name": "mini"}).status == 400


BAD: dict[str, Any] = {
    "no name": {},
    "a name that is none": {"name": " "},
    "not text": {"name": 3},
    "rpm below one": {"name": "x", "rpm": 0},
    "rpm as text": {"name": "x", "rpm": "60"},
    "true is no number": {"name": "x", "tpm": True},
    "a fraction of a slot": {"name": "x", "concurrent": 1.5},
    "a budget of nothing": {"name": "x", "budget_usd": 0},
    "a budget of words": {"name": "x", "budget_usd": "much"},
    "an endless budget": {"name": "x", "budget_usd": "Infinity"},
    "a window without a budget": {"name": "x", "per": "day"},
    "an unknown window": {"name": "x", "budget_usd": 1, "per": "week"},
    "a date of the past": {"name": "x", "expires": "-1d"},
    "beyond the calendar": {"name": "x", "expires": "99999w"},
    "models as a number": {"name": "x", "models": 5},
    "an unknown member": {"name": "x", "rps": 1},
    "a list": ["x"],
    "no JSON": b"{",
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_request_makes_no_key(proxy: Proxy, bad: str) -> None:
    before = listed(proxy)
    answer = admin(proxy, "/-/keys", BAD[bad])
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert listed(proxy).keys() == before.keys()


def test_unknown_keys_and_places_are_404(proxy: Proxy) -> None:
    for path, method in (
        ("/-/keys/key_unknown", "DELETE"),
        ("/-/keys/key_unknown/rotate", "POST"),
        ("/-/keys/a/b/c", "GET"),
        ("/-/usage/x", "GET"),
    ):
        assert admin(proxy, path, method=method).status == 404


@pytest.mark.parametrize("query", ["by=color", "since=yesterday", "format=xml"])
def test_usage_says_what_it_takes(proxy: Proxy, query: str) -> None:
    answer = admin(proxy, f"/-/usage?{query}")
    assert (answer.status, answer.error["param"]) == (400, query.partition("=")[0])


def test_usage_names_the_keys(proxy: Proxy, stage: Stage) -> None:
    stage.play(chat("Hello", USAGE))
    assert status(proxy, TEAM) == 200
    rows = {row["key"]: row for row in admin(proxy, "/-/usage?by=key&since=1h").doc}
    assert rows["config:team-a"]["name"] == "team-a"
    assert rows["config:team-a"]["input_tokens"] >= 100


GUARDED = ["/metrics", "/-/config", "/-/keys", "/-/usage", "/-/snapshot"]


@pytest.mark.parametrize("path", GUARDED)
def test_the_token_is_needed_where_there_is_one(proxy: Proxy, path: str) -> None:
    for headers in ({}, bearer("wrong"), bearer(ADMIN + "x"), {"x-api-key": TEAM}):
        answer = ask(proxy.admin, path=path, method="GET", headers=headers)
        assert (answer.status, answer.error["type"]) == (401, "authentication_error")
        assert ADMIN not in answer.body.decode()
    assert admin(proxy, path).status == 200


def test_probes_need_no_token(proxy: Proxy) -> None:
    for path in ("/-/health", "/-/ready"):
        assert ask(proxy.admin, path=path, method="GET").status == 200


def test_wrong_tokens_are_limited_per_address(stage: Stage, tmp_path: Path) -> None:
    with serving(tmp_path, config(stage.upstream.url)) as proxy:
        asking = {"path": "/-/keys", "method": "GET", "headers": bearer("wrong")}
        statuses = [ask(proxy.admin, **asking).status for _ in range(62)]  # type: ignore[arg-type]
        assert statuses[:60] == [401] * 60
        assert statuses[-1] == 429
        assert admin(proxy, "/-/keys").status == 200


# What a web page can make a browser on this machine send: headers, status.
PAGES = {
    "a form": ({"content-type": "text/plain", "origin": "https://evil.test"}, 403),
    "a form without an origin": ({"content-type": "text/plain"}, 400),
    "a script": ({"origin": "https://evil.test"}, 403),
    "a sandboxed frame": ({"origin": "null"}, 403),
    "a name that resolves to us": ({"host": "evil.test:8081"}, 403),
    "a malformed host": ({"host": "[::"}, 403),
    "the console itself": ({}, 201),
}


@pytest.mark.parametrize("page", PAGES)
def test_no_other_web_page_makes_keys(tokenless: Proxy, page: str) -> None:
    headers, wanted = PAGES[page]
    answer = ask(tokenless.admin, {"name": page}, path="/-/keys", headers=headers)
    assert answer.status == wanted


def test_the_console_may_send_its_origin(tokenless: Proxy) -> None:
    headers = {"origin": tokenless.admin}
    answer = ask(tokenless.admin, {"name": "with origin"}, path="/-/keys", headers=headers)
    assert answer.status == 201


def test_localhost_is_a_name_to_ask_by(tokenless: Proxy) -> None:
    port = tokenless.admin.rpartition(":")[2]
    for host in (f"localhost:{port}", f"[::1]:{port}", f"127.0.0.1:{port}"):
        answer = ask(tokenless.admin, path="/-/keys", method="GET", headers={"host": host})
        assert answer.status == 200
