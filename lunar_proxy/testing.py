"""What a test of the proxy, or of a plugin, needs: an upstream that misbehaves on cue, and a clock.

    async with ScriptedUpstream([Head(200), Chunk(b"data: 1\\n\\n"), Break()]) as upstream:
        ...                                  # point a client at upstream.url
        assert upstream.requests[0].doc["model"] == "gpt-4o"
        await upstream.closed_by_peer(within_s=1)

A *script* is a list of steps: one answer. A *plan* says which script answers which request:

- a script: every request gets it;
- a list of plans: one each, in order, the last one for ever;
- a callable: from the `Request` to a script;
- a mapping from a model or a path (`"*"`: any other) to a plan.

A script that runs out without `End`, `Close` or `Break` falls silent: the connection stays open
until the client has had enough. The server speaks HTTP/1.1 over real sockets, so whatever a client
library does about keep-alive, resets and half-closed connections is what the test sees.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import http
import itertools
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Self

import httptools
import orjson

from .core.model import Annotate, Call, Fields, Headers, Outcome, Target
from .core.script import Chunk, End, Head, Pause
from .core.script import Step as PureStep
from .tasks import spawn

__all__ = [
    "Break",
    "Chunk",
    "Close",
    "Connection",
    "End",
    "Expect",
    "FakeClock",
    "Head",
    "Pause",
    "Plan",
    "Raw",
    "Request",
    "Script",
    "ScriptedUpstream",
    "SelfSigned",
    "Stall",
    "Step",
    "Until",
    "call",
    "chat",
    "chat_answer",
    "chat_stream",
    "dead_url",
    "error_answer",
    "json_answer",
    "outcome",
    "self_signed",
    "serve_in_thread",
    "sse",
]

# The same step, by the name it has in a test about timeouts.
Stall = Pause


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes put on the wire as they are, head or body: for answers that are not HTTP."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Break:
    """The connection is reset: the client sees ECONNRESET, as when a provider's process dies."""


@dataclass(frozen=True, slots=True)
class Close:
    """The connection is closed in order (FIN), whatever was promised: a cut stream."""


@dataclass(frozen=True, slots=True)
class Until:
    """Silence until the test sets the event."""

    event: asyncio.Event


@dataclass(frozen=True, slots=True)
class Expect:
    """Fails the test, when the upstream is left, unless the request is as `check` wants it."""

    check: Callable[[Request], object]
    says: str = "the request is not the expected one"


Step = PureStep | Raw | Break | Close | Until | Expect
Script = Sequence[Step]
Player = Callable[["Request"], Script]
Plan = Script | Player | Mapping[str, "Plan"] | Sequence["Plan"]


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived, its body whole and unchunked; header names are lower-cased."""

    method: str
    path: str  # with the query
    headers: Headers
    body: bytes
    connection: int  # 0 for the first connection accepted
    at: float  # on the loop's clock

    def header(self, name: str) -> str | None:
        """The first value of a header field, None when it was not sent."""
        wanted = name.lower().encode()
        return next((value.decode("latin-1") for key, value in self.headers if key == wanted), None)

    @property
    def doc(self) -> Any:
        """The body as JSON; raises `orjson.JSONDecodeError` when it is not."""
        return orjson.loads(self.body)

    @property
    def model(self) -> str | None:
        """What the JSON body calls the model; None when it does not say."""
        with contextlib.suppress(orjson.JSONDecodeError, AttributeError):
            model = self.doc.get("model")
            return model if isinstance(model, str) else None
        return None


# --- answers -----------------------------------------------------------------------------------


def json_answer(
    doc: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> tuple[Step, ...]:
    body = orjson.dumps(doc)
    fields = {"content-type": "application/json", "content-length": str(len(body))}
    return Head(status, fields | dict(headers or {})), Chunk(body), End()


def error_answer(
    status: int,
    message: str = "scripted error",
    *,
    type: str = "server_error",
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[Step, ...]:
    """An error in OpenAI's shape."""
    error = {"message": message, "type": type, "param": None, "code": code}
    return json_answer({"error": error}, status, headers)


