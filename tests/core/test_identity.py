"""Header forms -> credential."""

from __future__ import annotations

import base64

import pytest

from lunar_proxy.core.errors import Unauthorized
from lunar_proxy.core.identity import (
    NOBODY,
    Credential,
    credential,
    digest,
    proxy_credential,
    unknown_key,
    well_formed,
)

KEY = "pk_live_" + "aB3" * 12
OTHER = "pk_test_" + "zY9" * 12
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2ln"

PADDED = JWT.replace(".", "==.")

FORMS = {
    "nothing": ([], NOBODY),
    "x-api-key": ([(b"x-api-key", KEY)], Credential(key=KEY)),
    "bearer": ([(b"authorization", f"Bearer {KEY}")], Credential(key=KEY)),
    "bearer in any case": ([(b"authorization", f"bEARER  {KEY} ")], Credential(key=KEY)),
    "jwt": ([(b"authorization", f"Bearer {JWT}")], Credential(token=JWT)),
    "a token with padding": (
        [(b"authorization", f"Bearer {PADDED}")],
        Credential(token=PADDED),
    ),
    "an encrypted token": (
        [(b"authorization", f"Bearer {JWT}.x.y")],
        Credential(token=f"{JWT}.x.y"),
    ),
    "own key": ([(b"authorization", "Bearer sk-abc")], Credential(own=b"sk-abc")),
    "own anthropic key": ([(b"x-api-key", "sk-ant-x")], Credential(own=b"sk-ant-x")),
    "own azure key": ([(b"api-key", "0123abcd")], Credential(own=b"0123abcd")),
    "the same key twice": (
        [(b"x-api-key", KEY), (b"authorization", f"Bearer {KEY}")],
        Credential(key=KEY),
    ),
    "ours and their own": (
        [(b"x-api-key", KEY), (b"authorization", "Bearer sk-abc")],
        Credential(key=KEY, own=b"sk-abc"),
    ),
    "too short a key is still ours": ([(b"x-api-key", "pk_live_ab")], Credential(key="pk_live_ab")),
}


@pytest.mark.parametrize(("headers", "expected"), FORMS.values(), ids=FORMS.keys())
def test_reads_the_forms_of_the_contract(
    headers: list[tuple[bytes, str]], expected: Credential
) -> None:
    sent = tuple((name, value.encode()) for name, value in headers)
    assert credential(sent, tokens=True) == expected


REFUSED = {
    "two keys": [(b"x-api-key", KEY), (b"authorization", f"Bearer {OTHER}")],
    "the header twice": [(b"x-api-key", KEY), (b"x-api-key", OTHER)],
    "key and token": [(b"x-api-key", KEY), (b"authorization", f"Bearer {JWT}")],
    "key without a scheme": [(b"authorization", KEY)],
    "key with another scheme": [(b"authorization", f"Basic {KEY}")],
    "key in Azure's header": [(b"api-key", KEY)],
    "key in Google's header": [(b"x-goog-api-key", KEY)],
    "key in a header of nobody's": [(b"x-trace", f"caller={KEY}")],
    "key in the user agent, and in its place": [(b"user-agent", KEY), (b"x-api-key", KEY)],
    "token in x-api-key": [(b"x-api-key", JWT)],
    "oversized": [(b"authorization", "Bearer eyJ" + "a" * 9000)],
}


@pytest.mark.parametrize("headers", REFUSED.values(), ids=REFUSED.keys())
def test_refuses_what_is_ambiguous_or_misplaced_without_repeating_it(
    headers: list[tuple[bytes, str]],
) -> None:
    with pytest.raises(Unauthorized) as caught:
        credential(tuple((name, value.encode()) for name, value in headers), tokens=True)
    assert KEY not in caught.value.message
    assert JWT not in caught.value.message


def test_headers_that_name_no_caller_carry_nothing() -> None:
    sent = ((b"host", b"x"), (b"cookie", KEY.encode()), (b"proxy-authorization", KEY.encode()))
    assert credential(sent) is NOBODY


def test_a_token_is_the_callers_own_where_none_is_configured() -> None:
    sent = ((b"authorization", f"Bearer {JWT}".encode()),)
    assert credential(sent) == Credential(own=JWT.encode())


def test_a_credential_does_not_show_itself() -> None:
    assert KEY not in repr(Credential(key=KEY, token=JWT, own=b"sk-abc"))
    assert "sk-abc" not in repr(Credential(own=b"sk-abc"))


def basic(text: str) -> bytes:
    return b"Basic " + base64.b64encode(text.encode())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, NOBODY),
        (basic(f"{KEY}:"), Credential(key=KEY)),
        (basic(f"me:{KEY}"), Credential(key=KEY)),
        (basic(f"me:{JWT}"), Credential(token=JWT)),
        (f"Bearer {KEY}".encode(), Credential(key=KEY)),
        (b"Basic !!!", NOBODY),
        (b"Bearer sk-abc", NOBODY),
        (basic("me:password"), NOBODY),
    ],
)
def test_reads_proxy_authorization(value: bytes | None, expected: Credential) -> None:
    assert proxy_credential(value, tokens=True) == expected


@pytest.mark.parametrize(
    ("key", "good"),
    [
        (KEY, True),
        (KEY[:39], False),
        (KEY + "-", False),
        (KEY.replace("live", "prod"), False),
        (KEY + "\n", False),
    ],
)
def test_knows_a_well_formed_key(key: str, good: bool) -> None:
    assert well_formed(key) is good
    assert ("unknown" in unknown_key(key).message) is good


def test_a_digest_is_sha256_in_hex() -> None:
    assert digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
