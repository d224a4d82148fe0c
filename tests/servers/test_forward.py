from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import ssl
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web

from lunar_proxy.core.connect import Authority, HostTable, Policy, host_table
from lunar_proxy.core.errors import Unauthorized
from lunar_proxy.core.identity import proxy_credential
from lunar_proxy.core.model import Identity
from lunar_proxy.servers.certs import Ca, LeafStore, init_ca
from lunar_proxy.servers.dial import Dialer
from lunar_proxy.servers.forward import Forward, Intercepted
from tests.servers.connecting import (
    Streams,
    connect,
    echo,
    established,
    eventually,
    peer,
    proxy,
    render,
)

HOST = "api.openai.com"
TABLE = host_table(
    [("openai", f"https://{HOST}/v1"), ("local", "https://127.0.0.1:8443/v1")],
    [("*.openai.azure.com", "azure"), ("example.org", "misplaced")],
)
PROMPT = "planted-prompt"
TICKS = 4


@dataclass
class Bench:
    """A proxy whose decrypted connections are served by aiohttp."""

    forward: Forward
    ca: Ca
    ca_dir: Path
    port: int = 0
    seen: list[Intercepted] = field(default_factory=list)
    tick: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def trust(self, *alpn: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.ca.pem)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with make_bench(tmp_path) as made:
        yield made


@contextlib.asynccontextmanager
async def make_bench(
    ca_dir: Path,
    policy: Policy = Policy(TABLE),  # noqa: B008  # frozen
    *,
    handshake_s: float = 10.0,
    with_ca: bool = True,
) -> AsyncIterator[Bench]:
    now = datetime.now(UTC)
    ca = init_ca(ca_dir, [HOST, "*.openai.azure.com"], now=now)

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return await answer(request, made)

    server = web.Server(handler)

    def protocol(seen: Intercepted) -> asyncio.Protocol:
        made.seen.append(seen)
        return server()

    async def credentials(authorization: bytes | None, _address: str) -> Identity | None:
        match proxy_credential(authorization).key:
            case "pk_live_good":
                return Identity("id", "team-a")
            case None:
                return None
            case _:
                raise Unauthorized("this key is not known")

    forward = Forward(
        policy,
        make_protocol=protocol,
        render=render,
        leaves=LeafStore(ca, now=now.timestamp) if with_ca else None,
        dialer=Dialer(exposed=policy.exposed),
        authenticate=credentials,
        handshake_s=handshake_s,
    )
    made = Bench(forward, ca, ca_dir)
    async with proxy(forward) as made.port:
        yield made
        await server.shutdown(0)
        await asyncio.sleep(0.02)


async def answer(request: web.BaseRequest, bench: Bench) -> web.StreamResponse:
    """A scripted provider: one JSON answer, or a stream that waits for its reader at every step."""
    doc = await request.json() if request.can_read_body else {}
    if not doc.get("stream"):
        message = {"role": "assistant", "content": f"hello from {request.host}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": "m",
                "choices": [choice],
            }
        )
    stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await stream.prepare(request)
    for number in range(TICKS):
        await stream.write(b'data: {"choices":[{"index":0,"delta":{"content":"%d"}}]}\n\n' % number)
        await asyncio.wait_for(bench.tick.wait(), 5)
        bench.tick.clear()
    await stream.write(b"data: [DONE]\n\n")
    return stream


async def secure(bench: Bench, host: str = HOST) -> Streams:
    """A raw client that is in TLS with `host`."""
    reader, writer = await established(bench.port, f"{host}:443")
    await writer.start_tls(bench.trust(), server_hostname=host)
    return reader, writer


GET = b"GET /v1/models HTTP/1.1\r\nHost: api.openai.com\r\n\r\n"


async def test_the_door_serves_what_was_decrypted(bench: Bench) -> None:
    reader, writer = await secure(bench)
    for _ in range(3):  # keep-alive
        writer.write(GET)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        assert b"hello from api.openai.com" in await reader.readexactly(length)
    writer.close()
    assert bench.seen == [Intercepted(Authority(HOST, 443), "openai", None, None, tls=True)]
    assert bench.forward.counts.intercepted == 1


