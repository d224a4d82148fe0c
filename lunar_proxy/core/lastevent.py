"""The last event of a stream that failed after its first byte (CONTRACT 6).

It may have to start in the middle of another event, half of which the client already has. That half
is turned into the error event itself (core.jsonclose says why): the client's parser sees one event,
it is well-formed, and it says that the answer failed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from .jsonclose import close_object
from .sse import SSEEvent, data_spans, line_spans

_BLANK_LINE = b"\n\n"  # one LF may turn out to be half of a CRLF


class Names(NamedTuple):
    """What the stream calls itself. `sequence` numbers the next event (responses)."""

    id: str | None
    model: str | None
    created: int | None
    sequence: int


def last_event(shape: str, part: bytes, names: Names, message: str, type: str, code: str) -> bytes:
    """The bytes that end a stream of which `part` is an event the client has in part."""
    error = {"message": message, "type": type, "code": code}
    if shape == "responses":
        return _end_with(part, _responses_error(names, error), b"error")
    doc = {**_chunk(shape, names, "error"), "error": error}
    return _end_with(part, doc) + b"data: [DONE]\n\n"


def empty_end(shape: str, part: bytes, names: Names) -> bytes:
    """The bytes that end the event of which the client has `part`, so that it says nothing."""
    return _end_event(part, _chunk(shape, names, None), b"")


def _chunk(shape: str, names: Names, finish: str | None) -> dict[str, Any]:
    said: dict[str, Any] = {"text": ""} if shape == "completion" else {"delta": {"content": ""}}
    return {
        "id": names.id or "",
        "object": "text_completion" if shape == "completion" else "chat.completion.chunk",
        "created": names.created or 0,
        "model": names.model or "",
        "choices": [{"index": 0, **said, "finish_reason": finish}],
    }


def _responses_error(names: Names, error: dict[str, str]) -> dict[str, Any]:
    """OpenAI API reference, Responses, streaming events, `error`."""
    return {
        "type": "error",
        "code": error["code"],
        "message": error["message"],
        "param": None,
        "sequence_number": names.sequence,
    }


def _end_with(part: bytes, doc: dict[str, Any], name: bytes = b"") -> bytes:
    """`doc` as the last event, made of the one that is open if there is one."""
    ended = _end_event(part, doc, name)
    if ended and ended != _BLANK_LINE:
        return ended
    fresh = SSEEvent.of(orjson.dumps(doc)).raw
    return ended + (b"event: %b\n" % name if name else b"") + fresh


def _end_event(part: bytes, doc: dict[str, Any], name: bytes) -> bytes:
    """What turns the open event into `doc`; a blank line if it cannot be, nothing if none is."""
    lines = [part[start:end] for start, end in line_spans(part)]
    if not any(lines):
        return b""
    open_line = lines[-1] if not part.endswith((b"\r", b"\n")) else b""
    data = [part[start:end] for start, end in data_spans(part)]
    if open_line.startswith(b"data:"):
        lead = b""
    else:
        lead = (b"\n" if open_line else b"") + b"data: "
        data.append(b"")
    suffix = close_object(b"\n".join(data), orjson.dumps(doc)[1:-1])
    if suffix is None:  # it is whole, or no JSON: nothing of it can be turned into ours
        return _BLANK_LINE
    # The last `event` line counts; an empty one takes back the name that the half had.
    named = name or any(line.startswith(b"event") for line in lines)
    return lead + suffix + (b"\nevent: " + name if named else b"") + b"\n\n"
