"""What the events of a streamed answer mean, one Shape per API.

A Shape is a row of functions; Stream holds the rules and knows no API. `marked` is asked for every
chunk and must be cheap: it looks for bytes that could matter and may be wrong in one direction
only. `read` then parses, so a text that merely talks about `"usage"` costs time and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["content", "reasoning", "arguments"]
Piece = tuple[int, Kind, str]  # choice index, what sort of text, the text


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one event says. `bare`: it has no choices, so it only speaks about the answer."""

    content: bool = False
    finished: tuple[int, ...] = ()  # choices whose finish_reason it carries
    done: bool = False  # nothing more is expected
    error: bool = False
    usage: dict[str, Any] | None = None
    usage_path: tuple[str, ...] = ("usage",)  # where that stands in the document
    bare: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """One API's streams. `unsplit`: beginnings of events that are never relayed in part."""

    name: str
    read: Callable[[bytes, Any], Meaning]  # the event's name and its parsed data
    marked: Callable[[bytes], bool]
    pieces: Callable[[Any], Iterator[Piece]]
    usage_in: tuple[str, ...] = ()  # the object that has (or lacks) the member `usage`
    unsplit: tuple[bytes, ...] = ()
    commits_at_once: bool = False  # nothing is known of its events, so the first byte counts
    usage_may_follow: bool = False  # in an event of its own behind the finish_reason


# --- chat/completions and the legacy completions ------------------------------------------------

# In a delta, yet nothing a user reads: names, not text.
_NOT_CONTENT = frozenset({"role", "name", "channel", "recipient"})


_TEXT_IN: Mapping[str, Kind] = {
    "content": "content",
    "refusal": "content",
    "reasoning_content": "reasoning",
    "reasoning": "reasoning",
    "tool_calls": "arguments",
    "function_call": "arguments",
}


# OpenRouter, and what `providers.translate` makes of a chat, have thinking beside the text.
_COMPLETION_TEXT: Mapping[str, Kind] = {
    "text": "content",
    "reasoning_content": "reasoning",
    "reasoning": "reasoning",
}


def _chat_marked(data: bytes) -> bool:
    # Counting is how `"usage":null`, in every chunk of some providers, is told from an object
    # without a pattern: bytes.count is several times faster than `re` on a chunk.
    count = data.count
    n = count(b'"finish_reason"')
    if n and n != count(b'"finish_reason":null') and n != count(b'"finish_reason": null'):
        return True
    n = count(b'"usage"')
    if n and n != count(b'"usage":null') and n != count(b'"usage": null'):
        return True
    return b'"error"' in data or b"[DONE]" in data or b"event: error" in data


def _read_choices(name: bytes, doc: Any, has_content: Callable[[Any], bool]) -> Meaning:
    if isinstance(doc, list):  # Gemini wraps its error in an array
        doc = doc[0] if doc else None
    if not isinstance(doc, dict):
        return Meaning(error=name == b"error")
    choices = choices_of(doc)
    reasons = [(index, choice.get("finish_reason")) for index, choice in choices]
    usage, path = _find_usage(doc)
    return Meaning(
        content=any(has_content(choice) for _, choice in choices),
        finished=tuple(index for index, reason in reasons if reason),
        error=_is_fault(name, doc) or any(reason == "error" for _, reason in reasons),
        usage=usage,
        usage_path=path,
        bare=not choices,
    )


def _find_usage(doc: Mapping[str, Any]) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    for path in (("usage",), ("x_groq", "usage")):
        found: Any = doc
        for step in path:
            found = found.get(step) if isinstance(found, dict) else None
        if isinstance(found, dict) and found:
            return found, path
    return None, ("usage",)


def _is_fault(name: bytes, doc: Mapping[str, Any]) -> bool:
    return bool(doc.get("error")) or name == b"error"


def _chat_content(choice: Mapping[str, Any]) -> bool:
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return False
    return any(value for key, value in delta.items() if key not in _NOT_CONTENT)


def _read_chat(name: bytes, doc: Any) -> Meaning:
    return _read_choices(name, doc, _chat_content)


def _read_completion(name: bytes, doc: Any) -> Meaning:
    return _read_choices(name, doc, lambda choice: any(choice.get(key) for key in _COMPLETION_TEXT))


def _chat_pieces(doc: Any) -> Iterator[Piece]:
    for index, choice in choices_of(doc):
        delta = choice.get("delta")
        if isinstance(delta, dict):
            yield from _said_in(index, delta, _TEXT_IN)


def _said_in(index: int, delta: Mapping[str, Any], kinds: Mapping[str, Kind]) -> Iterator[Piece]:
    for key, value in delta.items():
        if not value or key not in kinds:
            continue
        if key == "reasoning" and delta.get("reasoning_content"):
            continue  # some send both spellings of the same text
        yield index, kinds[key], _text(value)


