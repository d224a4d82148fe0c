"""One streamed answer on its way to the client: bytes in, bytes out, and what they meant.

    held       Until the first content nothing goes out: another target may still answer, and a 200
               whose first event is an error is a failure like any other (CONTRACT 6).
    started    From then on bytes go out as they come and as they are, half events included.
    waiting    With `splice`, the event that carries the last finish_reason is kept, whole, until
               the usage that follows it is known (a second at most; the clock is the caller's).
    error      An error inside the stream is kept from the client; error_event() ends the stream.

A chunk of whole events without a mark (core.shapes) is returned as the same object, unparsed.
Everything else goes through the parser. Of an event that has come in part, the bytes
from the first mark on are kept until it is whole, because a splice may touch them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import orjson

from .annotate import event_edits, only_usage, splice_usage, value_at, with_members
from .continuation import Continuation
from .errors import BadAnswer
from .jsonread import read_answer
from .jsonspan import Edit, apply
from .lastevent import Names, empty_end, last_event
from .shapes import CHAT, COMPLETION, OPAQUE, RESPONSES, Meaning, Shape
from .sse import MAX_EVENT_BYTES, SSEEvent, SSEParser
from .transcript import Said, Transcript

__all__ = ["CHAT", "COMPLETION", "OPAQUE", "RESPONSES", "Fault", "Said", "Shape", "Stream"]

_BURST = 2048  # bytes in one read from which on it pays to look at its ends only
_EVENT_ENDS = (b"\n\n", b"\r\n\r\n")
_DONE = b"[DONE]"
_NULL = rb"(?!\s*:\s*null)"
_FAULT_MARK = re.compile(rb'"error"' + _NULL)
_SPLICE_MARK = re.compile(rb'"usage"|"(?:finish_reason|error)"' + _NULL)
_LOOK_BACK = 32  # longer than any mark, so one that was cut is found

Render = Callable[[dict[str, Any] | None], bytes]


class Fault(NamedTuple):
    """An error event: its parsed data (None if it is not JSON) and its text."""

    doc: Any
    raw: bytes


class Stream:
    """feed() what comes, write what it returns; eof() when the provider's side has ended.

    shape     the API, core.shapes
    splice    `annotate` is full: usage gains fields
    injected  the proxy asked for the usage event: the client must not see it
    asked     the client asked for it: it gains the fields, and no event waits
    render    the members to add, given the provider's usage (None: it gave none, so the members
              include the counts); called at the moment of writing, so it may look at a clock
    choices   how many the client asked for (`n`)
    keep_text keep all text, however long (stream_recovery: splice)
    """

    __slots__ = (
        "_asked",
        "_choices",
        "_continuation",
        "_created",
        "_done",
        "_finished",
        "_injected",
        "_marked",
        "_open",
        "_parser",
        "_preamble",
        "_queue",
        "_render",
        "_sent",
        "_shape",
        "_splice",
        "_transcript",
        "_usage_final",
        "_usage_source",
        "_waiting",
        "error",
        "id",
        "model",
        "plain",
        "started",
        "usage",
    )

    def __init__(
        self,
        shape: Shape,
        *,
        splice: bool,
        injected: bool,
        render: Render,
        asked: bool = False,
        choices: int = 1,
        keep_text: bool = False,
    ) -> None:
        self.started = False
        self.error: Fault | None = None
        self.usage: dict[str, Any] | None = None
        self.id: str | None = None
        self.model: str | None = None
        self._shape, self._marked = shape, shape.marked
        self._splice, self._injected, self._asked = splice, injected, asked
        self._render = render
        self._choices = choices
        self._created: int | None = None
        self._parser = SSEParser()
        self._transcript = Transcript(shape.pieces, keep_text=keep_text)
        self._preamble = bytearray()
        self.plain = False  # started, and no finish_reason yet: most chunks need no look
        self._sent = 0  # how much of the parser's pending event has been returned
        self._open = b""  # after the end: the part of an unfinished event that was returned
        self._waiting: tuple[SSEEvent, int] | None = None  # the finish event, how much was sent
        self._queue: list[SSEEvent] = []  # what came behind it
        self._usage_source: tuple[bytes, tuple[str, ...]] | None = None  # document, path in it
        self._usage_final = False  # it came in an event of its own, not with every chunk
        self._finished: set[int] = set()
        self._done = False
        self._continuation: Continuation | None = None

    # --- bytes ------------------------------------------------------------------------------

    def feed(self, data: bytes) -> bytes:
        """What may be written to the client now. Raises BadAnswer on an event without end."""
        if self.plain and not self._parser.pending:
            if self._transcript.repeats(data):
                return data
            if data.endswith(_EVENT_ENDS) and not self._marked(data):
                self._transcript.add(data)
                self._transcript.learn(data)
                return data
        if len(data) > _BURST and self._continuation is None and not self._finished:
            return self._feed_burst(data)
        return self._feed_parsed(data)

    def _feed_burst(self, data: bytes) -> bytes:
        """Many events in one read: a run of them that needs no look passes in one piece."""
        start = data.find(b"\n\n") + 2 if self._parser.pending else 0
        out = [self._feed_parsed(data[:start])] if start else []
        whole = data.rfind(b"\n\n") + 2
        looked = False  # for a mark in all that is left: once, for it takes as long as all of it
        while start < whole and (self.plain or not self.started) and not self._parser.pending:
            stop = self._known_run(data, start) if self.plain else start
            if stop == start and self.plain and not looked:
                looked = True
                if not self._marked(data[start:whole]):
                    stop = whole
                    self._transcript.add(data[start:stop])
            if stop == start:
                stop = data.find(b"\n\n", start) + 2
                out.append(self._feed_parsed(data[start:stop]))
            else:
                out.append(data[start:stop])
            start = stop
        out.append(self._feed_parsed(data[start:]))
        return b"".join(out)

    def _known_run(self, data: bytes, start: int) -> int:
        """Where the events end that are all one, known or learned here, but for a word each."""
        stop = self._transcript.run(data, start)
        if stop == start:
            example = data[start : data.find(b"\n\n", start) + 2]
            if not self._marked(example):
                self._transcript.learn(example)
                stop = self._transcript.run(data, start)
        return stop

    def _feed_parsed(self, data: bytes) -> bytes:
        if self.error is not None:
            return b""
        if self._shape.commits_at_once and data and not self.started:
            self.started = self.plain = True
        if self._continuation is not None:
            data = self._continuation.feed(data)
        out = self._take(self._parser.feed(data))
        if self.error is None:
            self._relay_part(out)
        return b"".join(out)

    def release(self) -> bytes:
        """The event that waits, with what is known of the usage, and what came behind it."""
        out: list[bytes] = []
        self._flush(out, spliced=self.complete)
        return b"".join(out)

    def eof(self) -> bytes:
        """What is left to write when the provider's side has ended; then see `complete`."""
        out: list[bytes] = []
        if self._continuation is not None and self.error is None:
            out += self._take(self._parser.feed(self._continuation.eof()))
        unended = self._parser.eof() if self.error is None else []
        for event in unended:
            out += self._end_inside(event)
        if self.error is None:
            self._flush(out, spliced=self.complete)
            if self.finish_seen and any(_loads(event.data) for event in unended):
                out.append(b"\n\n")  # without it nobody would see the finish_reason in it
        return b"".join(out)

    def error_event(self, message: str, type: str, code: str) -> bytes:
        """The one last event of a stream that failed, and the end (CONTRACT 6)."""
        part = self._parser.pending[: self._sent] or self._open
        return last_event(self._shape.name, part, self._names(), message, type, code)

    def resume(self) -> bytes:
        """Take up a broken stream with another provider's (core.continuation).

        Returns what ends the event that broke, without its half of a word. Then feed() and eof()
        take the bytes of the new one; `diverged` says that it is not the same. `usage` and `error`
        start anew: keep those of the first answer before.
        """
        out = self.eof() + empty_end(self._shape.name, self._open, self._names())
        self._continuation = Continuation(self._shape, self.text(), self.id, self.model)
        self._parser = SSEParser()
        self.plain, self._open, self._sent = False, b"", 0
        self.error = self.usage = self._usage_source = None
        self._usage_final = False
        return out

    def carried_by(self, render: Render, *, injected: bool) -> None:
        """Whose answer it goes on with has figures of its own, and was asked in its own way."""
        self._render, self._injected = render, injected

    # --- what is known ----------------------------------------------------------------------

    @property
    def holding(self) -> bool:
        """A finish event waits for its usage; release() it after a second."""
        return self._waiting is not None

    @property
    def finish_seen(self) -> bool:
        """Every choice has its finish_reason. [DONE] should follow, but some never send it."""
        done = self._finished
        return len(done) >= self._choices and self._transcript.choices <= done

    @property
    def finished(self) -> bool:
        """Nothing more is expected, and nothing waits to be written."""
        return self._done and self._waiting is None

    @property
    def complete(self) -> bool:
        """The answer is whole. An end without it is a cut, however politely it was made."""
        if self.error is not None:
            return False
        return self._done or self.finish_seen or self._shape.commits_at_once

    @property
    def can_resume(self) -> bool:
        """All that was relayed is text that is still known, of choices that have not finished."""
        said = self.text()
        return (
            self._shape.usage_may_follow
            and self.started
            and not self._finished
            and any(choice.chars for choice in said)
            and all(choice.chars == len(choice.text) and not choice.arguments for choice in said)
        )

    @property
    def resumed(self) -> bool:
        """Another provider has taken it up."""
        return self._continuation is not None

    @property
    def joined(self) -> bool:
        """A resumed stream has reached the place where it broke."""
        return self._continuation is not None and self._continuation.joined

    @property
    def diverged(self) -> bool:
        """The answer to resume with is another one: nothing more of it is relayed."""
        return self._continuation is not None and self._continuation.diverged

    @property
    def tool_call_open(self) -> bool:
        """A choice has begun a tool call and not finished."""
        return any(said.arguments and said.index not in self._finished for said in self.text())

    def text(self) -> list[Said]:
        """What has been relayed, choice by choice."""
        return self._transcript.said()

    def _names(self) -> Names:
        return Names(self.id, self.model, self._created, self._transcript.sequence + 1)

    # --- what an event means ----------------------------------------------------------------

    def _take(self, events: Sequence[SSEEvent]) -> list[bytes]:
        out: list[bytes] = []
        for event in events:
            sent, self._sent = self._sent, 0
            if self.plain and not self._marked(event.raw):
                self._pass(out, event, sent)
                continue
            meaning = self._read(event)
            if meaning.error and not self._done:  # what comes after the end undoes nothing
                self._fail(event, sent)
                break
            self._note(event, meaning)
            if self.started or self._start(out, event, meaning):
                self._place(out, event, sent, meaning)
        return out

    def _read(self, event: SSEEvent) -> Meaning:
        if event.data == _DONE:
            return Meaning(done=True, bare=True)
        if not event.data:
            return Meaning(bare=True)
        doc = _loads(event.data)
        if not self.started and isinstance(doc, dict):
            self._learn_names(doc)
        return self._shape.read(event.event, doc)

    def _learn_names(self, doc: dict[str, Any]) -> None:
        about = doc.get("response") if self._shape.usage_in else doc
        if isinstance(about, dict):
            self.id = about.get("id") or self.id
            self.model = about.get("model") or self.model
            self._created = about.get("created") or self._created

    def _note(self, event: SSEEvent, meaning: Meaning) -> None:
        if meaning.usage:
            self.usage = meaning.usage
            self._usage_source = (event.data, meaning.usage_path)
            self._usage_final = meaning.bare
        if meaning.finished or meaning.done:
            self._finished.update(meaning.finished)
            self._done = self._done or meaning.done
            self.plain = False

    def _start(self, out: list[bytes], event: SSEEvent, meaning: Meaning) -> bool:
        """True at the first content, or at an end without any: then what was held goes out."""
        if meaning.content or meaning.finished or meaning.done:
            out.append(bytes(self._preamble))
            self._preamble.clear()
            self.started = True
            self.plain = not (meaning.finished or meaning.done)
            return True
        if not self._is_injected(meaning):
            self._preamble += event.raw
        if len(self._preamble) > MAX_EVENT_BYTES:
            raise BadAnswer("The provider sent too much before its first content.")
        return False

    def _fail(self, event: SSEEvent, sent: int) -> None:
        self.error = Fault(_loads(event.data), event.data)
        self.plain = False
        self._open = event.raw[:sent]
        self._preamble.clear()
        self._queue.clear()
        if self._waiting is not None:  # an answer that ends in an error shows no other end
            held, held_sent = self._waiting
            self._open, self._waiting = held.raw[:held_sent], None

    def _end_inside(self, event: SSEEvent) -> list[bytes]:
        """The provider's side ended without the blank line behind this event."""
        sent = self._sent
        if event.data and not self._done and not _is_whole(event.data):
            self._sent, self._open = 0, event.raw[:sent]  # cut: its kept part helps nobody
            return []
        out = self._take([event])
        if self.error is None and self.started:
            self._open = event.raw
        return out

    # --- where it goes ----------------------------------------------------------------------

    def _place(self, out: list[bytes], event: SSEEvent, sent: int, meaning: Meaning) -> None:
        if self._waiting is not None and not self._resolve_wait(out, meaning):
            self._queue.append(event)
        elif self._is_injected(meaning) and not sent:
            return
        elif self._must_wait(meaning):
            self._waiting = (event, sent)
        else:
            self._pass(out, event, sent, spliced=self._gains_fields(meaning))

    def _is_injected(self, meaning: Meaning) -> bool:
        return bool(self._injected and meaning.bare and meaning.usage and not meaning.finished)

    def _must_wait(self, meaning: Meaning) -> bool:
        return bool(
            self._splice
            and not self._asked
            and self._shape.usage_may_follow
            and meaning.finished
            and not meaning.usage
            and not self._usage_final
        )

    def _resolve_wait(self, out: list[bytes], meaning: Meaning) -> bool:
        """Let the waiting event go if this one says how; False: it has to wait on."""
        if meaning.content or meaning.finished:  # it was not the last one to finish
            self._flush(out, spliced=False)
        elif meaning.usage:
            self._flush(out, spliced=meaning.bare or self.finish_seen)
        else:
            return False
        return True

    def _flush(self, out: list[bytes], *, spliced: bool) -> None:
        if self._waiting is None:
            return
        (event, sent), self._waiting = self._waiting, None
        self._pass(out, event, sent, spliced=spliced)
        queue, self._queue = self._queue, []
        for event in queue:
            self._pass(out, event, 0)

    def _gains_fields(self, meaning: Meaning) -> bool:
        if not self._splice:
            return False
        if meaning.finished:
            # A client that asked for usage finds it where the provider puts it.
            own = meaning.usage is not None and len(meaning.usage_path) == 1
            return own or not (self._asked and self._shape.usage_may_follow)
        # Some report usage with every chunk: only the last word gains the fields.
        return bool(meaning.usage and (meaning.bare or self.finish_seen))

    def _usage_edits(self, event: SSEEvent) -> list[Edit]:
        added = self._render(self.usage)
        if not added:
            return []
        if self._usage_source == (event.data, ("usage",)) and (found := only_usage(event.data)):
            end = found[1] - 1
            return event_edits(event.raw, [Edit(end, end, b"," + added)])
        whole = b"{" + added + b"}"
        if self._usage_source is not None:
            whole = with_members(_usage_text(*self._usage_source), added)
        edits = splice_usage(event.data, added, whole, self._shape.usage_in)
        return event_edits(event.raw, edits)

    def _pass(self, out: list[bytes], event: SSEEvent, sent: int, *, spliced: bool = False) -> None:
        if event.data != _DONE:
            self._transcript.add(event.raw)  # first: where usage is counted, this text counts too
        edits = self._usage_edits(event) if spliced else []
        raw = apply(event.raw, edits) if edits and min(edits).start >= sent else event.raw
        out.append(raw[sent:] if sent else raw)

    def _relay_part(self, out: list[bytes]) -> None:
        """Send on what can be of an event that has come in part."""
        pending, sent = self._parser.pending, self._sent
        if not pending or not self.started or self._waiting is not None:
            return
        if self._injected and self._finished:  # it may be the one that the client must not see
            return
        end = self._keep_from(pending)
        if end > sent:
            out.append(pending[sent:end])
            self._sent = end

    def _keep_from(self, pending: bytes) -> int:
        if self._shape.commits_at_once:
            return len(pending)
        head = pending[:_LOOK_BACK].lstrip(b"\r\n")
        blank = min(len(pending), _LOOK_BACK) - len(head)
        if head and self._sent <= blank and _may_be(self._shape.unsplit, head):
            return blank
        mark = _SPLICE_MARK if self._splice else _FAULT_MARK
        found = mark.search(pending, max(0, self._sent - _LOOK_BACK))
        return found.start() if found else len(pending)


def _usage_text(document: bytes, path: tuple[str, ...]) -> bytes:
    found = only_usage(document) if path == ("usage",) else None
    return document[slice(*found)] if found else value_at(document, path)


def _may_be(beginnings: tuple[bytes, ...], head: bytes) -> bool:
    return head.startswith(beginnings) or any(b.startswith(head) for b in beginnings)


def _loads(data: bytes) -> Any:
    try:
        return read_answer(data)
    except orjson.JSONDecodeError:
        return None


def _is_whole(data: bytes) -> bool:
    return data == _DONE or _loads(data) is not None
