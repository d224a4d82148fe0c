"""Legacy completions asked of a provider that only has chat (CONTRACT 7).

https://platform.openai.com/docs/api-reference/completions: the prompt becomes one user message, the
message that answers becomes the text. Only members with another shape are rewritten, in place:
every other byte of request, answer and event is the sender's own.

What chat cannot express (several prompts, token ids, `echo`, `suffix`, a real `best_of`) is refused
rather than dropped, since the answer would not be what was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from lunar_proxy.core.errors import InvalidRequest
from lunar_proxy.core.jsonspan import Edit, Member, apply, insertion, members, removal
from lunar_proxy.core.sse import SSEEvent, SSEParser

_OBJECT = b'"text_completion"'
# Chat has no such members. `messages` means nothing in a legacy request, and would be a second one.
_DROPPED = frozenset({"echo", "suffix", "best_of", "messages"})
# What a model thinks is not its text. It goes beside it, as OpenRouter's own legacy endpoint does.
_THINKING = ("reasoning", "reasoning_content")


# --- the request --------------------------------------------------------------------------------


def request(body: bytes, doc: dict[str, Any]) -> bytes:
    """The chat request for a legacy one; `doc` is `body` parsed. Raises InvalidRequest."""
    message = {"role": "user", "content": _prompt(doc)}
    _refuse_unsupported(doc)
    rewritten = {"prompt": b'"messages":' + orjson.dumps([message])}
    drop = set(_DROPPED)
    wanted = doc.get("logprobs")
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        rewritten["logprobs"] = b'"logprobs":true' + (b',"top_logprobs":%d' % wanted) * (wanted > 0)
        drop.add("top_logprobs")
    found = members(body)
    edits = [Edit(m.start, m.end, rewritten[m.name]) for m in found if m.name in rewritten]
    return apply(body, edits + removal(found, drop))


def _prompt(doc: dict[str, Any]) -> str:
    prompt = doc.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    raise InvalidRequest(_PROMPT_ADVICE[_kind(prompt)], param="prompt")


_PROMPT_ADVICE = {
    "missing": "prompt is missing: send a string",
    "several": "this model's provider has only chat, which takes one prompt a call: "
    "send a string, one request for each prompt",
    "tokens": "this model's provider has only chat, which takes no token ids: "
    "send the prompt as a string",
    "other": "prompt must be a string",
}


def _kind(prompt: object) -> str:
    if prompt is None or prompt == []:
        return "missing"
    if isinstance(prompt, int):  # [17] is one prompt of one token
        return "tokens"
    if not isinstance(prompt, list):
        return "other"
    return "several" if all(isinstance(part, str) for part in prompt) else "tokens"


def _refuse_unsupported(doc: dict[str, Any]) -> None:
    if doc.get("echo"):
        raise _only_chat("echo", "leave it out and put the prompt before the text yourself")
    if doc.get("suffix"):
        raise _only_chat("suffix", "leave it out, or ask for what stands between in the prompt")
    best_of = doc.get("best_of")
    if best_of is not None and best_of != (doc.get("n") or 1):
        raise _only_chat("best_of", "leave it out, or make it equal to n")


def _only_chat(param: str, advice: str) -> InvalidRequest:
    return InvalidRequest(
        f"this model's provider has only chat, which knows no {param}: {advice}", param=param
    )


# --- the whole answer ---------------------------------------------------------------------------


def answer(body: bytes) -> bytes:
    """A `chat.completion` as a `text_completion`; what is neither stays as it is."""
    return _reshaped(body, _Offsets(), "message")


def _reshaped(data: bytes, offsets: _Offsets, member: str) -> bytes:
    """One JSON text, `choices` rebuilt and `object` renamed; `data` itself if it is no answer."""
    doc = _loads(data)
    if not isinstance(doc, dict) or not isinstance(doc.get("choices"), list) or doc.get("error"):
        return data
    choices = [_choice(choice, offsets, member) for choice in doc["choices"]]
    new = {"choices": orjson.dumps(choices), "object": _OBJECT}
    found = members(data)
    edits = [Edit(m.value, m.end, new[m.name]) for m in found if m.name in new]
    return apply(data, edits + _missing_object(data, doc, found))


def _missing_object(data: bytes, doc: dict[str, Any], found: Sequence[Member]) -> list[Edit]:
    return [] if "object" in doc else [insertion(data, 0, found, b'"object":' + _OBJECT)]


def _choice(choice: Any, offsets: _Offsets, member: str) -> Any:
    """`message` or `delta` becomes `text`; the choice's other members stay as they are."""
    if not isinstance(choice, dict):
        return choice
    said = choice.get(member)
    said = said if isinstance(said, dict) else {}
    rest = {key: value for key, value in choice.items() if key != member}
    return {
        "text": _text(said.get("content")) or _text(said.get("refusal")),
        "index": 0,
        "finish_reason": None,
        **rest,
        **{key: said[key] for key in _THINKING if said.get(key)},
        "logprobs": _logprobs(choice.get("logprobs"), offsets, choice.get("index", 0)),
    }


