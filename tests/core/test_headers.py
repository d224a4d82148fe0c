from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.core import headers as h
from lunar_proxy.core.model import Fields, Headers

SENT: Headers = (
    (b"content-type", b"application/json"),
    (b"openai-organization", b"org-1"),
    (b"x-tag", b"a"),
    (b"x-tag", b"b"),
)


def test_a_field_is_looked_up_by_its_first_value() -> None:
    assert h.get(SENT, b"x-tag") == b"a"
    assert h.get(SENT, b"absent") is None
    assert Fields(SENT).get(b"x-tag") == b"a"
    assert list(Fields(SENT).first) == [b"x-tag", b"openai-organization", b"content-type"]


def test_what_follows_from_the_fields_is_worked_out_once() -> None:
    fields, asked = Fields(SENT), []

    def count(headers: Headers) -> int:
        asked.append(headers)
        return len(headers)

    assert [fields.once(count), fields.once(count)] == [len(SENT)] * 2
    assert asked == [SENT]


@pytest.mark.parametrize(
    ("headers", "tokens"),
    [
        ((), set()),
        (((b"connection", b"keep-alive"),), {b"keep-alive"}),
        (((b"connection", b"close, X-Hop ,"),), {b"close", b"x-hop", b""}),
        (((b"connection", b"close"), (b"connection", b"x-hop")), {b"close", b"x-hop"}),
    ],
)
def test_connection_may_be_said_in_several_fields(headers: Headers, tokens: set[bytes]) -> None:
    assert h.connection_tokens(headers) == tokens


STAY_HERE = [
    # hop-by-hop
    b"connection",
    b"keep-alive",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    # written afresh
    b"host",
    b"content-length",
    b"expect",
    b"accept-encoding",
    b"x-request-id",
    # whose they are is decided elsewhere
    b"authorization",
    b"x-api-key",
    b"api-key",
    b"x-goog-api-key",
    b"cookie",
    # between the client and us
    b"forwarded",
    b"x-forwarded-for",
    b"x-lunar-annotate",
]


@pytest.mark.parametrize("name", STAY_HERE)
def test_what_is_not_the_providers_business_stays_here(name: bytes) -> None:
    assert h.for_provider((*SENT, (name, b"x"))) == list(SENT)


@pytest.mark.parametrize(
    "name",
    [
        b"connection",
        b"keep-alive",
        b"transfer-encoding",
        b"content-length",
        b"x-request-id",
        b"alt-svc",
        b"x-lunar-provider",
    ],
)
def test_what_binds_our_connection_or_names_us_is_not_relayed(name: bytes) -> None:
    assert h.for_client((*SENT, (name, b"x"))) == list(SENT)


@pytest.mark.parametrize("way", [h.for_provider, h.for_client])
def test_what_connection_names_ends_here(way: object) -> None:
    named = ((b"connection", b"X-Hop"), (b"x-hop", b"1"))
    assert callable(way)
    assert way((*SENT, *named)) == list(SENT)


@pytest.mark.parametrize("name", [b"x-ratelimit-limit-requests", b"retry-after", b"set-cookie"])
def test_what_the_provider_says_is_relayed(name: bytes) -> None:
    assert h.for_client(((name, b"x"),)) == [(name, b"x")]


def test_rendered_a_field_is_a_line() -> None:
    assert h.render(SENT[:2]) == b"content-type: application/json\r\nopenai-organization: org-1\r\n"
    assert h.render(()) == b""


HEADS = {
    "plain": (b"A-b:  c \t", ((b"a-b", b"c"),)),
    "an empty value": (b"a:", ((b"a", b""),)),
    "colons": (b"a:b:c", ((b"a", b"b:c"),)),
    "bytes above 127": (b"a:\xff", ((b"a", b"\xff"),)),
    "a tab inside": (b"a:b\tc", ((b"a", b"b\tc"),)),
    "two": (b"a:1\r\nA:2", ((b"a", b"1"), (b"a", b"2"))),
    "no colon": (b"a", None),
    "no name": (b":a", None),
    "a space before the colon": (b"a :b", None),
    "folded": (b"a:b\r\n c:d", None),
    "a bare CR": (b"a:b\rc:d", None),
    "a bare LF": (b"a:b\nc:d", None),
    "CR twice": (b"a:b\r\r\nc:d", None),
    "LF twice": (b"a:b\r\n\nc:d", None),
    "a NUL": (b"a:\x00", None),
    "DEL": (b"a:\x7f", None),
    "an empty line": (b"a:b\r\n\r\nc:d", None),
}


PARSERS = pytest.mark.parametrize("parse", [h.parse, h.parse_answer])
Parser = Callable[[bytes], tuple[bytes, Headers] | None]


@PARSERS
@pytest.mark.parametrize(("lines", "fields"), HEADS.values(), ids=HEADS.keys())
def test_parses_a_head(parse: Parser, lines: bytes, fields: Headers | None) -> None:
    expected = None if fields is None else (b"start", fields)
    assert parse(b"start\r\n" + lines) == expected
    assert parse(b"start\r\n" + lines) == expected, "no memory changes it"


@PARSERS
@pytest.mark.parametrize("start", [b"a\x00b", b"a\rb", b"a\nb", b"\x7f"])
def test_a_start_line_has_no_control_characters_either(parse: Parser, start: bytes) -> None:
    assert parse(start + b"\r\na: b") is None
    assert parse(start) is None


PIECES = st.sampled_from(
    [b"a", b"B", b":", b" ", b"\t", b"\r\n", b"\r", b"\n", b"\x00", b"\xe9", b"(", b"x" * 256]
)
# A line that cannot be read in two ways: the name a token (RFC 9110 5.6.2), no control character
# in the value, so no bare CR or LF, and nothing folded (RFC 9112 5.2).
FIELD_LINE = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]++):[ \t]*+([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*+\r\n"
)


@PARSERS
@given(lines=st.lists(PIECES, max_size=12).map(b"".join))
def test_a_head_is_parsed_where_its_lines_can_be_read_in_one_way(
    parse: Parser, lines: bytes
) -> None:
    matches = list(FIELD_LINE.finditer(lines + b"\r\n"))
    one_way = b"".join(match[0] for match in matches) == lines + b"\r\n"
    fields = tuple((match[1].lower(), match[2]) for match in matches)
    assert parse(b"start\r\n" + lines) == ((b"start", fields) if one_way else None)


def test_a_head_without_fields_is_its_start_line() -> None:
    assert h.parse(b"start") == h.parse_answer(b"start") == (b"start", ())
