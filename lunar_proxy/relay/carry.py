"""The attempt loop: one call, from its plan to the last byte of its answer.

`Carrier.run` is the life of a call between admission and settlement. `core.exchange` decides every
step; here they are only done. Until the commit it is a coroutine, because it must be readable;
after it, bytes go by callback (`relay.reply`), and the coroutine wakes once, at the end.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, assert_never

import orjson

from lunar_proxy.core import headers as h
from lunar_proxy.core.errors import BadAnswer, Blame, KeyRefused, ProxyError, StreamBroken
from lunar_proxy.core.exchange import Exchange, Refuse, Resume, Send, Step
from lunar_proxy.core.model import Attempt, Call, Headers, Phase, Target
from lunar_proxy.core.stream import Stream
from lunar_proxy.tasks import spawn

from .client import Client
from .engine import Asked, Engine, Listing, Upload
from .meter import Meter
from .reply import Kind, Reply
from .trial import Trial

logger = logging.getLogger(__name__)


@dataclass
class Carrier:
    """One call on its way. After `run`, its fields are what settlement needs."""

    engine: Engine
    call: Call
    exchange: Exchange
    client: Client
    total_at: float
    upload: Upload | None = None
    extra_headers: tuple[tuple[bytes, bytes], ...] = ()
    routing_headers: tuple[tuple[bytes, bytes], ...] = ()  # what the router decided
    debug: bool = False  # the client asked for x-lunar-attempts-log
    asked: Asked | None = None  # the first target has been asked already
    attempts: list[Attempt] = field(init=False, default_factory=list)
    target: Target | None = field(init=False, default=None)
    index: int = field(init=False, default=0)
    status: int = field(init=False, default=0)
    waited_s: float = field(init=False, default=0.0)  # spent waiting for providers and in backoff
    skipped: tuple[tuple[Target, Target], ...] = field(init=False, default=())  # open breakers
    _trial: Trial | None = field(init=False, default=None)  # that answers, or is about to
    _stream: Stream | None = field(init=False, default=None)  # what the client reads, of whomever
    _calls: int = field(init=False, default=0)
    _backing_off: bool = field(init=False, default=False)

    async def run(self) -> None:
        """Carry the call to its end. Raises ProxyError, also when the client has seen its part."""
        asked = self.asked
        step: Step = self.exchange.start(self.engine.now() if asked is None else asked.at)
        try:
            while True:
                match step:
                    case Send():
                        error = await self._try(step)
                    case Resume():
                        error = await self._resume(step)
                    case Refuse(error):
                        self._refuse(error)
                    case _:
                        assert_never(step)
                if error is None:
                    return
                step = self._after(error)
        finally:
            if self._trial is not None:
                self._trial.end(counted=self.exchange.committed)

    @property
    def committed(self) -> bool:
        return self.exchange.committed

    @property
    def reply(self) -> Reply | None:
        """The answer that is awaited, or relayed."""
        return self._trial.reply if self._trial is not None else None

    @property
    def meter(self) -> Meter | None:
        return self._trial.meter if self._trial is not None else None

    @property
    def phase(self) -> Phase:
        if self._backing_off:
            return Phase.BACKOFF
        if self.exchange.committed:
            return Phase.STREAM
        return self._trial.phase if self._trial is not None else Phase.CONNECT

    # --- before the commit ------------------------------------------------------------------------

    async def _try(self, step: Send) -> ProxyError | None:
        """Ask one target and, if it has content, hand it to the client. None: all is well."""
        if step.delay_s:
            await self._back_off(step.delay_s)
        self.target, self.index = step.target, step.index
        asked, self.asked = self.asked, None
        if asked is None and (wait_s := self.engine.health.acquire(step.target)) is not None:
            return _Skipped(wait_s)
        trial = self._begin(step)
        if asked is not None:
            trial.adopt(asked)
        try:
            if self.engine.hedge.enabled and self.upload is None:
                trial = await self._race(trial)
            else:
                await self._await(trial)
            if self._commit(trial):
                await self._relay(trial)
            self._succeeded(trial)
        except ProxyError as error:
            self._failed(self._trial or trial, error)
            return error
        except asyncio.CancelledError:
            self._left(self._trial or trial)
            raise
        return None

    def _begin(self, step: Send | Resume, resumed: Any = None) -> Trial:
        if self._trial is not None:
            self._trial.close()
        listing = self.engine.directory.listing(step.target)
        # Whose key the caller's is, the host it was sent to tells, or else the first choice.
        whose = self.call.via or self.exchange.plan[0].provider
        own = listing.account.bring_key and step.target.provider == whose
        self._trial = Trial(
            self.engine,
            self.call,
            step,
            listing,
            self.total_at,
            own_key=self.call.own_key if own else None,
            upload=self.upload,
            keep_text=self.exchange.rules.splice,
            resumed=resumed,
        )
        return self._trial

    async def _await(self, trial: Trial) -> None:
        try:
            await trial.run()
        finally:
            self._calls += trial.calls
            self.waited_s += self.engine.now() - trial.started

    async def _back_off(self, delay_s: float) -> None:
        self._backing_off = True
        await asyncio.sleep(delay_s)
        self._backing_off = False
        self.waited_s += delay_s

    async def _race(self, first: Trial) -> Trial:
        """Hedging (Dean and Barroso, The Tail at Scale, 2013): when the first target is slower
        than it nearly ever is, ask the next one too; the first to have content answers.
        """
        after_s = self.engine.hedge.after_s
        if after_s is None:
            after_s = self.engine.health.of(first.target).p95_ttft_s()
        running = {spawn(self._outcome(first), name="hedged"): first}
        winner: Trial | None = None
        try:
            done, _ = await asyncio.wait(running, timeout=after_s)
            step = None if done else self.exchange.hedge()
            if step is not None and self.engine.health.acquire(step.target) is None:
                second = self._begin_beside(step)
                running[spawn(self._outcome(second), name="hedge")] = second
            winner = await self._first_of(running)
        finally:
            for task, trial in running.items():
                task.cancel()
                if winner is not None:
                    self._lost(trial)
                elif trial is not self._trial:  # the client hung up; `_trial` is for `_try`
                    self._left(trial)
                    trial.close()
        return winner

    async def _outcome(self, trial: Trial) -> ProxyError | None:
        try:
            await self._await(trial)
        except ProxyError as error:
            return error
        return None

    def _begin_beside(self, step: Send) -> Trial:
        first, self._trial = self._trial, None
        second = self._begin(step)
        self._trial = first
        return second

    async def _first_of(self, running: dict[asyncio.Task[Any], Trial]) -> Trial:
        """The trial that has content first; raises the last error when none has."""
        while True:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                trial = running.pop(task)
                self._look_to(trial)
                error = task.result()
                if error is None:
                    return trial
                if not running:
                    raise error
                self._failed(trial, error)
                trial.close()
                self._look_to(*running.values())

    def _look_to(self, trial: Trial) -> None:
        self._trial, self.target = trial, trial.target
        self.index = self.exchange.place(trial.target)

    def _lost(self, trial: Trial) -> None:
        """The slower one of two: cancelled, and what it was sent is accounted."""
        trial.fix_prompt()
        self._calls += trial.calls
        trial.calls = 0  # counted, though its task has yet to end
        trial.close()
        self.engine.health.released(trial.target)
        self.attempts.append(trial.record(None, code="hedge_lost"))

    # --- the commit and after ---------------------------------------------------------------------

    def _commit(self, trial: Trial) -> bool:
        """From here on the client has our answer; `core.exchange` says what that means. Whether
        there is more of it to come."""
        reply = trial.reply
        assert reply is not None
        trial.meter.first_token()
        whole = reply.kind is Kind.WHOLE and not self._bodiless(reply)
        body, extra = trial.annotated() if whole else (b"", [])
        self.exchange.commit()
        self.status, self._stream = reply.status, reply.stream
        if whole:
            self.client.head(reply.status, self._head(reply) + extra, len(body))
            self.client.write(body)
            reply.settle_whole()
            return False
        self.client.head(reply.status, self._head(reply), _length(reply))
        reply.relay_to(self.client)
        return True

    def _bodiless(self, reply: Reply) -> bool:
        """The length such an answer gives is that of another one's body (RFC 9110 8.6)."""
        return reply.status == 304 or self.call.method == b"HEAD"

    async def _relay(self, trial: Trial) -> None:
        """Until the last byte; the bytes themselves go by callback."""
        assert trial.reply is not None
        began = self.engine.now()
        try:
            await trial.reply.complete()
        finally:
            self.waited_s += self.engine.now() - began

    def _succeeded(self, trial: Trial) -> None:
        self.client.end()
        ttft_s = trial.meter.ttft_s
        asked_s = trial.started - self.call.accepted_at
        ttft_s = None if ttft_s is None else ttft_s - asked_s
        self.engine.health.succeeded(trial.target, ttft_s, trial.key)
        self.attempts.append(trial.record(None))

    async def _resume(self, step: Resume) -> ProxyError | None:
        """stream_recovery: splice. The same request to the next target, whose text is compared
        with what the client has; it goes on where the other one stopped."""
        broken = self._trial
        assert broken is not None
        stream = self._stream
        if stream is None or not stream.can_resume:
            return _CannotResume("the answer that broke off cannot be taken up by another")
        broken.fix_figures()
        self.attempts[-1] = broken.record(None, self.attempts[-1].error)
        if (wait_s := self.engine.health.acquire(step.target)) is not None:
            return _Skipped(wait_s)
        self.client.write(stream.resume())
        self.target, self.index = step.target, step.index
        trial = self._begin(step, resumed=stream)
        trial.meter.ttft_s = broken.meter.ttft_s
        try:
            await self._await(trial)
            assert trial.reply is not None
            if trial.reply.kind is not Kind.EVENTS:
                raise BadAnswer("the provider answered with a document where a stream broke")
            trial.reply.relay_to(self.client)
            await self._relay(trial)
            self._succeeded(trial)
        except ProxyError as error:
            self._failed(trial, error)
            return error
        except asyncio.CancelledError:
            self._left(trial)
            raise
        return None

    def _refuse(self, error: ProxyError) -> None:
        """Nothing left: end a stream by its error event; the gateway tells the rest."""
        if self.exchange.committed and self._trial is not None:
            if self._stream is not None:
                message = self._trial.masked(error.message)
                self.client.write(self._stream.error_event(message, error.type, error.code))
                self.client.end()
            else:
                self.client.cut()
        raise error

    # --- bookkeeping ------------------------------------------------------------------------------

    def _after(self, error: ProxyError) -> Step:
        now = self.engine.now()
        if isinstance(error, _Skipped):
            here = self.exchange.plan[self.exchange.index]
            step = self.exchange.skipped(error.wait_s, now)
            if isinstance(step, Send):
                self.skipped += ((here, step.target),)
            return step
        return self.exchange.failed(error, now, self.engine.draw())

    def _failed(self, trial: Trial, error: ProxyError) -> None:
        if isinstance(error, KeyRefused) and not self.engine.health.of(trial.target).key_refused:
            logger.warning(
                "provider '%s' refuses our key (%d)", trial.target.provider, error.provider_status
            )
        if error.blame is Blame.UPSTREAM:
            self.engine.health.failed(trial.target, error, trial.key)
        else:
            self.engine.health.released(trial.target)
        self.attempts.append(trial.record(error))

    def _left(self, trial: Trial) -> None:
        """The client hung up: nobody's failure."""
        self.engine.health.released(trial.target)
        self.attempts.append(trial.record(None, code="client_disconnected"))

    # --- headers ----------------------------------------------------------------------------------

    def _head(self, reply: Reply) -> list[tuple[bytes, bytes]]:
        return head_for(self.call, reply.headers, self.answer_headers(), self.extra_headers)

    def answer_headers(self) -> list[tuple[bytes, bytes]]:
        """Who answered and what it took (CONTRACT 4)."""
        if self.target is None:
            return []
        overhead_s = self.engine.now() - self.call.accepted_at - self.waited_s
        listing = self.engine.directory.listing(self.target)
        headers = answered_by(listing, self._calls, self.index, overhead_s)
        headers += self.routing_headers
        if self.debug:
            headers.append((b"x-lunar-attempts-log", orjson.dumps(self._log())))
        return headers

    def _log(self) -> list[dict[str, Any]]:
        """Every attempt so far, for whoever debugs a chain; no secret is in any of it."""
        done = self.attempts
        if self._trial is not None and self.exchange.committed:
            done = [*done, self._trial.record(None)]
        return [
            {
                "target": h.field_value(str(attempt.target)).decode(),
                "status": attempt.status,
                "error": attempt.error,
                "ms": round(attempt.duration_s * 1000, 1),
            }
            for attempt in done
        ]


