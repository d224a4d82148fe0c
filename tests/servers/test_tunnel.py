from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lunar_proxy.core.connect import Authority, Policy
from lunar_proxy.servers.certs import LeafStore, init_ca
from lunar_proxy.servers.dial import Dialer
from lunar_proxy.servers.forward import Forward, Intercepted
from lunar_proxy.servers.tunnel import HIGH_WATER
from tests.servers.connecting import connect, echo, established, eventually, peer, proxy, render

MB = 1 << 20


def nothing_is_opened(_seen: Intercepted) -> asyncio.Protocol:
    raise AssertionError("no interception here")


def forward(policy: Policy | None = None, *, idle_s: float = 30.0) -> Forward:
    return Forward(
        policy or Policy(), make_protocol=nothing_is_opened, render=render, idle_s=idle_s
    )


async def test_bytes_go_both_ways_unchanged() -> None:
    blob = os.urandom(3 * MB)
    async with peer(echo) as target, proxy(tunnels := forward()) as port:
        reader, writer = await established(port, target)
        writer.write(blob)
        assert await reader.readexactly(len(blob)) == blob
        writer.close()
        await eventually(lambda: not tunnels.open_tunnels)
    assert (tunnels.counts.bytes_up, tunnels.counts.bytes_down) == (len(blob), len(blob))


async def test_bytes_sent_with_the_connect_are_the_first_in_the_tunnel() -> None:
    async with peer(echo) as target, proxy(forward()) as port:
        reader, writer = await established(port, target, early=b"too early")
        writer.write(b", then late")
        assert await reader.readexactly(20) == b"too early, then late"
        writer.close()


async def test_a_server_may_speak_first() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n")
        await reader.read()
        writer.close()

    for policy in (Policy(), Policy(tunnel=("127.0.0.1",))):
        async with peer(greet) as target, proxy(forward(policy)) as port:
            reader, writer = await established(port, target)
            assert await reader.readline() == b"220 ready\r\n"
            writer.close()


async def test_the_client_may_end_first_and_still_be_answered() -> None:
    async def digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(hashlib.sha256(await reader.read()).digest())
        writer.close()

    async with peer(digest) as target, proxy(tunnels := forward()) as port:
        reader, writer = await established(port, target)
        writer.write(b"all of it")
        writer.write_eof()
        assert await reader.read() == hashlib.sha256(b"all of it").digest()
        writer.close()
        await eventually(lambda: not tunnels.open_tunnels)


async def test_the_server_may_end_first_and_still_be_sent_to() -> None:
    received = asyncio.get_running_loop().create_future()

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.write_eof()
        received.set_result(await reader.read())
        writer.close()

    async with peer(half) as target, proxy(forward()) as port:
        reader, writer = await established(port, target)
        assert await reader.read() == b"bye"
        writer.write(b"one more thing")
        writer.close()
        assert await received == b"one more thing"


async def test_a_client_that_ended_with_its_first_bytes_is_passed_on_whole() -> None:
    async with peer(echo) as target, proxy(forward()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"CONNECT {target} HTTP/1.1\r\n\r\nall".encode())
        writer.write_eof()
        assert (await reader.read()).endswith(b"\r\n\r\nall")
        writer.close()


@pytest.mark.parametrize("who", ["client", "server"])
async def test_the_other_side_learns_of_a_reset(who: str) -> None:
    gone = asyncio.Event()
    serving: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.set_result(writer)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        gone.set()
        writer.close()

    async with peer(serve) as target, proxy(tunnels := forward()) as port:
        reader, writer = await established(port, target)
        (writer if who == "client" else await serving).transport.abort()
        if who == "client":
            await asyncio.wait_for(gone.wait(), 5)
        else:
            assert await reader.read() == b""
            writer.close()
        await eventually(lambda: not tunnels.open_tunnels)


async def test_a_client_that_does_not_read_stops_the_server() -> None:
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(ConnectionError):
            while sent < 64 * MB:
                writer.write(bytes(MB))
                await writer.drain()
                sent += MB
        writer.close()

    async with peer(pour) as target, proxy(tunnels := forward()) as port:
        reader, writer = await established(port, target)
        last = -1
        while sent != last:  # until nothing moves for a while
            last = sent
            await asyncio.sleep(0.3)
        assert sent < 32 * MB
        (tunnel,) = tunnels._tunnels
        assert tunnel.client.transport.get_write_buffer_size() <= HIGH_WATER + 2 * 262_144
        assert len(await reader.readexactly(64 * MB)) == 64 * MB
        assert await reader.read() == b""
        writer.close()


