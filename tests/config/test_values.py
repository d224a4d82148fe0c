from __future__ import annotations

import pickle

import pytest

from lunar_proxy.config import Secret, parse_address, parse_store


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080, True),
        ("127.9.9.9:0", "127.9.9.9", 0, True),
        ("[::1]:65535", "::1", 65535, True),
        ("localhost:80", "localhost", 80, True),
        ("0.0.0.0:80", "0.0.0.0", 80, False),
        ("[::]:80", "::", 80, False),
        ("10.0.0.1:80", "10.0.0.1", 80, False),
        ("proxy.internal:80", "proxy.internal", 80, False),
        ("localhost.evil.example:80", "localhost.evil.example", 80, False),
    ],
)
def test_addresses(text: str, host: str, port: int, loopback: bool) -> None:
    address = parse_address(text)
    assert (address.host, address.port, address.loopback) == (host, port, loopback)
    assert str(address) == text


@pytest.mark.parametrize(
    "text", [":8080", "127.0.0.1", "127.0.0.1:", "::1:80", "[::g]:80", "h:-1", "h:99999", 80, None]
)
def test_what_is_no_address(text: object) -> None:
    with pytest.raises(ValueError, match=r"must be|not an IPv6"):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "kind", "shown"),
    [
        ("memory", "memory", "memory"),
        ("sqlite:/var/x.db", "sqlite", "sqlite:/var/x.db"),
        ("redis://h:6379/0", "redis", "redis://h:6379/0"),
        ("redis://h", "redis", "redis://h"),
        ("rediss://u:p@h:1/2", "redis", "rediss://****@h:1/2"),
        ("redis://:p%40ss@h:1/2", "redis", "redis://****@h:1/2"),
    ],
)
def test_stores(text: str, kind: str, shown: str) -> None:
    store = parse_store(text)
    assert (store.kind, store.url, str(store)) == (kind, text, shown)
    assert repr(store) == f"Store({shown!r})"


@pytest.mark.parametrize(
    "text", ["", "sqlite:", "sqlite::memory:", "redis:", "redis://", "redis://h:0", "redis://h/db"]
)
def test_what_is_no_store(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_store(text)


def test_a_secret_reveals_itself_only_when_asked() -> None:
    secret = Secret("0123456789abcdef")
    assert f"{secret} {secret!r} {[secret]}" == "****cdef Secret('****cdef') [Secret('****cdef')]"
    assert pickle.loads(pickle.dumps(secret)).reveal() == secret.reveal()
    assert (bool(secret), bool(Secret(""))) == (True, False)
    assert len({secret, Secret(secret.reveal())}) == 1
