"""The way of most calls: one target, asked at once, whose whole answer comes well.

    begin      a plain call, admitted without waiting: -> Shortcut; None: not so plain
    go_on      ask on a connection that is open
    at_once    the answer, annotated and told; the call is over

Nothing is made for such a call that only trouble needs: no coroutine, no exchange, no reply. At the
first sign of anything else (no open connection, a status that is not 200, a stream, a document
without usage, a time limit, a client that leaves) it turns back: the carrier takes over, with the
question that was put as its first attempt, and the rules are in one place, there.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson

from lunar_proxy.core import annotate
from lunar_proxy.core import headers as h
from lunar_proxy.core.errors import ProxyError
from lunar_proxy.core.intake import Incoming, read_call, request_id
from lunar_proxy.core.model import Annotate, Attempt, Call, Headers, Outcome, Target
from lunar_proxy.relay.carry import Carrier, answered_by, head_for
from lunar_proxy.relay.client import Client
from lunar_proxy.relay.engine import Asked, Line, Listing
from lunar_proxy.relay.meter import Meter
from lunar_proxy.relay.reply import Kind, Reply, Wire, kind_of
from lunar_proxy.relay.trial import request_to
from lunar_proxy.tasks import Drive

from .gateway import Gateway, Ticket

# Legacy completions may have to be translated, and /v1/router is no question to a provider.
_ENDPOINTS = frozenset({"chat/completions", "responses", "embeddings"})


def says_nothing_to_us(headers: Headers) -> bool:
    """No field that changes what is done with the call, or that may have to be refused."""
    return not any(name.startswith(b"x-lunar-") for name, _ in headers)


def begin(
    gateway: Gateway, incoming: Incoming, client: Client, over: Callable[[], None]
) -> Shortcut | None:
    """None where something has to be waited for, refused or decided: then nothing has happened.
    `over` is called once the call is."""
    if gateway.draining or incoming.via is not None or gateway.engine.hedge.enabled:
        return None
    if not incoming.fields.once(says_nothing_to_us):
        return None
    caller = gateway.callers.known(incoming)
    if caller is None:
        return None
    runtime, planner = gateway.runtime, gateway.planner
    try:
        call = read_call(
            incoming,
            id=request_id(incoming.fields) or gateway.ports.new_id(),
            annotate=runtime.annotate,
            identity=caller.identity,
            own_key=caller.own_key,
        )
        if call.stream or call.endpoint not in _ENDPOINTS or call.annotate is not Annotate.FULL:
            return None
        if planner.waits(call):
            return None
        plan = planner.plan(call, incoming.fields)
        listing = runtime.listing(plan[0])
        if len(listing.account.keys) > 1 or not gateway.health.closed(plan[0]):
            return None
        ticket = Ticket(incoming, call.id, call)
        if not gateway.reserve_at_once(ticket, call, plan[0]):
            return None
    except ProxyError:
        return None  # whoever says so to the client finds the same
    return Shortcut(gateway, ticket, call, plan, listing, client, over)


class Shortcut:
    """One plain call under way: what its door can cancel, and the `Receiver` of its answer."""

    __slots__ = (
        "_asked_at",
        "_call",
        "_client",
        "_drive",
        "_engine",
        "_gateway",
        "_limit_at",
        "_line",
        "_listing",
        "_over",
        "_plan",
        "_runtime",
        "_ticket",
    )

    def __init__(
        self,
        gateway: Gateway,
        ticket: Ticket,
        call: Call,
        plan: list[Target],
        listing: Listing,
        client: Client,
        over: Callable[[], None],
    ) -> None:
        self._gateway = gateway
        self._runtime = gateway.runtime
        self._engine = gateway.engine
        self._ticket = ticket
        self._call = call
        self._plan = plan
        self._listing = listing
        self._client = client
        self._over = over
        self._line: Line | None = None
        self._asked_at = 0.0
        self._limit_at = 0.0
        self._drive: Drive | None = None
        gateway.inflight += 1

    def go_on(self) -> None:
        engine, account = self._engine, self._listing.account
        line = engine.lines.idle(account.origin)
        if line is None:
            self._turn_back(None)
            return
        timeouts = account.timeouts
        self._asked_at = asked_at = engine.now()
        total_at = self._call.accepted_at + timeouts.total_s
        self._limit_at = min(total_at, asked_at + timeouts.first_token_s)
        self._line = line
        engine.watch.add(self)
        line.ask(request_to(self._plan[0], self._listing, self._call, self._key()), self)

    def cancel(self) -> None:
        """The client has gone."""
        if self._drive is None:
            self._turn_back(self._line)
        if self._drive is not None:
            self._drive.cancel()

    # --- the answer -------------------------------------------------------------------------------

    def at_once(self, status: int, headers: Headers, body: bytes) -> None:
        answered_at = self._engine.now()
        try:
            meter = self._figures(status, headers, body)
            told = None if meter is None else annotate.add_to_usage(body, meter.added())
        except Exception:  # noqa: BLE001 - the long way finds the same, and can say so
            meter = told = None
        if meter is None or told is None:
            if (reply := self._turn_back(None)) is not None:
                reply.at_once(status, headers, body)
            return
        self._engine.watch.discard(self)
        self._tell(headers, told, answered_at)
        self._settle(meter, answered_at)

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
        if now >= self._limit_at and (reply := self._turn_back(self._line)) is not None:
            reply.tick(now)

    # --- inside -----------------------------------------------------------------------------------

    def _key(self) -> bytes | None:
        account = self._listing.account
        if account.keys:
            return account.keys[0]
        return self._call.own_key if account.bring_key else None

    def _turn_back(self, line: Line | None) -> Reply | None:
        """Let the carrier go on; what comes of the first attempt is for the reply. `line`: the
        connection that is still to answer, if there is one."""
        self._engine.watch.discard(self)
        asked = None if self._line is None else Asked(line, self._asked_at)
        carrier = self._gateway.carrier(
            self._ticket,
            self._call,
            self._runtime,
            self._engine,
            self._plan,
            self._client,
            asked=asked,
        )
        self._drive = Drive(self._go_the_long_way(carrier), name="call")
        self._drive.go_on()
        return carrier.reply

    async def _go_the_long_way(self, carrier: Carrier) -> None:
        try:
            await self._gateway.carry(self._ticket, self._client, running=carrier)
        finally:
            self._over()

    def _figures(self, status: int, headers: Headers, body: bytes) -> Meter | None:
        """What an answer used and cost, if it is JSON, no error and says what it used."""
        if status != 200 or h.get(headers, b"content-encoding") is not None:
            return None
        if kind_of(h.get(headers, b"content-type") or b"", Wire.METERED) is not Kind.WHOLE:
            return None
        doc = orjson.loads(body)
        if type(doc) is not dict or doc.get("error"):
            return None
        raw = doc.get("usage")
        if type(raw) is not dict or not raw:
            return None
        engine = self._engine
        meter = Meter(self._call, self._runtime.price(self._plan[0]), engine.counter, engine.now)
        meter.first_token()
        meter.fix(raw, ())
        return meter

    def _tell(self, headers: Headers, body: bytes, answered_at: float) -> None:
        call, client = self._call, self._client
        overhead_s = self._engine.now() - answered_at + self._asked_at - call.accepted_at
        named = answered_by(self._listing, 1, 0, overhead_s)
        extra = self._gateway.limit_headers(self._ticket)
        client.head(200, head_for(call, headers, named, extra), len(body))
        client.write(body)
        client.end()

    def _settle(self, meter: Meter, answered_at: float) -> None:
        call, target, asked_at = self._call, self._plan[0], self._asked_at
        engine, gateway = self._engine, self._gateway
        usage, cost, ttft_s = meter.usage, meter.cost, meter.ttft_s
        keys = self._listing.account.keys
        before_s = asked_at - call.accepted_at
        engine.health.succeeded(
            target, None if ttft_s is None else ttft_s - before_s, keys[0] if keys else None
        )
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
                cost,
                cost is not None,
                meter.latency_s,
                ttft_s,
                max(0.0, now - answered_at + before_s),
                (Attempt(target, 200, None, now - asked_at, usage, cost),),
            ),
        )
        gateway.leave()
        self._over()
