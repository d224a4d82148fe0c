"""Connections that end between two steps of ours, which no script can time from outside."""

from __future__ import annotations

import asyncio
import time

from lunar_proxy.core.errors import NoAnswer, ProxyError
from lunar_proxy.core.model import Headers
from lunar_proxy.providers.base import Origin, UpstreamRequest
from lunar_proxy.relay.upstream import Pool
from lunar_proxy.testing import Break, ScriptedUpstream


class Ear:
    """A receiver that hears how it ended."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[ProxyError | None] = asyncio.get_running_loop().create_future()

    def head(self, status: int, headers: Headers) -> None: ...

    def body(self, data: bytes) -> None: ...

    def end(self) -> None:
        self.ended.set_result(None)

    def broken(self, error: ProxyError) -> None:
        self.ended.set_result(error)


async def test_asking_a_connection_that_was_just_lost_fails_at_once() -> None:
    pool = Pool(time.monotonic)
    async with ScriptedUpstream(on_connect=[Break()]) as upstream:
        origin = Origin("http", "127.0.0.1", upstream.port)
        connection = await pool.connect(origin, timeout_s=5)
        for _ in range(10_000):
            if pool.statistics()["open"] == 0:
                break
            await asyncio.sleep(0)
        assert not connection.usable
        ear = Ear()
        connection.ask(UpstreamRequest(origin, b"POST / HTTP/1.1\r\n", b"{}"), ear)
        async with asyncio.timeout(1):
            assert isinstance(await ear.ended, NoAnswer)
    pool.close()
