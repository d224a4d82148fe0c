"""The first message of TLS, read for the name and the protocols it asks for (RFC 8446 4.1.2).

Nothing is believed: every length is checked against what is there, the whole is bounded, and what
breaks the format is Malformed rather than a guess. `HelloReader.feed` takes the bytes as they come.
"""

from __future__ import annotations

from dataclasses import dataclass

# OpenSSL gives up on a ClientHello beyond 131,396 bytes, Go beyond 65,536. Real ones with
# post-quantum key shares and a ticket stay under 4 KiB.
_MAX_HELLO = 16_384
_MAX_RECORD = 16_384  # RFC 8446 5.1
_RECORD_HEAD, _MESSAGE_HEAD = 5, 4
_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _ALPN, _HOST_NAME = 0, 16, 0


@dataclass(frozen=True, slots=True)
class Hello:
    """`name` is the SNI, lower-case, None when absent; `alpn` the protocols, () when absent."""

    name: str | None
    alpn: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class NotTls:
    """The first bytes are no TLS handshake at all."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """It begins like TLS and is not."""

    reason: str


Verdict = Hello | NotTls | Malformed


class HelloReader:
    """Collects bytes until they decide. `data` keeps all of them, for whoever speaks TLS next."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._message = bytearray()
        self._at = 0  # where the next record begins

    def feed(self, chunk: bytes) -> Verdict | None:
        """The verdict, or None while more bytes are needed. Not to be called after a verdict."""
        self.data += chunk
        try:
            return self._read()
        except _Bad as error:
            return Malformed(str(error))

    def _read(self) -> Verdict | None:
        if not b"\x16\x03".startswith(self.data[:2]):  # a handshake record of SSL 3 or any TLS
            return NotTls()
        while (record := self._record()) is not None:
            self._message += record
            if (body := self._body()) is not None:
                return _hello(_Cursor(body))
        return None

    def _record(self) -> bytes | None:
        if len(self.data) - self._at < _RECORD_HEAD:
            return None
        kind, major = self.data[self._at], self.data[self._at + 1]
        length = int.from_bytes(self.data[self._at + 3 : self._at + 5])
        if kind != _HANDSHAKE or major != 3:
            raise _Bad("a record of another type")
        if not 0 < length <= _MAX_RECORD:
            raise _Bad("record length")
        start = self._at + _RECORD_HEAD
        if len(self.data) - start < length:
            return None
        self._at = start + length
        return bytes(self.data[start : self._at])

    def _body(self) -> bytes | None:
        if self._message[0] != _CLIENT_HELLO:
            raise _Bad("not a ClientHello")
        if len(self._message) < _MESSAGE_HEAD:
            return None
        length = int.from_bytes(self._message[1:4])
        if length > _MAX_HELLO:
            raise _Bad("ClientHello too long")
        body = bytes(self._message[_MESSAGE_HEAD : _MESSAGE_HEAD + length])
        return body if len(body) == length else None


class _Bad(Exception):
    """Caught where it was raised for; its text is the reason."""


class _Cursor:
    """Reads lengths and what they measure; running over the end is _Bad."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise _Bad("a length runs over the end")
        part, self._at = self._data[self._at : end], end
        return part

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> bytes:
        """A field that begins with its own length, `size` bytes of it."""
        return self.take(self.number(size))

    def inner(self, size: int) -> _Cursor:
        return _Cursor(self.vector(size))


def _hello(body: _Cursor) -> Hello:
    body.take(2 + 32)  # version, random
    for size in (1, 2, 1):  # session id, cipher suites, compression methods
        body.vector(size)
    if not body:
        return Hello(None, ())  # TLS 1.2 and older may end here
    extensions = _extensions(body.inner(2))
    if body:
        raise _Bad("bytes after the extensions")
    return Hello(_name(extensions.get(_SERVER_NAME)), _protocols(extensions.get(_ALPN)))


def _extensions(cursor: _Cursor) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while cursor:
        kind, value = cursor.number(2), cursor.vector(2)
        if kind in found:
            raise _Bad("an extension twice")
        found[kind] = value
    return found


def _name(extension: bytes | None) -> str | None:
    if extension is None:
        return None
    names = _list(extension)
    if names.number(1) != _HOST_NAME:
        raise _Bad("server name of an unknown type")
    name = names.vector(2)
    if names or not name or not name.isascii() or b"\0" in name:
        raise _Bad("server name")
    return name.decode("ascii").lower().removesuffix(".")


def _protocols(extension: bytes | None) -> tuple[bytes, ...]:
    if extension is None:
        return ()
    cursor, found = _list(extension), []
    while cursor:
        found.append(cursor.vector(1))
    if not all(found):
        raise _Bad("an empty protocol name")
    return tuple(found)


def _list(extension: bytes) -> _Cursor:
    """The one list an extension consists of; it is never empty (RFC 6066 3, RFC 7301 3.1)."""
    whole = _Cursor(extension)
    inner = whole.inner(2)
    if whole or not inner:
        raise _Bad("a list in an extension")
    return inner


# Alert descriptions (RFC 8446 6, RFC 6066 3, RFC 7301 3.2).
DECODE_ERROR, UNRECOGNIZED_NAME, NO_APPLICATION_PROTOCOL = 50, 112, 120


def fatal_alert(description: int) -> bytes:
    """The record that ends a handshake before it began; every version of TLS understands it."""
    return bytes((21, 3, 3, 0, 2, 2, description))


def objection(hello: Hello, host: str) -> int | None:
    """The alert to answer a client of ours with that asks for another host, or that speaks no
    HTTP/1.1; None when all is well.
    """
    if hello.name not in (None, host):
        return UNRECOGNIZED_NAME
    if hello.alpn and b"http/1.1" not in hello.alpn:
        return NO_APPLICATION_PROTOCOL
    return None