@pytest.mark.parametrize(
    ("host", "provider"), [("acme.openai.azure.com", "azure"), ("127.0.0.1", "local")]
)
async def test_wildcards_and_addresses_are_opened(bench: Bench, host: str, provider: str) -> None:
    _, writer = await secure(bench, host)
    await eventually(lambda: bool(bench.seen))
    writer.close()
    assert [seen.provider for seen in bench.seen] == [provider]


async def test_plain_http_through_connect_is_served_too(bench: Bench) -> None:
    reader, writer = await established(bench.port, f"{HOST}:80", early=GET[:9])
    writer.write(GET[9:])
    assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
    writer.close()
    assert not bench.seen[0].tls


async def test_other_hosts_are_tunnelled(bench: Bench) -> None:
    async with peer(echo, "::1") as target:
        reader, writer = await established(bench.port, target)
        writer.write(b"unread")
        assert await reader.readexactly(6) == b"unread"
        writer.close()
    assert not bench.seen


class InMemory:
    """The client side of TLS whose flights a test sends as it likes."""

    def __init__(self, context: ssl.SSLContext, name: str | None) -> None:
        context.check_hostname = name is not None
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname=name)

    def step(self, received: bytes = b"") -> bytes:
        self._in.write(received)
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self._out.read()

    def flight(self) -> bytes:
        return self._out.read()

    def read(self, received: bytes) -> bytes:
        self._in.write(received)
        try:
            return self.tls.read(65_536)
        except ssl.SSLWantReadError:
            return b""


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
async def test_a_handshake_in_any_pieces_with_the_request_in_its_last(
    bench: Bench, early: bool, chunk: int
) -> None:
    client = InMemory(bench.trust(), HOST)
    hello = client.step()
    reader, writer = await established(
        bench.port, f"{HOST}:443", early=hello[:chunk] if early else b""
    )
    left = hello[chunk:] if early else hello
    for at in range(0, len(left), chunk):
        writer.write(left[at : at + chunk])
        await asyncio.sleep(0)
    finish = b""
    while not finish:
        finish = client.step(await reader.read(65_536))
    client.tls.write(GET)
    writer.write(finish + client.flight())  # one segment: the end of the handshake, and a request
    answered = b""
    while b"hello from" not in answered:
        received = await reader.read(65_536)
        assert received
        answered += client.read(received)
    writer.close()


@pytest.mark.parametrize(
    ("name", "alpn", "alert"),
    [
        ("elsewhere.example", (), "unrecognized name"),
        (HOST, ("h2",), "no application protocol"),
    ],
)
async def test_another_name_and_http2_alone_are_refused_with_an_alert(
    bench: Bench, name: str, alpn: tuple[str, ...], alert: str
) -> None:
    client = InMemory(bench.trust(*alpn), name)
    reader, writer = await established(bench.port, f"{HOST}:443")
    writer.write(client.step())
    with pytest.raises(ssl.SSLError, match=alert):
        client.step(await reader.read())
    writer.close()
    assert bench.forward.counts.failed_handshakes == 1
    assert not bench.seen


async def test_a_client_that_names_no_host_gets_the_one_it_connected_to(bench: Bench) -> None:
    context = bench.trust()
    context.check_hostname = False
    _, writer = await established(bench.port, f"{HOST}:443")
    await writer.start_tls(context, server_hostname="")
    certificate = writer.get_extra_info("peercert")
    assert certificate["subjectAltName"] == (("DNS", HOST),)
    writer.close()


async def test_http1_is_agreed_on_with_a_client_that_could_do_more(bench: Bench) -> None:
    _, writer = await established(bench.port, f"{HOST}:443")
    await writer.start_tls(bench.trust("h2", "http/1.1"), server_hostname=HOST)
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
    writer.close()


NONSENSE = {
    "not tls": (b"\x00\x01\x02", b""),
    "lower-case": (b"get / http/1.1\r\n\r\n", b""),
    "broken hello": (b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00", b"\x15\x03\x03\x00\x02\x02\x32"),
    "nothing": (b"", b""),
    "half a hello": (b"\x16\x03\x01\x02", b""),
}


@pytest.mark.parametrize(("sent", "expected"), NONSENSE.values(), ids=NONSENSE.keys())
async def test_what_is_neither_tls_nor_http_is_hung_up_on(
    bench: Bench, sent: bytes, expected: bytes
) -> None:
    reader, writer = await established(bench.port, f"{HOST}:443")
    writer.write(sent)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 2) == expected
    writer.close()


