"""One target, asked once: what is sent to it, and whether its answer is one.

A trial ends `decided`: its reply holds content that may be shown, or an error was raised and the
client knows nothing of it. What the answer used and cost is the trial's own (`meter`), so several
can run for one call: one after another, or side by side (hedging).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import orjson

from lunar_proxy.core import annotate, answer
from lunar_proxy.core.errors import (
    BadAnswer,
    ConnectTimeout,
    ProviderError,
    ProxyError,
    Refused,
    TotalTimeout,
    UnknownModel,
)
from lunar_proxy.core.exchange import Resume, Send
from lunar_proxy.core.intake import MODEL_ENDPOINTS
from lunar_proxy.core.jsonread import read_answer
from lunar_proxy.core.jsonspan import name_model, rewrite_request
from lunar_proxy.core.model import Annotate, Attempt, Call, Phase, Target
from lunar_proxy.core.stream import CHAT, COMPLETION, OPAQUE, RESPONSES, Stream
from lunar_proxy.core.transcript import Said
from lunar_proxy.providers.base import Origin, UpstreamRequest
from lunar_proxy.providers.openai import in_band_error
from lunar_proxy.providers.translate import Translation, translation_for
from lunar_proxy.tasks import spawn

from .engine import Asked, Engine, Line, Listing, Upload
from .meter import Meter
from .reply import Kind, Reply, Wire
from .upstream import Stale

SHAPES = {"chat/completions": CHAT, "completions": COMPLETION, "responses": RESPONSES}
# Where the provider can be asked for usage, and where an answer must be JSON or SSE.
ASKABLE = frozenset({"chat/completions", "completions"})
METERED = frozenset({"chat/completions", "completions", "responses", "embeddings"})
# Targets known to have only chat; to forget them costs a question each.
MOST_ONLY_CHAT = 1024
# What the proxy understands and a provider may not (CONTRACT 4).
OURS = frozenset({"provider", "fallbacks", "models", "cost_weight"})


class Trial:
    """`run` it, then read `reply` and `meter`; `close` it whatever happened."""

    __slots__ = (
        "_asked",
        "_connected",
        "_doc",
        "_listing",
        "_resumed",
        "_total_at",
        "_translation",
        "_upload",
        "call",
        "calls",
        "engine",
        "keep_text",
        "key",
        "meter",
        "own_key",
        "reply",
        "started",
        "target",
        "usage_asked",
    )

    def __init__(
        self,
        engine: Engine,
        call: Call,
        step: Send | Resume,
        listing: Listing,
        total_at: float,
        *,
        own_key: bytes | None = None,
        upload: Upload | None = None,
        keep_text: bool = False,
        resumed: Stream | None = None,
    ) -> None:
        self.engine = engine
        self.call = call
        self.target: Target = step.target
        self.own_key = own_key  # the caller's, where it was sent for this provider
        self.keep_text = keep_text
        self.started = engine.now()
        self._connected = False
        self.calls = 0
        self.reply: Reply | None = None
        self.usage_asked = False
        price = engine.directory.price(step.target)
        self.meter = Meter(call, price, engine.counter, engine.now)
        self._listing = listing
        keys = listing.account.keys
        self.key = keys[step.key % len(keys)] if keys else None  # of ours
        self._total_at = total_at
        self._upload = upload
        self._resumed = resumed
        self._translation: Translation | None = None
        self._doc: Any = None  # the whole JSON answer, parsed
        self._asked: Reply | None = None  # by whom this was begun; see `adopt`

    @property
    def phase(self) -> Phase:
        """What it waits for, until its reply is decided."""
        if not self._connected or self.reply is None:
            return Phase.CONNECT
        if not self.reply.status:
            return Phase.HEADERS
        return Phase.FIRST_TOKEN if self.call.stream else Phase.BODY

    def adopt(self, asked: Asked) -> None:
        """Take over a connection that has been asked already; the answer goes to the reply."""
        self.started = asked.at
        self._asked = reply = self._reply_on(asked.line, asked.at)
        if asked.line is not None:
            asked.line.tell(reply)

    async def run(self) -> None:
        """Until content is there; raises ProxyError when it will not come."""
        while True:
            self.usage_asked = self._asks_usage()
            self._translation = self._translates()
            try:
                await self._ask(self._request())
                self._check()
            except (Refused, UnknownModel) as error:
                if not self._learned(error):
                    raise
            else:
                return

    def _learned(self, error: ProviderError) -> bool:
        """The refusal says how this provider wants to be asked, now and from now on."""
        if self.usage_asked and _about_usage(error):
            self.engine.no_usage.add(self._listing.account.id)
            return True
        asked_natively = self.call.endpoint == "completions" and self._translation is None
        if asked_natively and _only_chat(error):
            if len(self.engine.only_chat) >= MOST_ONLY_CHAT:
                self.engine.only_chat.clear()
            self.engine.only_chat.add(self.target)
            return True
        return False

    def close(self) -> None:
        if self.reply is not None:
            self.reply.close()

    def end(self, *, counted: bool) -> None:
        """For good: the connection first, since counting a long text takes a while."""
        reply = self.reply
        if reply is not None:
            stream = reply.stream
            reply.close()
            if counted and stream is not None:
                self._fix_by(stream)

    def fix_figures(self) -> None:
        """What a stream used, known or counted, however it ended."""
        if self.reply is not None and self.reply.stream is not None:
            self._fix_by(self.reply.stream)

    def _fix_by(self, stream: Stream) -> None:
        if stream.started:
            self.meter.fix(stream.usage, () if stream.usage else stream.text())

    def fix_prompt(self) -> None:
        """The prompt was sent and the answer not awaited: it is billed all the same."""
        if self.calls:
            self.meter.fix(None, ())

    def masked(self, message: str) -> str:
        """A provider's words without our keys, should it echo one."""
        for key in self._listing.account.keys:
            message = message.replace(key.decode(), "****")
        return message

    def record(self, error: ProxyError | None, code: str | None = None) -> Attempt:
        status = self.reply.status if self.reply is not None else 0
        code = error.code if error is not None else code
        duration_s = self.engine.now() - self.started
        meter = self.meter
        return Attempt(self.target, status or None, code, duration_s, meter.usage, meter.cost)

    # --- asking -----------------------------------------------------------------------------------

    async def _ask(self, request: UpstreamRequest) -> None:
        upload = self._upload
        reply, self._asked = self._asked, None
        if reply is None and upload is None:
            line = self.engine.lines.idle(request.origin)
            reply = self._put(request, line) if line is not None else None
        if reply is not None:
            try:
                await reply.decided
            except Stale:
                self.calls -= 1  # nobody was there to be called
            else:
                return
        self.close()
        self._connected = False
        line = await self._connect(request.origin)
        if upload is None:
            await self._put(request, line).decided
        else:
            await self._pass_upload(upload, request, line)

    def _put(self, request: UpstreamRequest, line: Line) -> Reply:
        reply = self._reply_on(line)
        line.ask(request, reply)
        return reply

    def _reply_on(self, line: Line | None, asked_at: float | None = None) -> Reply:
        self.close()
        self.calls += 1
        wire = Wire.METERED if self.call.endpoint in METERED else Wire.ANY
        reply = self.reply = Reply(
            self.engine.now,
            self.engine.watch,
            self._listing.account.timeouts,
            self._total_at,
            wire,
            self._stream,
            self._translation,
            asked_at,
        )
        reply.link = line
        self._connected = True
        return reply

    async def _connect(self, origin: Origin) -> Line:
        connect_s = self._listing.account.timeouts.connect_s
        left_s = max(0.0, self._total_at - self.engine.now())
        try:
            return await self.engine.lines.connect(origin, timeout_s=min(connect_s, left_s))
        except ProxyError as error:
            self.calls += 1  # a call that did not get through is one too
            if isinstance(error, ConnectTimeout) and left_s < connect_s:
                raise TotalTimeout("the call's total time ended while connecting") from None
            raise

    async def _pass_upload(self, upload: Upload, request: UpstreamRequest, line: Line) -> None:
        """Send the body as it arrives, or until the whole answer is there."""
        reply = self._reply_on(line)
        chunks, length = upload.body(self._listing.model_id)

        async def send() -> ProxyError | None:
            try:
                await line.ask_streaming(request, chunks, length, reply)
            except ProxyError as error:  # the client's: its body is too large, or too slow
                return error
            return None

        async def answer() -> None:
            with suppress(ProxyError):
                await reply.decided

        sending, answering = spawn(send(), name="upload"), spawn(answer(), name="answer")
        try:
            await asyncio.wait({sending, answering}, return_when=asyncio.FIRST_COMPLETED)
            if not reply.ended and (error := await sending) is not None:
                raise error
        finally:
            sending.cancel()
            answering.cancel()
        await reply.decided

    def _request(self) -> UpstreamRequest:
        key = self.own_key if self.key is None else self.key
        return request_to(
            self.target,
            self._listing,
            self.call,
            key,
            ask_usage=self.usage_asked,
            translation=self._translation,
        )

    def _translates(self) -> Translation | None:
        chat_only = self._listing.account.chat_only or self.target in self.engine.only_chat
        return translation_for(self.call.endpoint, chat_only=chat_only)

    def _asks_usage(self) -> bool:
        call = self.call
        return (
            call.stream
            and call.endpoint in ASKABLE
            and call.annotate is not Annotate.OFF
            and call.include_usage is None
            and self._listing.account.id not in self.engine.no_usage
        )

    def _stream(self) -> Stream:
        if self._resumed is not None:
            self._resumed.carried_by(self.render, injected=self.usage_asked)
            return self._resumed
        call = self.call
        n = (call.doc or {}).get("n")
        return Stream(
            SHAPES.get(call.endpoint, OPAQUE),
            splice=call.annotate is Annotate.FULL and call.include_usage is not False,
            injected=self.usage_asked,
            render=self.render,
            asked=call.include_usage is True,
            choices=n if isinstance(n, int) and n > 0 else 1,
            keep_text=self.keep_text,
        )

    # --- what came --------------------------------------------------------------------------------

    def _check(self) -> None:
        """A decided reply may still be a refusal, or a 200 that is none."""
        reply = self.reply
        assert reply is not None
        if reply.status >= 400:
            raise self._provider_error(reply)
        if reply.status >= 300 and reply.status != 304:
            raise BadAnswer(f"the provider answered with a redirect ({reply.status})")
        if reply.kind is Kind.WHOLE and self.call.endpoint in METERED:
            self._check_json(reply)

    def _provider_error(self, reply: Reply) -> ProviderError:
        account = self._listing.account
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
            doc = self._doc = read_answer(body)
        except orjson.JSONDecodeError:
            raise BadAnswer("the provider's answer is not valid JSON") from None
        if isinstance(doc, dict) and doc.get("error"):
            raise in_band_error(doc, reply.headers, body)

    def annotated(self) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """A whole JSON answer and the headers that say what it cost (CONTRACT 5)."""
        assert self.reply is not None
        body, doc = self.reply.whole(), self._doc
        if doc is None and b'"usage"' in body:
            doc = _loads(body)
        if not isinstance(doc, dict) or not (
            self.call.endpoint in METERED or isinstance(doc.get("usage"), dict)
        ):
            return body, []
        raw = doc.get("usage")
        raw = raw if isinstance(raw, dict) and raw else None
        meter = self.meter
        usage = meter.fix(raw, () if raw else (_said(doc),))
        if self.call.annotate is Annotate.FULL:
            if raw:
                return annotate.add_to_usage(body, meter.added()), []
            whole = b"{" + meter.counts() + b"," + meter.added() + b"}"
            return annotate.annotate_json(body, meter.added(), whole), []
        if self.call.annotate is Annotate.HEADERS:
            extra = annotate.summary_headers(usage, meter.cost, meter.added())
            return body, [(name.encode(), value.encode()) for name, value in extra]
        return body, []

    def render(self, raw: dict[str, Any] | None) -> bytes:
        """The splice a stream asks for, at the moment it is written."""
        meter, reply = self.meter, self.reply
        assert reply is not None
        assert reply.stream is not None
        meter.first_token()  # a whole answer in one read is annotated before it is committed
        meter.fix(raw, () if raw else reply.stream.text())
        return meter.added() if raw else meter.counts() + b"," + meter.added()


