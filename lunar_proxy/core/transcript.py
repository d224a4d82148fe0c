"""What has been said so far in a stream, without parsing it as it passes.

The bytes relayed are kept, and parsed in one go when they grow or when someone asks: mostly nobody
does, because the provider's usage arrives first. Then only the text is kept, and of a very long
text only its length, so that thousands of streams can be open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from .shapes import Kind, Piece
from .sse import SSEParser

FOLD_BYTES = 8 * 1024  # some 40 chunks; with 2000 streams open it is 16 MB
KEPT_CHARS = 256 * 1024  # about 64k tokens; beyond it a count is as good an estimate


@dataclass(slots=True)
class Said:
    """What one choice has said. `chars` counts all of it, kept or not."""

    index: int
    content: str = ""
    reasoning: str = ""
    arguments: str = ""  # names and arguments of tool calls
    chars: int = 0

    @property
    def text(self) -> str:
        return self.reasoning + self.content + self.arguments


@dataclass(slots=True)
class _Parts:
    chars: int = 0
    texts: dict[Kind, list[str]] = field(default_factory=dict)


class Transcript:
    """add() whole events as they are relayed; the rest folds them first."""

    __slots__ = ("_choices", "_keep_all", "_kept", "_pieces", "_raw", "_sequence")

    def __init__(self, pieces: Callable[[Any], Iterator[Piece]], *, keep_text: bool) -> None:
        self._pieces = pieces
        self._keep_all = keep_text
        self._raw = bytearray()
        self._choices: dict[int, _Parts] = {}
        self._kept = 0
        self._sequence = -1

    def add(self, raw: bytes) -> None:
        self._raw += raw
        if len(self._raw) > FOLD_BYTES:
            self._fold()

    def said(self) -> list[Said]:
        self._fold()
        return [
            Said(index, chars=parts.chars, **{k: "".join(v) for k, v in parts.texts.items()})
            for index, parts in sorted(self._choices.items())
        ]

    @property
    def choices(self) -> set[int]:
        """The choices that have begun."""
        self._fold()
        return set(self._choices)

    @property
    def sequence(self) -> int:
        """The last `sequence_number` (responses), -1 when there was none."""
        self._fold()
        return self._sequence

    def _fold(self) -> None:
        if not self._raw:
            return
        raw, self._raw = bytes(self._raw), bytearray()
        for doc in parse_all(raw):
            if isinstance(doc, dict):
                self._sequence = doc.get("sequence_number", self._sequence)
                for index, kind, text in self._pieces(doc):
                    self._keep(index, kind, text)
        for parts in self._choices.values():
            for kind, texts in parts.texts.items():
                parts.texts[kind] = ["".join(texts)]
        if self._kept > KEPT_CHARS and not self._keep_all:
            for parts in self._choices.values():
                parts.texts.clear()
            self._kept = 0

    def _keep(self, index: int, kind: Kind, text: str) -> None:
        parts = self._choices.setdefault(index, _Parts())
        parts.chars += len(text)
        parts.texts.setdefault(kind, []).append(text)
        self._kept += len(text)


def parse_all(raw: bytes) -> list[Any]:
    """The documents in a run of whole events; what is not JSON is left out.

    A run of one-line events, which is nearly every stream, becomes one JSON array by replacing what
    stands between them: no JSON text can hold a raw newline, so nothing else is replaced.
    """
    if raw.startswith(b"data: ") and raw.endswith(b"\n\n"):
        try:
            docs: list[Any] = orjson.loads(b"[%b]" % raw[6:-2].replace(b"\n\ndata: ", b","))
        except orjson.JSONDecodeError:
            pass
        else:
            return docs
    return list(_parse_each(raw))


def _parse_each(raw: bytes) -> Iterator[Any]:
    parser = SSEParser()
    for event in (*parser.feed(raw), *parser.eof()):
        try:
            yield orjson.loads(event.data)
        except orjson.JSONDecodeError:
            continue