@pytest.mark.parametrize("stage", ["silent", "half a hello", "after the hello"])
async def test_a_slow_handshake_is_hung_up_on(tmp_path: Path, stage: str) -> None:
    async with make_bench(tmp_path, handshake_s=0.2) as bench:
        hello = InMemory(bench.trust(), HOST).step()
        reader, writer = await established(bench.port, f"{HOST}:443")
        writer.write({"silent": b"", "half a hello": hello[:99], "after the hello": hello}[stage])
        await asyncio.wait_for(reader.read(), 2)  # to the end
        writer.close()
        assert bench.forward.counts.failed_handshakes == 1


@pytest.mark.parametrize("says_why", [True, False])
async def test_the_log_helps_with_a_client_that_does_not_trust_the_ca(
    bench: Bench, caplog: pytest.LogCaptureFixture, says_why: bool
) -> None:
    reader, writer = await established(bench.port, f"{HOST}:443")
    if says_why:
        wary = InMemory(ssl.create_default_context(), HOST)
        writer.write(wary.step())
        with pytest.raises(ssl.SSLCertVerificationError):
            wary.step(await reader.read(65_536))
        writer.write(wary.flight())
    else:
        with pytest.raises(ssl.SSLCertVerificationError):
            await writer.start_tls(ssl.create_default_context(), server_hostname=HOST)
    await eventually(lambda: bool(bench.forward.counts.failed_handshakes))
    writer.close()
    assert f"{HOST}:443" in caplog.text
    assert ("UNKNOWN_CA" in caplog.text) is says_why
    assert "ca show" in caplog.text


async def test_a_host_the_ca_was_not_made_for_is_refused_before_the_200(bench: Bench) -> None:
    head, (reader, writer) = await connect(bench.port, "example.org:443")
    assert head.startswith(b"HTTP/1.1 502 ")
    assert b'"ca_name_constraint"' in await reader.read()
    writer.close()


async def test_without_a_ca_nothing_is_opened(tmp_path: Path) -> None:
    async with make_bench(tmp_path, with_ca=False) as bench:
        head, (reader, writer) = await connect(bench.port, f"{HOST}:443")
        assert head.startswith(b"HTTP/1.1 403 ")
        assert b'"no_ca"' in await reader.read()
        writer.close()


# --- who asks ---------------------------------------------------------------------------------


def basic(pair: str) -> str:
    return f"Proxy-Authorization: Basic {base64.b64encode(pair.encode()).decode()}\r\n"


@pytest.mark.parametrize(
    "headers", ["", basic("lunar:pk_live_wrong"), "Proxy-Authorization: ?\r\n"]
)
async def test_an_exposed_proxy_asks_for_credentials(tmp_path: Path, headers: str) -> None:
    async with make_bench(tmp_path, Policy(TABLE, exposed=True)) as bench:
        for target in (f"{HOST}:443", "example.net:443"):
            head, (reader, writer) = await connect(bench.port, target, headers)
            assert head.startswith(b"HTTP/1.1 407 ")
            assert b"\r\nproxy-authenticate: Basic realm=" in head
            assert b"pk_live_wrong" not in await reader.read()
            writer.close()


@pytest.mark.parametrize("headers", [basic("pk_live_good:"), basic("lunar:pk_live_good")])
@pytest.mark.parametrize("exposed", [True, False])
async def test_whoever_connected_is_known_to_the_door(
    tmp_path: Path, headers: str, exposed: bool
) -> None:
    async with make_bench(tmp_path, Policy(TABLE, exposed=exposed)) as bench:
        head, (_, writer) = await connect(bench.port, f"{HOST}:443", headers)
        assert head.startswith(b"HTTP/1.1 200 ")
        await writer.start_tls(bench.trust(), server_hostname=HOST)
        await eventually(lambda: bool(bench.seen))
        writer.close()
        assert [seen.identity for seen in bench.seen] == [Identity("id", "team-a")]


