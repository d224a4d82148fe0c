"""Undoing a compression nobody asked for.

Providers are asked for identity. Some compress all the same, and then neither events nor usage can
be read; gzip and deflate are undone here and the answer goes on as identity. Anything else (br,
zstd) passes as it came, unread.
"""

from __future__ import annotations

import zlib
from typing import Protocol

from .errors import BadAnswer


class Decoder(Protocol):
    def feed(self, data: bytes) -> bytes: ...

    def end(self) -> None: ...


class Inflate:
    """gzip and both things called deflate (RFC 9110 8.4.1.2: zlib, but raw occurs), streaming."""

    def __init__(self, coding: bytes) -> None:
        self._raw_allowed = coding == b"deflate"
        self._inner = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: zlib or gzip, as its head says

    def feed(self, data: bytes) -> bytes:
        try:
            return self._inner.decompress(data)
        except zlib.error:
            if not self._raw_allowed:
                raise BadAnswer("the provider's compressed answer is damaged") from None
        self._raw_allowed = False
        self._inner = zlib.decompressobj(-zlib.MAX_WBITS)
        return self.feed(data)

    def end(self) -> None:
        if not self._inner.eof:
            raise BadAnswer("the provider's compressed answer ends too early")


def decoder(coding: bytes | None) -> Decoder | None:
    """For a `Content-Encoding`; None where there is nothing to undo, or nothing we can."""
    coding = (coding or b"").strip().lower()
    return Inflate(coding) if coding in (b"gzip", b"x-gzip", b"deflate") else None
