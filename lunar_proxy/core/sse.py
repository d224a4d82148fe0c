"""Server-sent events out of bytes, however they were cut (WHATWG HTML 9.2.6).

Lines end with LF, CRLF or a lone CR; a blank line ends an event. Everything is done on bytes, so a
UTF-8 character may be cut anywhere. Each event keeps its own bytes, terminator included: joined in
order they are the input again, and how the input was cut changes nothing.

The one hard question is a CR that is the last byte so far: alone it ends a line, but an LF may
follow and belong to it. Where the line before it ended with a lone CR, the stream uses lone CRs and
the event is given at once (should an LF follow all the same, it leads the bytes of the next event,
where it means nothing). Otherwise it is taken for half a CRLF, which the sender wrote in one piece
and whose other half is on its way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from .errors import BadAnswer

# Far above any real event (an image as base64 is 2-8 MiB), far below what hurts the process.
MAX_EVENT_BYTES = 16 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")
# Two line ends in a row. A CR before its LF is no line end of its own, hence the three cases.
_EVENT_END = re.compile(rb"(?:\r\n|\n)(?:\r\n|\n|\r(?=[^\n]))|\r\r")
_OVERLAP = 3  # an end of at most 4 bytes of which 3 were already there
_BLANK_LINES = re.compile(rb"[\r\n]*")


class SSEEvent(NamedTuple):
    """One event. Without data (a comment, a keep-alive) a browser would dispatch nothing."""

    raw: bytes
    event: bytes
    data: bytes

    @classmethod
    def of(cls, data: bytes) -> SSEEvent:
        """An event of our own: nameless, its data on one line."""
        return cls(b"data: %b\n\n" % data, b"", data)


class SSEParser:
    """feed() as bytes come, eof() once; `pending` are the bytes of the event not yet whole."""

    __slots__ = ("_limit", "_scanned", "_strip_bom", "pending")

    def __init__(self, limit: int = MAX_EVENT_BYTES) -> None:
        self.pending = b""
        self._limit = limit
        self._scanned = 0  # how much of `pending` is known not to hold an event's end
        self._strip_bom = True

    def feed(self, chunk: bytes) -> list[SSEEvent]:
        """The events that `chunk` completes. Raises BadAnswer when one grows beyond the limit."""
        buffer = self.pending + chunk if self.pending else chunk
        events, start, scan = [], 0, self._scanned
        while match := _EVENT_END.search(buffer, max(scan, _skip_blank_lines(buffer, start))):
            events.append(self._parse(buffer[start : match.end()]))
            start = scan = match.end()
        self.pending = buffer[start:] if start else buffer
        self._scanned = max(0, len(self.pending) - _OVERLAP)
        if len(self.pending) > self._limit:
            raise BadAnswer("The provider sent an event that is too large.")
        return events

    def eof(self) -> list[SSEEvent]:
        """The last event, if the sender left out the blank line behind it.

        The specification discards it; several providers end with `data: [DONE]` and one newline.
        """
        raw, self.pending, self._scanned = self.pending, b"", 0
        return [self._parse(raw)] if raw else []

    def _parse(self, raw: bytes) -> SSEEvent:
        text = raw
        if self._strip_bom:
            text, self._strip_bom = raw.removeprefix(_BOM), False
        return SSEEvent(raw, *_fields(text))


def data_spans(raw: bytes) -> Iterator[tuple[int, int]]:
    """Where the values of the `data` lines stand in an event's bytes.

    Joined by LF they are its data: this is how an offset in the data is found in the bytes.
    """
    for start, end in line_spans(raw):
        name, colon, value = raw[start:end].partition(b":")
        if name == b"data" or name == _BOM + b"data":
            begin = start + len(name) + len(colon) + value.startswith(b" ")
            yield begin, end


def _skip_blank_lines(buffer: bytes, start: int) -> int:
    if start < len(buffer) and buffer[start] > 0x0D:
        return start
    match = _BLANK_LINES.match(buffer, start)
    return match.end() if match else start


def line_spans(raw: bytes) -> Iterator[tuple[int, int]]:
    start = 0
    for match in _LINE_END.finditer(raw):
        yield start, match.start()
        start = match.end()
    if start < len(raw):
        yield start, len(raw)


def _fields(text: bytes) -> tuple[bytes, bytes]:
    name, data = b"", []
    for start, end in line_spans(text):
        field, _, value = text[start:end].partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return name, b"\n".join(data)
