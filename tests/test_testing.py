"""The scripted upstream does on the wire what its script says, and remembers what it was sent."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import openai
import pytest

from lunar_proxy.testing import (
    Break,
    Chunk,
    Close,
    End,
    Expect,
    FakeClock,
    Head,
    Pause,
    Plan,
    Raw,
    Request,
    Script,
    ScriptedUpstream,
    Stall,
    Step,
    Until,
    call,
    chat,
    chat_answer,
    chat_stream,
    dead_url,
    error_answer,
    json_answer,
    outcome,
    self_signed,
    serve_in_thread,
    sse,
)

POST = b"POST /v1/x HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\n{}"
OK = b"HTTP/1.1 200 OK\r\n"


async def exchange(upstream: ScriptedUpstream, sent: bytes = POST) -> bytes:
    """Everything the upstream says to these bytes until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
    try:
        writer.write(sent)
        return await reader.read()
    finally:
        writer.close()


CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
SCRIPTS: dict[str, tuple[Sequence[Step], bytes]] = {
    "chunked when the head does not say": (
        [Head(), Chunk(b"hello"), Chunk(b""), Chunk(b"!"), End(), Close()],
        CHUNKED + b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
    ),
    "chunked when the head says so": (
        [Head(200, {"Transfer-Encoding": "chunked"}), Chunk(b"hi"), End(), Close()],
        CHUNKED + b"2\r\nhi\r\n0\r\n\r\n",
    ),
    "as it is under a length": (
        [Head(200, {"content-length": "2"}), Chunk(b"hi"), End(), Close()],
        OK + b"content-length: 2\r\n\r\nhi",
    ),
    "as it is, to the end, under close": (
        [Head(200, {"connection": "close"}), Chunk(b"hi"), End()],
        OK + b"connection: close\r\n\r\nhi",
    ),
    "no body": ([Head(204), End(), Close()], b"HTTP/1.1 204 No Content\r\n\r\n"),
    "repeated fields, unknown status": (
        [Head(529, ((b"a", b"1"), (b"a", b"2"), (b"content-length", b"0"))), End(), Close()],
        b"HTTP/1.1 529 \r\na: 1\r\na: 2\r\ncontent-length: 0\r\n\r\n",
    ),
    "cut": ([Head(), Chunk(b"hello"), Close()], CHUNKED + b"5\r\nhello\r\n"),
    "not HTTP": ([Raw(b"SSH-2.0\r\n"), Close()], b"SSH-2.0\r\n"),
    "an interim answer first": (
        [Head(103), Head(200, {"content-length": "0"}), End(), Close()],
        b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK + b"content-length: 0\r\n\r\n",
    ),
}


@pytest.mark.parametrize(("script", "wire"), SCRIPTS.values(), ids=SCRIPTS.keys())
async def test_a_script_is_these_bytes(script: Sequence[Step], wire: bytes) -> None:
    async with ScriptedUpstream(script) as upstream:
        assert await exchange(upstream) == wire


async def test_break_delivers_what_came_before_and_then_resets() -> None:
    async with ScriptedUpstream([Raw(b"x" * 100_000), Break()]) as upstream:
        reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
        writer.write(POST)
        assert await reader.readexactly(100_000) == b"x" * 100_000
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        assert upstream.connections[0].left_by_peer is False