async def test_a_wrong_key_is_refused_on_loopback_too(bench: Bench) -> None:
    head, (_, writer) = await connect(bench.port, f"{HOST}:443", basic("x:pk_live_wrong"))
    assert head.startswith(b"HTTP/1.1 407 ")
    writer.close()


async def test_a_policy_may_be_replaced_at_any_time(bench: Bench) -> None:
    bench.forward.policy = Policy(HostTable(), tunnel=())
    head, (_, writer) = await connect(bench.port, f"{HOST}:443")
    assert head.startswith(b"HTTP/1.1 403 ")
    writer.close()


@pytest.mark.parametrize("target", ["nonsense", "host:0", "127.1:443"])
async def test_a_bad_authority_is_a_bad_request(bench: Bench, target: str) -> None:
    head, (_, writer) = await connect(bench.port, target)
    assert head.startswith(b"HTTP/1.1 400 ")
    writer.close()


# --- real clients, configured as `ca show` says ------------------------------------------------

CURL = ["curl", "-sS", "-N", "--max-time", "10", f"https://{HOST}/v1/chat/completions"]
STREAM = "for part in stream:\n    print(part.choices[0].delta.content, flush=True)\n"
ASK = "model='m', messages=[{'role': 'user', 'content': '" + PROMPT + "'}]"
CLIENTS: dict[str, list[str]] = {
    "curl": [*CURL, "-d", f'{{"messages":"{PROMPT}"}}'],
    "requests": [
        sys.executable,
        "-c",
        "import requests\nprint(requests.post('https://api.openai.com/v1/chat/completions', "
        f"json={{'m': '{PROMPT}'}}, timeout=10).text)",
    ],
    "openai": [
        sys.executable,
        "-c",
        "import openai\nprint(openai.OpenAI(max_retries=0).chat.completions.create("
        f"{ASK}).choices[0].message.content)",
    ],
    "aiohttp": [
        sys.executable,
        "-c",
        "import aiohttp, asyncio\n"
        "async def main():\n"
        "    async with aiohttp.ClientSession(trust_env=True) as session:\n"
        "        async with session.post('https://api.openai.com/v1/chat/completions', "
        f"json={{'m': '{PROMPT}'}}) as answer:\n"
        "            print(await answer.text())\n"
        "asyncio.run(main())",
    ],
}
STREAMING: dict[str, list[str]] = {
    "curl": [*CURL, "-d", '{"stream":true}'],
    "openai": [
        sys.executable,
        "-c",
        "import openai\nstream = openai.OpenAI(max_retries=0).chat.completions.create("
        f"{ASK}, stream=True)\n{STREAM}",
    ],
}


@contextlib.asynccontextmanager
async def client(bench: Bench, command: list[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    bundle = str(bench.ca_dir / "ca-bundle.pem")
    environment = {
        "PATH": os.environ["PATH"],
        "HTTPS_PROXY": bench.url,
        "SSL_CERT_FILE": bundle,
        "REQUESTS_CA_BUNDLE": bundle,
        "CURL_CA_BUNDLE": bundle,
        "OPENAI_API_KEY": "sk-planted-secret",
    }
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("command", CLIENTS.values(), ids=CLIENTS.keys())
async def test_real_clients_get_their_answer(
    bench: Bench, command: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with client(bench, command) as process:
        out, err = await asyncio.wait_for(process.communicate(), 30)
    assert b"hello from api.openai.com" in out, err
    assert "planted" not in caplog.text


@pytest.mark.parametrize("command", STREAMING.values(), ids=STREAMING.keys())
async def test_real_clients_get_a_stream_as_it_comes(bench: Bench, command: list[str]) -> None:
    async with client(bench, command) as process:
        assert process.stdout is not None
        for number in range(TICKS):  # the next event is made only after this one was printed
            line = b"\n"
            while line == b"\n":
                line = await asyncio.wait_for(process.stdout.readline(), 20)
            assert str(number).encode() in line
            bench.tick.set()
        assert await asyncio.wait_for(process.wait(), 10) == 0
