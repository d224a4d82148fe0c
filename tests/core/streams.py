"""What the stream tests share: cassettes, ways to cut them, and a stand-in for the fields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from lunar_proxy.core.sse import SSEParser
from lunar_proxy.core.stream import Shape, Stream

CASSETTES = Path(__file__).parent.parent / "cassettes"
FIELDS = b'"total_cost_usd":0.0001,"latency_ms":12.0'
COUNTED = b'"prompt_tokens":1,"completion_tokens":2,"total_tokens":3,' + FIELDS


def cassette(name: str) -> bytes:
    return (CASSETTES / name).read_bytes()


def render(usage: dict[str, Any] | None) -> bytes:
    return FIELDS if usage else COUNTED


def whole(stream: bytes) -> Iterator[bytes]:
    yield stream


def bytewise(stream: bytes) -> Iterator[bytes]:
    for i in range(len(stream)):
        yield stream[i : i + 1]


def halves(stream: bytes) -> Iterator[bytes]:
    yield stream[: len(stream) // 2]
    yield stream[len(stream) // 2 :]


def eventwise(stream: bytes) -> Iterator[bytes]:
    parser = SSEParser()
    yield from (event.raw for event in parser.feed(stream))
    yield parser.pending


HOW: list[Callable[[bytes], Iterator[bytes]]] = [whole, bytewise, halves, eventwise]


def opened(
    shape: Shape,
    *,
    splice: bool = True,
    injected: bool = False,
    asked: bool = False,
    choices: int = 1,
) -> Stream:
    return Stream(
        shape, splice=splice, injected=injected, asked=asked, choices=choices, render=render
    )


def relay(stream: Stream, chunks: Iterable[bytes]) -> bytes:
    return b"".join(stream.feed(chunk) for chunk in chunks) + stream.eof()


def documents(out: bytes) -> list[Any]:
    """The data of each event, parsed strictly, as the SDKs do; [DONE] as None."""
    parser = SSEParser()
    events = [*parser.feed(out), *parser.eof()]
    return [
        None if event.data == b"[DONE]" else orjson.loads(event.data)
        for event in events
        if event.data
    ]