def request_to(
    target: Target,
    listing: Listing,
    call: Call,
    key: bytes | None,
    *,
    ask_usage: bool = False,
    translation: Translation | None = None,
) -> UpstreamRequest:
    """The call as the target is asked it; all of it but an upload, whose body is its own."""
    account, model_id = listing.account, listing.model_id
    if call.query and call.via not in (None, target.provider):
        # A query that was meant for one provider's host says nothing to another.
        call = replace(call, query=b"")
    body, doc = call.body, call.doc
    if doc is not None:
        model = model_id if "model" in doc else None
        # What the caller said to this very provider's host was not meant for us.
        there = call.via == target.provider
        drop = frozenset[str]() if there else _ours(doc)
        body = rewrite_request(body, model=model, drop=drop, ask_usage=ask_usage, doc=doc)
        if model is None and call.endpoint in MODEL_ENDPOINTS and not there:
            body = name_model(body, model_id)
        if translation is not None:
            body = translation.request(body, doc)
            call = translation.call(call)
    if model_id != target.model:
        target = Target(target.provider, model_id)
    return account.dialect.request(call, target, account, key, body)


def _said(doc: dict[str, Any]) -> Said:
    text = answer.text_of(doc)
    return Said(0, len(text), text)


def _ours(doc: Mapping[str, Any]) -> frozenset[str]:
    """The members to take out: OpenRouter's `provider`, an object, says nothing to us."""
    return OURS - {"provider"} if isinstance(doc.get("provider"), dict) else OURS


def _loads(body: bytes) -> Any:
    try:
        return read_answer(body)
    except orjson.JSONDecodeError:
        return None


def _only_chat(error: ProviderError) -> bool:
    """The model, or its server, has no legacy completions. OpenAI says so in a 404 that names the
    endpoint to use; a server without the route in a 405, or not at all (`completions: chat`)."""
    return error.provider_status == 405 or b"chat/completions" in error.provider_body


def _about_usage(error: ProviderError) -> bool:
    return b"stream_options" in error.provider_body or b"include_usage" in error.provider_body
