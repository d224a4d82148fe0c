"""Who is calling, and whether there is room for the call: facts in, one decision, one write."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import NamedTuple, Protocol

from lunar_proxy.config import Config
from lunar_proxy.config.schema import AuthKey
from lunar_proxy.config.schema import Limits as ConfiguredLimits
from lunar_proxy.core.errors import Forbidden, ProxyError, Unauthorized
from lunar_proxy.core.identity import Credential, check_query, credential, proxy_credential
from lunar_proxy.core.intake import Incoming
from lunar_proxy.core.limits import Ask, Limits, Verdict, refusal
from lunar_proxy.core.model import Call, Headers, Identity, Outcome, Target, noun
from lunar_proxy.core.policy import AuthFailures, authorize, may_ask, permits
from lunar_proxy.core.pricing import Price, plain_cost
from lunar_proxy.stores import KeyRecord, Reservation, Store
from lunar_proxy.stores.keys import Keyring, listed

# What a prompt is reserved as before it is counted: bytes of its JSON to a token. Real text has
# four to five; the JSON around it makes up for the difference.
BYTES_PER_TOKEN = 4
# A string as long as this in the letters of base64 is an image, a recording or a file. What a model
# makes of it has little to do with its length: images come to 1600 tokens at most
# (docs.anthropic.com, vision; OpenAI's 2048 x 2048 in high detail to 1445), a page of a PDF and a
# minute of sound to about as many.
LONG = 4096
ATTACHED = 1600
_BASE64 = re.compile(rb"[\w+/=-]{64}", re.ASCII)
# An answer without max_tokens, until the model's own average is known.
USUAL_OUTPUT = 500
_WEIGHT = 0.1
# A client may make up model ids; whoever comes after these is estimated by the usual output.
MAX_TARGETS = 10_000


class Verifier(Protocol):
    """Checks a JWT (`stores.jwt.JwtVerifier`). `known` answers at once for a token it has checked
    before; `verify` raises Unauthorized, or StoreUnavailable.
    """

    def known(self, token: str) -> Identity | None: ...

    def verify(self, token: str) -> Awaitable[Identity]: ...


@noun
class Caller:
    identity: Identity | None
    own_key: bytes | None
    keyed: bool = False  # the request itself carries a credential of ours

    def __repr__(self) -> str:
        """Without the caller's own key."""
        return f"<Caller {self.identity.name if self.identity is not None else 'anonymous'}>"


def stranger(headers: Headers, *, required: bool, tokens: bool) -> Caller | None:
    """Who sends these fields, where they name nobody whom we know and nobody need be known."""
    if required:
        return None
    try:
        found = credential(headers, tokens=tokens)
    except Unauthorized:
        return None  # it is found, told and counted again each time
    return Caller(None, found.own) if found.anonymous else None


class Callers:
    """Tells who a request comes from (CONTRACT 3)."""

    def __init__(
        self, config: Config, store: Store, wall: Callable[[], float], verifier: Verifier | None
    ) -> None:
        self._required = config.auth.required
        self._keyring = Keyring(store, (_listed(key) for key in config.auth.keys))
        self._wall = wall
        self._verifier = verifier
        self._failures = AuthFailures()
        self._credential = partial(credential, tokens=verifier is not None)
        self._stranger = partial(stranger, required=self._required, tokens=verifier is not None)

    def configured(self) -> list[KeyRecord]:
        """The keys under `auth.keys`, for an administrator."""
        return self._keyring.configured()

    def of(self, incoming: Incoming) -> Caller | Awaitable[Caller]:
        """Raises Unauthorized, or LimitExceeded for an address that failed too often; only a token
        that was not seen before takes waiting.

        What came with the CONNECT counts where the request says nothing itself, and is looked at
        again for every request, since a key may be revoked meanwhile.
        """
        via = incoming.via
        if via is None and not incoming.query:
            caller = incoming.fields.once(self._stranger)
            if caller is not None:
                return caller
        try:
            check_query(incoming.query)
            found = incoming.fields.once(self._credential)
            if via is None or not found.anonymous:
                return self._caller(found, found.own, incoming.client, keyed=not found.anonymous)
            said = proxy_credential(via.proxy_authorization, tokens=self._verifier is not None)
            return self._caller(said, found.own, incoming.client)
        except Unauthorized as error:
            raise self._failed(incoming.client, error) from None

    async def of_proxy(self, authorization: bytes | None, address: str) -> Identity | None:
        """Who asks for a CONNECT. None: nobody says so, which the requests inside still may."""
        try:
            found = proxy_credential(authorization, tokens=self._verifier is not None)
            if found.anonymous:
                return None
            caller = self._caller(found, None, address)
        except Unauthorized as error:
            raise self._failed(address, error) from None
        return (caller if isinstance(caller, Caller) else await caller).identity

    def _caller(
        self, said: Credential, own: bytes | None, address: str, *, keyed: bool = False
    ) -> Caller | Awaitable[Caller]:
        if said.key is not None:
            return Caller(self._keyring.identify(said.key, self._wall()), own, keyed)
        if said.token is not None and self._verifier is not None:
            if (identity := self._verifier.known(said.token)) is not None:
                return Caller(identity, own, keyed)
            return self._verified(self._verifier.verify(said.token), own, address, keyed)
        if self._required:
            raise Unauthorized(
                "an API key is needed: send `x-api-key: pk_live_...` "
                "or `Authorization: Bearer pk_live_...`"
            )
        return Caller(None, own)

    async def _verified(
        self, answer: Awaitable[Identity], own: bytes | None, address: str, keyed: bool
    ) -> Caller:
        try:
            return Caller(await answer, own, keyed)
        except Unauthorized as error:
            raise self._failed(address, error) from None

    def _failed(self, address: str, error: Unauthorized) -> ProxyError:
        """What to tell an address that failed: why, or that it has failed too often."""
        return self._failures.failed(address, self._wall()) or error


