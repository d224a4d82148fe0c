"""`auth.jwt` of the config -> the verifier of tokens."""

from __future__ import annotations

from collections.abc import Callable

from lunar_proxy.config import ConfigError
from lunar_proxy.config.schema import Jwt
from lunar_proxy.stores.jwks import Fetch
from lunar_proxy.stores.jwt import JwtSettings, JwtVerifier


def token_verifier(
    jwt: Jwt | None, fetch: Fetch, clock: Callable[[], float], before: JwtVerifier | None = None
) -> JwtVerifier | None:
    """None when tokens are not configured. Raises ConfigError for a key file that is none.

    `before` is the one it takes over from at a reload: keys read from the same URL stay known.
    """
    if jwt is None:
        return None
    try:
        return JwtVerifier(_settings(jwt), fetch, clock, before)
    except ValueError:
        raise ConfigError(["auth.jwt.public_key_file: is not a public key in PEM form"]) from None


def _settings(jwt: Jwt) -> JwtSettings:
    return JwtSettings(
        algorithms=jwt.algorithms,
        issuer=jwt.issuer,
        audience=jwt.audience,
        jwks_url=jwt.jwks_url,
        public_key=_pem(jwt),
        secret=None if jwt.secret is None else jwt.secret.reveal(),
        name_claim=jwt.name_claim,
        models_claim=jwt.models_claim,
        limits_claim=jwt.limits_claim,
        leeway_s=jwt.leeway_s,
    )


def _pem(jwt: Jwt) -> str | None:
    if jwt.public_key_file is None:
        return None
    try:
        return jwt.public_key_file.read_text("ascii")
    except OSError as error:
        why = error.strerror or "not a file"
        raise ConfigError([f"auth.jwt.public_key_file: cannot be read: {why}"]) from None