def sse(*events: Any, headers: Mapping[str, str] | None = None) -> tuple[Step, ...]:
    """An event stream, each event in a chunk of its own; no `[DONE]` unless it is given.

    Bytes go out as they are, a str is the event's data, anything else is its JSON.
    """
    fields = {"content-type": "text/event-stream; charset=utf-8"} | dict(headers or {})
    return Head(200, fields), *(Chunk(_event(event)) for event in events), End()


def _event(event: Any) -> bytes:
    if isinstance(event, bytes):
        return event
    data = event.encode() if isinstance(event, str) else orjson.dumps(event)
    return b"data: " + data + b"\n\n"


def chat_answer(
    text: str,
    *,
    usage: Mapping[str, Any] | None = None,
    model: str = "scripted",
    id: str = "chatcmpl-scripted",
    finish_reason: str = "stop",
) -> tuple[Step, ...]:
    """A chat completion, not streamed; `usage` absent when not given."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    doc = {"id": id, "object": "chat.completion", "created": 0, "model": model, "choices": [choice]}
    return json_answer(doc | ({"usage": dict(usage)} if usage is not None else {}))


def chat_stream(
    text: str,
    *,
    usage: Mapping[str, Any] | None = None,
    model: str = "scripted",
    id: str = "chatcmpl-scripted",
    finish_reason: str | None = "stop",
    done: bool = True,
) -> tuple[Step, ...]:
    """A chat completion streamed as OpenAI does it, a word an event.

    The role first, then the words, `finish_reason` (None: left out), `usage` in an event without
    choices (None: left out), `[DONE]` (unless `done` is false).
    """
    base = {"id": id, "object": "chat.completion.chunk", "created": 0, "model": model}

    def event(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return base | {"choices": [choice]}

    events: list[Any] = [event({"role": "assistant", "content": ""})]
    events += [event({"content": word}) for word in _words(text)]
    if finish_reason is not None:
        events.append(event({}, finish_reason))
    if usage is not None:
        events.append(base | {"choices": [], "usage": dict(usage)})
    return sse(*events, *(["[DONE]"] if done else []))


def _words(text: str) -> list[str]:
    """The words, each with the blank after it: joined they are the text again."""
    pieces = text.split(" ")
    return [f"{piece} " for piece in pieces[:-1]] + ([pieces[-1]] if pieces[-1] else [])


def chat(text: str, usage: Mapping[str, Any] | None = None) -> Player:
    """A well-behaved chat provider: streams when asked to, reports usage when asked to."""
    spent = usage or {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}

    def play(request: Request) -> Script:
        doc = request.doc
        model = doc.get("model", "scripted")
        if not doc.get("stream"):
            return chat_answer(text, usage=spent, model=model)
        asked = (doc.get("stream_options") or {}).get("include_usage")
        return chat_stream(text, usage=spent if asked else None, model=model)

    return play


# --- the server --------------------------------------------------------------------------------


def _player(plan: Plan) -> Player:
    if callable(plan):
        return plan
    if isinstance(plan, Mapping):
        return _by_name({name: _player(each) for name, each in plan.items()})
    if not plan or isinstance(plan[0], Step):
        script: Script = plan  # type: ignore[assignment]  # one step tells: scripts do not nest
        return lambda _: script
    return _in_order([_player(each) for each in plan])  # type: ignore[arg-type]


def _by_name(players: Mapping[str, Player]) -> Player:
    def play(request: Request) -> Script:
        for name in (request.model, request.path, request.path.partition("?")[0], "*"):
            if name is not None and name in players:
                return players[name](request)
        return error_answer(404, f"no script for {request.path}", code="not_found")

    return play


def _in_order(players: Sequence[Player]) -> Player:
    turns = itertools.chain(players, itertools.repeat(players[-1]))
    return lambda request: next(turns)(request)


class ScriptedUpstream:
    """An HTTP/1.1 server that answers from a plan, and remembers what it was sent.

    `on_connect` is played on every connection before a request is read. `sleep` is what `Pause`
    waits on: pass `FakeClock.sleep` to stall without waiting. With `tls` (such as
    `self_signed().server`) it speaks HTTPS.
    Leaving it fails with `AssertionError` when an `Expect` did not hold, or when something came
    that is not HTTP.
    """

    def __init__(
        self,
        plan: Plan = (),
        *,
        on_connect: Script = (),
        tls: ssl.SSLContext | None = None,
        port: int = 0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.requests: list[Request] = []
        self.connections: list[Connection] = []
        self.failures: list[str] = []
        self._play = _player(plan)
        self._on_connect = on_connect
        self._tls = tls
        self._port = port
        self._sleep = sleep
        self._changed = asyncio.Event()  # set, and replaced, whenever something happened
        self._server: asyncio.Server | None = None

    def __repr__(self) -> str:
        seen = f"{len(self.requests)} requests on {len(self.connections)} connections"
        return f"<ScriptedUpstream {self._port}: {seen}>"

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        """Without a path and without a slash at the end."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self), "127.0.0.1", self._port, ssl=self._tls
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and reset what is open."""
        if self._server is not None:
            self._server.close()
            for connection in self.connections:
                await connection.stop()
            await self._server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        await self.stop()
        if kind is None and self.failures:
            raise AssertionError("; ".join(self.failures))

    async def request(self, number: int = 0, *, within_s: float = 5) -> Request:
        """The request of that number, waited for."""
        await self._until(lambda: len(self.requests) > number, within_s)
        return self.requests[number]

    async def closed_by_peer(self, connection: int = 0, *, within_s: float = 1) -> None:
        """Return once the client has closed that connection; `TimeoutError` if it does not."""

        def closed() -> bool:
            return len(self.connections) > connection and self.connections[connection].left_by_peer

        await self._until(closed, within_s)

    async def _until(self, holds: Callable[[], bool], within_s: float) -> None:
        async with asyncio.timeout(within_s):
            while not holds():
                await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


@dataclass(slots=True)
class _Incoming:
    """The request being read; httptools calls the methods by their names."""

    done: Callable[[_Incoming], None]
    expects: Callable[[], None]
    path: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)

    def on_message_begin(self) -> None:
        self.path, self.headers, self.body = b"", [], bytearray()

    def on_url(self, url: bytes) -> None:
        self.path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if (b"expect", b"100-continue") in self.headers:
            self.expects()

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.done(self)


class Connection(asyncio.Protocol):
    """One accepted connection: reads requests all the while, answers them one after the other."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.number = -1
        self.bytes_sent = 0
        self.left_by_peer = False  # the client closed or reset it, we did not
        self._upstream = upstream
        self._incoming = _Incoming(self._received, lambda: self._write(_CONTINUE))
        self._parser = httptools.HttpRequestParser(self._incoming)
        self._waiting: asyncio.Queue[Request] = asyncio.Queue()
        self._writable = asyncio.Event()
        self._gone = asyncio.Event()
        self._closed_here = False
        self._transport: asyncio.Transport
        self._runner: asyncio.Task[None]

    # --- called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # A step is over when the kernel has its bytes. Not 0: asyncio's TLS would pause for good.
        transport.set_write_buffer_limits(high=1, low=0)
        self._writable.set()
        self.number = len(self._upstream.connections)
        self._upstream.connections.append(self)
        self._runner = spawn(self._run(), name=f"scripted-upstream-{self.number}")
        self._upstream._notify()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"connection {self.number}: not HTTP: {error!r} in {data[:100]!r}")

    def eof_received(self) -> None:
        self._left()

    def connection_lost(self, exc: Exception | None) -> None:
        self._left()
        self._gone.set()
        self._writable.set()
        self._runner.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- ours

    async def stop(self) -> None:
        self._reset()
        self._transport.abort()  # one that is closing, too: TLS waits 30 s for the peer's goodbye
        await self._gone.wait()
        with contextlib.suppress(asyncio.CancelledError):
            await self._runner

    def _left(self) -> None:
        self.left_by_peer = self.left_by_peer or not self._closed_here
        self._upstream._notify()

    def _received(self, incoming: _Incoming) -> None:
        request = Request(
            method=self._parser.get_method().decode(),
            path=incoming.path.decode("latin-1"),
            headers=tuple(incoming.headers),
            body=bytes(incoming.body),
            connection=self.number,
            at=asyncio.get_running_loop().time(),
        )
        self._upstream.requests.append(request)
        self._waiting.put_nowait(request)
        self._upstream._notify()

    async def _run(self) -> None:
        opening = Request("", "", (), b"", self.number, asyncio.get_running_loop().time())
        await self._answer(opening, self._upstream._on_connect)
        while not self._closed_here:
            request = await self._waiting.get()
            try:
                script = self._upstream._play(request)
            except Exception as error:  # noqa: BLE001  the plan is the test's own code
                self._fail(f"{request.path}: the plan failed: {error!r}")
                return
            if not await self._answer(request, script):
                return  # silent until the client leaves

    async def _answer(self, request: Request, script: Script) -> bool:
        """Play a script; whether the answer is complete and the connection may be used again."""
        framing = _Framing()
        for step in script:
            match step:
                case Head():
                    framing = _Framing.of(step)
                    self._write(framing.head(step))
                case Chunk(data):
                    self._write(framing.chunk(data))
                case Raw(data):
                    self._write(data)
                case End():
                    self._write(framing.end())
                    framing.ended = True
                case Pause(seconds):
                    await self._upstream._sleep(seconds)
                case Until(event):
                    await event.wait()
                case Expect():
                    self._expect(request, step)
                case Break():
                    self._reset()
                case Close():
                    self._close()
            await self._writable.wait()
        if framing.ended and framing.closes:
            self._close()
        return framing.ended

    def _expect(self, request: Request, step: Expect) -> None:
        try:
            held = bool(step.check(request))
        except Exception as error:  # noqa: BLE001  a check that cannot be made does not hold
            self._upstream.failures.append(f"{request.path}: {step.says}: {error!r}")
            return
        if not held:
            self._upstream.failures.append(f"{request.path}: {step.says}")

    def _fail(self, why: str) -> None:
        self._upstream.failures.append(why)
        self._reset()

    def _write(self, data: bytes) -> None:
        if data and not self._transport.is_closing():
            self.bytes_sent += len(data)
            self._transport.write(data)

    def _close(self) -> None:
        self._closed_here = True
        self._transport.close()

    def _reset(self) -> None:
        """SO_LINGER with no time to linger: the kernel sends RST instead of FIN (socket(7))."""
        if not self._transport.is_closing():
            self._closed_here = True
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()


