"""Taking up a broken stream with another provider's answer (`stream_recovery: splice`).

The client has the beginning of an answer. The same request is asked again elsewhere, and what comes
is compared with what the client has:

    comparing   while the two are identical nothing is sent
    joined      where the new one goes on, an event with only the rest of its text is sent, and from
                there its events, under the id and model of the stream they continue
    diverged    at the first difference nothing more is sent: two answers glued together would be
                neither (LESSONS 6), so the stream ends in an error

Only text is compared, so a stream that is inside a tool call, or has finished a choice, is not
taken up at all; Stream.can_resume knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from .annotate import event_edits, last
from .jsonspan import Edit, apply, members
from .shapes import COMPLETION, Kind, Meaning, Shape, choices_of
from .sse import SSEEvent, SSEParser
from .transcript import Said

_DONE = b"[DONE]"


class Continuation:
    """feed() the new provider's bytes; it returns those that belong to the client's stream."""

    __slots__ = ("_expected", "_id", "_joined", "_model", "_parser", "_shape", "diverged")

    def __init__(
        self, shape: Shape, said: Sequence[Said], id: str | None, model: str | None
    ) -> None:
        self.diverged = False
        self._shape = shape
        self._id, self._model = id, model
        self._parser = SSEParser()
        self._expected: dict[tuple[int, Kind], str] = {}
        for choice in said:
            self._expected[choice.index, "reasoning"] = choice.reasoning
            self._expected[choice.index, "content"] = choice.content
        self._joined = not any(self._expected.values())

    @property
    def joined(self) -> bool:
        """All the client has was said again."""
        return self._joined

    def feed(self, data: bytes) -> bytes:
        return self._take(self._parser.feed(data))

    def eof(self) -> bytes:
        return self._take(self._parser.eof())

    def _take(self, events: Sequence[SSEEvent]) -> bytes:
        out = []
        for event in events:
            if not self.diverged:
                out.append(self._translate(event))
        return b"".join(out)

    def _translate(self, event: SSEEvent) -> bytes:
        doc = _loads(event.data)
        if not isinstance(doc, dict):
            return self._other(event)
        meaning = self._shape.read(event.event, doc)
        if meaning.error:
            return event.raw
        if self._joined:
            return self._renamed(event)
        return self._compare(doc, meaning)

    def _other(self, event: SSEEvent) -> bytes:
        if self._joined:
            return event.raw
        if event.data == _DONE:  # it said less than the client has
            self.diverged = True
        return b""

    def _compare(self, doc: dict[str, Any], meaning: Meaning) -> bytes:
        rest: list[tuple[int, Kind, str]] = []
        for index, kind, text in self._shape.pieces(doc):
            more = self._beyond(index, kind, text)
            if more is None:
                self.diverged = True
                return b""
            if more:
                rest.append((index, kind, more))
        self._joined = not any(self._expected.values())
        if meaning.finished and not self._joined:
            self.diverged = True
            return b""
        if not rest and not meaning.finished:
            return b""
        return self._event(doc, rest)

    def _beyond(self, index: int, kind: Kind, text: str) -> str | None:
        """What `text` says that the client does not have; None when it says something else."""
        expected = self._expected.get((index, kind), "")
        if expected:
            if expected.startswith(text):
                self._expected[index, kind] = expected[len(text) :]
                return ""
            if not text.startswith(expected):
                return None
            self._expected[index, kind] = ""
            text = text[len(expected) :]
        if not text:
            return ""
        # It must not come before what was said of another kind; and a tool call that begins in the
        # very event that completes the text has no place in an event of ours.
        others = any(left for (i, _), left in self._expected.items() if i == index)
        return None if others or kind == "arguments" else text

    def _event(self, doc: dict[str, Any], rest: Sequence[tuple[int, Kind, str]]) -> bytes:
        """The one event of our own making: the end of a text whose beginning the client has."""
        by_choice: dict[int, dict[str, str]] = {}
        for index, kind, text in rest:
            by_choice.setdefault(index, {})[_spelling(doc, index, kind)] = text
        choices = []
        for index, choice in choices_of(doc):
            said = by_choice.get(index, {})
            if not said and not choice.get("finish_reason"):
                continue
            body: dict[str, Any] = {"delta": said}
            if self._shape is COMPLETION:
                body = {"text": said.get("content", "")}
            choices.append({**choice, **body})
        return self._renamed(SSEEvent.of(orjson.dumps({**doc, "choices": choices})))

    def _renamed(self, event: SSEEvent) -> bytes:
        found = members(event.data)
        edits = []
        for name, value in (("id", self._id), ("model", self._model)):
            member = last(found, name)
            if member is not None and value is not None:
                edits.append(Edit(member.value, member.end, orjson.dumps(value)))
        return apply(event.raw, event_edits(event.raw, edits))


def _spelling(doc: dict[str, Any], index: int, kind: Kind) -> str:
    """The member of the delta that carries this kind of text, as this provider spells it."""
    if kind == "content":
        return "content"
    deltas = [choice.get("delta") for at, choice in choices_of(doc) if at == index]
    spelled = any(isinstance(d, dict) and d.get("reasoning_content") for d in deltas)
    return "reasoning_content" if spelled else "reasoning"


def _loads(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