REQUESTS = {
    "length": b"content-length: 5\r\n\r\nhello",
    "chunked": b"transfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("rest", REQUESTS.values(), ids=REQUESTS.keys())
@pytest.mark.parametrize("size", [1, 1000], ids=["bytewise", "whole"])
async def test_remembers_the_request(rest: bytes, size: int) -> None:
    sent = b"PUT /v1/files?a=b HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nx-a: 2\r\n" + rest
    async with ScriptedUpstream([Head(204), End()]) as upstream:
        reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
        for start in range(0, len(sent), size):
            writer.write(sent[start : start + size])
            await writer.drain()
        await reader.readuntil(b"\r\n\r\n")
        request = upstream.requests[0]
        writer.close()
    assert (request.method, request.path, request.body) == ("PUT", "/v1/files?a=b", b"hello")
    assert request.headers[:3] == ((b"host", b"h"), (b"x-a", b"1"), (b"x-a", b"2"))
    assert (request.header("X-A"), request.header("nope")) == ("1", None)
    assert request.model is None


async def test_says_100_continue_before_the_body_comes() -> None:
    head = b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
    async with ScriptedUpstream(json_answer({})) as upstream:
        reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
        writer.write(head)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert upstream.requests == []
        writer.write(b"hi")
        assert (await upstream.request()).body == b"hi"
        writer.close()


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def ask(client: aiohttp.ClientSession, url: str, **doc: Any) -> tuple[int, Any]:
    async with client.post(url, json=doc) as response:
        return response.status, await response.json()


async def test_connections_are_kept_and_counted(client: aiohttp.ClientSession) -> None:
    closing = json_answer(2, headers={"connection": "close"})
    async with ScriptedUpstream([json_answer(1), closing]) as upstream:
        assert [await ask(client, upstream.url) for _ in range(3)] == [(200, 1), (200, 2), (200, 2)]
        assert [request.connection for request in upstream.requests] == [0, 0, 1]
        assert upstream.requests[0].at <= upstream.requests[1].at <= upstream.requests[2].at


PLANS: dict[str, tuple[Plan, list[tuple[int, Any]]]] = {
    "one script for all": (json_answer(1), [(200, 1), (200, 1), (200, 1)]),
    "in order, the last for ever": (
        [json_answer(1), json_answer(2)],
        [(200, 1), (200, 2), (200, 2)],
    ),
    "by callable": (
        lambda request: json_answer(request.model),
        [(200, "a"), (200, "b"), (200, "a")],
    ),
    "by model, nested": (
        {"a": [error_answer(503), json_answer("A")], "b": json_answer("B")},
        [(503, "server_error"), (200, "B"), (200, "A")],
    ),
    "by path": ({"/v1/x": json_answer("X")}, [(200, "X"), (200, "X"), (200, "X")]),
    "or any other": (
        {"b": json_answer("B"), "*": json_answer(0)},
        [(200, 0), (200, "B"), (200, 0)],
    ),
    "none": ({"b": json_answer("B")}, [(404, "server_error"), (200, "B"), (404, "server_error")]),
}


@pytest.mark.parametrize(("plan", "answers"), PLANS.values(), ids=PLANS.keys())
async def test_a_plan_says_who_gets_which_script(
    client: aiohttp.ClientSession, plan: Plan, answers: list[tuple[int, Any]]
) -> None:
    async with ScriptedUpstream(plan) as upstream:
        got = [await ask(client, f"{upstream.url}/v1/x?q=1", model=model) for model in "aba"]
    assert [
        (status, doc["error"]["type"] if status > 200 else doc) for status, doc in got
    ] == answers


SILENCES: dict[str, list[Step]] = {
    "before the head": [Stall(60)],
    "script ran out": [],
    "in the stream": [Head(), Chunk(b"x"), Stall(60)],
    "after a stream that never ends": [Head(), Chunk(b"x")],
}


@pytest.mark.parametrize("script", SILENCES.values(), ids=SILENCES.keys())
@pytest.mark.parametrize("abruptly", [False, True], ids=["fin", "rst"])
async def test_notices_at_once_that_the_client_has_gone(script: list[Step], abruptly: bool) -> None:
    async with ScriptedUpstream(script) as upstream:
        _, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
        writer.write(POST)
        await upstream.request()
        with pytest.raises(TimeoutError):
            await upstream.closed_by_peer(within_s=0)
        writer.transport.abort() if abruptly else writer.close()
        await upstream.closed_by_peer(within_s=1)


async def test_stalls_on_the_clock_it_is_given() -> None:
    clock = FakeClock()
    script: Script = [Head(204), Pause(30), End(), Close()]
    async with ScriptedUpstream(script, sleep=clock.sleep) as upstream:
        answer = asyncio.ensure_future(exchange(upstream))
        await upstream.request()
        await clock.until_sleeping()
        clock.advance(30)
        assert await answer == b"HTTP/1.1 204 No Content\r\n\r\n"
    assert clock.slept == [30]


async def test_waits_until_the_test_says_so() -> None:
    gate = asyncio.Event()
    async with ScriptedUpstream([Until(gate), Head(204), End(), Close()]) as upstream:
        answer = asyncio.ensure_future(exchange(upstream))
        await upstream.request()
        assert not answer.done()
        gate.set()
        assert await answer


async def test_speaks_first_when_told_to() -> None:
    async with ScriptedUpstream(on_connect=[Raw(b"hello"), Close()]) as upstream:
        assert await exchange(upstream, b"") == b"hello"


def _boom(request: Request) -> Any:
    raise ValueError("boom")


@pytest.mark.parametrize(
    ("plan", "sent", "says"),
    [
        (
            [Expect(lambda request: request.path == "/v2", "wrong path"), Close()],
            POST,
            "wrong path",
        ),
        ([Expect(lambda request: request.doc["model"], "no model"), Close()], POST, "no model"),
        ([Close()], b"SSH-2.0\r\n\r\n", "not HTTP"),
        (_boom, POST, "boom"),
    ],
)
async def test_what_was_not_expected_fails_the_test(plan: Plan, sent: bytes, says: str) -> None:
    async def play() -> None:
        async with ScriptedUpstream(plan) as upstream:
            try:
                await exchange(upstream, sent)
            except ConnectionResetError:
                return

    with pytest.raises(AssertionError, match=says):
        await play()


async def test_what_was_expected_does_not() -> None:
    async with ScriptedUpstream([Expect(lambda r: r.doc == {}), Close()]) as upstream:
        assert await exchange(upstream) == b""


async def test_nobody_listens_at_a_dead_url(client: aiohttp.ClientSession) -> None:
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.get(dead_url())


async def test_an_upstream_can_come_back_at_its_port(client: aiohttp.ClientSession) -> None:
    async with ScriptedUpstream(json_answer(1)) as first:
        await ask(client, first.url)
    async with ScriptedUpstream(json_answer(2), port=first.port) as second:
        assert await ask(client, second.url) == (200, 2)


def test_event_streams_are_these_chunks() -> None:
    chunks = [
        step.data for step in sse({"a": 1}, "[DONE]", b": ping\n\n") if isinstance(step, Chunk)
    ]
    assert chunks == [b'data: {"a":1}\n\n', b"data: [DONE]\n\n", b": ping\n\n"]


USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


@pytest.mark.parametrize("text", ["Hello  big world ", "", "one"])
def test_a_real_client_reads_the_chat_helpers(text: str) -> None:
    scripts = [chat_answer(text, usage=USAGE), chat_stream(text, usage=USAGE)]
    with serve_in_thread([*scripts, chat(text)]) as upstream:
        client = openai.OpenAI(base_url=f"{upstream.url}/v1", api_key="none", max_retries=0)

        def stream(**more: Any) -> list[Any]:
            messages: Any = [{"role": "user", "content": "hi"}]
            create: Any = client.chat.completions.create
            return list(create(model="m", messages=messages, stream=True, **more))

        whole = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": ""}]
        )
        assert whole.choices[0].message.content == text
        assert whole.usage is not None
        assert whole.usage.total_tokens == 3
        events = stream()
        assert "".join(e.choices[0].delta.content or "" for e in events if e.choices) == text
        assert events[-2].choices[0].finish_reason == "stop"
        assert events[-1].usage.total_tokens == 3
        assert all(event.usage is None for event in stream())
        assert stream(stream_options={"include_usage": True})[-1].usage is not None
        client.close()