_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(slots=True)
class _Framing:
    """How the body of one answer is delimited (RFC 9112 6.3).

    By what the head says; chunked when it says nothing; by closing, under `connection: close`.
    """

    chunked: bool = False
    added: bool = False  # the head leaves it to us
    closes: bool = False
    ended: bool = False

    @classmethod
    def of(cls, head: Head) -> _Framing:
        names = {name for name, _ in head.headers}
        closes = (b"connection", b"close") in head.headers
        bodyless = head.status < 200 or head.status in (204, 304)
        said = b"content-length" in names or b"transfer-encoding" in names
        added = not (said or closes or bodyless)
        return cls(added or b"transfer-encoding" in names, added, closes)

    def head(self, head: Head) -> bytes:
        try:
            reason = http.HTTPStatus(head.status).phrase
        except ValueError:  # such as 529, Anthropic's "overloaded"
            reason = ""
        lines = [b"HTTP/1.1 %d %s" % (head.status, reason.encode())]
        lines += [name + b": " + value for name, value in head.headers]
        if self.added:
            lines.append(b"transfer-encoding: chunked")
        return b"\r\n".join([*lines, b"", b""])

    def chunk(self, data: bytes) -> bytes:
        if not self.chunked or not data:  # an empty chunk would end the body
            return data
        return b"%x\r\n%s\r\n" % (len(data), data)

    def end(self) -> bytes:
        return b"0\r\n\r\n" if self.chunked else b""


