"""What a call by the shortcut is said to have taken, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from itertools import count
from typing import Any, cast

import orjson
import pytest

from lunar_proxy.core.errors import UpstreamBusy
from lunar_proxy.core.intake import Incoming
from lunar_proxy.core.model import Headers, Outcome, Target
from lunar_proxy.gateway import shortcut
from lunar_proxy.gateway.runtime import Runtime
from lunar_proxy.gateway.ticket import Ticket, Way
from lunar_proxy.pricing.tokens import TokenCounter
from lunar_proxy.providers.base import Account, Origin, UpstreamRequest
from lunar_proxy.providers.openai import OpenAIDialect
from lunar_proxy.relay.carry import Carrier
from lunar_proxy.relay.client import Client, Source
from lunar_proxy.relay.engine import Asked, Engine, Line, Listing
from lunar_proxy.relay.health import Breaker, Health
from lunar_proxy.relay.upstream import Receiver
from lunar_proxy.relay.watch import Watch
from lunar_proxy.testing import call

TARGET = Target("openai", "gpt-4o")
KEY = b"sk-one"
BODY = orjson.dumps({"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 1}})
HEAD: Headers = ((b"content-type", b"application/json"),)


class OpenLine:
    """A connection that was used before."""

    reused = True

    def ask(self, request: UpstreamRequest, receiver: Receiver) -> None:
        self.receiver = receiver


class Directory:
    listing_ = Listing(
        Account("openai", OpenAIDialect(), Origin("http", "a", 80), b"/v1", keys=(KEY,)), "m", ()
    )

    def listing(self, _target: Target) -> Listing:
        return self.listing_

    def price(self, _target: Target) -> None:
        return None


class Lines:
    def __init__(self) -> None:
        self.line = OpenLine()

    def idle(self, _origin: Origin) -> Line:
        return cast(Line, self.line)

    async def connect(self, origin: Origin, *, timeout_s: float) -> Line:
        raise AssertionError("there is one that is open")


class Reader(Client):
    """A client; each part that it is given takes a second."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.told: dict[bytes, bytes] = {}
        self.body = b""

    def head(self, status: int, headers: Iterable[tuple[bytes, bytes]], length: int | None) -> None:
        self.told = dict(headers)
        self._now()

    def write(self, data: bytes) -> None:
        self.body += data
        self._now()

    def end(self) -> None:
        pass

    def cut(self) -> None:
        raise AssertionError("all is well")

    def follow(self, source: Source | None) -> None:
        pass


class Host:
    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def carrier(self, ticket: Ticket, way: Way, asked: Asked | None) -> Carrier:
        raise AssertionError("all is well")

    def carry(self, ticket: Ticket, client: Client) -> Coroutine[Any, Any, None]:
        raise AssertionError("all is well")

    def limit_headers(self, ticket: Ticket) -> Headers:
        return ()

    def close(self, ticket: Ticket, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def leave(self) -> None:
        pass


class World:
    """A clock that goes on by a second each time it is read."""

    def __init__(self) -> None:
        ticks = count(1)

        def now() -> float:
            return float(next(ticks))

        self.health = Health(Breaker(), lambda: 0.0)
        self.lines = Lines()
        self.host, self.client = Host(), Reader(now)
        self.engine = Engine(
            directory=Directory(),
            lines=self.lines,
            health=self.health,
            counter=TokenCounter(),
            now=now,
            wall=lambda: 0.0,
            draw=lambda: 0.0,
            watch=Watch(now),
            no_usage=set(),
        )

    def carry(self) -> Outcome:
        asked = call(accepted_at=0.0)
        runtime = cast(Runtime, None)  # only the long way looks at it
        way = Way(runtime, self.engine, asked, [TARGET], self.client, None)
        over: list[None] = []
        short = shortcut.begin(
            self.host, Ticket(cast(Incoming, None), "id"), way, lambda: over.append(None)
        )
        assert short is not None
        short.go_on()
        self.lines.line.receiver.at_once(200, HEAD, BODY)
        assert len(over) == len(self.engine.watch) + 1 == 1
        return self.host.outcomes[0]


@pytest.fixture
async def world() -> World:
    return World()


async def test_times_are_those_of_what_they_name(world: World) -> None:
    """Accepted at 0, asked at 1, answered at 2, read at 3, told from 4 on, over at 7."""
    happened = world.carry()
    added = orjson.loads(world.client.body)["usage"]
    assert (added["latency_ms"], added["ttft_ms"]) == (3000.0, 3000.0)
    assert (happened.latency_s, happened.ttft_s) == (3.0, 3.0)
    assert world.client.told[b"x-lunar-overhead-ms"] == b"3000.000"  # until it is told
    assert happened.overhead_s == 6.0  # and until it was: all but the second of waiting
    assert happened.attempts[0].duration_s == 6.0
    assert world.health.of(TARGET).ttft_s == 2.0


async def test_a_key_that_works_again_is_no_longer_rested(world: World) -> None:
    world.health.failed(TARGET, UpstreamBusy("busy", status=429, retry_after_s=99.0), KEY)
    both = [KEY, b"sk-two"]
    assert [*world.health.keys_in_turn(TARGET, both)] == [1, 0]
    world.carry()
    assert [*world.health.keys_in_turn(TARGET, both)] == [0, 1]
