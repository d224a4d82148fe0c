"""What the demo has to say, before it has a shape, and how long saying it takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import orjson

from lunar_proxy.core.script import Chunk, End, Head, Pause, Step

from .ask import Ask, Turn

_LOREM = (
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut "
    "labore et dolore magna aliqua. "
)
_LOREM_TOKENS = 64  # what `lorem` writes when nobody says how much
_MESSAGE_TOKENS = 3  # what OpenAI's chat format adds to each message
_TOKEN = re.compile(r"\s*\S{1,6}|\s+")

Events = tuple[list[bytes], list[bytes], list[bytes]]  # before, for and after the tokens


@dataclass(frozen=True, slots=True)
class Reply:
    tokens: list[str]
    cut: bool  # max_tokens ended it
    prompt_tokens: int
    cached_tokens: int

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def finish_reason(self) -> str:
        return "length" if self.cut else "stop"

    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(self.tokens),
            "total_tokens": self.prompt_tokens + len(self.tokens),
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }


def compose(ask: Ask, turns: list[Turn], most: int | None, text: str | None = None) -> Reply:
    """`text`, when the request leaves the model no choice, else what the model has to say."""
    if text is None and ask.model == "lorem":
        tokens = list(islice(cycle(split(_LOREM)), most or _LOREM_TOKENS))
        cut = most is not None
    else:
        tokens = split(last_user_text(turns) if text is None else text)
        cut = most is not None and len(tokens) > most
    sizes = [_MESSAGE_TOKENS + len(split(said)) for _, said in turns]
    return Reply(tokens[:most], cut, sum(sizes), sum(sizes[:-1]))


def last_user_text(turns: list[Turn]) -> str:
    return next((text for role, text in reversed(turns) if role == "user"), "")


def split(text: str) -> list[str]:
    return _TOKEN.findall(text)


def _dumps(doc: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(doc)
    except TypeError:  # an integer beyond 64 bits, which the request may have held
        return json.dumps(doc).encode()


def document(doc: dict[str, Any], status: int = 200) -> Iterator[Step]:
    yield Head(status, {"content-type": "application/json"})
    yield Chunk(_dumps(doc))
    yield End()


def whole(ask: Ask, doc: dict[str, Any], reply: Reply) -> Iterator[Step]:
    """An answer that is not streamed takes as long as all its tokens."""
    seconds = ask.ttft_s + (len(reply.tokens) - 1) / ask.tps if ask.tps else ask.ttft_s
    if seconds > 0:
        yield Pause(seconds)
    yield from document(doc)


def stream(
    ask: Ask,
    base: dict[str, Any],
    choices: list[dict[str, Any]],
    last: dict[str, Any],
    reply: Reply,
) -> Iterator[Step]:
    """Chat and legacy events: `choices` (the first opens), `last`, usage when asked, [DONE]."""
    if ask.include_usage:
        base = base | {"usage": None}  # on every event but its own, as OpenAI does
    opening, *tokens = [_data(base | {"choices": [choice]}) for choice in choices]
    closing = [_data(base | {"choices": [last]})]
    if ask.include_usage:
        closing.append(_data(base | {"choices": [], "usage": reply.usage()}))
    return play(ask, [opening], tokens, [*closing, b"data: [DONE]\n\n"])


def _data(doc: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(doc) + b"\n\n"


def play(
    ask: Ask, opening: list[bytes], tokens: list[bytes], closing: list[bytes]
) -> Iterator[Step]:
    """Only tokens take time: `ttft_s` to the first, 1 / `tps` to each of the others."""
    yield Head(200, {"content-type": "text/event-stream; charset=utf-8"})
    yield from map(Chunk, opening)
    for index, token in enumerate(tokens):
        seconds = (1 / ask.tps if ask.tps else 0.0) if index else ask.ttft_s
        if seconds > 0:
            yield Pause(seconds)
        yield Chunk(token)
    yield from map(Chunk, closing)
    yield End()