@contextlib.contextmanager
def serve_in_thread(plan: Plan = (), **options: Any) -> Iterator[ScriptedUpstream]:
    """A `ScriptedUpstream` on a loop of its own, for clients that block.

    What it recorded may be read from any thread; its coroutines belong to its own loop.
    """
    upstream = ScriptedUpstream(plan, **options)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="scripted-upstream", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(upstream.start(), loop).result(10)
        yield upstream
        asyncio.run_coroutine_threadsafe(upstream.__aexit__(None, None, None), loop).result(10)
    finally:
        asyncio.run_coroutine_threadsafe(upstream.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@dataclass(frozen=True, slots=True)
class SelfSigned:
    """A certificate for some names: `server` presents it, `client` trusts nothing else."""

    server: ssl.SSLContext
    pem: bytes  # the certificate, for a client's CA bundle

    @property
    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.pem.decode())


def self_signed(*names: str) -> SelfSigned:
    """A new certificate, valid for a day, for DNS names or addresses (default 127.0.0.1)."""
    # Imported here: only tests of TLS need it, and it is slow to load.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lunar-proxy test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([*map(_san, names or ("127.0.0.1",))]), False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:  # OpenSSL reads a key from a file only
        file.write(pem + secret)
        file.flush()
        context.load_cert_chain(file.name)
    return SelfSigned(context, pem)