async def test_a_silent_tunnel_is_closed_and_a_busy_one_is_not() -> None:
    async with peer(echo) as target, proxy(tunnels := forward(idle_s=0.3)) as port:
        silent, w1 = await established(port, target)
        busy, w2 = await established(port, target)
        for _ in range(8):
            w2.write(b"x")
            await busy.readexactly(1)
            await asyncio.sleep(0.1)
        assert await asyncio.wait_for(silent.read(), 1) == b""
        assert tunnels.open_tunnels == 1
        w1.close()
        w2.close()


async def test_a_shutdown_waits_for_tunnels_that_move_and_not_for_those_that_idle() -> None:
    async with peer(echo) as target, proxy(tunnels := forward()) as port:
        reader, writer = await established(port, target)
        stop = asyncio.Event()

        async def chat() -> None:
            while not stop.is_set():
                writer.write(b"x")
                await reader.readexactly(1)

        busy = asyncio.ensure_future(chat())
        waiting = asyncio.ensure_future(tunnels.quiet(pause_s=0.1))
        done, _ = await asyncio.wait({waiting}, timeout=0.5)
        assert not done
        stop.set()
        await busy
        await asyncio.wait_for(waiting, 5)
        assert tunnels.open_tunnels == 1
        writer.close()


async def test_closing_drops_every_tunnel() -> None:
    async with peer(echo) as target, proxy(tunnels := forward()) as port:
        reader, writer = await established(port, target)
        tunnels.close()
        assert await reader.read() == b""
        await eventually(lambda: not tunnels.open_tunnels)
        writer.close()


async def test_a_client_that_leaves_while_we_dial_costs_nothing() -> None:
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def never(host: str, port: int) -> list[str]:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return []

    tunnels = Forward(
        Policy(), make_protocol=nothing_is_opened, render=render, dialer=Dialer(resolve=never)
    )
    async with proxy(tunnels) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"CONNECT slow.example:443 HTTP/1.1\r\n\r\n")
        await asked.wait()
        writer.transport.abort()
        await asyncio.wait_for(cancelled.wait(), 1)


async def test_ipv6_is_tunnelled() -> None:
    async with peer(echo, "::1") as target, proxy(forward()) as port:
        reader, writer = await established(port, target)
        writer.write(b"six")
        assert await reader.readexactly(3) == b"six"
        writer.close()


# --- only some hosts may pass -----------------------------------------------------------------


@contextlib.asynccontextmanager
async def _tls_peer(directory: Path) -> AsyncIterator[tuple[int, str]]:
    now = datetime.now(UTC)
    ca = init_ca(directory, (), now=now)
    context = await LeafStore(ca, now=now.timestamp).context("localhost")
    async with peer(echo, tls=context) as target:
        yield target.port, ca.pem


@pytest.mark.parametrize(
    ("globs", "name", "passes"),
    [
        (("localhost",), "localhost", True),
        (("localhost",), "elsewhere.example", False),
        (("*",), "elsewhere.example", True),
    ],
)
async def test_a_restricted_tunnel_is_held_to_its_host(
    tmp_path: Path, globs: tuple[str, ...], name: str, passes: bool
) -> None:
    async with _tls_peer(tmp_path) as (upstream, pem), proxy(forward(Policy(tunnel=globs))) as port:
        trust = ssl.create_default_context(cadata=pem)
        trust.check_hostname = False
        reader, writer = await established(port, Authority("localhost", upstream))
        if passes:
            await writer.start_tls(trust, server_hostname=name)
            writer.write(b"secret")
            assert await reader.readexactly(6) == b"secret"
        else:
            with pytest.raises(ConnectionError):
                await writer.start_tls(trust, server_hostname=name)
        writer.close()


@pytest.mark.parametrize(
    "first", [b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00", b"\x16\x03\x01\x02"]
)
async def test_a_restricted_tunnel_ends_on_a_broken_hello(first: bytes) -> None:
    heard = b""

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        heard += await reader.read()
        writer.close()

    async with peer(listen) as target, proxy(forward(Policy(tunnel=("localhost",)))) as port:
        reader, writer = await established(port, Authority("localhost", target.port))
        writer.write(first)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
    assert heard == b""


async def test_what_is_not_tls_passes_a_restricted_tunnel() -> None:
    async with peer(echo) as target, proxy(forward(Policy(tunnel=("localhost",)))) as port:
        reader, writer = await established(port, Authority("localhost", target.port))
        writer.write(b"SSH-2.0-x")
        assert await reader.readexactly(9) == b"SSH-2.0-x"
        writer.close()


async def test_a_refused_tunnel_is_a_json_error() -> None:
    async with proxy(tunnels := forward(Policy(tunnel=()))) as port:
        head, (reader, writer) = await connect(port, "example.org:443")
        assert head.startswith(b"HTTP/1.1 403 ")
        assert b'"tunnel_refused"' in await reader.read()
        writer.close()
    assert tunnels.counts.refused == 1
