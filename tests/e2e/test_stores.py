"""What a running proxy shares: keys made elsewhere, limits of two replicas, and what survives."""

from __future__ import annotations

import concurrent.futures
import contextlib
import csv
import io
import json
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from lunar_proxy.testing import Break, Request, Script, chat, chat_answer, chat_stream, error_answer
from tests.stores.backends import RedisServer

from .guarded import FORMS, TEAM, USAGE, USD, admin, bearer, config
from .harness import (
    PATIENCE_S,
    Proxy,
    Stage,
    ask,
    command,
    environment,
    eventually,
    request_bytes,
    serving,
)
from .harness import chat as chat_doc

SEEN_WITHIN_S = 1.0  # CONTRACT: a change of keys
SLACK_S = 1.5  # a loaded machine, and the request that looks


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server
    with contextlib.suppress(AssertionError):
        server.thaw()
    server.kill()


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store."""
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'lunar.db'}"
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.url


def replica(
    stage: Stage, folder: Path, store: str, **more: Any
) -> contextlib.AbstractContextManager[Proxy]:
    folder.mkdir(exist_ok=True)
    return serving(folder, config(stage.upstream.url, store=store, **more))


def lunar(*args: str) -> str:
    done = subprocess.run(
        command(*args), env=environment(), capture_output=True, timeout=PATIENCE_S, check=True
    )
    return done.stdout.decode()


def status(proxy: Proxy, key: str) -> int:
    return ask(proxy.url, chat_doc("own/m"), headers=bearer(key)).status


def becomes(proxy: Proxy, key: str, wanted: int) -> None:
    started = time.monotonic()
    eventually(lambda: status(proxy, key) == wanted)
    assert time.monotonic() - started < SEEN_WITHIN_S + SLACK_S


def test_a_running_proxy_sees_what_becomes_of_keys(
    stage: Stage, tmp_path: Path, store: str
) -> None:
    stage.play(chat("Hello", USAGE))
    with replica(stage, tmp_path, store, auth={"required": True}) as proxy:
        key = lunar("keys", "create", "--store", store, "--name", "ann").splitlines()[-1]
        becomes(proxy, key, 200)
        newer = lunar("keys", "rotate", "ann", "--store", store).splitlines()[-1]
        becomes(proxy, newer, 200)
        assert status(proxy, key) == 200  # the old one has its grace
        lunar("keys", "revoke", "ann", "--store", store)
        becomes(proxy, newer, 401)
        assert status(proxy, key) == 401
        assert "revoked" in ask(proxy.url, chat_doc(), headers=bearer(newer)).error["message"]
        # Whether it was still good when the command ended depends on how busy the machine is.
        short = lunar("keys", "create", "--store", store, "--name", "bob", "--expires", "1s")
        bob = bearer(short.splitlines()[-1])
        eventually(lambda: b"expired" in ask(proxy.url, chat_doc(), headers=bob).body)


def test_two_replicas_never_exceed_a_limit_together(
    stage: Stage, tmp_path: Path, store: str
) -> None:
    keys = [{"name": "a", "key": TEAM, "limits": {"requests_per_minute": 20}}]
    stage.play(chat("Hello"))
    with (
        replica(stage, tmp_path / "one", store, auth={"keys": keys}) as one,
        replica(stage, tmp_path / "two", store, auth={"keys": keys}) as two,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        started = time.monotonic()
        calls = [pool.submit(status, proxy, TEAM) for _ in range(25) for proxy in (one, two)]
        statuses = [each.result() for each in calls]
        refilled = (time.monotonic() - started) / 3  # one every three seconds
    assert set(statuses) == {200, 429}
    assert 20 <= statuses.count(200) <= 20 + refilled


def test_a_key_revoked_on_one_replica_is_refused_on_every_other(
    stage: Stage, tmp_path: Path, store: str
) -> None:
    stage.play(chat("Hello", USAGE))
    auth = {"required": True}
    with (
        replica(stage, tmp_path / "one", store, auth=auth) as one,
        replica(stage, tmp_path / "two", store, auth=auth) as two,
    ):
        made = admin(one, "/-/keys", {"name": "ann"}).doc
        for proxy in (one, two):
            becomes(proxy, made["key"], 200)
        newer = admin(two, f"/-/keys/{made['id']}/rotate", {"grace_s": 0}).doc["key"]
        for proxy in (two, one):
            becomes(proxy, made["key"], 401)
            becomes(proxy, newer, 200)
        assert admin(one, f"/-/keys/{made['id']}", method="DELETE").status == 200
        for proxy in (one, two):
            becomes(proxy, newer, 401)


# One call costs 0.14 USD; its worst case, by its length, is a little more.
TEN_CALLS = {"usd": 1.4, "per": "total"}


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_budget_is_spent_to_the_last_cent_and_not_beyond_by_calls_at_once(
    stage: Stage, tmp_path: Path, store: str, replicas: int
) -> None:
    keys = [{"name": "a", "key": TEAM, "limits": {"budget": TEN_CALLS}}]
    stage.play(chat("Hello", USAGE))
    doc = chat_doc("own/m", max_tokens=20) | {"user": "u" * 400}
    with contextlib.ExitStack() as stack:
        proxies = [
            stack.enter_context(replica(stage, tmp_path / f"{n}", store, auth={"keys": keys}))
            for n in range(replicas)
        ]
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(8))

        def asked(n: int) -> Any:
            return ask(proxies[n % replicas].url, doc, headers=bearer(TEAM))

        answers = list(pool.map(asked, range(40)))
        answers += map(asked, range(12))  # one at a time, so the last cents may go
        assert [answer.status for answer in answers].count(200) == 10
        assert sum(map(told, answers)) == Decimal("1.4")
        eventually(lambda: {spent(proxy) for proxy in proxies} == {Decimal("1.4")})


def test_a_spent_budget_outlives_the_process_that_spent_it(
    stage: Stage, tmp_path: Path, store: str
) -> None:
    keys = [{"name": "a", "key": TEAM, "limits": {"budget": {"usd": 0.2, "per": "total"}}}]
    stage.play(chat("Hello", USAGE))
    with replica(stage, tmp_path / "one", store, auth={"keys": keys}) as one:
        assert [status(one, TEAM) for _ in range(2)] == [200, 200]
        eventually(lambda: "0.2800000000" in lunar("usage", "--store", store))
        one.kill()
    with replica(stage, tmp_path / "two", store, auth={"keys": keys}) as two:
        assert status(two, TEAM) == 429
        assert spent(two) == Decimal("0.28")


def spent(proxy: Proxy, by: str = "key") -> Decimal:
    answer = admin(proxy, f"/-/usage?by={by}")
    assert answer.status == 200
    rows = json.loads(answer.body, parse_float=Decimal)
    return sum((row["cost_usd"] for row in rows), Decimal(0))


def told(answer: Any) -> Decimal:
    """What a client was told its call cost, in a JSON answer or in a stream."""
    found = re.findall(rb'"total_cost_usd":([0-9.e-]+)', answer.body)
    return sum((Decimal(cost.decode()) for cost in found), Decimal(0))


def by_provider(own: Script, openai: Script) -> Callable[[Request], Script]:
    return lambda request: own if request.path.startswith("/own") else openai


# what the providers play, and what is asked
CALLS: list[tuple[Any, dict[str, Any]]] = [
    (chat("Hello", USAGE), {"model": "own/m"}),
    (chat("Hello", {"prompt_tokens": 7, "completion_tokens": 3}), {"model": "openai/gpt-4o"}),
    (chat("Hello", USAGE), {"model": "own/m", "stream": True}),
    (chat_stream("no usage is given"), {"model": "own/m", "stream": True}),
    (
        by_provider(error_answer(500), chat_stream("Hi", usage=USAGE)),
        {"model": "own/m", "stream": True, "fallbacks": ["openai/gpt-4o"]},
    ),
    (error_answer(400), {"model": "own/m"}),
    (
        by_provider(
            (*chat_stream("lost", usage=USAGE)[:2], Break()), chat_answer("Hi", usage=USAGE)
        ),
        {"model": "own/m", "fallbacks": ["openai/gpt-4o"]},
    ),
]


def test_the_ledger_is_the_sum_of_what_clients_were_told(
    stage: Stage, tmp_path: Path, store: str
) -> None:
    keys = [{"name": "a", "key": TEAM}]
    total = Decimal(0)
    with replica(stage, tmp_path, store, auth={"keys": keys}) as proxy:
        for n, (plan, asked) in enumerate(CALLS * 2):
            stage.play(plan)
            headers = bearer(TEAM) if n % 2 else {}
            total += told(ask(proxy.url, chat_doc(**asked), headers=headers))
        assert total > 4 * Decimal(str(USD))
        for by in ("key", "model", "provider"):
            assert spent(proxy, by) == total
        answer = admin(proxy, "/-/usage?by=provider&format=csv&since=1h")
        rows = list(csv.DictReader(io.StringIO(answer.body.decode())))
        assert answer.headers["content-type"].startswith("text/csv")
        assert sum(Decimal(row["cost_usd"]) for row in rows) == total
        assert {row["provider"] for row in rows} == {"own", "openai"}
        table = lunar("usage", "--store", store, "--since", "1h")
        assert table.splitlines()[-1].split()[5] == f"{total:.10f}"
        assert json.loads(lunar("usage", "--store", store, "--format", "json", "--by", "model"))


def test_a_cut_stream_is_in_the_ledger_too(stage: Stage, tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path / 'lunar.db'}"
    stage.play((*chat_stream("one two three")[:4], Break()))
    with replica(stage, tmp_path, store) as proxy:
        ask(proxy.url, chat_doc("own/m", stream=True))
        assert spent(proxy) > 0


def test_a_redis_that_dies_costs_little_once_and_says_so(
    stage: Stage, tmp_path: Path, redis_server: RedisServer
) -> None:
    limits = {"requests_per_minute": 1000, "budget": {"usd": 0.5, "per": "total"}}
    keys = [{"name": "a", "key": TEAM, "limits": limits}]
    stage.play(chat("Hello", USAGE))
    with replica(stage, tmp_path / "one", redis_server.url, auth={"keys": keys}) as proxy:
        assert status(proxy, TEAM) == 200
        assert admin(proxy, "/-/ready").doc["detail"]["store"] == "ok"
        redis_server.kill()
        assert status(proxy, TEAM) == 200
        ready = admin(proxy, "/-/ready")
        assert (ready.status, ready.doc["detail"]["store"]) == (200, "redis cannot be reached")
        assert "lunar_store_degraded 1.0" in admin(proxy, "/metrics").body.decode()
        # Two calls of 0.14 are spent; two more fit until 0.5 is, and then no more, Redis or not.
        assert [status(proxy, TEAM) for _ in range(3)] == [200, 200, 429]
        redis_server.start()
        eventually(lambda: admin(proxy, "/-/ready").doc["detail"]["store"] == "ok", 10)
        assert "lunar_store_degraded 0.0" in admin(proxy, "/metrics").body.decode()


def test_a_redis_that_hangs_holds_up_one_call_for_a_moment(
    stage: Stage, tmp_path: Path, redis_server: RedisServer
) -> None:
    keys = [{"name": "a", "key": TEAM, "limits": {"requests_per_minute": 1000}}]
    stage.play(chat("Hello"))
    with replica(stage, tmp_path / "one", redis_server.url, auth={"keys": keys}) as proxy:
        assert status(proxy, TEAM) == 200
        redis_server.freeze()
        statuses, waits = [], []
        for _ in range(6):
            answer = ask(proxy.url, chat_doc("own/m"), headers=bearer(TEAM))
            statuses.append(answer.status)
            waits.append(float(answer.headers["x-lunar-overhead-ms"]))
        assert statuses == [200] * 6
        assert sum(wait > 40 for wait in waits) <= 1, waits
        redis_server.thaw()
        eventually(lambda: admin(proxy, "/-/ready").doc["detail"]["store"] == "ok", 10)


def test_nothing_tells_the_password_of_a_store(
    stage: Stage, tmp_path: Path, redis_server: RedisServer
) -> None:
    """A Redis that wants none refuses it, so it is in every error that could tell it."""
    secret = "planted-password-of-redis"
    store = redis_server.url.replace("redis://", f"redis://planted:{secret}@")
    keys = [{"name": "a", "key": TEAM, "limits": {"requests_per_minute": 1000}}]
    stage.play(chat("Hello"))
    outputs = []
    with replica(stage, tmp_path, store, auth={"keys": keys}) as proxy:
        for headers in (bearer(TEAM), {}, {"x-api-key": "pk_live_nobody"}):
            answer = ask(proxy.url, chat_doc("own/m"), headers=headers)
            outputs += [repr(answer.headers), answer.body.decode()]
        for path in ("/metrics", "/-/config", "/-/ready", "/-/snapshot", "/-/keys", "/-/usage"):
            answer = admin(proxy, path)
            outputs += [repr(answer.headers), answer.body.decode()]
        assert "redis" in admin(proxy, "/-/ready").doc["detail"]["store"]
        for asked in (["keys", "list"], ["usage"], ["keys", "create", "--name", "b"]):
            done = subprocess.run(
                command(*asked, "--store", store),
                env=environment(),
                capture_output=True,
                timeout=PATIENCE_S,
                check=False,
            )
            assert done.returncode != 0
            outputs += [done.stdout.decode(), done.stderr.decode()]
        checked = subprocess.run(
            command("check", str(proxy.config)), env=environment(), capture_output=True, check=True
        )
        outputs += [checked.stdout.decode(), checked.stderr.decode(), proxy.stderr()]
    assert not [text for text in outputs if secret in text]


def test_a_client_that_leaves_while_redis_decides_holds_no_slot(
    stage: Stage, tmp_path: Path, redis_server: RedisServer
) -> None:
    keys = [{"name": "a", "key": TEAM, "limits": {"concurrent_requests": 1}}]
    stage.play(chat("Hello"))
    with replica(stage, tmp_path / "one", redis_server.url, auth={"keys": keys}) as proxy:
        for _ in range(3):
            redis_server.freeze()
            with socket.create_connection(proxy.address) as client:
                client.sendall(request_bytes(chat_doc("own/m"), headers=f"x-api-key: {TEAM}\r\n"))
            redis_server.thaw()
            eventually(lambda: status(proxy, TEAM) == 200, 10)
        eventually(lambda: admin(proxy, "/-/ready").doc["detail"]["store"] == "ok", 10)
        assert status(proxy, TEAM) == 200


def test_a_proxy_without_its_redis_at_start_answers_keys_with_503(
    stage: Stage, tmp_path: Path, redis_server: RedisServer
) -> None:
    stage.play(chat("Hello"))
    redis_server.kill()
    with replica(stage, tmp_path / "one", redis_server.url) as proxy:
        for form in FORMS.values():
            answer = ask(proxy.url, chat_doc(), headers=form(TEAM))
            assert (answer.status, answer.error["type"]) == (503, "store_unavailable")
        assert ask(proxy.url, chat_doc()).status == 200
