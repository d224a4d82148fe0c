from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from lunar_proxy.core.connect import Authority, Listener, Policy, is_self, parse_parent
from lunar_proxy.core.errors import ConnectFailed, ConnectTimeout, Forbidden, ProxyError
from lunar_proxy.relay.landing import Resolve, open_through
from lunar_proxy.servers.dial import Dialer
from lunar_proxy.servers.forward import Forward
from tests.servers.connecting import connect, echo, established, peer, proxy, render

NAME = "name.example"


def answers(*turns: Sequence[str]) -> Resolve:
    """A name server that says something else each time, as one does that rebinds."""
    left = list(turns)

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


async def opened(dialer: Dialer, target: Authority) -> tuple[Any, ...]:
    transport, landing = await dialer.open(target)
    name = transport.get_extra_info("peername")
    transport.abort()
    await asyncio.sleep(0.01)
    assert landing.lost
    return tuple(name)


async def test_dials_the_address_that_was_resolved() -> None:
    async with peer(echo) as target:
        dialer = Dialer(resolve=answers(["127.0.0.1"], ["192.0.2.1"]))
        assert await opened(dialer, Authority(NAME, target.port)) == ("127.0.0.1", target.port)


PRIVATE = ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fd00::1"]


@pytest.mark.parametrize("address", PRIVATE)
async def test_an_exposed_proxy_dials_no_private_address_whatever_its_name(address: str) -> None:
    async with peer(echo) as target:
        dialer = Dialer(exposed=True, resolve=answers([address]))
        with pytest.raises(Forbidden) as caught:
            await dialer.open(Authority(NAME, target.port))
    assert caught.value.code == "private_address"
    assert address not in caught.value.message


async def test_a_second_answer_of_the_name_server_is_never_asked_for() -> None:
    asked: list[str] = []

    async def rebinding(host: str, _port: int) -> Sequence[str]:
        asked.append(host)
        return ["2000::1"] if len(asked) == 1 else ["127.0.0.1"]

    async with peer(echo) as target:
        dialer = Dialer(exposed=True, resolve=rebinding, connect_s=0.3)
        with pytest.raises(ConnectFailed):  # unreachable from here, and nothing else was tried
            await dialer.open(Authority(NAME, target.port))
    assert asked == [NAME]


async def test_private_addresses_among_public_ones_are_left_out() -> None:
    async with peer(echo) as target:
        dialer = Dialer(exposed=True, resolve=answers(["127.0.0.1", "2000::1"]), connect_s=0.5)
        with pytest.raises(ConnectFailed):
            await dialer.open(Authority(NAME, target.port))


async def test_an_address_that_does_not_answer_costs_a_moment_only() -> None:
    async with peer(echo) as target:
        for dead in ("127.0.0.2", "2001:db8::1"):
            dialer = Dialer(resolve=answers([dead, "127.0.0.1"]))
            assert (await opened(dialer, Authority(NAME, target.port)))[0] == "127.0.0.1"


FAILURES: dict[str, tuple[Sequence[str] | OSError, type[ProxyError], str]] = {
    "unknown name": (OSError("no such name"), ConnectFailed, "upstream_dns"),
    "name without address": ([], ConnectFailed, "upstream_dns"),
    "nobody listens": (["127.0.0.3"], ConnectFailed, "upstream_connect"),
    "nobody listens anywhere": (["127.0.0.3", "::1"], ConnectFailed, "upstream_connect"),
}


@pytest.mark.parametrize(("answer", "kind", "code"), FAILURES.values(), ids=FAILURES.keys())
async def test_failures_are_told_apart(
    answer: Sequence[str] | OSError, kind: type[ProxyError], code: str
) -> None:
    async def resolve(_host: str, _port: int) -> Sequence[str]:
        if isinstance(answer, OSError):
            raise answer
        return answer

    with pytest.raises(kind) as caught:
        await Dialer(resolve=resolve).open(Authority(NAME, 1))
    assert caught.value.code == code