def test_a_thread_serves_clients_that_block() -> None:
    with (
        serve_in_thread(json_answer({"ok": True})) as upstream,
        urllib.request.urlopen(upstream.url + "/x", timeout=5) as response,
    ):
        assert response.read() == b'{"ok":true}'
        assert upstream.requests[0].path == "/x"


async def test_the_clock_wakes_who_is_due_in_order() -> None:
    clock, woken = FakeClock(100), list[str]()

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(name)

    tasks = [
        asyncio.ensure_future(sleeper(*each)) for each in [("c", 3), ("a", 1), ("b", 1), ("z", 0)]
    ]
    await clock.until_sleeping(3)
    await tasks[3]
    assert (woken, clock.sleepers, clock()) == (["z"], 3, 100)
    clock.advance(2)
    await asyncio.gather(tasks[1], tasks[2])
    assert (woken, clock.sleepers, clock.now()) == (["z", "a", "b"], 1, 102)
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    clock.advance(2)
    assert (woken, clock.slept) == (["z", "a", "b"], [3, 1, 1, 0])


def test_calls_and_outcomes_are_built_with_what_matters_to_the_test() -> None:
    asked = call(doc={"model": "x"}, stream=True)
    assert (asked.body, asked.stream, asked.endpoint) == (
        b'{"model":"x"}',
        True,
        "chat/completions",
    )
    assert outcome(call=asked, status=502).status == 502


@pytest.mark.parametrize("names", [(), ("127.0.0.1", "api.example.com")])
async def test_speaks_tls(client: aiohttp.ClientSession, names: tuple[str, ...]) -> None:
    trust = self_signed(*names)
    async with ScriptedUpstream(json_answer(1), tls=trust.server) as upstream:
        assert upstream.url.startswith("https://")
        async with client.get(upstream.url, ssl=trust.client) as response:
            assert await response.json() == 1


async def test_nobody_else_trusts_its_certificate(client: aiohttp.ClientSession) -> None:
    async with ScriptedUpstream(json_answer(1), tls=self_signed().server) as upstream:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await client.get(upstream.url)
        assert upstream.requests == []


async def test_breaks_and_notices_a_hang_up_under_tls() -> None:
    trust = self_signed()
    plan: list[Script] = [[Head(), Chunk(b"x"), Break()], [Head(), Chunk(b"x"), Stall(60)]]
    async with ScriptedUpstream(plan, tls=trust.server) as upstream:
        for _ in plan:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", upstream.port, ssl=trust.client
            )
            writer.write(POST)
            await reader.readuntil(b"1\r\nx\r\n")
            if upstream.requests[-1].connection == 0:
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            writer.close()
        await upstream.closed_by_peer(1, within_s=1)