class _Skipped(ProxyError):
    """The target's breaker is open: it was not asked."""

    def __init__(self, wait_s: float) -> None:
        super().__init__("not asked")
        self.wait_s = wait_s


class _CannotResume(StreamBroken):
    moves_on = False


def head_for(
    call: Call, headers: Headers, named: list[tuple[bytes, bytes]], limits: Headers
) -> list[tuple[bytes, bytes]]:
    """The head of the client's answer: the provider's, who that was, and limits of ours."""
    fields = h.for_client(headers)
    if limits:  # so the provider's say nothing to this client
        fields = [pair for pair in fields if not pair[0].startswith(b"x-ratelimit-")]
    fields.append((b"x-request-id", call.id.encode()))
    fields += named
    fields += limits
    return fields


def answered_by(
    listing: Listing, calls: int, index: int, overhead_s: float
) -> list[tuple[bytes, bytes]]:
    """What every answer says of who gave it and what it took (CONTRACT 4)."""
    overhead_ms = overhead_s * 1000 if overhead_s > 0 else 0.0
    return [*listing.said, *_counted(calls, index), (b"x-lunar-overhead-ms", b"%.3f" % overhead_ms)]


@lru_cache(maxsize=64)  # mostly the first of one
def _counted(calls: int, index: int) -> Headers:
    return (
        (b"x-lunar-attempts", b"%d" % calls),
        (b"x-lunar-fallback-index", b"%d" % index),
    )


def _length(reply: Reply) -> int | None:
    """The provider's own length still holds where nothing is added or decoded."""
    if reply.stream is not None:
        return None
    raw = h.get(reply.headers, b"content-length")
    return int(raw) if raw is not None and raw.isdigit() else None
