"""One provider's answer to one attempt: held until it may be shown, then relayed by callback.

    receiver of a Connection          decided              finished
    head, body, body, ...   ------>   first content   ---> last byte
                                      or an error          or a break

Until `decided`, nothing has reached the client and another target can still answer: a stream is
held until its first content (its role-only and empty events wait), a JSON answer until it is
whole, anything else until its head is in. Then `relay_to` connects it to the client, and from
there bytes go from socket to socket by callback; the awaiting coroutine wakes once more, at
the end.

The coroutine goes on inside the callback that decides or finishes the answer (`tasks.Moment`), and
may be through with the call, and have closed this, when that returns: so it is the last thing done.

Its time limits are looked at by the watch (`relay.watch`); per chunk only a time is noted.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from typing import Protocol

from lunar_proxy.core import headers as h
from lunar_proxy.core.decode import Decoder, decoder
from lunar_proxy.core.errors import (
    BadAnswer,
    FirstTokenTimeout,
    IdleTimeout,
    InBandError,
    ProxyError,
    StreamBroken,
    TotalTimeout,
)
from lunar_proxy.core.model import Headers
from lunar_proxy.core.stream import Stream
from lunar_proxy.providers.base import Timeouts
from lunar_proxy.providers.openai import in_band_event
from lunar_proxy.providers.translate import EventTranslator, Translation
from lunar_proxy.tasks import Moment

from .client import Client
from .watch import TICK_S, Watch

# A JSON answer is held whole to be read and annotated; past this size it is relayed unread.
MAX_WHOLE = 64 * 1024 * 1024
# An error longer than this says nothing more; what is over is dropped with the connection.
MAX_ERROR = 1024 * 1024
# What an answer may pile up while its client is not yet connected, before its provider has to wait.
MAX_PENDING = 256 * 1024
# CONTRACT 5 and 6: how long the finish event waits for usage, and a finished stream for [DONE]: a
# second at most, of which the watch may take a tick.
AFTER_FINISH_S = 1.0 - 2 * TICK_S

# What describes the compressed body, of an answer that is decoded here.
_OF_THE_CODED = frozenset({b"content-encoding", b"content-length"})


class Diverged(StreamBroken):
    """The answer to go on with says something else: the stream ends where it broke."""

    code, moves_on = "upstream_diverged", False


class Kind(Enum):
    EVENTS = "events"  # SSE
    WHOLE = "whole"  # JSON, or an error: read entirely before a decision
    OPAQUE = "opaque"  # anything else: relayed as it comes


class Wire(Enum):
    """Kinds of body a call's endpoint can be answered with."""

    METERED = "metered"  # JSON or SSE; anything else on a 200 is not an answer
    ANY = "any"


