"""Header rules: what is hop-by-hop, what stays here, what a log may show."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from operator import itemgetter
from typing import cast

from .model import Headers

# RFC 9110 7.6.1, plus the older names that intermediaries must not pass on either.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

# What describes the message between the client and us, and is written afresh for the provider.
# accept-encoding: identity is asked for instead, since a compressed stream cannot be spliced.
_REWRITTEN = frozenset(
    {b"host", b"content-length", b"expect", b"accept-encoding", b"x-request-id", b"forwarded"}
)

_CREDENTIALS = frozenset({b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"cookie"})


def parse(head: bytes) -> tuple[bytes, Headers] | None:
    """The start line of a head, without its last CRLF, and its fields: names in lower case, values
    without the space around them (RFC 9112 5.1).

    None where something may be read in two ways: a name that is no token (RFC 9110 5.6.2), a
    control character, so a bare CR or LF too, a folded line (RFC 9112 5.2).
    """
    start, *lines = head.split(b"\r\n")
    if head.translate(None, _TEXT) != b"\r\n" * len(lines):
        return None
    return _with_fields(start, map(_field, lines))


def parse_answer(head: bytes) -> tuple[bytes, Headers] | None:
    """The same, for one side that says mostly the same lines again and again: those it remembers.

    Not for requests, whose credentials nobody should keep.
    """
    if len(head) > _LONGEST_REMEMBERED:
        return parse(head)
    start, *lines = head.split(b"\r\n")
    return _with_fields(start, map(_text_field, lines)) if _is_text(start) else None


def _with_fields(
    start: bytes, fields: Iterable[tuple[bytes, bytes] | None]
) -> tuple[bytes, Headers] | None:
    found = tuple(fields)
    # The cast is the check before it.
    return None if None in found else (start, cast(Headers, found))


# All that may stand in a line: tab, and what is no control character (RFC 9110 5.5).
_TEXT = bytes([9, *range(32, 127), *range(128, 256)])
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++")
# Lines of longer heads would take too much room, and are of the kind that does not come again.
_LONGEST_REMEMBERED = 4096


def _field(line: bytes) -> tuple[bytes, bytes] | None:
    name, colon, value = line.partition(b":")
    known = _field_name(name)
    return None if known is None or not colon else (known, value.strip(b" \t"))


@lru_cache(maxsize=1024)
def _text_field(line: bytes) -> tuple[bytes, bytes] | None:
    return None if line.translate(None, _TEXT) else _field(line)


@lru_cache(maxsize=256)
def _is_text(line: bytes) -> bool:
    return not line.translate(None, _TEXT)


@lru_cache(maxsize=1024)  # the same few names in every head
def _field_name(name: bytes) -> bytes | None:
    """In lower case; None: no token (RFC 9110 5.6.2)."""
    return name.lower() if _TOKEN.fullmatch(name) else None


def get(headers: Headers, name: bytes) -> bytes | None:
    """The first value of a header; `name` in lower case."""
    for key, value in headers:
        if key == name:
            return value
    return None


def connection_tokens(headers: Headers) -> frozenset[bytes]:
    """Names that `Connection` makes hop-by-hop for this one message."""
    values = [value for name, value in headers if name == b"connection"]
    if not values:
        return frozenset()
    return frozenset(token.strip().lower() for token in b",".join(values).split(b","))


_LOCAL = HOP_BY_HOP | _REWRITTEN | _CREDENTIALS
_LOCAL_PREFIXES = (b"x-lunar-", b"x-forwarded-")


def for_provider(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The client's headers that travel on. Credentials are added by who knows whose they are."""
    kept = [
        pair
        for pair in headers
        if pair[0] not in _LOCAL and not pair[0].startswith(_LOCAL_PREFIXES)
    ]
    return _without_local(kept, headers)


def relayed(headers: Headers) -> bytes:
    """The same as lines, as they stand in a request to a provider."""
    return render(for_provider(headers))


def _without_local(kept: list[tuple[bytes, bytes]], headers: Headers) -> list[tuple[bytes, bytes]]:
    if b"connection" not in map(itemgetter(0), headers):
        return kept
    local = connection_tokens(headers)
    return [pair for pair in kept if pair[0] not in local]


# Framing is ours; x-request-id is the client's (CONTRACT 4); an alternative service is another way
# to the provider, past us.
_NOT_RELAYED = HOP_BY_HOP | {b"content-length", b"x-request-id", b"alt-svc"}


def for_client(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The provider's headers that travel back, in its order and spelling of values."""
    return _without_local([pair for pair in headers if _goes_back(pair[0])], headers)


@lru_cache(maxsize=1024)
def _goes_back(name: bytes) -> bool:
    # Ours say who answered here; a provider that is a lunar-proxy has its own.
    return name not in _NOT_RELAYED and not name.startswith(b"x-lunar-")


def untouched(headers: Headers) -> list[tuple[bytes, bytes]]:
    """All but what belongs to one connection (RFC 9110 7.6.1), for what only passes through."""
    local = HOP_BY_HOP | connection_tokens(headers) | {b"content-length", b"alt-svc"}
    return [pair for pair in headers if pair[0] not in local]


def render(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """`name: value` lines, each with its CRLF (RFC 9112 2.1)."""
    lines = [b": ".join(pair) for pair in headers]
    lines.append(b"")
    return b"\r\n".join(lines)


def field_value(text: str) -> bytes:
    """A name a client made up must not end a header line (RFC 9110 5.5)."""
    return text.encode("ascii", "replace").translate(None, b"\r\n\x00")