async def test_a_slow_name_server_is_a_timeout() -> None:
    async def resolve(_host: str, _port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(ConnectTimeout):
        await Dialer(resolve=resolve, connect_s=0.05).open(Authority(NAME, 1))


SELF: list[tuple[str, str, int, list[Listener], bool]] = [
    ("127.0.0.1", "127.0.0.1", 8080, [("127.0.0.1", 8080)], True),
    ("::ffff:127.0.0.1", "::ffff:127.0.0.1", 8080, [("127.0.0.1", 8080)], True),
    ("127.0.0.1", "127.0.0.1", 8081, [("127.0.0.1", 8080)], False),
    ("127.0.0.2", "127.0.0.1", 8080, [("127.0.0.1", 8080)], False),
    ("10.0.0.7", "10.0.0.7", 8080, [("127.0.0.1", 8080)], False),
    ("10.0.0.7", "10.0.0.7", 8080, [("0.0.0.0", 8080)], True),
    ("127.0.0.2", "127.0.0.1", 8080, [("0.0.0.0", 8080)], True),
    ("::1", "::1", 8080, [("::", 8080)], True),
    ("10.0.0.8", "10.0.0.7", 8080, [("0.0.0.0", 8080)], False),
    ("::1", "::1", 8080, [("127.0.0.1", 8080), ("::1", 8080)], True),
    ("::1", "::1", 8080, [], False),
]


@pytest.mark.parametrize(("there", "here", "port", "listeners", "expected"), SELF)
def test_knows_its_own_listeners(
    there: str, here: str, port: int, listeners: list[Listener], expected: bool
) -> None:
    assert is_self(there, here, port, listeners) is expected


async def test_never_tunnels_into_itself() -> None:
    listeners: list[Listener] = []
    dialer = Dialer(listeners=lambda: listeners)
    async with proxy(_forward(dialer)) as port:
        listeners.append(("127.0.0.1", port))
        for host in ("127.0.0.1", "localhost"):
            head, (reader, writer) = await connect(port, f"{host}:{port}")
            assert head.startswith(b"HTTP/1.1 403 ")
            assert b'"proxy_loop"' in await reader.read()
            writer.close()


def _forward(dialer: Dialer) -> Forward:
    def never(_seen: object) -> asyncio.Protocol:
        raise AssertionError("nothing is opened here")

    return Forward(Policy(), make_protocol=never, render=render, dialer=dialer)


# --- a parent proxy ---------------------------------------------------------------------------


def parent_that_says(reply: bytes, heard: list[bytes]) -> Any:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(reply)
        await echo(reader, writer)

    return serve


async def test_tunnels_through_a_parent_proxy() -> None:
    heard: list[bytes] = []
    said = b"HTTP/1.1 200 OK\r\nVia: 1.1 corp\r\n\r\nfirst bytes,"
    async with peer(parent_that_says(said, heard)) as corp:
        dialer = Dialer(parent=parse_parent(f"http://u:planted-secret@127.0.0.1:{corp.port}"))
        async with proxy(_forward(dialer)) as port:
            reader, writer = await established(port, "far.example:443")
            writer.write(b" echoed")
            assert await reader.readexactly(19) == b"first bytes, echoed"
            writer.close()
    assert heard[0].startswith(b"CONNECT far.example:443 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic " in heard[0]


@pytest.mark.parametrize("reply", [b"HTTP/1.1 407 No\r\n\r\n", b"nonsense\r\n\r\n"])
async def test_what_a_parent_refuses_is_said_without_its_secrets(
    reply: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with peer(parent_that_says(reply, [])) as corp:
        dialer = Dialer(parent=parse_parent(f"http://u:planted-secret@127.0.0.1:{corp.port}"))
        async with proxy(_forward(dialer)) as port:
            head, (reader, writer) = await connect(port, "far.example:443")
            answer = head + await reader.read()
            writer.close()
    assert head.startswith(b"HTTP/1.1 502 ")
    assert b"planted-secret" not in answer
    assert "planted-secret" not in caplog.text


async def test_a_parent_that_hangs_up_is_a_failed_connection() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with peer(hang_up) as corp:
        parent = parse_parent(f"http://127.0.0.1:{corp.port}")
        with pytest.raises(ConnectFailed, match="hung up"):
            await open_through(parent, Authority("far.example", 443))


async def test_this_machine_is_reached_without_the_parent() -> None:
    dialer = Dialer(parent=parse_parent("http://127.0.0.1:1"))
    async with peer(echo) as target:
        assert (await opened(dialer, target))[1] == target.port