def _completion_pieces(doc: Any) -> Iterator[Piece]:
    for index, choice in choices_of(doc):
        yield from _said_in(index, choice, _COMPLETION_TEXT)


def _text(value: Any) -> str:
    """The text in a string, in Mistral's list of typed parts, or in tool calls.

    However deep a provider nests it: an answer that is only relayed must not end our stack.
    """
    if isinstance(value, str):
        return value
    texts, pending = [], [value]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, list):
            pending += reversed(part)
        elif isinstance(part, dict):
            function = part.get("function") or part
            if isinstance(function, dict) and ("name" in function or "arguments" in function):
                pending += (function.get("arguments"), function.get("name"))
            else:
                pending.append(part.get("text") or part.get("thinking"))
    return "".join(texts)


def choices_of(doc: Any) -> list[tuple[int, dict[str, Any]]]:
    """The choices of a chunk with their indexes; what is not of that shape is left out."""
    choices = doc.get("choices") if isinstance(doc, dict) else None
    if not isinstance(choices, list):
        return []
    return [(_index(choice), choice) for choice in choices if isinstance(choice, dict)]


def _index(choice: Mapping[str, Any]) -> int:
    index = choice.get("index")
    return index if isinstance(index, int) else 0


# --- responses ----------------------------------------------------------------------------------

# Sent before the model has said anything (LESSONS 2): another target may still take over.
_PREAMBLE = frozenset(
    {
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_summary_part.added",
        "keepalive",
        "ping",
    }
)
_TERMINAL = frozenset({"response.completed", "response.incomplete", "response.cancelled"})
_RESPONSES_MARKS = (
    b"response.completed",
    b"response.incomplete",
    b"response.cancelled",
    b"response.failed",
    b'"error"',
    b"event: error",
    b"[DONE]",
)


def _responses_marked(data: bytes) -> bool:
    return any(mark in data for mark in _RESPONSES_MARKS)


def _read_responses(name: bytes, doc: Any) -> Meaning:
    if not isinstance(doc, dict):
        return Meaning(error=name == b"error")
    kind = str(doc.get("type") or name.decode("utf-8", "replace"))
    if kind in ("error", "response.failed") or (name == b"error" or _only_error(doc)):
        return Meaning(error=True)
    done = kind in _TERMINAL
    response = doc.get("response")
    usage = response.get("usage") if isinstance(response, dict) else None
    return Meaning(
        content=not done and kind not in _PREAMBLE and doc.get("delta") != "",
        finished=(0,) if done else (),
        done=done,
        usage=usage if done and isinstance(usage, dict) and usage else None,
        usage_path=("response", "usage"),
        bare=True,
    )


def _only_error(doc: Mapping[str, Any]) -> bool:
    return "type" not in doc and bool(doc.get("error"))


def _responses_pieces(doc: Any) -> Iterator[Piece]:
    if not isinstance(doc, dict) or not isinstance(doc.get("delta"), str):
        return
    index = doc.get("output_index")
    where = index if isinstance(index, int) else 0
    kind = str(doc.get("type", ""))
    if "arguments" in kind or "_call" in kind:
        yield where, "arguments", doc["delta"]
    elif "reasoning" in kind:
        yield where, "reasoning", doc["delta"]
    else:
        yield where, "content", doc["delta"]


# --- any other ----------------------------------------------------------------------------------


def _read_opaque(_name: bytes, doc: Any) -> Meaning:
    usage = doc.get("usage") if isinstance(doc, dict) else None
    return Meaning(usage=usage if isinstance(usage, dict) and usage else None)


def _opaque_marked(data: bytes) -> bool:
    return b'"usage"' in data or b"[DONE]" in data


def _no_pieces(_doc: Any) -> Iterator[Piece]:
    return iter(())


# Errors, which the client must not see, and the end, which half of it must not resemble.
_UNSPLIT = (
    b'data: {"error"',
    b'data:{"error"',
    b"data: [",
    b"data:[",
    b"event: error",
    b"event:error",
)

CHAT = Shape(
    "chat", _read_chat, _chat_marked, _chat_pieces, unsplit=_UNSPLIT, usage_may_follow=True
)
COMPLETION = Shape(
    "completion",
    _read_completion,
    _chat_marked,
    _completion_pieces,
    unsplit=_UNSPLIT,
    usage_may_follow=True,
)
RESPONSES = Shape(
    "responses",
    _read_responses,
    _responses_marked,
    _responses_pieces,
    usage_in=("response",),
    unsplit=(*_UNSPLIT, b"event: response.failed", b'data: {"type":"response.failed"'),
)
OPAQUE = Shape("opaque", _read_opaque, _opaque_marked, _no_pieces, commits_at_once=True)
