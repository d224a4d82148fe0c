from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.core.errors import BadAnswer
from lunar_proxy.core.sse import SSEEvent, SSEParser, data_spans


def whole(stream: bytes) -> Iterator[bytes]:
    yield stream


def bytewise(stream: bytes) -> Iterator[bytes]:
    for i in range(len(stream)):
        yield stream[i : i + 1]


def halves(stream: bytes) -> Iterator[bytes]:
    yield stream[: len(stream) // 2]
    yield stream[len(stream) // 2 :]


HOW: list[Callable[[bytes], Iterator[bytes]]] = [whole, bytewise, halves]


def parse(parser: SSEParser, chunks: Iterator[bytes]) -> list[SSEEvent]:
    return [event for chunk in chunks for event in parser.feed(chunk)]


# name: (stream, [(event, data), ...])
CASES: dict[str, tuple[bytes, list[tuple[bytes, bytes]]]] = {
    "lf": (b"data: a\n\ndata: b\n\n", [(b"", b"a"), (b"", b"b")]),
    "crlf": (b"data: a\r\n\r\ndata: b\r\n\r\ndata", [(b"", b"a"), (b"", b"b")]),
    "cr": (b"data: a\r\rdata: b\r\r", [(b"", b"a"), (b"", b"b")]),
    "mixed": (
        b"event: x\ndata: a\r\n\ndata: b\r\rdata: c\n\r\ndata: d\r\n\rdata: e\n\n",
        [(b"x", b"a"), (b"", b"b"), (b"", b"c"), (b"", b"d"), (b"", b"e")],
    ),
    "bom": (b"\xef\xbb\xbfdata: a\n\n", [(b"", b"a")]),
    "bom only at the start": (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [(b"", b"a"), (b"", b"")]),
    "named": (b"event: ping\ndata: {}\n\n", [(b"ping", b"{}")]),
    "the last name counts": (b"event: a\nevent: b\ndata: 1\n\n", [(b"b", b"1")]),
    "comment": (b": keep-alive\n\ndata: a\n\n", [(b"", b""), (b"", b"a")]),
    "comment inside": (b"data: a\n: hm\ndata: b\n\n", [(b"", b"a\nb")]),
    "no space": (b"data:a\n\n", [(b"", b"a")]),
    "one space only is taken": (b"data:  a \n\n", [(b"", b" a ")]),
    "several lines": (b"data: {\ndata:  1\ndata: }\n\n", [(b"", b"{\n 1\n}")]),
    "no colon": (b"data\ndata\n\n", [(b"", b"\n")]),
    "unknown fields": (b"id: 1\nretry: 5\nfoo\ndata: a\n\n", [(b"", b"a")]),
    "blank lines between": (b"\n\n\ndata: a\n\n\n\n\ndata: b\n\n", [(b"", b"a"), (b"", b"b")]),
    "utf-8": ("data: h\u00e9 \U0001f600\n\n".encode(), [(b"", "h\u00e9 \U0001f600".encode())]),
    "unfinished": (b"data: a\n\ndata: b\n", [(b"", b"a")]),
    "colon in the value": (b"data: a:b\n\n", [(b"", b"a:b")]),
}  # fmt: skip


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("stream", "expected"), CASES.values(), ids=CASES.keys())
def test_parses(
    stream: bytes, expected: list[tuple[bytes, bytes]], how: Callable[[bytes], Iterator[bytes]]
) -> None:
    parser = SSEParser()
    events = parse(parser, how(stream))
    assert [(event.event, event.data) for event in events] == expected
    assert b"".join(event.raw for event in events) + parser.pending == stream


LINES = st.sampled_from([b"data: a", b"data:", b":c", b"event: e", b"x", b""])
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
STREAMS = st.lists(st.tuples(LINES, ENDS), max_size=12).map(
    lambda ls: b"".join(a + b for a, b in ls)
)


@given(STREAMS, st.lists(st.integers(0, 80)))
def test_any_cut_gives_the_same_events(stream: bytes, cuts: list[int]) -> None:
    one, other = SSEParser(), SSEParser()
    at = sorted({0, len(stream), *(c for c in cuts if c < len(stream))})
    pieces = (stream[a:b] for a, b in itertools.pairwise(at))
    assert parse(one, whole(stream)) == parse(other, pieces)
    assert one.pending == other.pending


@given(STREAMS)
def test_dispatches_what_the_specification_does(stream: bytes) -> None:
    parser = SSEParser()
    events = parse(parser, whole(stream)) + parser.eof()
    assert [(e.event, e.data) for e in events if e.data] == list(reference(stream))


def reference(stream: bytes) -> Iterator[tuple[bytes, bytes]]:
    """WHATWG HTML 9.2.6, line by line, with the last event given at the end as eof() does."""
    name, data = b"", b""
    for line in [*stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"), b""]:
        field, _, value = line.partition(b":")
        if line == b"":
            if data[:-1]:
                yield name, data[:-1]
            name, data = b"", b""
        elif field == b"data":
            data += value.removeprefix(b" ") + b"\n"
        elif field == b"event":
            name = value.removeprefix(b" ")


AT_ONCE: dict[str, bytes] = {
    "lf": b"data: a\n\n",
    "crlf": b"data: a\r\n\r\n",
    "cr": b"data: a\r\r",
    "crlf then lf": b"data: a\r\n\n",
}


@pytest.mark.parametrize("stream", AT_ONCE.values(), ids=AT_ONCE.keys())
def test_an_event_is_given_with_its_last_byte(stream: bytes) -> None:
    assert [event.raw for event in SSEParser().feed(stream)] == [stream]


def test_half_a_crlf_waits_for_its_other_half() -> None:
    parser = SSEParser()
    assert parser.feed(b"data: a\r\n\r") == []
    assert parser.feed(b"\n") == [SSEEvent(b"data: a\r\n\r\n", b"", b"a")]


def test_eof_gives_an_event_that_lacks_its_blank_line() -> None:
    parser = SSEParser()
    assert parser.feed(b"data: [DONE]\n") == []
    assert parser.eof() == [SSEEvent(b"data: [DONE]\n", b"", b"[DONE]")]
    assert parser.eof() == []


def test_an_event_without_end_is_refused() -> None:
    parser = SSEParser(limit=100)
    parser.feed(b"data: " + b"x" * 94)
    with pytest.raises(BadAnswer):
        parser.feed(b"x")


def test_the_limit_is_on_one_event() -> None:
    parser = SSEParser(limit=20)
    assert len(parser.feed(b"data: 123456789\n\n" * 10)) == 10


@pytest.mark.parametrize(("stream", "expected"), CASES.values(), ids=CASES.keys())
def test_finds_the_data_in_the_bytes(stream: bytes, expected: list[tuple[bytes, bytes]]) -> None:
    for event in SSEParser().feed(stream):
        spans = [event.raw[start:end] for start, end in data_spans(event.raw)]
        assert b"\n".join(spans) == event.data or event.data == b""