class Link(Protocol):
    """The half of a connection that a reply needs; `Connection` and the demo provider have it."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def close(self) -> None: ...


@lru_cache(maxsize=256)  # providers say the same few
def kind_of(content_type: bytes, wire: Wire) -> Kind:
    content_type = content_type.lower()
    if content_type.startswith(b"text/event-stream"):
        return Kind.EVENTS
    if b"json" in content_type or (not content_type and wire is Wire.METERED):
        return Kind.WHOLE
    return Kind.OPAQUE


def _no_stream() -> Stream:
    raise AssertionError("the reply is closed")


class Reply:
    __slots__ = (
        "_decoder",
        "_direct",
        "_error",
        "_finished",
        "_first",
        "_first_at",
        "_last_at",
        "_make_stream",
        "_now",
        "_paused",
        "_pending",
        "_pending_size",
        "_release_at",
        "_total_at",
        "_translation",
        "_translator",
        "_watch",
        "_wire",
        "client",
        "decided",
        "ended",
        "headers",
        "kind",
        "link",
        "over",
        "status",
        "stream",
        "timeouts",
    )

    def __init__(
        self,
        now: Callable[[], float],
        watch: Watch,
        timeouts: Timeouts,
        total_at: float,
        wire: Wire,
        make_stream: Callable[[], Stream],
        translation: Translation | None = None,
        asked_at: float | None = None,  # None: now
    ) -> None:
        self.timeouts = timeouts
        self.status = 0
        self.headers: Headers = ()
        self.kind = Kind.WHOLE
        self.stream: Stream | None = None
        self.link: Link | None = None
        self.client: Client | None = None
        self.ended = False  # the provider has nothing more to say
        self.decided = Moment()
        self.over = False  # the answer has come to an end, good or bad
        self._error: ProxyError | None = None
        self._finished: Moment | None = None  # made by who waits for it: a WHOLE answer has none
        self._now = now
        self._wire = wire
        self._make_stream = make_stream
        self._decoder: Decoder | None = None
        self._direct: Stream | None = None  # committed, and nothing stands between it and us
        self._translation = translation
        self._translator: EventTranslator | None = None
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._paused = False
        self._first = True  # the first token is still awaited
        self._last_at = now() if asked_at is None else asked_at
        self._total_at = total_at
        self._first_at = self._last_at + timeouts.first_token_s
        self._release_at: float | None = None  # when the wait behind the finish event ends
        self._watch = watch
        watch.add(self)

    # --- what a connection tells ----------------------------------------------------------------

    def at_once(self, status: int, headers: Headers, body: bytes) -> None:
        self.link = None  # the next call may have it already
        self.head(status, headers)
        if body and not self.ended:
            self.body(body)
        if not self.ended:
            self.end()

    def head(self, status: int, headers: Headers) -> None:
        self.status, self.headers = status, headers
        self._last_at = self._now()
        if status < 300:
            self.kind = kind_of(h.get(headers, b"content-type") or b"", self._wire)
        coding = h.get(headers, b"content-encoding")
        if (
            coding is not None
            and (coding := coding.lower()) != b"identity"
            and self.kind is not Kind.OPAQUE
        ):
            self._decoder = decoder(coding)
            if self._decoder is not None:
                self.headers = tuple(pair for pair in headers if pair[0] not in _OF_THE_CODED)
            elif status < 300:  # br or zstd, which nobody asked for: passed on unread
                self.kind, self._first = Kind.OPAQUE, False
                self._decide()
                return
        if self.kind is Kind.EVENTS:
            self.stream = self._make_stream()
            if self._translation is not None:
                self._translator = self._translation.events()
            return
        self._first = False
        if self.kind is Kind.OPAQUE:
            if self._wire is Wire.METERED:
                self._fail(BadAnswer("the provider answered with neither JSON nor an event stream"))
            else:
                self._decide()

    def body(self, data: bytes) -> None:
        self._last_at = self._now()
        if self._direct is not None:
            self._pass(self._direct, data)
            return
        if self._decoder is not None or self._translator is not None:
            try:
                data = self._readable(data)
            except ProxyError as error:
                self._fail(error)
                return
        if self.stream is not None:
            self._events(self.stream, data)
        elif self.kind is Kind.WHOLE and self.client is None:
            self._pending.append(data)
            self._pending_size += len(data)
            if self._pending_size > (MAX_ERROR if self.status >= 300 else MAX_WHOLE):
                self._overflow()
        else:
            self._emit(data)

    def _readable(self, data: bytes) -> bytes:
        """Raises ProxyError."""
        if self._decoder is not None:
            data = self._decoder.feed(data)
        if self._translator is not None:
            data = self._translator.feed(data)
        return data

    def _pass(self, stream: Stream, data: bytes) -> None:
        """A chunk of a committed stream: most of what a proxy does, so little is in its way."""
        try:
            out = stream.feed(data)
        except ProxyError as error:
            self._fail(error)
            return
        if out and self.client is not None:
            self.client.write(out)
        if not stream.plain:
            self._look(stream)

    def end(self) -> None:
        self.ended = True
        if self.stream is not None:
            if self._translator is not None and (last := self._translator.eof()):
                self._events(self.stream, last)
            if not self.over:  # the call may have ended by that, and closed this
                self._events_end(self.stream)
        elif not self.decided.done:
            if self._translation is not None and self.status < 300:
                self._pending = [self._translation.answer(self.whole())]
            self._decide()
        elif self.client is not None:
            self._finish()

    def broken(self, error: ProxyError) -> None:
        self.ended = True
        stream = self.stream
        if stream is not None and stream.started and self._complete_without_end(stream):
            return
        self._fail(error)

    # --- what the carrier does ------------------------------------------------------------------

    def whole(self) -> bytes:
        """The body of a WHOLE answer, once decided."""
        data = b"".join(self._pending)
        self._pending = [data]
        return data

    async def complete(self) -> None:
        """Until the last byte has been relayed; raises what broke the answer."""
        if not self.over:
            self._finished = Moment()
            await self._finished
        if self._error is not None:
            raise self._error

    def settle_whole(self) -> None:
        """The carrier has written a WHOLE answer itself: there is nothing left to come."""
        self.over = True

    def relay_to(self, client: Client) -> None:
        """The client takes over: what was held goes out now, the rest as it comes."""
        self.client = client
        client.follow(self)
        for data in self._pending:
            client.write(data)
        self._pending = []
        self._pending_size = 0
        if self._paused:
            self.resume()
        if self.stream is not None:
            if self._decoder is None and self._translator is None:
                self._direct = self.stream
            if self.ended:
                self._events_end(self.stream)
            else:
                self._look(self.stream)
        elif self.ended:
            self._finish()

    def pause(self) -> None:
        self._paused = True
        if self.link is not None and not self.ended:
            self.link.pause()

    def resume(self) -> None:
        self._paused = False
        self._last_at = self._now()  # the silence was ours
        if self.link is not None and not self.ended:
            self.link.resume()

    def close(self) -> None:
        """Let go of everything; safe at any time and more than once."""
        self._watch.discard(self)
        self._close_link()
        self.link = None
        if self.client is not None:
            self.client.follow(None)
        # A stream knows its trial and a trial its reply: without these the circle is open, and
        # all of it is freed at once instead of by the collector.
        self.client = self.stream = self._direct = None
        self._make_stream = _no_stream
        self.over = True

    # --- events ---------------------------------------------------------------------------------

    def _events(self, stream: Stream, data: bytes) -> None:
        try:
            out = stream.feed(data)
        except ProxyError as error:
            self._fail(error)
            return
        if out:
            self._emit(out)
        if self.client is not None:
            self._look(stream)
        elif stream.started:
            self._decide()
        elif stream.error is not None:
            self._fail(self._in_band(stream))

    def _look(self, stream: Stream) -> None:
        """After the finish event, or an error, the end is near: mind it."""
        if stream.error is not None:
            self._fail(self._in_band(stream))
        elif stream.diverged:
            self._fail(Diverged("another provider's answer is not the one that broke off"))
        elif (stream.holding or stream.finish_seen) and self._release_at is None:
            self._release_at = self._last_at + AFTER_FINISH_S

    def _events_end(self, stream: Stream) -> None:
        if not stream.started and self.client is None:
            self._emit(stream.eof())
            if stream.started:
                self._decide()
            else:
                self._fail(self._cut(stream, "before any content"))
        elif self.client is not None and not self._complete_without_end(stream):
            self._fail(self._cut(stream, "before it was complete"))
        elif not self.decided.done:  # a stream that others began, and this one had no word of
            self._fail(self._cut(stream, "before any content"))

    def _cut(self, stream: Stream, when: str) -> ProxyError:
        if stream.error is not None:
            return self._in_band(stream)
        return StreamBroken(f"the provider's stream ended {when}")

    def _complete_without_end(self, stream: Stream) -> bool:
        """An answer whose sense is complete is a success, however its connection ended."""
        if self.client is None:
            return False  # relay_to asks again
        self._emit(stream.eof())
        if stream.error is not None or stream.diverged or not stream.complete:
            return False
        self._finish()
        return True

    def _in_band(self, stream: Stream) -> InBandError:
        fault = stream.error
        return in_band_event(fault.raw if fault is not None else b"", self.headers)

    # --- time -----------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Called by the watch, ten times a second: is any of the limits reached?"""
        if now >= self._total_at:
            self._fail(TotalTimeout("the call took longer than its total time (timeouts.total_s)"))
        elif self._release_at is not None and now >= self._release_at:
            self._release()
        elif self._first:
            if now >= self._first_at:
                self._fail(FirstTokenTimeout("the provider sent no first token in time"))
        elif self._paused:
            self._last_at = now  # while we are not reading, the silence is ours
        elif now >= self._last_at + self.timeouts.idle_s:
            self._fail(IdleTimeout("the provider fell silent in the middle of its answer"))

    def _release(self) -> None:
        """A second after the finish event: what was awaited behind it will not come."""
        self._release_at = None
        stream = self.stream
        if stream is None or self.over or self.client is None:
            return
        self._emit(stream.release())
        if stream.complete:
            self._finish()

    # --- inside ---------------------------------------------------------------------------------

    def _overflow(self) -> None:
        if self.status < 300:
            self.kind = Kind.OPAQUE
        else:
            self._close_link()
        self._decide()

    def _emit(self, data: bytes) -> None:
        if self.client is not None:
            self.client.write(data)
        elif data:
            self._pending.append(data)
            self._pending_size += len(data)
            if self._pending_size > MAX_PENDING:
                self.pause()

    def _decide(self) -> None:
        self._first = False
        self.decided.set()

    def _finish(self) -> None:
        self._end(None)

    def _fail(self, error: ProxyError) -> None:
        if self.over:
            return
        if not self.decided.done:
            self._close_link()
            self.decided.set(error)
        else:
            self._end(error)

    def _end(self, error: ProxyError | None) -> None:
        if self.over:
            return
        self._close_link()
        self.over, self._error = True, error
        if self._finished is not None:
            self._finished.set()

    def _close_link(self) -> None:
        if self.ended:
            return
        self.ended = True
        if self.link is not None:
            self.link.close()