def _text(content: object) -> str:
    """A string, or a list of typed parts of which those named text are the answer (Mistral)."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(_text(part.get("text")) for part in parts if isinstance(part, dict))


# --- logprobs -----------------------------------------------------------------------------------


class _Offsets:
    """How much text of each choice has gone by: legacy `text_offset` counts characters of it."""

    def __init__(self) -> None:
        self._at: dict[Any, int] = {}

    def take(self, index: Any, tokens: Sequence[str]) -> Iterator[int]:
        at = self._at.get(index, 0)
        for token in tokens:
            yield at
            at += len(token)
        self._at[index] = at


def _logprobs(chat: Any, offsets: _Offsets, index: Any) -> dict[str, Any] | None:
    """Chat's list of tokens as the four parallel lists of the legacy API."""
    listed = chat.get("content") if isinstance(chat, dict) else None
    entries = [entry for entry in listed or () if isinstance(entry, dict)]
    if not entries:
        return None
    tokens = [str(entry.get("token", "")) for entry in entries]
    tops = [_top(entry.get("top_logprobs")) for entry in entries]
    return {
        "tokens": tokens,
        "token_logprobs": [entry.get("logprob") for entry in entries],
        "top_logprobs": tops if any(tops) else None,
        "text_offset": list(offsets.take(index, tokens)),
    }


def _top(listed: Any) -> dict[str, Any]:
    return {str(e.get("token", "")): e.get("logprob") for e in listed or () if isinstance(e, dict)}


# --- the stream ---------------------------------------------------------------------------------


class Events:
    """Chat's events as those of a legacy stream, which are like a whole answer each.

    An event without text (the role, the finish, usage) stays one, so the client sees as many as
    the provider sent. `[DONE]`, comments, errors and what cannot be read pass as they are.
    """

    __slots__ = ("_offsets", "_parser")

    def __init__(self) -> None:
        self._parser = SSEParser()
        self._offsets = _Offsets()

    def feed(self, data: bytes) -> bytes:
        """What the events that `data` completes became. Raises BadAnswer on one without end."""
        return b"".join([self._event(event) for event in self._parser.feed(data)])

    def eof(self) -> bytes:
        """The last event, where its sender left out the blank line."""
        return b"".join([self._event(event) for event in self._parser.eof()])

    def _event(self, event: SSEEvent) -> bytes:
        data = _reshaped(event.data, self._offsets, "delta")
        if data is event.data:
            return event.raw
        name = b"event: " + event.event + b"\n" if event.event else b""
        # Line ends between tokens of the JSON, should there be any, would end the data line.
        return name + b"data: " + data.replace(b"\n", b" ") + b"\n\n"


def _loads(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
