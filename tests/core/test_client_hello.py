from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.core.client_hello import Hello, HelloReader, Malformed, NotTls, Verdict


def real_hello(name: str | None, alpn: list[str] | None = None) -> bytes:
    """What OpenSSL really sends."""
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    if alpn:
        context.set_alpn_protocols(alpn)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def vector(size: int, body: bytes) -> bytes:
    return len(body).to_bytes(size) + body


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2) + vector(2, body)


def server_name(name: bytes, kind: int = 0) -> bytes:
    return extension(0, vector(2, bytes([kind]) + vector(2, name)))


def message(extensions: bytes | None) -> bytes:
    body = b"\3\3" + bytes(32) + vector(1, b"") + vector(2, b"\x13\1") + vector(1, b"\0")
    if extensions is not None:
        body += vector(2, extensions)
    return b"\1" + vector(3, body)


def record(body: bytes) -> bytes:
    return b"\x16\3\1" + vector(2, body)


def hello(extensions: bytes | None) -> bytes:
    return record(message(extensions))


def read(data: bytes, step: int = 1 << 20) -> Verdict | None:
    reader = HelloReader()
    for at in range(0, len(data), step):
        if (verdict := reader.feed(data[at : at + step])) is not None:
            return verdict
    return None


SMALL = message(server_name(b"a.b"))

OTHER_RECORD = Malformed("a record of another type")

CASES: dict[str, tuple[bytes, Verdict | None]] = {
    "real": (real_hello("Api.OpenAI.com"), Hello("api.openai.com", ())),
    "real with alpn": (real_hello("a.b", ["h2", "http/1.1"]), Hello("a.b", (b"h2", b"http/1.1"))),
    "real without a name": (real_hello(None), Hello(None, ())),
    "no extensions": (hello(None), Hello(None, ())),
    "final dot": (hello(server_name(b"a.b.")), Hello("a.b", ())),
    "in many records": (b"".join(record(bytes([b])) for b in SMALL), Hello("a.b", ())),
    "bytes after it": (hello(server_name(b"a.b")) + b"more", Hello("a.b", ())),
    "plain http": (b"GET / HTTP/1.1\r\n", NotTls()),
    "ssh": (b"SSH-2.0-x", NotTls()),
    "sslv2": (b"\x80\x2e\x01\x03\x01", NotTls()),
    "handshake type, odd version": (b"\x16\x02\x00\x00\x05", NotTls()),
    "unfinished": (hello(server_name(b"a.b"))[:-1], None),
    "empty record": (record(b""), Malformed("record length")),
    "huge record": (b"\x16\3\1\x40\x01", Malformed("record length")),
    "other record inside": (record(SMALL[:9]) + b"\x17\3\3\0\1x", OTHER_RECORD),
    "server hello": (record(b"\2" + vector(3, bytes(40))), Malformed("not a ClientHello")),
    "too long": (record(b"\1\x01\0\0"), Malformed("ClientHello too long")),
    "short body": (record(b"\1" + vector(3, b"\3\3")), Malformed("a length runs over the end")),
    "name twice": (hello(server_name(b"a") * 2), Malformed("an extension twice")),
    "two names": (
        hello(extension(0, vector(2, (b"\0" + vector(2, b"a")) * 2))),
        Malformed("server name"),
    ),
    "empty name": (hello(server_name(b"")), Malformed("server name")),
    "name with nul": (hello(server_name(b"a\0.b")), Malformed("server name")),
    "name not ascii": (hello(server_name(b"\xff.b")), Malformed("server name")),
    "odd name type": (hello(server_name(b"a", 1)), Malformed("server name of an unknown type")),
    "empty name list": (hello(extension(0, vector(2, b""))), Malformed("a list in an extension")),
    "empty alpn": (hello(extension(16, vector(2, b"\0"))), Malformed("an empty protocol name")),
    "long extension": (hello(b"\0\0\xff\xff"), Malformed("a length runs over the end")),
    "trailing": (
        record(b"\1" + vector(3, message(b"")[4:] + b"x")),
        Malformed("bytes after the extensions"),
    ),
}


@pytest.mark.parametrize("step", [1, 11, 1 << 20])
@pytest.mark.parametrize(("data", "expected"), CASES.values(), ids=CASES.keys())
def test_reads_a_client_hello(data: bytes, expected: Verdict | None, step: int) -> None:
    assert read(data, step) == expected


def test_keeps_every_byte_for_the_tls_that_follows() -> None:
    data = hello(server_name(b"a.b")) + b"early"
    reader = HelloReader()
    reader.feed(data[:20])
    reader.feed(data[20:])
    assert reader.data == data


@given(st.binary(max_size=200), st.integers(1, 50))
def test_any_bytes_get_the_same_verdict_however_they_are_cut(tail: bytes, step: int) -> None:
    for data in (tail, b"\x16\3\1" + tail, record(b"\1" + vector(3, tail)), hello(tail)):
        assert read(data, step) == read(data)


@given(st.data())
def test_a_flipped_byte_is_never_an_exception(data: st.DataObject) -> None:
    damaged = bytearray(hello(server_name(b"a.b") + extension(16, vector(2, b"\2h2"))))
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] = data.draw(st.integers(0, 255))
    read(bytes(damaged), 3)