def _san(name: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def dead_url() -> str:
    """A URL where nobody listens: connecting is refused, for as long as this process runs."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    sock.detach()  # never closed, so that nobody else is given the port
    return f"http://127.0.0.1:{port}"


def call(**changes: Any) -> Call:
    """A chat completion asked of openai/gpt-4o, changed where the test cares.

    `headers` are given as pairs.
    """
    doc = {"model": "openai/gpt-4o", "messages": [{"role": "user", "content": "hi"}]}
    usual: dict[str, Any] = {
        "id": "req-1",
        "method": b"POST",
        "path": b"/v1/chat/completions",
        "query": b"",
        "fields": Fields(((b"content-type", b"application/json"),)),
        "body": orjson.dumps(changes.get("doc", doc)),
        "doc": doc,
        "endpoint": "chat/completions",
        "model": "openai/gpt-4o",
        "stream": False,
        "annotate": Annotate.FULL,
        "include_usage": None,
        "accepted_at": 0.0,
        "client": "127.0.0.1",
    }
    if "headers" in changes:
        changes["fields"] = Fields(changes.pop("headers"))
    return Call(**usual | changes)


def outcome(**changes: Any) -> Outcome:
    """That call answered by openai/gpt-4o in a second, 200, nothing known of its usage."""
    usual: dict[str, Any] = {
        "call": call(),
        "target": Target("openai", "gpt-4o"),
        "index": 0,
        "status": 200,
        "error": None,
        "usage": None,
        "cost": None,
        "priced": True,
        "latency_s": 1.0,
        "ttft_s": None,
        "overhead_s": 0.001,
    }
    return Outcome(**usual | changes)


class FakeClock:
    """A clock that a test moves: pass it as `now`, and its `sleep` as `sleep`."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._now = start
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()  # of those that wake together, the first to sleep is first
        self._changed = asyncio.Event()  # set, and replaced, whenever someone goes to sleep
        self.slept: list[float] = []  # every sleep asked for, in order

    def __call__(self) -> float:
        return self._now

    def now(self) -> float:
        return self._now

    @property
    def sleepers(self) -> int:
        return sum(not future.done() for _, _, future in self._sleepers)

    def advance(self, seconds: float) -> None:
        """Move on and wake who is due. They run when the test next gives way to the loop."""
        self._now += seconds
        while self._sleepers and self._sleepers[0][0] <= self._now:
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), future))
        self._changed.set()
        self._changed = asyncio.Event()
        await future

    async def until_sleeping(self, count: int = 1, *, within_s: float = 5) -> None:
        """Return once so many sleep: `advance` before that would wake nobody."""
        async with asyncio.timeout(within_s):
            while self.sleepers < count:
                await self._changed.wait()
