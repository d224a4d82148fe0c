"""Tokens instead of keys: a JWT of the configured issuer -> `Identity` (RFC 7519, RFC 8725).

What can verify a token follows from the config, never from the token: a shared secret is tried for
HS algorithms only, public keys for the others only, and only for algorithms that are listed. So
`alg: none` and a public key used as an HMAC secret have no way in. A failed check is named; what
was expected is not told.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from math import isfinite
from typing import Any

import orjson

from lunar_proxy.core.errors import Unauthorized
from lunar_proxy.core.identity import MAX_CREDENTIAL
from lunar_proxy.core.limits import Limits
from lunar_proxy.core.model import Identity

from .codec import load_limits
from .jwks import Fetch, Jwks

MAX_NAME = 200

# A verified token is not verified again for so long, at most until it expires: RSA takes some
# 50 us, a look-up one.
CACHE_S = 300.0
CACHE_SIZE = 10_000


@dataclass(frozen=True, slots=True)
class JwtSettings:
    """CONTRACT 2 `auth.jwt`. Exactly one of `jwks_url`, `public_key` (PEM) and `secret` is set."""

    algorithms: tuple[str, ...] = ("RS256",)
    issuer: str | None = None
    audience: str | None = None
    jwks_url: str | None = None
    public_key: str | None = None
    secret: str | None = field(default=None, repr=False)
    name_claim: str = "sub"
    models_claim: str | None = None
    limits_claim: str | None = None
    leeway_s: float = 30.0


class JwtVerifier:
    """`clock`: seconds since 1970. `fetch` reads a URL; it is called for the JWKS only. `before`:
    the verifier that this one replaces; what it knows of the same JWKS goes on.

    Raises ValueError for a public key that is none.
    """

    def __init__(
        self,
        settings: JwtSettings,
        fetch: Fetch,
        clock: Callable[[], float],
        before: JwtVerifier | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._public_key = None if settings.public_key is None else _pem(settings.public_key)
        self._jwks: Jwks | None = None
        if (url := settings.jwks_url) is not None:
            known = None if before is None else before._jwks
            same = known is not None and known.url == url
            self._jwks = known if same else Jwks(url, fetch, clock)
        self._verified: OrderedDict[bytes, tuple[Identity, float, int]] = OrderedDict()

    async def start(self) -> None:
        """Read the JWKS now, so that no request waits for it. Never raises."""
        if self._jwks is not None:
            await self._jwks.refresh()

    async def verify(self, token: str) -> Identity:
        """Raises Unauthorized naming the check that failed, or StoreUnavailable while the issuer's
        keys were never read.
        """
        if len(token) > MAX_CREDENTIAL:
            raise Unauthorized("the token is too long")
        if (known := self.known(token)) is not None:
            return known
        now = self._clock()
        claims = await self._signed(token)
        until = _check(claims, self._settings, now)
        identity = _identity(claims, self._settings)
        self._remember(_hashed(token), identity, min(until, now + CACHE_S))
        return identity

    def known(self, token: str) -> Identity | None:
        """Whose token it is, if it was verified lately and that still holds."""
        found = self._verified.get(_hashed(token))
        if found is None or self._clock() >= found[1] or found[2] != self._generation:
            return None
        return found[0]

    @property
    def _generation(self) -> int:
        return 0 if self._jwks is None else self._jwks.generation

    def _remember(self, hashed: bytes, identity: Identity, until: float) -> None:
        self._verified[hashed] = (identity, until, self._generation)
        if len(self._verified) > CACHE_SIZE:
            self._verified.popitem(last=False)

    async def _signed(self, token: str) -> dict[str, Any]:
        """The claims, once the signature is good."""
        import jwt  # with cryptography behind it; see jwks

        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise Unauthorized("the token is malformed") from None
        alg, kid = header.get("alg"), header.get("kid")
        if alg not in self._settings.algorithms:
            raise Unauthorized("the token's algorithm is not accepted")
        for key in await self._keys(alg, kid if isinstance(kid, str) else None):
            try:
                payload = jwt.api_jws.decode(token, key, algorithms=[alg])
            except jwt.InvalidSignatureError:
                continue
            except (jwt.PyJWTError, ValueError, TypeError):
                raise Unauthorized("the token is malformed") from None
            return _claims(payload)
        raise Unauthorized("the token's signature is not valid")

    async def _keys(self, alg: str, kid: str | None) -> list[Any]:
        settings = self._settings
        if alg.startswith("HS"):
            return [] if settings.secret is None else [settings.secret]
        if self._public_key is not None:
            return [self._public_key]
        if self._jwks is None:
            return []
        return [found.key for found in await self._jwks.candidates(kid, alg)]


def _hashed(token: str) -> bytes:
    return sha256(token.encode()).digest()


def _pem(text: str) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # see jwks

    return load_pem_public_key(text.encode())


def _claims(payload: bytes) -> dict[str, Any]:
    """orjson refuses NaN, which would compare as not expired."""
    try:
        claims = orjson.loads(payload)
    except orjson.JSONDecodeError:
        claims = None
    if not isinstance(claims, dict):
        raise Unauthorized("the token is malformed")
    return claims


def _check(claims: dict[str, Any], settings: JwtSettings, now: float) -> float:
    """The registered claims (RFC 7519 4.1); returns when the token ends, leeway included."""
    until = _date(claims, "exp")
    if until is None:
        raise Unauthorized("the token does not expire; it needs `exp`")
    until += settings.leeway_s
    if now >= until:
        raise Unauthorized("the token has expired")
    not_before = _date(claims, "nbf")
    if not_before is not None and now < not_before - settings.leeway_s:
        raise Unauthorized("the token is not valid yet")
    if settings.issuer is not None and claims.get("iss") != settings.issuer:
        raise Unauthorized("the token's issuer is not accepted")
    if settings.audience is not None and settings.audience not in _audiences(claims):
        raise Unauthorized("the token's audience is not accepted")
    return until


def _date(claims: dict[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise Unauthorized(f"the token's `{name}` is not a date")
    return float(value)


def _audiences(claims: dict[str, Any]) -> list[Any]:
    value = claims.get("aud")
    return value if isinstance(value, list) else [value]


def _identity(claims: dict[str, Any], settings: JwtSettings) -> Identity:
    name = claims.get(settings.name_claim)
    if not isinstance(name, str) or not name or len(name) > MAX_NAME or not name.isprintable():
        raise Unauthorized(f"the token has no usable `{settings.name_claim}`")
    return Identity(f"jwt:{name}", name, _models(claims, settings), _limits(claims, settings))


# An identity without globs may ask for everything. A token that lists none may ask for nothing,
# which is this: a glob that no name matches.
_NO_MODELS = ("",)


def _models(claims: dict[str, Any], settings: JwtSettings) -> tuple[str, ...]:
    """A list, or words in a string as `scope` has them (RFC 8693 4.2)."""
    if settings.models_claim is None:
        return ()
    value = claims.get(settings.models_claim)
    globs = value.split() if isinstance(value, str) else value
    if not isinstance(globs, list) or not all(isinstance(glob, str) for glob in globs):
        raise Unauthorized(f"the token has no usable `{settings.models_claim}`")
    return tuple(globs) or _NO_MODELS


def _limits(claims: dict[str, Any], settings: JwtSettings) -> Limits | None:
    value = None if settings.limits_claim is None else claims.get(settings.limits_claim)
    if value is None:
        return None
    try:
        return load_limits(value)
    except ValueError:
        raise Unauthorized(f"the token has no usable `{settings.limits_claim}`") from None
