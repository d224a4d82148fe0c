"""The way of most calls: one target, asked at once, whose whole answer comes well.

    begin      a shortcut for an admitted call, if it is one for this
    go_on      ask, on a connection that is open
    at_once    the answer, annotated and told; the call is over

Nothing is made for such a call that only trouble needs: no coroutine, no exchange, no reply. At the
first sign of anything else (no open connection, a status that is not 200, a stream, a document
without usage, a time limit, a client that leaves) it turns back: the carrier takes over, with the
question that was put as its first attempt, and the rules are in one place, there.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import orjson

from lunar_proxy.core import annotate
from lunar_proxy.core import headers as h
from lunar_proxy.core.errors import ProxyError
from lunar_proxy.core.intake import MODEL_ENDPOINTS
from lunar_proxy.core.model import Annotate, Attempt, Cost, Headers, Outcome, Usage
from lunar_proxy.core.pricing import cost
from lunar_proxy.core.usage import read_usage
from lunar_proxy.relay.carry import Carrier, answered_by, head_for
from lunar_proxy.relay.client import Client
from lunar_proxy.relay.engine import Asked, Line, Listing
from lunar_proxy.relay.reply import Kind, Reply, Wire, kind_of
from lunar_proxy.relay.trial import request_to
from lunar_proxy.tasks import Drive

from .ticket import Ticket, Way

# Legacy completions may have to be translated.
_ENDPOINTS = MODEL_ENDPOINTS - {"completions"}


def begin(gateway: Host, ticket: Ticket, way: Way, over: Callable[[], None]) -> Shortcut | None:
    """None: there may be something to do for this call that the shortcut does not know."""
    call, engine, target = way.call, way.engine, way.plan[0]
    said = call.fields.said
    if (
        call.endpoint not in _ENDPOINTS
        or call.stream
        or call.annotate is not Annotate.FULL
        or call.doc is None
        or call.via is not None
        or said.timeout_s is not None
        or said.debug
        or engine.hedge.enabled
        or not engine.health.closed(target)
    ):
        return None
    listing = engine.directory.listing(target)
    return Shortcut(gateway, ticket, way, listing, over) if len(listing.account.keys) < 2 else None


class Host(Protocol):
    """What the shortcut needs of the gateway."""

    def carrier(self, ticket: Ticket, way: Way, asked: Asked | None) -> Carrier: ...

    def carry(self, ticket: Ticket, client: Client) -> Coroutine[Any, Any, None]: ...

    def limit_headers(self, ticket: Ticket) -> Headers: ...

    def close(self, ticket: Ticket, outcome: Outcome) -> None: ...

    def leave(self) -> None: ...


# What a whole answer used, cost, and took in seconds, and itself with that in it.
_Worth = tuple[Usage, Cost | None, float, bytes]


class Shortcut:
    """One plain call under way: what its door can cancel, and the `Receiver` of its answer."""

    __slots__ = (
        "_asked_at",
        "_drive",
        "_gateway",
        "_line",
        "_listing",
        "_over",
        "_ticket",
        "_way",
    )

    def __init__(
        self, gateway: Host, ticket: Ticket, way: Way, listing: Listing, over: Callable[[], None]
    ) -> None:
        self._gateway = gateway
        self._ticket = ticket
        self._way = way
        self._listing = listing
        self._over = over
        self._line: Line | None = None
        self._asked_at = 0.0
        self._drive: Drive | None = None

    def go_on(self) -> None:
        way, account = self._way, self._listing.account
        engine, call = way.engine, way.call
        line = engine.lines.idle(account.origin)
        if line is None:
            self._turn_back(None)
            return
        self._asked_at = engine.now()
        self._line = line
        engine.watch.add(self)
        key = account.keys[0] if account.keys else None
        own_key = call.own_key if account.bring_key else None
        line.ask(request_to(way.plan[0], self._listing, call, key or own_key), self)

    def cancel(self) -> None:
        """The client has gone."""
        if self._drive is None:
            self._turn_back(self._line)
        if self._drive is not None:
            self._drive.cancel()

    # --- the answer -------------------------------------------------------------------------------

    def at_once(self, status: int, headers: Headers, body: bytes) -> None:
        engine = self._way.engine
        answered_at = engine.now()
        try:
            worth = self._worth(status, headers, body)
        except Exception:  # noqa: BLE001 - the long way finds the same, and can say so
            worth = None
        if worth is None:
            if (reply := self._turn_back(None)) is not None:
                reply.at_once(status, headers, body)
            return
        engine.watch.discard(self)
        before_s = self._asked_at - self._way.call.accepted_at
        try:
            self._tell(headers, worth, engine.now() - answered_at + before_s)
        finally:  # whatever a client does with it
            self._settle(worth, answered_at, before_s)

    def head(self, status: int, headers: Headers) -> None:
        if (reply := self._turn_back(self._line)) is not None:
            reply.head(status, headers)

    def body(self, data: bytes) -> None:
        raise AssertionError("who has the head has the body")

    def end(self) -> None:
        raise AssertionError("who has the head has the end")

    def broken(self, error: ProxyError) -> None:
        if (reply := self._turn_back(None)) is not None:
            reply.broken(error)

    def tick(self, now: float) -> None:
        """Called by the watch."""
        limits, call = self._listing.account.timeouts, self._way.call
        late = (
            now - self._asked_at >= limits.first_token_s or now - call.accepted_at >= limits.total_s
        )
        if late and (reply := self._turn_back(self._line)) is not None:
            reply.tick(now)

    # --- inside -----------------------------------------------------------------------------------

    def _turn_back(self, line: Line | None) -> Reply | None:
        """Let the carrier go on; what comes of the first attempt is for the reply. `line`: the
        connection that is still to answer, if there is one."""
        self._way.engine.watch.discard(self)
        asked = None if self._line is None else Asked(line, self._asked_at)
        ticket = self._ticket
        ticket.carrier = carrier = self._gateway.carrier(ticket, self._way, asked)
        self._drive = Drive(self._go_the_long_way(), name="call")
        self._drive.go_on()
        return carrier.reply

    async def _go_the_long_way(self) -> None:
        try:
            await self._gateway.carry(self._ticket, self._way.client)
        finally:
            self._over()

    def _worth(self, status: int, headers: Headers, body: bytes) -> _Worth | None:
        """What an answer used and cost, if it is JSON, no error and says what it used."""
        if status != 200 or h.get(headers, b"content-encoding") is not None:
            return None
        if kind_of(h.get(headers, b"content-type") or b"", Wire.METERED) is not Kind.WHOLE:
            return None
        doc = orjson.loads(body)
        if type(doc) is not dict or doc.get("error"):
            return None
        usage = read_usage(doc.get("usage"))
        if usage is None:
            return None
        way = self._way
        latency_s = way.engine.now() - way.call.accepted_at
        price = way.engine.directory.price(way.plan[0])
        spent = None if price is None else cost(usage, price, duration_s=latency_s)
        added = annotate.usage_members(usage, spent, latency_s, latency_s)
        return usage, spent, latency_s, annotate.add_to_usage(body, added)

    def _tell(self, headers: Headers, worth: _Worth, overhead_s: float) -> None:
        call = self._way.call
        named = answered_by(self._listing, 1, 0, overhead_s)
        extra = self._gateway.limit_headers(self._ticket)
        fields = head_for(call, headers, named, extra)
        self._way.client.answer(200, fields, worth[3])

    def _settle(self, worth: _Worth, answered_at: float, before_s: float) -> None:
        gateway, call, engine = self._gateway, self._way.call, self._way.engine
        asked_at, target = self._asked_at, self._way.plan[0]
        usage, spent, latency_s, _ = worth
        keys = self._listing.account.keys
        engine.health.succeeded(target, latency_s - before_s, keys[0] if keys else None)
        now = engine.now()
        gateway.close(
            self._ticket,
            Outcome(
                call,
                target,
                0,
                200,
                None,
                usage,
                spent,
                spent is not None,
                latency_s,
                latency_s,
                max(0.0, now - answered_at + before_s),
                (Attempt(target, 200, None, now - asked_at, usage, spent),),
            ),
        )
        gateway.leave()
        self._over()
