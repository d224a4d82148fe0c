"""What it costs to know who calls and whether there is room, per call: in memory, and with Redis.

    make bench-admission        or: python tests/bench_admission.py [--rounds 15] [--calls 2000]

Each row is one call as the gateway makes it: who is calling (`Callers.of`), what it may take
(`Limiter.take`), the `x-ratelimit-*` headers of its answer, and what it pays (`Limiter.settle`).
In memory it is the CPU time of this process, with Redis also the time from asking to knowing, and
the ratios are to a floor measured beside it: a coroutine that does nothing, and a bare PING over a
blocking socket. Rounds alternate over the rows and the best of each counts, since noise only adds.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import jwt
import uvloop

from lunar_proxy.config import Config
from lunar_proxy.core.errors import LimitExceeded
from lunar_proxy.core.intake import Incoming
from lunar_proxy.core.limits import Budget, Limits, rate_limit_headers
from lunar_proxy.core.model import Cost, Fields, Headers, Identity, Outcome, Target, Usage
from lunar_proxy.core.pricing import Price
from lunar_proxy.gateway.admission import Caller, Callers, Limiter, Taken
from lunar_proxy.stores import Store
from lunar_proxy.stores.jwt import JwtSettings, JwtVerifier
from lunar_proxy.stores.memory import MemoryStore
from lunar_proxy.stores.pipe import Pipe
from lunar_proxy.stores.redis import RedisStore
from lunar_proxy.testing import call, outcome

KEY = "pk_live_" + "aB3" * 12
SECRET = "a secret of at least thirty-two bytes"

# What the openai client sends, with a key or without.
PLAIN: Headers = tuple(
    (name.encode(), value.encode())
    for name, value in {
        "host": "127.0.0.1:8080",
        "accept-encoding": "gzip, deflate",
        "connection": "keep-alive",
        "accept": "application/json",
        "content-type": "application/json",
        "user-agent": "OpenAI/Python 2.8.1",
        "x-stainless-lang": "python",
        "x-stainless-package-version": "2.8.1",
        "x-stainless-os": "Linux",
        "x-stainless-arch": "x64",
        "x-stainless-runtime": "CPython",
        "x-stainless-runtime-version": "3.11.7",
        "x-stainless-async": "false",
        "x-stainless-retry-count": "0",
        "content-length": "161",
    }.items()
)

PLENTY = 10**9
ONE = Limits(requests_per_minute=PLENTY)
ALL = Limits(PLENTY, PLENTY, PLENTY, Budget(Decimal(PLENTY), "month"))
NONE_LEFT = Limits(PLENTY, PLENTY, PLENTY, Budget(Decimal(0), "month"))

TARGET = Target("openai", "gpt-4o")
PRICE = Price(input=Decimal("2.5"), output=Decimal(10), cache_read=Decimal("1.25"))
ASKED = call(doc={"model": "openai/gpt-4o", "max_tokens": 500}, body=b"{" + b" " * 800 + b"}")
USED: Outcome = outcome(
    call=ASKED,
    usage=Usage(input_tokens=200, output_tokens=120),
    cost=Cost(5_000_000, 12_000_000, 0, 17_000_000),
)


def bearer(value: str) -> Headers:
    return (*PLAIN, (b"authorization", f"Bearer {value}".encode()))


@dataclass
class Row:
    """`once` makes one call; `floor` is the row that its ratio is to."""

    name: str
    once: Callable[[], Awaitable[None]]
    floor: Row | None = None
    best_s: float = field(default=float("inf"))

    def text(self) -> str:
        ratio = self.best_s / (self.floor or self).best_s
        return f"{self.name:44} {self.best_s * 1e6:8.2f} us {ratio:8.1f} x"


async def nothing() -> None:
    """The floor: what it takes to call and await."""


def admission(store: Store, headers: Headers, limits: Limits) -> Callable[[], Awaitable[None]]:
    """The part of a call that this is about, as `gateway.Gateway` goes through it."""
    listed = {"name": "team-a", "key": KEY}
    config = Config.model_validate({"auth": {"keys": [listed]}})
    settings = JwtSettings(("HS256",), secret=SECRET)
    verifier = JwtVerifier(settings, no_fetch, time.time)  # noqa: TID251
    callers = Callers(config, store, time.time, verifier)  # noqa: TID251
    limiter = Limiter(store, time.time)  # noqa: TID251
    known = replace(ASKED, identity=Identity("config:team-a", "team-a"))

    async def once() -> None:
        # As a connection's first request: what its head says is not known yet.
        asked_by = Fields(headers)
        caller = callers.of(
            Incoming(b"POST", ASKED.path, b"", asked_by, ASKED.body, ASKED.client, 0.0)
        )
        if not isinstance(caller, Caller):
            caller = await caller
        asked = ASKED if caller.identity is None else known
        if limits.empty:
            return
        taken = limiter.take(asked, limits, TARGET, PRICE)
        if not isinstance(taken, Taken):
            taken = await taken
        rate_limit_headers(taken.verdict)
        limiter.settle(taken.reservation, USED)

    return once


def refused(store: Store) -> Callable[[], Awaitable[None]]:
    admit = admission(store, bearer(KEY), NONE_LEFT)

    async def once() -> None:
        with contextlib.suppress(LimitExceeded):
            await admit()

    return once


async def no_fetch(_url: str) -> bytes:
    raise OSError("there is nothing to fetch")


def in_memory() -> list[Row]:
    token = jwt.encode({"sub": "ann", "exp": time.time() + 1e6}, SECRET, "HS256")  # noqa: TID251
    floor = Row("floor: await a coroutine", nothing)

    def row(name: str, headers: Headers, limits: Limits) -> Row:
        return Row(name, admission(MemoryStore(), headers, limits), floor)

    return [
        floor,
        row("no key, no limits", PLAIN, Limits()),
        row("an own key, no limits", bearer("sk-proj-" + "a" * 48), Limits()),
        row("key, no limits", bearer(KEY), Limits()),
        row("key, requests", bearer(KEY), ONE),
        row("key, all four limits", bearer(KEY), ALL),
        row("JWT seen before, all four limits", bearer(token), ALL),
        Row("key, refused by its budget", refused(MemoryStore()), floor),
    ]


# --- Redis ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def redis_server() -> Iterator[int]:
    """Its port; a server of our own, on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise SystemExit("no redis-server: apt-get install redis-server")
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        process = subprocess.Popen([*command, "--dir", folder], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for line in process.stdout:
            if b"Ready to accept connections" in line:
                break
        try:
            yield port
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def ping(port: int) -> Callable[[], Awaitable[None]]:
    client = socket.create_connection(("127.0.0.1", port))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def once() -> None:
        client.sendall(b"PING\r\n")
        client.recv(64)

    return once


@contextlib.asynccontextmanager
async def with_redis(port: int) -> AsyncIterator[list[Row]]:
    url = f"redis://127.0.0.1:{port}/0"
    store, pipe = RedisStore(url, time.time, deadline_s=5), Pipe(url)  # noqa: TID251
    await store.start()
    await pipe.connect((), timeout_s=1)
    floor = Row("floor: PING, a blocking socket", ping(port))

    async def piped_ping() -> None:
        await pipe.send("PING")

    yield [
        floor,
        Row("PING, as the store sends it", piped_ping, floor),
        Row("key, requests", admission(store, bearer(KEY), ONE), floor),
        Row("key, all four limits", admission(store, bearer(KEY), ALL), floor),
    ]
    if store.degraded is not None:
        raise SystemExit(f"that was not Redis: {store.degraded}")
    await pipe.close()
    await store.close()


# --- measuring ------------------------------------------------------------------------------------


async def measure(rows: list[Row], rounds: int, calls: int, clock: Callable[[], float]) -> None:
    for _ in range(rounds):
        for row in rows:
            once = row.once
            await once()
            gc.collect()
            gc.disable()
            began = clock()
            for _ in range(calls):
                await once()
            row.best_s = min(row.best_s, (clock() - began) / calls)
            gc.enable()


def fresh(rows: list[Row]) -> None:
    for row in rows:
        row.best_s = float("inf")


def show(title: str, rows: list[Row]) -> None:
    print(title)
    for row in rows:
        print("  " + row.text())


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=2000)
    options: Any = parser.parse_args()
    rows = in_memory()
    await measure(rows, options.rounds, options.calls, time.process_time)
    show("in memory, CPU per call", rows)
    with redis_server() as port:
        async with with_redis(port) as rows:
            for what, clock in (("time", time.perf_counter), ("CPU", time.process_time)):
                fresh(rows)
                await measure(rows, options.rounds, max(1, options.calls // 5), clock)
                show(f"with Redis, {what} per call", rows)


if __name__ == "__main__":
    uvloop.run(main())