def _listed(key: AuthKey) -> KeyRecord:
    return listed(key.name, key.key.reveal(), key.models, limits_of(key.limits))


def limits_for(identity: Identity | None, default: Limits) -> Limits:
    """What a caller is held to; without limits of its own, to the config's."""
    if identity is None or identity.limits is None:
        return default
    own: Limits = identity.limits
    return own


def limits_of(configured: ConfiguredLimits | None) -> Limits | None:
    return None if configured is None else configured.compiled()


def permitted(identity: Identity | None, name: str, targets: list[Target]) -> list[Target]:
    """The plan narrowed to what the key may use. Raises Forbidden when nothing is left."""
    if identity is None or not identity.models:
        return targets
    authorize(identity, name, targets)
    if may_ask(identity, name):
        return targets
    allowed = [target for target in targets if permits(identity, target)]
    if not allowed:
        raise Forbidden(f"this key may not use the model {name!r}", param="model")
    return allowed


class Taken(NamedTuple):
    """What a call holds until it is settled, and what it was told."""

    reservation: Reservation
    verdict: Verdict


def _taken(reservation: Reservation, verdict: Verdict) -> Taken:
    if verdict.blocked is not None:
        raise refusal(verdict)
    return Taken(reservation, verdict)


async def _taken_later(reservation: Reservation, verdict: Awaitable[Verdict]) -> Taken:
    return _taken(reservation, await verdict)


class Limiter:
    """Reserves the worst case of a call, so that no limit is passed while calls overlap."""

    def __init__(self, store: Store, wall: Callable[[], float]) -> None:
        self._store = store
        self._wall = wall
        self._usual_output: dict[Target, float] = {}

    def take(
        self, call: Call, limits: Limits, target: Target, price: Price | object | None
    ) -> Taken | Awaitable[Taken]:
        """What the call holds from now on. Raises LimitExceeded or BudgetExceeded with what the
        client may do when.
        """
        identity = call.identity
        subject = identity.id if identity is not None else f"address:{call.client}"
        reservation = Reservation(subject, limits)
        if limits.tokens_per_minute is not None or limits.budget is not None:
            reservation.ask = self._ask(call, target, price)
        verdict = self._store.take(reservation, self._wall())
        if not isinstance(verdict, Verdict):
            return _taken_later(reservation, verdict)
        return _taken(reservation, verdict)

    def settle(self, reservation: Reservation, outcome: Outcome) -> None:
        """Pay for what the answer used, and for attempts that were billed before it."""
        usage, target = outcome.usage, outcome.target
        if usage is not None and target is not None and usage.output_tokens:
            self._learn(target, usage.output_tokens)
        tokens = usage.total_tokens if usage is not None else 0
        cost = outcome.cost.total if outcome.cost is not None else None
        for attempt in outcome.attempts[:-1]:  # the last one is the answer itself
            tokens += attempt.usage.total_tokens if attempt.usage is not None else 0
            if attempt.cost is not None:
                cost = attempt.cost.total + (cost or 0)
        self._store.settle(reservation, tokens, cost, self._wall())

    def _learn(self, target: Target, output_tokens: int) -> None:
        usual = self._usual_output.get(target)
        if usual is not None:
            self._usual_output[target] = usual + _WEIGHT * (output_tokens - usual)
        elif len(self._usual_output) < MAX_TARGETS:
            self._usual_output[target] = output_tokens

    def _ask(self, call: Call, target: Target, price: Price | object | None) -> Ask:
        prompt = prompt_tokens(call.body)
        output = max_tokens(call) or round(self._usual_output.get(target, USUAL_OUTPUT))
        if call.endpoint == "embeddings":
            output = 0
        cost = plain_cost(price, prompt, output) if isinstance(price, Price) else None
        return Ask.of(prompt + output, cost)


def prompt_tokens(body: bytes) -> int:
    """About how many tokens a JSON body is, before anyone has counted them."""
    attached = [] if len(body) < LONG else list(_attached(body))
    return (len(body) - sum(attached)) // BYTES_PER_TOKEN + len(attached) * ATTACHED


def _attached(body: bytes) -> Iterator[int]:
    """The lengths of what is attached. Looks at a few bytes in each `LONG`: whatever is shorter
    than that may be missed.
    """
    at = LONG
    while at < len(body):
        if _BASE64.match(body, at):
            start, end = body.rfind(b'"', 0, at) + 1, body.find(b'"', at)
            end = len(body) if end < 0 else end
            if body.find(b" ", start, end) < 0 and body.find(b"\\", start, end) < 0:
                yield end - start
            at = end
        at += LONG


def max_tokens(call: Call) -> int | None:
    """The longest answer the request allows, under any of the names in use; times `n`."""
    doc = call.doc or {}
    for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        value = doc.get(name)
        if isinstance(value, int) and value > 0:
            n = doc.get("n")
            return value * (n if isinstance(n, int) and 0 < n <= 128 else 1)
    return None
