"""What has been said so far in a stream, without parsing it as it passes.

The bytes relayed are kept, and parsed in one go when they grow or when someone asks: mostly nobody
does, because the provider's usage arrives first. Then only the text is kept, and of a very long
text only its length, so that thousands of streams can be open.

Most chunks of a stream are the same event with another word in it. Once such an event has been
parsed, repeats() knows the next one by its two ends and has its text for a slice; this is also what
tells Stream, for half a microsecond, that there is nothing in the chunk to look for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from .shapes import Kind, Piece
from .sse import SSEParser

FOLD_BYTES = 8 * 1024  # some 40 chunks; with 2000 streams open it is 16 MB
KEPT_CHARS = 256 * 1024  # about 64k tokens; beyond it a count is as good an estimate

# The inside of a JSON string. It holds no bare quote or newline, so it cannot end an event either.
_inside_string = re.compile(rb'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+').fullmatch
_NOISE = b'"obfuscation":"'  # OpenAI pads events with it, against reading their lengths
_WINDOW = 16 * 1024  # looked at in one go, lest events of two kinds in turn take a square of time
_LESSONS = 8  # events parsed in vain before we take it that every event differs
_WORTH_BYTES = 64  # of words, from one lesson, and it was not in vain


@dataclass(slots=True)
class Said:
    """What one choice has said. `chars` counts all of it, kept or not."""

    index: int
    chars: int
    content: str = ""
    reasoning: str = ""
    arguments: str = ""  # names and arguments of tool calls

    @property
    def text(self) -> str:
        return self.reasoning + self.content + self.arguments


@dataclass(slots=True)
class _Parts:
    chars: int = 0
    texts: dict[Kind, list[str]] = field(default_factory=dict)


class Transcript:
    """add() whole events as they are relayed; the rest folds them first."""

    __slots__ = (
        "_choices",
        "_head",
        "_joint",
        "_keep_all",
        "_kept",
        "_lessons",
        "_pieces",
        "_raw",
        "_sequence",
        "_start",
        "_stop",
        "_tail",
        "_where",
        "_words",
    )

    def __init__(self, pieces: Callable[[Any], Iterator[Piece]], *, keep_text: bool) -> None:
        self._pieces = pieces
        self._keep_all = keep_text
        self._words = bytearray()  # of `_where`, as in JSON strings; older than `_raw`
        self._raw = bytearray()  # events not parsed yet
        self._choices: dict[int, _Parts] = {}
        self._kept = 0
        self._sequence = -1
        self._head = self._joint = self._tail = b""  # no tail: nothing was learned
        self._start = self._stop = 0
        self._where: tuple[int, Kind] = (0, "content")
        self._lessons = _LESSONS

    def repeats(self, chunk: bytes) -> bool:
        """True if `chunk` is the event last learned, with another word; it has been added."""
        if not (self._tail and chunk.startswith(self._head) and chunk.endswith(self._tail)):
            return False
        word = self._word_in(chunk[self._start : self._stop])
        if word is None:
            return False
        self._add_words(word)
        return True

    def run(self, data: bytes, start: int) -> int:
        """Where the events end that repeats() would know, one after another from `start` on; they
        have been added. Together they cost a fraction of what they do one by one.
        """
        if not (self._tail and data.startswith(self._head, start)):
            return start
        window = data[start + self._start : start + _WINDOW]
        between = window.split(self._tail + self._head)
        words, stop = [], start
        for inside in between[:-1]:
            if (word := self._word_in(inside)) is None:
                break
            words.append(word)
            stop += self._start + len(inside) - self._stop
        # Behind the last of them, and before an event of another kind, stands no head.
        inside, found, _ = between[len(words)].partition(self._tail)
        if found and (word := self._word_in(inside)) is not None:
            words.append(word)
            stop += self._start + len(inside) - self._stop
        self._add_words(b"".join(words))
        return stop

    def _word_in(self, inside: bytes) -> bytes | None:
        """The word between head and tail, padding behind it left out; None: something else is."""
        word = inside
        if self._joint:
            word, found, noise = inside.partition(self._joint)
            if not found or not _inside_string(noise):
                return None
        return word if _inside_string(word) else None

    def _add_words(self, words: bytes) -> None:
        if self._raw:
            self._fold()
        self._words += words
        if len(self._words) > FOLD_BYTES:
            self._fold()

    def add(self, raw: bytes) -> None:
        self._raw += raw
        if len(self._raw) > FOLD_BYTES:
            self._fold()

    def learn(self, chunk: bytes) -> None:
        """Take `chunk`, whole events without any mark, as an example of what may come again."""
        if len(self._words) > _WORTH_BYTES:
            self._lessons = _LESSONS
        if self._lessons == 0 or len(chunk) > FOLD_BYTES or b"\\" in chunk:
            return
        self._lessons -= 1
        docs = parse_all(chunk)
        pieces = list(self._pieces(docs[0])) if len(docs) == 1 else []
        if len(pieces) == 1:
            self._learn_piece(chunk, *pieces[0])

    def _learn_piece(self, chunk: bytes, index: int, kind: Kind, text: str) -> None:
        # Without a backslash in the chunk the text stands in it as it is. Found more than once, it
        # could be another value that happens to be the same word.
        quoted = b'"%b"' % text.encode()
        if not text or chunk.count(quoted) != 1:
            return
        head, rest = chunk.split(quoted)
        self._fold()
        self._where = (index, kind)
        self._head, self._joint, self._tail = head + b'"', b"", b'"' + rest
        if _NOISE in rest:
            before, noise, behind = self._tail.partition(_NOISE)
            self._joint = before + noise
            self._tail = behind[behind.index(b'"') :]
        self._start, self._stop = len(self._head), -len(self._tail)

    def said(self) -> list[Said]:
        self._fold()
        return [
            Said(index, parts.chars, **{k: "".join(v) for k, v in parts.texts.items()})
            for index, parts in sorted(self._choices.items())
        ]

    @property
    def choices(self) -> set[int]:
        """The choices that have begun."""
        if self._raw:
            self._fold()
        begun = set(self._choices)
        if self._words:
            begun.add(self._where[0])
        return begun

    @property
    def sequence(self) -> int:
        """The last `sequence_number` (responses), -1 when there was none."""
        self._fold()
        return self._sequence

    def _fold(self) -> None:
        if self._words:
            words, self._words = self._words, bytearray()
            self._keep(*self._where, _unescape(bytes(words)))
        if self._raw:
            raw, self._raw = bytes(self._raw), bytearray()
            for doc in parse_all(raw):
                self._hear(doc)
        for parts in self._choices.values():
            for kind, texts in parts.texts.items():
                parts.texts[kind] = ["".join(texts)]
        if self._kept > KEPT_CHARS and not self._keep_all:
            for parts in self._choices.values():
                parts.texts.clear()
            self._kept = 0

    def _hear(self, doc: Any) -> None:
        if isinstance(doc, dict):
            self._sequence = doc.get("sequence_number", self._sequence)
            for index, kind, text in self._pieces(doc):
                self._keep(index, kind, text)

    def _keep(self, index: int, kind: Kind, text: str) -> None:
        parts = self._choices.setdefault(index, _Parts())
        parts.chars += len(text)
        parts.texts.setdefault(kind, []).append(text)
        self._kept += len(text)


def _unescape(words: bytes) -> str:
    if b"\\" in words:
        try:
            text: str = orjson.loads(b'"%b"' % words)
        except orjson.JSONDecodeError:
            pass  # half a surrogate pair: count the escapes for text
        else:
            return text
    return words.decode("utf-8", "replace")


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
