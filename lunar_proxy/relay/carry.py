"""The attempt loop: one call, from its plan to the last byte of its answer.

`Carrier.run` is the life of a call between admission and settlement. `core.exchange` decides every
step; here they are only done. Until the commit it is a coroutine, because it must be readable;
after it, bytes go by callback (`relay.reply`), and the coroutine wakes once, at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, assert_never

import orjson

from lunar_proxy.core import annotate, answer
from lunar_proxy.core import headers as h
from lunar_proxy.core.errors import (
    BadAnswer,
    Blame,
    ProviderError,
    ProxyError,
    Refused,
    StreamBroken,
)
from lunar_proxy.core.exchange import Exchange, Refuse, Resume, Send
from lunar_proxy.core.jsonspan import rewrite_request
from lunar_proxy.core.model import Annotate, Attempt, Call, Phase, Target
from lunar_proxy.core.multipart import FormModel
from lunar_proxy.core.pricing import HourlyPrice, Price
from lunar_proxy.core.stream import CHAT, COMPLETION, OPAQUE, RESPONSES, Shape, Stream
from lunar_proxy.core.transcript import Said
from lunar_proxy.providers.base import Account, Origin, Timeouts, UpstreamRequest
from lunar_proxy.providers.openai import in_band_error

from .client import Client
from .health import Health
from .meter import Counter, Meter
from .reply import Kind, Link, Reply, Wire
from .upstream import Receiver, Stale

SHAPES: Mapping[str, Shape] = {
    "chat/completions": CHAT,
    "completions": COMPLETION,
    "responses": RESPONSES,
}
# Where the provider can be asked for usage, and where an answer must be JSON or SSE.
ASKABLE = frozenset({"chat/completions", "completions"})
METERED = frozenset({"chat/completions", "completions", "responses", "embeddings"})
# What the proxy understands and a provider may not (CONTRACT 4).
OURS = frozenset({"provider", "fallbacks", "models", "cost_weight"})


class Line(Link, Protocol):
    """A connection that can be asked one thing."""

    @property
    def reused(self) -> bool: ...

    def ask(self, request: UpstreamRequest, receiver: Receiver) -> None: ...

    async def ask_streaming(
        self,
        request: UpstreamRequest,
        chunks: AsyncIterator[bytes],
        length: int | None,
        receiver: Receiver,
    ) -> None: ...


class Dial(Protocol):
    async def __call__(self, origin: Origin, *, timeout_s: float, fresh: bool = False) -> Line: ...


class Directory(Protocol):
    """What the compiled config knows of a target."""

    def account(self, target: Target) -> Account: ...

    def model_id(self, target: Target) -> str: ...

    def price(self, target: Target) -> Price | HourlyPrice | None: ...


@dataclass(frozen=True, slots=True)
class Engine:
    """What a carrier works with; one for the whole proxy, swapped with the config."""

    directory: Directory
    dial: Dial
    health: Health
    counter: Counter
    now: Callable[[], float]
    wall: Callable[[], float]
    draw: Callable[[], float]
    no_usage: set[str]  # providers that refused stream_options: not asked again


@dataclass(slots=True)
class Upload:
    """A request body that is still arriving. `held` was read already, to find the form's `model`.

    It can be sent once: after its first chunk has left, no other target can be asked.
    """

    chunks: AsyncIterator[bytes]
    length: int | None
    held: bytes = b""
    model: FormModel | None = None

    def body(self, model_id: str) -> tuple[AsyncIterator[bytes], int | None]:
        """The body with the model replaced, and its length if it is known."""
        held = self.held
        if self.model is not None:
            held = held[: self.model.start] + model_id.encode() + held[self.model.end :]
        length = None if self.length is None else self.length + len(held) - len(self.held)
        return self._all(held), length

    async def _all(self, held: bytes) -> AsyncIterator[bytes]:
        if held:
            yield held
        async for chunk in self.chunks:
            yield chunk


@dataclass(slots=True)
class Carrier:
    """One call on its way. After `run`, its fields are what settlement needs."""

    engine: Engine
    call: Call
    exchange: Exchange
    client: Client
    total_at: float
    upload: Upload | None = None
    extra_headers: tuple[tuple[bytes, bytes], ...] = ()
    timeouts: Timeouts | None = None  # the request's own, over those of the target
    attempts: list[Attempt] = field(default_factory=list)
    phase: Phase = Phase.CONNECT
    target: Target | None = None
    index: int = 0
    status: int = 0
    meter: Meter | None = None
    waited_s: float = 0.0  # spent waiting for providers and in backoff
    reply: Reply | None = None
    _calls: int = 0
    _doc: Any = None  # the whole JSON answer, parsed

    async def run(self) -> None:
        """Carry the call to its end. Raises ProxyError when the client has seen nothing yet."""
        step = self.exchange.start(self.engine.now())
        try:
            while True:
                match step:
                    case Send():
                        error = await self._try(step)
                    case Resume():
                        error = await self._resume(step)
                    case Refuse(error):
                        self._refuse(error)
                        return
                    case _:
                        assert_never(step)
                if error is None:
                    return
                step = self._after(error)
        finally:
            if self.reply is not None:
                self._keep_figures(self.reply)
                self.reply.close()

    # --- one attempt ----------------------------------------------------------------------------

    async def _try(self, step: Send) -> ProxyError | None:
        """Ask one target and, if it has content, hand it to the client. None: all is well."""
        if step.delay_s:
            self.phase = Phase.BACKOFF
            await asyncio.sleep(step.delay_s)
            self.waited_s += step.delay_s
        self.target, self.index = step.target, step.index
        if (wait_s := self.engine.health.acquire(step.target)) is not None:
            return _Skipped(wait_s)
        started = self.engine.now()
        try:
            await self._ask(step, started)
            self._commit()
            self.phase = Phase.STREAM
            assert self.reply is not None
            await self.reply.finished
            self._done(started)
        except ProxyError as error:
            self._record(step.target, started, error)
            return error
        except asyncio.CancelledError:
            self.engine.health.released(step.target)
            self._record(step.target, started, None)
            raise
        return None

    async def _ask(self, step: Send, started: float) -> None:
        """Until the reply is decided: content is there, or an error is raised."""
        account = self.engine.directory.account(step.target)
        ask_usage = self._asks_usage(account)
        try:
            await self._send(step, account, ask_usage)
            self._check()
        except Refused as error:
            if not (ask_usage and _about_usage(error)):
                raise
            self.engine.no_usage.add(account.id)
            await self._send(step, account, ask_usage=False)
            self._check()
        finally:
            self.waited_s += self.engine.now() - started

    async def _send(self, step: Send, account: Account, ask_usage: bool) -> None:
        self.meter = Meter(
            self.call,
            self.engine.directory.price(step.target),
            self.engine.counter,
            self.engine.now,
        )
        request = self._request(step, account, ask_usage)
        try:
            await self._once(request, account, ask_usage, fresh=False)
        except Stale:
            await self._once(request, account, ask_usage, fresh=True)

    async def _once(
        self, request: UpstreamRequest, account: Account, ask_usage: bool, *, fresh: bool
    ) -> None:
        if self.reply is not None:
            self.reply.close()
            self.reply = None
        self.phase = Phase.CONNECT
        timeouts = self.timeouts or account.timeouts
        line = await self.engine.dial(
            request.origin, timeout_s=timeouts.connect_s, fresh=fresh or self.upload is not None
        )
        self._calls += 1
        loop = asyncio.get_running_loop()
        wire = Wire.METERED if self.call.endpoint in METERED else Wire.ANY
        reply = Reply(loop, timeouts, self.total_at, wire, lambda: self._stream(ask_usage))
        reply.link = line
        self.reply = reply
        self.phase = Phase.FIRST_TOKEN if self.call.stream else Phase.HEADERS
        if self.upload is None:
            line.ask(request, reply)
        else:
            assert self.target is not None
            model_id = self.engine.directory.model_id(self.target)
            chunks, length = self.upload.body(model_id)
            await line.ask_streaming(request, chunks, length, reply)
        await reply.decided

    def _request(self, step: Send, account: Account, ask_usage: bool) -> UpstreamRequest:
        call = self.call
        model_id = self.engine.directory.model_id(step.target)
        body = call.body
        if call.doc is not None and self.upload is None:
            model = model_id if "model" in call.doc else None
            body = rewrite_request(body, model=model, drop=OURS, ask_usage=ask_usage, doc=call.doc)
        key = self._key(step, account)
        target = Target(step.target.provider, model_id)
        return account.dialect.request(call, target, account, key, body)

    def _key(self, step: Send, account: Account) -> bytes | None:
        """Ours, or the caller's own for the one provider it was sent for (CONTRACT 3)."""
        if account.keys:
            return account.keys[step.key % len(account.keys)]
        first = self.exchange.plan[0].provider
        return self.call.own_key if account.bring_key and account.id == first else None

    def _stream(self, injected: bool) -> Stream:
        call = self.call
        shape = SHAPES.get(call.endpoint, OPAQUE)
        splice = call.annotate is Annotate.FULL and call.include_usage is not False
        n = (call.doc or {}).get("n")
        return Stream(
            shape,
            splice=splice,
            injected=injected,
            render=self._render,
            asked=call.include_usage is True,
            choices=n if isinstance(n, int) and n > 0 else 1,
        )

    def _asks_usage(self, account: Account) -> bool:
        call = self.call
        return (
            call.stream
            and call.endpoint in ASKABLE
            and call.annotate is not Annotate.OFF
            and call.include_usage is None
            and account.id not in self.engine.no_usage
        )

    def _check(self) -> None:
        """A decided reply may still be a refusal, or a 200 that is none."""
        reply = self.reply
        assert reply is not None
        if reply.status >= 400:
            raise self._provider_error(reply)
        if reply.status >= 300:
            raise BadAnswer(f"the provider answered with a redirect ({reply.status})")
        if reply.kind is Kind.WHOLE and self.call.endpoint in METERED:
            self._check_json(reply)

    def _provider_error(self, reply: Reply) -> ProviderError:
        assert self.target is not None
        account = self.engine.directory.account(self.target)
        return account.dialect.error(
            reply.status,
            reply.headers,
            reply.whole(),
            our_key=bool(account.keys),
            now=self.engine.wall(),
        )

    def _check_json(self, reply: Reply) -> None:
        body = reply.whole()
        try:
            doc = self._doc = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise BadAnswer("the provider's answer is not valid JSON") from None
        if isinstance(doc, dict) and doc.get("error"):
            raise in_band_error(doc, reply.headers, body)

    # --- the commit -----------------------------------------------------------------------------

    def _commit(self) -> None:
        """From here on the client has our answer; `core.exchange` says what that means."""
        reply, meter = self.reply, self.meter
        assert reply is not None
        assert meter is not None
        self.exchange.commit()
        self.status = reply.status
        meter.first_token()
        if reply.kind is Kind.WHOLE:
            body, extra = self._annotated(reply, meter)
            self.client.head(reply.status, self._head(reply) + extra, len(body))
            self.client.write(body)
            reply.ended = True
            reply.finished.set_result(None)
            return
        self.client.head(reply.status, self._head(reply), _length(reply))
        reply.relay_to(self.client)

    def _annotated(self, reply: Reply, meter: Meter) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """A whole JSON answer and the headers that say what it cost (CONTRACT 5)."""
        body, doc = reply.whole(), self._doc
        if doc is None and b'"usage"' in body:
            doc = _loads(body)
        if not isinstance(doc, dict) or not (
            self.call.endpoint in METERED or isinstance(doc.get("usage"), dict)
        ):
            return body, []
        raw = doc.get("usage")
        raw = raw if isinstance(raw, dict) and raw else None
        said = () if raw else (Said(0, content=answer.text_of(doc)),)
        usage = meter.fix(raw, said)
        if self.call.annotate is Annotate.FULL:
            if raw:
                return annotate.add_to_usage(body, meter.added()), []
            whole = b"{" + meter.counts() + b"," + meter.added() + b"}"
            return annotate.annotate_json(body, meter.added(), whole), []
        if self.call.annotate is Annotate.HEADERS:
            extra = annotate.summary_headers(usage, meter.cost, meter.added())
            return body, [(name.encode(), value.encode()) for name, value in extra]
        return body, []

    def _head(self, reply: Reply) -> list[tuple[bytes, bytes]]:
        headers = h.for_client(reply.headers)
        if reply.decoded:
            headers = [pair for pair in headers if pair[0] != b"content-encoding"]
        if self.extra_headers:  # limits of ours, so the provider's say nothing to this client
            headers = [pair for pair in headers if not pair[0].startswith(b"x-ratelimit-")]
        headers.append((b"x-request-id", self.call.id.encode()))
        headers += self.answer_headers()
        headers += self.extra_headers
        return headers

    def answer_headers(self) -> list[tuple[bytes, bytes]]:
        """Who answered and what it took (CONTRACT 4)."""
        if self.target is None:
            return []
        overhead_ms = (self.engine.now() - self.call.accepted_at - self.waited_s) * 1000
        headers = [
            (b"x-lunar-provider", self.target.provider.encode()),
            (b"x-lunar-attempts", b"%d" % self._calls),
            (b"x-lunar-fallback-index", b"%d" % self.index),
            (b"x-lunar-overhead-ms", b"%.3f" % max(0.0, overhead_ms)),
        ]
        if model_id := self.engine.directory.model_id(self.target):
            headers.insert(1, (b"x-lunar-model", _field_value(model_id)))
        return headers

    def _render(self, raw: dict[str, Any] | None) -> bytes:
        """The splice a stream asks for, at the moment it is written."""
        meter, reply = self.meter, self.reply
        assert meter is not None
        assert reply is not None
        assert reply.stream is not None
        meter.first_token()  # a whole answer in one read is annotated before it is committed
        meter.fix(raw, () if raw else reply.stream.text())
        return meter.added() if raw else meter.counts() + b"," + meter.added()

    # --- endings --------------------------------------------------------------------------------

    def _done(self, started: float) -> None:
        assert self.target is not None
        self.client.end()
        assert self.meter is not None
        ttft = self.meter.ttft_s
        waited = None if ttft is None else ttft - (started - self.call.accepted_at)
        self.engine.health.succeeded(self.target, waited)
        self._record(self.target, started, None)

    def _after(self, error: ProxyError) -> Send | Resume | Refuse:
        now = self.engine.now()
        if isinstance(error, _Skipped):
            return self.exchange.skipped(error.wait_s, now)
        return self.exchange.failed(error, now, self.engine.draw())

    def _refuse(self, error: ProxyError) -> None:
        """Nothing left: tell the client, in a stream by its last event, else by raising."""
        if not self.exchange.committed:
            raise error
        reply = self.reply
        assert reply is not None
        if reply.stream is not None:
            self.client.write(reply.stream.error_event(error.message, error.type, error.code))
            self.client.end()
        else:
            self.client.cut()
        raise error

    def _record(self, target: Target, started: float, error: ProxyError | None) -> None:
        if error is not None and error.blame is Blame.UPSTREAM:
            self.engine.health.failed(target, error)
        status = self.reply.status if self.reply is not None else None
        code = None if error is None else error.code
        self.attempts.append(Attempt(target, status or None, code, self.engine.now() - started))

    def _keep_figures(self, reply: Reply) -> None:
        """What was used is known, or counted, however the call ended."""
        stream, meter = reply.stream, self.meter
        if meter is None or stream is None or not self.exchange.committed:
            return
        meter.fix(stream.usage, () if stream.usage else stream.text())

    async def _resume(self, step: Resume) -> ProxyError | None:
        raise StreamBroken("not reached until splice is configured")


class _Skipped(ProxyError):
    """The target's breaker is open: it was not asked."""

    def __init__(self, wait_s: float) -> None:
        super().__init__("not asked")
        self.wait_s = wait_s


def _loads(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _field_value(text: str) -> bytes:
    """A name a client made up must not end a header line (RFC 9110 5.5)."""
    return text.encode("ascii", "replace").translate(None, b"\r\n\x00")


def _length(reply: Reply) -> int | None:
    """The provider's own length still holds where nothing is added or decoded."""
    if reply.stream is not None:
        return None
    raw = h.get(reply.headers, b"content-length")
    return int(raw) if raw is not None and raw.isdigit() else None


def _about_usage(error: Refused) -> bool:
    return b"stream_options" in error.provider_body or b"include_usage" in error.provider_body
