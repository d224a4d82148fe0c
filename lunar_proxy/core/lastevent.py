"""The last event of a stream that failed after its first byte (CONTRACT 6).

It may have to start in the middle of another event, half of which the client already has. That half
is turned into the error event itself (core.jsonclose says why): the client's parser sees one event,
it is well-formed, and it says that the answer failed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from .jsonclose import close_object
from .sse import data_spans, line_spans


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
        return _end_event(part, _responses_error(names, error), b"error")
    return _end_event(part, _choices_error(shape, names, error), b"") + b"data: [DONE]\n\n"


def _choices_error(shape: str, names: Names, error: dict[str, str]) -> dict[str, Any]:
    said: dict[str, Any] = {"text": ""} if shape == "completion" else {"delta": {"content": ""}}
    return {
        "id": names.id or "",
        "object": "text_completion" if shape == "completion" else "chat.completion.chunk",
        "created": names.created or 0,
        "model": names.model or "",
        "choices": [{"index": 0, **said, "finish_reason": "error"}],
        "error": error,
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


def _end_event(part: bytes, doc: dict[str, Any], name: bytes) -> bytes:
    members = orjson.dumps(doc)[1:-1]
    fresh = (b"event: %b\n" % name if name else b"") + b"data: {%b}\n\n" % members
    lines = [part[start:end] for start, end in line_spans(part)]
    if not any(lines):
        return fresh
    open_line = lines[-1] if not part.endswith((b"\r", b"\n")) else b""
    data = [part[start:end] for start, end in data_spans(part)]
    if open_line == b"data":
        lead = b":"
    elif open_line.startswith(b"data:"):
        lead = b""
    else:
        lead = (b"\n" if open_line else b"") + b"data: "
        data.append(b"")
    suffix = close_object(b"\n".join(data), members)
    if suffix is None:  # whole, or no JSON: nothing of it can be turned into ours
        return b"\n\n" + fresh
    # The last `event` line counts; an empty one takes back the name that the half had.
    named = name or any(line.startswith(b"event") for line in lines)
    return lead + suffix + (b"\nevent: " + name if named else b"") + b"\n\n"
