"""Undoing a compression nobody asked for.

Providers are asked for identity. Some compress all the same, and then neither events nor usage can
be read; gzip and deflate are undone here and the answer goes on as identity. Anything else (br,
zstd) is left as it came. An end that came too early is not noticed here: the JSON or the stream
inside is what has to be complete.
"""

from __future__ import annotations

import zlib
from typing import Protocol

from .errors import BadAnswer

_AUTO = zlib.MAX_WBITS | 32  # zlib or gzip, as the head says
_RAW = -zlib.MAX_WBITS
_GZIP = b"\x1f\x8b"


class Decoder(Protocol):
    def feed(self, data: bytes) -> bytes: ...


class Inflate:
    """gzip and both things called deflate (RFC 9110 8.4.1.2: zlib, but raw occurs), streaming."""

    def __init__(self, coding: bytes) -> None:
        self._head = b"" if coding == b"deflate" else None  # None: it needs no look
        self._inner = zlib.decompressobj(_AUTO)

    def feed(self, data: bytes) -> bytes:
        """What `data` completes. Raises BadAnswer."""
        if self._head is not None:
            data = self._head + data
            if len(data) < 2:
                self._head = data
                return b""
            self._head = None
            self._inner = zlib.decompressobj(_AUTO if _has_head(data) else _RAW)
        try:
            return self._members(data)
        except zlib.error:
            raise BadAnswer("the provider's compressed answer is damaged") from None

    def _members(self, data: bytes) -> bytes:
        """gzip may be several, one behind the other (RFC 1952 2.2): some flush events that way."""
        out = self._inner.decompress(data)
        while self._inner.eof and (rest := self._inner.unused_data).startswith(_GZIP):
            self._inner = zlib.decompressobj(_AUTO)
            out += self._inner.decompress(rest)
        return out


def _has_head(data: bytes) -> bool:
    """Whether it begins as zlib does (RFC 1950 2.2), or as gzip."""
    is_zlib = data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0
    return is_zlib or data.startswith(_GZIP)


def decoder(coding: bytes | None) -> Decoder | None:
    """For a `Content-Encoding`; None where there is nothing to undo, or nothing we can."""
    coding = (coding or b"").strip().lower()
    return Inflate(coding) if coding in (b"gzip", b"x-gzip", b"deflate") else None
