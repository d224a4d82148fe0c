"""Tokens: what is let in, and every way of getting in that must not work."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from lunar_proxy.core.errors import StoreUnavailable, Unauthorized
from lunar_proxy.core.limits import Budget, Limits
from lunar_proxy.core.model import Identity
from lunar_proxy.core.policy import may_ask
from lunar_proxy.stores.jwt import JwtSettings, JwtVerifier

from .backends import T0, Clock

ISSUER, AUDIENCE = "https://issuer.test/", "lunar"
SECRET = "a secret of at least thirty-two bytes"
CLAIMS: dict[str, Any] = {"sub": "ann", "iss": ISSUER, "aud": AUDIENCE, "exp": T0 + 600}


@cache
def private(name: str) -> Any:
    """A key per name; the first letters say of which kind."""
    if name.startswith("rsa"):
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    if name.startswith("ec"):
        return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate()


ALGORITHM = {"rsa": "RS256", "ec": "ES256", "ed": "EdDSA"}


def algorithm(name: str) -> str:
    return ALGORITHM[name.rstrip("0123456789")]


def jwk(name: str, **more: str) -> dict[str, Any]:
    public = private(name).public_key()
    entry: dict[str, Any] = json.loads(jwt.get_algorithm_by_name(algorithm(name)).to_jwk(public))
    return entry | {"kid": name, **more}


def jwks(*names: str) -> bytes:
    return json.dumps({"keys": [jwk(name) for name in names]}).encode()


def pem(name: str) -> str:
    encoded: bytes = (
        private(name)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return encoded.decode()


def token(name: str = "rsa", kid: str | None = None, **changes: Any) -> str:
    claims = {key: value for key, value in (CLAIMS | changes).items() if value is not None}
    return jwt.encode(claims, private(name), algorithm(name), headers={"kid": kid or name})


def raw(header: dict[str, Any], claims: Any, sign: Callable[[bytes], bytes]) -> str:
    def part(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    signed = part(json.dumps(header).encode()) + b"." + part(json.dumps(claims).encode())
    return (signed + b"." + part(sign(signed))).decode()


class Issuer:
    """Serves a JWKS, counts how often, and fails on demand."""

    def __init__(self, *names: str) -> None:
        self.answer: bytes | Exception = jwks(*names)
        self.fetched = 0

    async def __call__(self, url: str) -> bytes:
        assert url == "https://issuer.test/jwks"
        self.fetched += 1
        await asyncio.sleep(0)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def verifier(issuer: Issuer, clock: Clock, **settings: Any) -> JwtVerifier:
    settings = {
        "algorithms": ("RS256", "ES256", "EdDSA"),
        "issuer": ISSUER,
        "audience": AUDIENCE,
        "jwks_url": "https://issuer.test/jwks",
    } | settings
    return JwtVerifier(JwtSettings(**settings), issuer, clock)


@pytest.mark.parametrize("name", ["rsa", "ec", "ed"])
async def test_a_signed_token_names_its_bearer(name: str, clock: Clock) -> None:
    found = await verifier(Issuer("rsa", "ec", "ed"), clock).verify(token(name))
    assert found == Identity("jwt:ann", "ann")


@pytest.mark.parametrize("name", ["rsa", "ec", "ed"])
async def test_a_public_key_needs_no_issuer(name: str, clock: Clock) -> None:
    static = verifier(Issuer(), clock, jwks_url=None, public_key=pem(name))
    assert (await static.verify(token(name))).name == "ann"
    with pytest.raises(Unauthorized, match="signature"):
        await static.verify(token(f"{name}2"))


async def test_a_secret_verifies_hs256(clock: Clock) -> None:
    shared = verifier(Issuer(), clock, jwks_url=None, secret=SECRET, algorithms=("HS256",))
    assert (await shared.verify(jwt.encode(CLAIMS, SECRET, "HS256"))).name == "ann"
    with pytest.raises(Unauthorized, match="signature"):
        await shared.verify(jwt.encode(CLAIMS, SECRET + "x", "HS256"))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "expired": ({"exp": T0 - 31}, "expired"),
    "never expires": ({"exp": None}, "exp"),
    "expires at a word": ({"exp": "tomorrow"}, "exp"),
    "expires at true": ({"exp": True}, "exp"),
    "not yet": ({"nbf": T0 + 31}, "not valid yet"),
    "another issuer": ({"iss": "https://evil.test/"}, "issuer"),
    "no issuer": ({"iss": None}, "issuer"),
    "another audience": ({"aud": "other"}, "audience"),
    "other audiences": ({"aud": ["a", "b"]}, "audience"),
    "no audience": ({"aud": None}, "audience"),
    "no name": ({"sub": None}, "sub"),
    "a name of another type": ({"sub": ""}, "sub"),
}


@pytest.mark.parametrize(("changes", "says"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_failed_check_is_named_and_not_explained(
    changes: dict[str, Any], says: str, clock: Clock
) -> None:
    with pytest.raises(Unauthorized, match=says) as caught:
        await verifier(Issuer("rsa"), clock).verify(token(**changes))
    assert ISSUER not in caught.value.message


@pytest.mark.parametrize(
    "changes",
    [{"exp": T0 - 29}, {"nbf": T0 + 29}, {"aud": ["a", AUDIENCE]}, {"iat": T0 + 1e6}],
)
async def test_leeway_and_lists_are_allowed(changes: dict[str, Any], clock: Clock) -> None:
    assert (await verifier(Issuer("rsa"), clock).verify(token(**changes))).name == "ann"


def hs256(key: bytes) -> Callable[[bytes], bytes]:
    return lambda signed: hmac.new(key, signed, hashlib.sha256).digest()


FORGED = {
    "alg none": lambda: raw({"alg": "none"}, CLAIMS, lambda _: b""),
    "alg None": lambda: raw({"alg": "None", "kid": "rsa"}, CLAIMS, lambda _: b""),
    "no alg": lambda: raw({"kid": "rsa"}, CLAIMS, lambda _: b""),
    "alg is a list": lambda: raw({"alg": ["RS256"]}, CLAIMS, lambda _: b""),
    "public key as secret": lambda: raw(
        {"alg": "HS256", "kid": "rsa"}, CLAIMS, hs256(pem("rsa").encode())
    ),
    "no signature": lambda: token().rpartition(".")[0] + ".",
    "another's signature": lambda: token().rpartition(".")[0] + "." + token("rsa2").split(".")[2],
    "signed by another": lambda: token("rsa2", kid="rsa"),
    "of another type": lambda: token("ec2", kid="rsa"),
    "with its own key": lambda: raw(
        {"alg": "HS256", "jwk": {"kty": "oct", "k": "c2VjcmV0"}}, CLAIMS, hs256(b"secret")
    ),
    "not a token": lambda: "eyJ.a.b",
    "not json": lambda: "eyJhbGciOiJSUzI1NiJ9.bm90IGpzb24.c2ln",
    "not ascii": lambda: "eyJhbGciOiJSUzI1NiJ9.é.c2ln",
    "claims are a list": lambda: jwt.api_jws.encode(b"[1]", private("rsa"), "RS256"),
    "critical extension": lambda: raw(
        {"alg": "RS256", "crit": ["x"], "x": 1}, CLAIMS, lambda _: b""
    ),
    "too long": lambda: token(padding="a" * 9000),
    "deep": lambda: "eyJhbGciOiJSUzI1NiJ9." + "W" * 8000 + ".c2ln",
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
@pytest.mark.parametrize("source", ["jwks", "pem"])
async def test_a_forged_token_is_unauthorized(
    forge: Callable[[], str], source: str, clock: Clock
) -> None:
    how = {} if source == "jwks" else {"jwks_url": None, "public_key": pem("rsa")}
    with pytest.raises(Unauthorized):
        await verifier(Issuer("rsa"), clock, **how).verify(forge())


async def test_only_listed_algorithms_count(clock: Clock) -> None:
    with pytest.raises(Unauthorized, match="algorithm"):
        await verifier(Issuer("rsa", "ec"), clock, algorithms=("RS256",)).verify(token("ec"))


async def test_claims_say_models_and_limits(clock: Clock) -> None:
    reads = verifier(Issuer("rsa"), clock, models_claim="models", limits_claim="quota")
    quota = {"requests_per_minute": 5, "budget": {"usd": 1.5, "per": "day"}}
    found = await reads.verify(token(models=["openai/*", "auto"], quota=quota))
    assert found.models == ("openai/*", "auto")
    assert found.limits == Limits(requests_per_minute=5, budget=Budget(Decimal("1.5"), "day"))
    assert (await reads.verify(token(models="a b"))).models == ("a", "b")
    assert not may_ask(await reads.verify(token(models=[])), "gpt-4o")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"models": 7},
        {"models": ["a", 7]},
        {"models": "a", "quota": "much"},
        {"models": "a", "quota": {"requests_per_minute": -1}},
        {"models": "a", "quota": {"budget": {"usd": "NaN"}}},
        {"models": "a", "quota": {"request_per_minute": 1}},
    ],
)
async def test_claims_that_cannot_be_read_are_refused(
    changes: dict[str, Any], clock: Clock
) -> None:
    reads = verifier(Issuer("rsa"), clock, models_claim="models", limits_claim="quota")
    with pytest.raises(Unauthorized, match="no usable"):
        await reads.verify(token(**changes))


# --- the issuer -------------------------------------------------------------------------------


async def test_unknown_kids_cost_one_fetch_a_minute_however_many_come(clock: Clock) -> None:
    issuer = Issuer("rsa")
    checks = verifier(issuer, clock)
    await checks.start()
    clock.advance(60)
    tokens = [token("rsa2", kid=f"kid{n}") for n in range(20)]
    refused = await asyncio.gather(*map(checks.verify, tokens), return_exceptions=True)
    assert all(isinstance(error, Unauthorized) for error in refused)
    assert issuer.fetched == 2
    clock.advance(59)
    with pytest.raises(Unauthorized):
        await checks.verify(token("rsa2", kid="another"))
    assert issuer.fetched == 2


async def test_a_rotated_key_is_fetched_when_it_is_first_met(clock: Clock) -> None:
    issuer = Issuer("rsa")
    checks = verifier(issuer, clock)
    await checks.verify(token("rsa"))
    issuer.answer = jwks("rsa", "rsa2")
    clock.advance(61)
    assert (await checks.verify(token("rsa2"))).name == "ann"
    assert issuer.fetched == 2


async def test_a_key_published_right_after_the_set_was_read_is_met_all_the_same(
    clock: Clock,
) -> None:
    issuer = Issuer("rsa")
    checks = verifier(issuer, clock)
    await checks.start()
    issuer.answer = jwks("rsa", "rsa2")
    clock.advance(1)
    assert (await checks.verify(token("rsa2"))).name == "ann"
    for n in range(5):  # but that was this minute's
        with pytest.raises(Unauthorized):
            await checks.verify(token("rsa3", kid=f"kid{n}"))
    assert issuer.fetched == 2


async def test_an_outage_is_met_once_a_minute_too(clock: Clock) -> None:
    issuer = Issuer("rsa")
    checks = verifier(issuer, clock)
    await checks.start()
    issuer.answer = OSError("down")
    for minute in range(3):
        for n in range(5):
            with pytest.raises(Unauthorized):
                await checks.verify(token("rsa2", kid=f"kid{n}"))
        assert issuer.fetched == 2 + minute
        clock.advance(60)


async def test_a_withdrawn_key_is_noticed_even_by_tokens_that_were_verified(clock: Clock) -> None:
    issuer = Issuer("rsa", "rsa2")
    checks = verifier(issuer, clock)
    old = token("rsa", exp=T0 + 3600)
    await checks.verify(old)
    issuer.answer = jwks("rsa2")
    clock.advance(600)
    await checks.verify(token("rsa2", exp=T0 + 3600))  # starts the refresh, and does not wait
    for _ in range(5):
        await asyncio.sleep(0)
    with pytest.raises(Unauthorized, match="signature"):
        await checks.verify(old)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"<html>Bad gateway</html>",
        b"[]",
        b"null",
        b'{"keys": []}',
        b'{"keys": {"a": 1}}',
        b'{"keys": [7, null, {}, {"kty": "RSA"}, {"kty": "RSA", "n": 5, "e": []}]}',
        b'{"keys": [{"kty": "EC", "crv": "P-999", "x": "AA", "y": "AA"}]}',
        b'{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}',
        OSError("unreachable"),
        TimeoutError(),
    ],
    ids=repr,
)
async def test_an_outage_keeps_the_last_good_set(garbage: bytes | Exception, clock: Clock) -> None:
    issuer = Issuer("rsa")
    checks = verifier(issuer, clock)
    await checks.start()
    issuer.answer = garbage
    clock.advance(3600)
    for _ in range(3):
        assert (await checks.verify(token(exp=T0 + 7200))).name == "ann"
        await asyncio.sleep(0)
    with pytest.raises(Unauthorized):
        await checks.verify(token("rsa2", exp=T0 + 7200))


async def test_keys_that_were_never_read_are_our_fault_and_soon_asked_for_again(
    clock: Clock,
) -> None:
    issuer = Issuer("rsa")
    good, issuer.answer = issuer.answer, OSError("not up yet")
    checks = verifier(issuer, clock)
    await checks.start()
    with pytest.raises(StoreUnavailable):
        await checks.verify(token())
    assert issuer.fetched == 1
    issuer.answer = good
    clock.advance(5)
    assert (await checks.verify(token())).name == "ann"


async def test_bad_entries_do_not_hide_the_good_one(clock: Clock) -> None:
    issuer = Issuer()
    entries = [7, {"kty": "RSA"}, jwk("rsa2", use="enc"), jwk("ec", alg="ES384"), jwk("rsa")]
    issuer.answer = json.dumps({"keys": entries}).encode()
    checks = verifier(issuer, clock)
    assert (await checks.verify(token())).name == "ann"
    for name in ("rsa2", "ec"):  # not for signatures; not for this algorithm
        with pytest.raises(Unauthorized):
            await checks.verify(token(name))


async def test_a_token_without_kid_is_tried_with_every_key_that_fits(clock: Clock) -> None:
    bare = jwt.encode(CLAIMS, private("rsa2"), "RS256")
    assert (await verifier(Issuer("ec", "rsa", "rsa2"), clock).verify(bare)).name == "ann"


async def test_a_verified_token_is_remembered_until_it_expires(clock: Clock) -> None:
    checks = verifier(Issuer("rsa"), clock)
    known = token(exp=T0 + 100)
    first = await checks.verify(known)
    assert await checks.verify(known) is first
    clock.advance(131)
    with pytest.raises(Unauthorized, match="expired"):
        await checks.verify(known)
