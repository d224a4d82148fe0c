"""Who is calling, as far as the headers say: header forms -> `Credential`; and what a key is.

Three forms are equal on every `/v1` endpoint (CONTRACT 3): `x-api-key: pk_...`,
`Authorization: Bearer pk_...` and `Authorization: Bearer <JWT>`. Anything else is the caller's own
provider key, and may accompany one of ours. What looks like ours but stands in another place is
refused, with the place to put it: forwarding it would show it to a provider.
"""

from __future__ import annotations

import base64
import binascii
import re
from hashlib import sha256
from typing import NamedTuple

from .errors import Unauthorized
from .model import Headers

LIVE, TEST = "pk_live_", "pk_test_"
MIN_SECRET = 32  # base62 characters: 190 bits, beyond guessing
SHOWN = 12  # characters of a key that are stored and shown to recognise it by

# Far above any key or sane token; below the 8190 bytes that aiohttp and nginx allow a header line.
MAX_CREDENTIAL = 8192

_KEY = re.compile(rf"pk_(?:live|test)_[0-9A-Za-z]{{{MIN_SECRET},}}")

_OURS = re.compile(rb"pk_(?:live|test)_")
_PLACES = "send it as `x-api-key: KEY` or `Authorization: Bearer KEY`"
_CARRIERS = frozenset({b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"})
# Never passed on; the first is a CONNECT's own way to send a key.
_STAY_HERE = frozenset({b"proxy-authorization", b"cookie"})


class Credential(NamedTuple):
    """What a request carries. At most one of `key` and `token` is set; `own` may go with either."""

    key: str | None = None  # pk_..., of any length
    token: str | None = None  # a JWT for us
    own: bytes | None = None  # the caller's key at a provider

    def __repr__(self) -> str:
        """Says nothing: a credential must not reach a log by accident."""
        return "Credential()"

    @property
    def anonymous(self) -> bool:
        return self.key is None and self.token is None


NOBODY = Credential()


def digest(key: str) -> str:
    """SHA-256, hex: how a key is stored and looked up.

    A plain hash is enough, since a key is random and long; salt and stretching protect short
    secrets that people choose (NIST SP 800-63B 5.1.1.2).
    """
    return sha256(key.encode()).hexdigest()


def well_formed(key: str) -> bool:
    return _KEY.fullmatch(key) is not None


def is_ours(value: str) -> bool:
    return value.startswith("pk_")


def is_token(value: str) -> bool:
    """Three parts, the first a JSON object (RFC 7515 7.1); `{"` is `eyJ` in base64. Padded, cut or
    encrypted ones too: what is taken for the caller's own key may be shown to a provider.
    """
    return value.startswith("eyJ") and value.count(".") >= 2


def check_query(query: bytes) -> None:
    """Raise Unauthorized for a key of ours in the query, which goes to the provider as it is."""
    if query and _OURS.search(query):
        raise Unauthorized(f"the API key must not be in the URL; {_PLACES}")


def _strays(name: bytes, value: bytes) -> bool:
    """A key of ours where nobody looks for one, which would go to the provider."""
    return _OURS.search(value) is not None and name not in _STAY_HERE


def credential(headers: Headers, *, tokens: bool = False) -> Credential:
    """What the request carries; `tokens`: JWTs are configured, so one that is sent is meant for us.

    Raises Unauthorized for two different credentials, and for one of ours in the wrong place.
    """
    ours: str | None = None
    different = False
    own: bytes | None = None
    for name, raw in headers:
        if name not in _CARRIERS:
            if _strays(name, raw):
                raise Unauthorized(f"the API key is in the wrong place; {_PLACES}")
            continue
        if len(raw) > MAX_CREDENTIAL:
            raise Unauthorized("the credential is too long")
        scheme, value = _parse(name, raw.decode("latin-1").strip())
        if is_ours(value) or (tokens and is_token(value)):
            _check_place(name, scheme, value)
            different = different or ours not in (None, value)
            ours = value
        elif value:
            own = own or value.encode("latin-1")
    if different:
        raise Unauthorized("the request carries two different credentials; send one")
    if ours is None:
        return NOBODY if own is None else Credential(own=own)
    return Credential(ours, None, own) if is_ours(ours) else Credential(None, ours, own)


def _parse(name: bytes, value: str) -> tuple[str, str]:
    """(scheme in lower case, the secret); only Authorization has a scheme (RFC 9110 11.6.2)."""
    if name != b"authorization":
        return "", value
    scheme, space, rest = value.partition(" ")
    return (scheme.lower(), rest.strip()) if space else ("", value)


def _check_place(name: bytes, scheme: str, value: str) -> None:
    if name == b"authorization" and scheme == "bearer":
        return
    if not is_ours(value):
        raise Unauthorized("a JWT is sent as `Authorization: Bearer TOKEN`")
    if name != b"x-api-key":
        raise Unauthorized(f"the API key is in the wrong place; {_PLACES}")


def proxy_credential(value: bytes | None, *, tokens: bool = False) -> Credential:
    """The same from `Proxy-Authorization` (RFC 9110 11.7.2): Bearer, or Basic with the key on
    either side of the colon, as `HTTPS_PROXY=http://pk_live_...@host` and `http://me:pk_...@host`
    send it. Anything else is nobody.
    """
    if value is None or len(value) > MAX_CREDENTIAL:
        return NOBODY
    scheme, _, rest = value.decode("latin-1").strip().partition(" ")
    secrets = _basic(rest) if scheme.lower() == "basic" else [rest.strip()]
    for secret in secrets:
        if is_ours(secret):
            return Credential(key=secret)
        if tokens and is_token(secret):
            return Credential(token=secret)
    return NOBODY


def _basic(value: str) -> list[str]:
    try:
        user, _, password = base64.b64decode(value, validate=True).decode("latin-1").partition(":")
    except (binascii.Error, ValueError):
        return []
    return [password, user]


def unknown_key(key: str) -> Unauthorized:
    """The error of a key that no store knows; it never repeats the key."""
    if well_formed(key):
        return Unauthorized("unknown API key")
    return Unauthorized(
        f"malformed API key: it is {LIVE} or {TEST} and at least {MIN_SECRET} letters and digits; "
        "it may have been cut short"
    )
