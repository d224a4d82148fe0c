"""The keys an issuer publishes (RFC 7517), fetched rarely and never lost.

A set that was good stays until a good one replaces it, whatever happens at the issuer. A `kid` that
is not in it asks for a new set at most once a minute, however many tokens carry one; whoever needs
the set meanwhile waits for the one fetch that is under way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson

from lunar_proxy.core.errors import StoreUnavailable
from lunar_proxy.tasks import spawn

logger = logging.getLogger(__name__)

Fetch = Callable[[str], Awaitable[bytes]]

UNKNOWN_KID_S = 60.0  # CONTRACT 3
FIRST_SET_S = 5.0  # between attempts while there is no set at all, so nothing can be verified
REFRESH_S = 600.0  # a key that was withdrawn is noticed so late, in the background
FETCH_TIMEOUT_S = 5.0
MAX_KEYS = 100  # of a set; real ones have two or three

# Algorithm -> key type and, where the algorithm fixes it, curve (RFC 7518 3.1, RFC 8037 3.1). The
# type of a key decides what it may verify: nothing here is an HMAC secret, whatever a token says.
_TYPES: dict[str, tuple[str, str | None]] = {
    **{f"{family}{bits}": ("RSA", None) for family in ("RS", "PS") for bits in (256, 384, 512)},
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", None),
}


@dataclass(frozen=True, slots=True)
class PublicKey:
    kid: str | None
    kty: str
    crv: str | None
    alg: str | None  # the only algorithm it is for, if it says
    key: Any  # of `cryptography`

    def verifies(self, alg: str) -> bool:
        kty, crv = _TYPES.get(alg, (None, None))
        return self.kty == kty and crv in (None, self.crv) and self.alg in (None, alg)


class Jwks:
    """`clock`: seconds since 1970."""

    def __init__(self, url: str, fetch: Fetch, clock: Callable[[], float]) -> None:
        self.url = url
        self._fetch = fetch
        self._clock = clock
        self._keys: tuple[PublicKey, ...] = ()
        self._tried_at = float("-inf")
        self._met_at = float("-inf")  # a `kid` that was not in the set
        self._loaded_at = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None
        self.generation = 0  # of the set; what was verified with an older one may not hold now

    async def candidates(self, kid: str | None, alg: str) -> list[PublicKey]:
        """The keys that may have signed a token with this header; without a `kid`, all that fit.

        Raises StoreUnavailable while no set was ever read.
        """
        found = self._fitting(kid, alg)
        if not found:
            await self._meet()
            found = self._fitting(kid, alg)
        elif self._clock() - self._loaded_at >= REFRESH_S:
            self._start()  # nobody waits for it: the keys at hand are still good
        if not self._keys:
            raise StoreUnavailable(
                "tokens cannot be verified: their issuer's keys could not be read",
                retry_after_s=FIRST_SET_S,
            )
        return found

    async def refresh(self) -> None:
        """Join the fetch under way, or start one if it is time for it. Never raises."""
        await _joined(self._start())

    async def _meet(self) -> None:
        """The same for a `kid` that is not in the set: once a minute, whenever it was read last,
        since the issuer may have published another key a moment later.
        """
        due = bool(self._keys) and self._clock() - self._met_at >= UNKNOWN_KID_S
        if due:
            self._met_at = self._clock()
        await _joined(self._start(now=due))

    def _fitting(self, kid: str | None, alg: str) -> list[PublicKey]:
        return [key for key in self._keys if key.verifies(alg) and kid in (None, key.kid)]

    def _start(self, *, now: bool = False) -> asyncio.Task[None] | None:
        if self._refreshing is not None and not self._refreshing.done():
            return self._refreshing
        wait_s = UNKNOWN_KID_S if self._keys else FIRST_SET_S
        if not now and self._clock() - self._tried_at < wait_s:
            return None
        self._tried_at = self._clock()
        self._refreshing = spawn(self._load(), name="jwks")
        return self._refreshing

    async def _load(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                keys = parse(await self._fetch(self.url))
        except Exception as error:  # noqa: BLE001 - an outage of the issuer, of whatever kind
            logger.warning("the JWKS could not be read, the last good set stays: %r", error)
            return
        self._loaded_at = self._clock()
        if [key.kid for key in keys] != [key.kid for key in self._keys] or not self._same(keys):
            self._keys = keys
            self.generation += 1

    def _same(self, keys: tuple[PublicKey, ...]) -> bool:
        return all(a.key == b.key for a, b in zip(keys, self._keys, strict=True))


async def _joined(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        await asyncio.shield(task)  # a caller that goes away does not stop it for the others


def parse(data: bytes) -> tuple[PublicKey, ...]:
    """The public keys of a set. What is no key, or of no type we know, is left out (RFC 7517 5).

    Raises ValueError when nothing is left: an error page must not replace a good set.
    """
    document = orjson.loads(data)
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("not a JWK set")
    keys = tuple(key for entry in entries[:MAX_KEYS] if (key := _public_key(entry)) is not None)
    if not keys:
        raise ValueError("no usable key in the set")
    return keys


def _public_key(entry: Any) -> PublicKey | None:
    # pyjwt brings cryptography along: 20 MB that only those who configure JWT should pay.
    from jwt import get_algorithm_by_name

    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    kty, crv, alg = entry.get("kty"), entry.get("crv"), entry.get("alg")
    reader = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}.get(str(kty))
    if reader is None:
        return None
    public = {name: value for name, value in entry.items() if name != "d"}
    try:
        key = _from_jwk(get_algorithm_by_name(reader), public, kty, crv)
    except Exception:  # noqa: BLE001 - pyjwt, cryptography and base64 each raise their own
        return None
    return PublicKey(_text(entry.get("kid")), str(kty), _text(crv), _text(alg), key)


def _from_jwk(algorithm: Any, entry: dict[str, Any], kty: Any, crv: Any) -> Any:
    from jwt import get_algorithm_by_name

    if kty == "EC":
        by_curve = {curve: alg for alg, (kind, curve) in _TYPES.items() if kind == "EC"}
        algorithm = get_algorithm_by_name(by_curve[crv])
    return algorithm.from_jwk(entry)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
