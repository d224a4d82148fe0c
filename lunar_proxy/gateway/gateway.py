"""Where decisions meet stores: admit a call, carry it, settle it.

serve     the life of one request, whatever became of it; `begin` is the same for the fast door
admit     who, whether, and to whom: -> Way, for a Carrier or a Shortcut
settle    limits, and an entry in the books: -> nothing is left open

Most calls are admitted without waiting for anything, so what admits them are plain functions; what
one of them returns, if anything, is the rest of the admission, to be awaited.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lunar_proxy.core import routerask
from lunar_proxy.core.attachment import sites_at
from lunar_proxy.core.connect import Authority
from lunar_proxy.core.errors import (
    InvalidRequest,
    LimitExceeded,
    MethodNotAllowed,
    NotFound,
    ProviderError,
    ProxyError,
    ShuttingDown,
)
from lunar_proxy.core.exchange import Exchange
from lunar_proxy.core.headers import for_client
from lunar_proxy.core.intake import Incoming, read_call, timeout_s, unread_call
from lunar_proxy.core.limits import Limits, rate_limit_headers
from lunar_proxy.core.model import Call, Headers, Identity, Outcome, Target
from lunar_proxy.core.pricing import HourlyPrice, Price
from lunar_proxy.core.render import error_answer, masked, retry_headers
from lunar_proxy.core.routing import Facts
from lunar_proxy.metrics import Metrics
from lunar_proxy.relay.carry import Carrier
from lunar_proxy.relay.client import Client
from lunar_proxy.relay.engine import Asked, Engine, Hedge, Lines, Upload
from lunar_proxy.relay.health import Health
from lunar_proxy.relay.meter import Counter
from lunar_proxy.relay.passage import Passage
from lunar_proxy.relay.watch import Watch
from lunar_proxy.stores import Store
from lunar_proxy.tasks import Drive

from . import shortcut
from .admission import Caller, Callers, Limiter, Taken, limits_for, limits_of
from .answers import Told, WithRouting
from .books import Books, Closed
from .decider import Decider
from .learning import Answered, Learner
from .planner import Planner
from .router import Routed, Router
from .runtime import Runtime
from .sites import Visit, Visited, destination, moved, visit
from .ticket import Ticket, Way

logger = logging.getLogger(__name__)

# nginx's status for a client that closed the connection; never sent, only logged and counted.
CLIENT_CLOSED_REQUEST = 499


@dataclass(frozen=True, slots=True)
class Ports:
    """What the gateway needs of the world; `app` makes it, tests make another."""

    lines: Lines
    counter: Counter
    store: Store
    metrics: Metrics
    now: Callable[[], float]  # monotonic seconds
    wall: Callable[[], float]  # seconds since 1970
    draw: Callable[[], float]  # uniform in [0, 1)
    new_id: Callable[[], str]
    log: Callable[[Sequence[Closed]], None]  # calls that are over


class Gateway:
    """The one data plane behind every door. `use` swaps the config; calls keep their own."""

    def __init__(
        self, ports: Ports, runtime: Runtime, callers: Callers, decider: Decider | None = None
    ) -> None:
        self.ports = ports
        decider = decider or Decider(runtime.config.router, ports.now)
        self.router = Router(decider, ports.metrics)
        self.learner = Learner(decider)
        self.health = Health(runtime.breaker, ports.now)
        self.limiter = Limiter(ports.store, ports.wall)
        self.books = Books(ports.store, ports.metrics, ports.log, ports.wall)
        self.inflight = 0
        self.draining = False
        self._quiet = asyncio.Event()
        self._no_usage: set[str] = set()
        self._watch = Watch(ports.now)
        self.use(runtime, callers)

    def use(self, runtime: Runtime, callers: Callers) -> None:
        self.runtime = runtime
        self.callers = callers
        self.health.breaker = runtime.breaker
        config = runtime.config
        self.planner = Planner(runtime, self._facts(runtime), self.router)
        self._default_limits = limits_of(runtime.config.limits) or Limits()
        self.engine = Engine(
            directory=runtime,
            lines=self.ports.lines,
            health=self.health,
            counter=self.ports.counter,
            now=self.ports.now,
            wall=self.ports.wall,
            draw=self.ports.draw,
            watch=self._watch,
            no_usage=self._no_usage,
            hedge=Hedge(config.hedge.enabled, config.hedge.after_s),
        )

    def snapshot(self) -> dict[str, Any]:
        """What is going on, for the status page and for tests."""
        states = self.health.snapshot()
        return {
            "inflight": self.inflight,
            "generation": self.runtime.generation,
            "draining": self.draining,
            "targets": {
                str(target): {
                    "state": seen.state.name.lower(),
                    "ttft_s": seen.ttft_s,
                    "error_rate": seen.error_rate,
                    "key_refused": seen.key_refused,
                }
                for target, seen in states.items()
            },
        }

    # --- the life of a request --------------------------------------------------------------------

    def serve(
        self, incoming: Incoming, client: Client, upload: Upload | None = None
    ) -> Coroutine[Any, Any, None]:
        """Answer one request, by a provider or by an error; never raises but when cancelled."""
        return self.carry(self._opened(incoming), client, upload)

    def begin(
        self, incoming: Incoming, client: Client, over: Callable[[], None]
    ) -> Drive | shortcut.Shortcut:
        """The same, as what its door starts and may cancel; `over` is called at the end."""
        ticket = self._opened(incoming)
        waiting: Awaitable[None] | None = None
        refused: Exception | None = None
        try:
            waiting = self.admit(ticket, client, None)
        except Exception as error:  # noqa: BLE001 - raised again where it can be told
            refused = error
        short: shortcut.Shortcut | None = None
        if waiting is None and refused is None and ticket.way is not None:
            short = shortcut.begin(self, ticket, ticket.way, over)
        if short is not None:
            return short
        call = self.carry(ticket, client, None, waiting, refused)
        return Drive(_and_then(call, over), name="call")

    def _opened(self, incoming: Incoming) -> Ticket:
        self.inflight += 1
        return Ticket(incoming, incoming.fields.said.id or self.ports.new_id())

    async def carry(
        self,
        ticket: Ticket,
        client: Client,
        upload: Upload | None = None,
        admitting: Awaitable[None] | None = None,
        refused: Exception | None = None,
    ) -> None:
        """A call from its admission to its settlement; or from where `begin` got to."""
        error: ProxyError | None = None
        gone = False
        try:
            if refused is not None:
                raise refused
            if admitting is None and ticket.way is None and ticket.carrier is None:
                admitting = self.admit(ticket, client, upload)
            if admitting is not None:
                await admitting
            if ticket.carrier is None and ticket.way is not None:
                ticket.carrier = self.carrier(ticket, ticket.way)
            if ticket.carrier is not None:
                await ticket.carrier.run()
        except ProxyError as problem:
            error = problem
        except asyncio.CancelledError:
            gone = True
            raise
        except Exception:
            logger.exception("call %s failed inside the proxy", ticket.id)
            error = ProxyError(f"internal error; the request id is {ticket.id}")
        finally:
            self.leave()
            status = CLIENT_CLOSED_REQUEST if gone else self._tell(ticket, error, client)
            self.settle(ticket, error, status, gone=gone)

    def admit(
        self, ticket: Ticket, client: Client, upload: Upload | None
    ) -> Awaitable[None] | None:
        """Who asks, what for, and whether there is room. Raises ProxyError."""
        if self.draining:
            raise ShuttingDown("the proxy is shutting down; try again elsewhere")
        caller = self.callers.of(ticket.incoming)
        if isinstance(caller, Caller):
            return self._admit(ticket, caller, client, upload)
        return self._admit_later(ticket, caller, client, upload)

    async def _admit_later(
        self, ticket: Ticket, caller: Awaitable[Caller], client: Client, upload: Upload | None
    ) -> None:
        if (waiting := self._admit(ticket, await caller, client, upload)) is not None:
            await waiting

    def _admit(
        self, ticket: Ticket, caller: Caller, client: Client, upload: Upload | None
    ) -> Awaitable[None] | None:
        runtime, incoming = self.runtime, ticket.incoming
        seen: Visit | None = None
        if incoming.via is not None:
            seen = visit(runtime.find_site, incoming.via, incoming.path)
            if not self._treats(seen, incoming, caller):
                ticket.carrier = self._let_pass(ticket, seen, caller, client, upload)
                return None
        if seen is None and upload is None:
            call = read_call(incoming, ticket.id, runtime.annotate, caller.identity, caller.own_key)
        else:
            call = self._read(ticket, caller, upload, seen)
        ticket.call = call
        if (feedback := incoming.fields.said.feedback) is not None:
            self.learner.heed(feedback, _subject(call.identity))
        plan = self.planner.known(call)
        if plan is None:
            if call.endpoint == routerask.ENDPOINT and call.via is None:
                return self._admit_ask(ticket, runtime, call, client)
            if self.planner.waits(call):
                return self._admit_routed(ticket, runtime, call, client, upload, seen)
            plan = self.planner.plan(call)
        return self._go(ticket, runtime, call, plan, client, upload, seen)

    def _read(
        self, ticket: Ticket, caller: Caller, upload: Upload | None, seen: Visit | None
    ) -> Call:
        """The call, where its model may stand elsewhere than in a JSON body."""
        runtime, incoming = self.runtime, ticket.incoming
        place = seen.place if seen is not None else None
        if place is not None and place.path != incoming.path:
            ticket.incoming = incoming = replace(incoming, path=place.path)
        return read_call(
            incoming,
            ticket.id,
            runtime.annotate if place is None else runtime.annotate_there,
            caller.identity,
            caller.own_key,
            form_model=upload.model.value if upload is not None and upload.model else "",
            path_model=place.model if place is not None else "",
            via=place.site.provider if place is not None else None,
        )

    async def _admit_routed(
        self,
        ticket: Ticket,
        runtime: Runtime,
        call: Call,
        client: Client,
        upload: Upload | None,
        seen: Visit | None,
    ) -> None:
        _, ticket.routed, plan = await self.planner.planned(call)
        if (waiting := self._go(ticket, runtime, call, plan, client, upload, seen)) is not None:
            await waiting

    async def _admit_ask(
        self, ticket: Ticket, runtime: Runtime, call: Call, client: Client
    ) -> None:
        """POST /v1/router: decide, and go on as a chat call would; or, if only the decision is
        wanted, answer with it."""
        if call.method != b"POST":
            raise MethodNotAllowed("/v1/router takes POST", headers=(("allow", "POST"),))
        if call.doc is None:
            raise InvalidRequest("send a JSON object", code="invalid_json")
        ask = routerask.read_ask(call)
        ticket.call = call = replace(call, model=routerask.auto_name(ask))
        decided = await self.router.choose(runtime, self.planner.facts, call, ask)
        document = decided.document()
        if not ask.execute:
            name = Target("", decided.selected.name)
            if (waiting := self._reserve(ticket, call, name, _unpriced)) is not None:
                await waiting
            created = int(self.ports.wall())
            headers = (*self.limit_headers(ticket), *decided.headers())
            head = ((b"x-request-id", ticket.id.encode()), *headers)
            Told(client, head, routerask.decision_only(ticket.id, created, document)).run()
            return
        chat = routerask.chat_call(call, call.model)
        planner = self.planner
        asked = planner.asked(chat)
        ticket.routed = self.router.planned(runtime, planner.facts, asked, decided)
        plan = planner.routed_plan(ticket.routed, chat)
        spliced = WithRouting(client, document, stream=call.stream)
        if (waiting := self._go(ticket, runtime, chat, plan, spliced)) is not None:
            await waiting

    def _go(
        self,
        ticket: Ticket,
        runtime: Runtime,
        call: Call,
        plan: list[Target],
        client: Client,
        upload: Upload | None = None,
        seen: Visit | None = None,
    ) -> Awaitable[None] | None:
        """The call has a plan: it may go, once there is room for it."""
        engine = self._engine_for(runtime, seen)
        ticket.way = Way(runtime, engine, call, plan, client, upload)
        return self._reserve(ticket, call, plan[0], runtime.price)

    def carrier(self, ticket: Ticket, way: Way, asked: Asked | None = None) -> Carrier:
        """What carries an admitted call; `asked`: its first target has been asked already."""
        runtime, call, plan = way.runtime, way.call, way.plan
        said = call.fields.said
        if said.timeout_s is not None:
            total_s = timeout_s(said.timeout_s)
        else:
            total_s = runtime.account(plan[0]).timeouts.total_s
        deadline = call.accepted_at + total_s
        return Carrier(
            way.engine,
            call,
            Exchange(
                plan,
                runtime.rules,
                deadline,
                lambda target: self.health.keys_in_turn(target, runtime.account(target).keys),
                runtime.window,
            ),
            way.client,
            deadline,
            way.upload,
            extra_headers=self.limit_headers(ticket),
            routing_headers=ticket.routed.headers if ticket.routed is not None else (),
            debug=said.debug,
            asked=asked,
        )

    def _treats(self, seen: Visit, incoming: Incoming, caller: Caller) -> bool:
        """Whether a request to a provider's host is handled as one to our own /v1 would be.

        With a key of ours that is all of the provider's API, since there it means ours.
        """
        place = seen.place
        if caller.keyed and place is None:
            raise NotFound(
                f"a key of this proxy is for the API of '{seen.provider}': this path is not in it"
            )
        return place is not None and (
            caller.keyed or (incoming.method == b"POST" and place.inference)
        )

    def _let_pass(
        self,
        ticket: Ticket,
        seen: Visit,
        caller: Caller,
        client: Client,
        upload: Upload | None,
    ) -> Passage:
        incoming = ticket.incoming
        call = unread_call(incoming, id=ticket.id)
        ticket.call = replace(call, identity=caller.identity, via=seen.provider)
        origin, path = destination(seen, self.runtime.accounts, incoming.path)
        return Passage(
            self.ports.lines,
            self.ports.now,
            origin,
            path,
            incoming,
            client,
            provider=seen.provider,
            upload=upload,
        )

    def _engine_for(self, runtime: Runtime, seen: Visit | None) -> Engine:
        if seen is None or seen.place is None:
            return self.engine
        account = moved(seen.via, seen.place, runtime.accounts[seen.provider])
        if account is None:
            return self.engine
        return replace(self.engine, directory=Visited(runtime, account))

    def settle(
        self, ticket: Ticket, error: ProxyError | None, status: int, *, gone: bool
    ) -> Outcome:
        """Give back what was reserved and write down what was used. Never waits, never fails."""
        outcome = self._outcome(ticket, error, status, gone=gone)
        self.close(ticket, outcome)
        if ticket.routed is not None:
            self._remember(ticket.routed, outcome)
        if isinstance(error, LimitExceeded):
            self.ports.metrics.rate_limited(error.limit)
        for source, to in ticket.carrier.skipped if ticket.carrier is not None else ():
            self.ports.metrics.fallback(source, to, "breaker_open")
        return outcome

    def close(self, ticket: Ticket, outcome: Outcome) -> None:
        if ticket.taken is not None:
            self.limiter.settle(ticket.taken.reservation, outcome)
        self.books.add(outcome)

    def knows(self, authority: Authority) -> bool:
        """Whether a provider lives at this host."""
        return bool(sites_at(self.runtime.sites, authority))

    async def idle(self) -> None:
        """Until no call is under way."""
        while self.inflight:
            self._quiet.clear()
            await self._quiet.wait()

    def leave(self) -> None:
        self.inflight -= 1
        if not self.inflight:
            self._quiet.set()

    # --- inside -----------------------------------------------------------------------------------

    def _remember(self, routed: Routed, outcome: Outcome) -> None:
        """Who answered a routed call, for what may be said of the answer."""
        if not self.learner.on or outcome.error is not None or outcome.target is None:
            return
        if (found := routed.measured_as(outcome.target)) is not None:
            answered = Answered(*found, caller=_subject(outcome.call.identity))
            self.learner.remember(outcome.call.id, answered)

    def _facts(self, runtime: Runtime) -> Facts:
        health = self.health
        return Facts(
            price=runtime.list_price,
            ttft_s=lambda target: health.of(target).ttft_s,
            error_rate=lambda target: health.of(target).error_rate,
            available=health.available,
            draw=self.ports.draw,
        )

    def _reserve(
        self,
        ticket: Ticket,
        call: Call,
        target: Target,
        price: Callable[[Target], Price | HourlyPrice | None],
    ) -> Awaitable[None] | None:
        """Room for the call, where there are limits; what it returns has to be awaited."""
        limits = limits_for(call.identity, self._default_limits)
        if limits.empty:
            return None
        taken = self.limiter.take(call, limits, target, price(target))
        if not isinstance(taken, Taken):
            return self._reserve_later(ticket, taken)
        ticket.taken = taken
        return None

    async def _reserve_later(self, ticket: Ticket, taken: Awaitable[Taken]) -> None:
        ticket.taken = await taken

    def limit_headers(self, ticket: Ticket) -> Headers:
        return () if ticket.taken is None else rate_limit_headers(ticket.taken.verdict)

    def _tell(self, ticket: Ticket, error: ProxyError | None, client: Client) -> int:
        """The error, if the client has not seen an answer begin; the status it got."""
        carrier = ticket.carrier
        if carrier is not None and carrier.committed:
            return carrier.status
        if error is None:
            return 200
        extra = self._error_headers(ticket, carrier)
        if isinstance(error, ProviderError) and error.provider_status >= 400:
            return self._pass_on(error, extra, client)
        status, headers, body = error_answer(error, extra)
        client.answer(status, headers, body)
        return status

    def _error_headers(
        self, ticket: Ticket, carrier: Carrier | Passage | None
    ) -> list[tuple[bytes, bytes]]:
        headers = [(b"x-request-id", ticket.id.encode()), *self.limit_headers(ticket)]
        if carrier is not None:
            headers += carrier.answer_headers()
        return headers

    def _pass_on(
        self, error: ProviderError, extra: list[tuple[bytes, bytes]], client: Client
    ) -> int:
        """A provider's own refusal, as it is, when there is nowhere left to go (CONTRACT 6)."""
        body = error.provider_body
        for account in self.runtime.accounts.values():
            for key in account.keys:
                body = masked(body, key)
        headers = for_client(error.provider_headers)
        if error.retry_after_s is not None:
            said = (b"retry-after", b"retry-after-ms")
            headers = [pair for pair in headers if pair[0] not in said]
            headers += retry_headers(error.retry_after_s)
        client.answer(error.provider_status, headers + extra, body)
        return error.provider_status

    def _outcome(
        self, ticket: Ticket, error: ProxyError | None, status: int, *, gone: bool
    ) -> Outcome:
        call = ticket.call or unread_call(ticket.incoming, id=ticket.id)
        latency_s = self.ports.now() - call.accepted_at
        code = error.code if error is not None else None
        carrier = ticket.carrier
        if carrier is None:
            return Outcome(
                call, None, 0, status, code, None, None, True, latency_s, None, latency_s
            )
        meter = carrier.meter
        usage, cost, ttft_s = None, None, None
        overhead_s = latency_s - carrier.waited_s
        if meter is not None:
            usage, cost, ttft_s = meter.usage, meter.cost, meter.ttft_s
            if usage is not None:
                latency_s = meter.latency_s
        return Outcome(
            call,
            carrier.target,
            carrier.index,
            status,
            code,
            usage,
            cost,
            usage is None or cost is not None,
            latency_s,
            ttft_s,
            overhead_s if overhead_s > 0 else 0.0,
            tuple(carrier.attempts),
            carrier.phase if gone else None,
        )


def _unpriced(_target: Target) -> None:
    """A decision of the router costs nothing."""


async def _and_then(call: Coroutine[Any, Any, None], over: Callable[[], None]) -> None:
    try:
        await call
    finally:
        over()


def _subject(identity: Identity | None) -> str | None:
    return identity.id if identity is not None else None
