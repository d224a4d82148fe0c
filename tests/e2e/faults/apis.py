"""The four JSON endpoints: how each is asked, what its provider says, and what that says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from lunar_proxy.core.sse import SSEEvent, SSEParser
from lunar_proxy.testing import Chunk, End, Head, Request, Script, Step, json_answer

TEXT = "Hello from here, and good day. "
SPENT = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
SSE = Head(200, {"content-type": "text/event-stream; charset=utf-8"})


def event(doc: Any, name: str = "") -> bytes:
    data = doc if isinstance(doc, bytes) else orjson.dumps(doc)
    return (b"event: %b\n" % name.encode() if name else b"") + b"data: %b\n\n" % data


@dataclass(frozen=True)
class Api:
    """`preamble`: events before any content. `finish`: the one that ends the answer well."""

    name: str
    path: str
    body: dict[str, Any]
    whole: Callable[[str, str], dict[str, Any]]  # (text, model) -> the JSON answer
    said: Callable[[Any], str]  # the text in a JSON answer or in one event
    word: Callable[[str], bytes] = field(default=lambda _: b"")
    preamble: tuple[bytes, ...] = ()
    finish: bytes = b""
    ending: tuple[bytes, ...] = ()  # what follows the finish event

    def __repr__(self) -> str:
        return self.name

    def opening(self, *words: str) -> tuple[Step, ...]:
        """A stream that has begun well and is not over."""
        return (SSE, *(Chunk(each) for each in (*self.preamble, *map(self.word, words))))

    def stream(self, text: str) -> Script:
        words = [word + " " for word in text.split(" ")[:-1]] + [text.split(" ")[-1]]
        last = (self.finish, *self.ending)
        return (*self.opening(*filter(None, words)), *map(Chunk, last), End())

    def says(self, text: str) -> Callable[[Request], Script]:
        """A provider that does as it is asked."""

        def play(request: Request) -> Script:
            if request.doc.get("stream"):
                return self.stream(text)
            return json_answer(self.whole(text, request.doc["model"]))

        return play

    def text(self, events: Sequence[SSEEvent]) -> str:
        docs = [orjson.loads(e.data) for e in events if e.data and e.data != b"[DONE]"]
        return "".join(self.said(doc) for doc in docs)


def parse(body: bytes) -> list[SSEEvent]:
    """The events of a stream; fails when it ends inside one."""
    parser = SSEParser()
    events = parser.feed(body)
    assert not parser.pending.strip(), f"the stream ends in half an event: {parser.pending!r}"
    return list(events)


# --- chat and the legacy completions ------------------------------------------------------------

_CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "theirs"}
_LEGACY = {"id": "cmpl-1", "object": "text_completion", "created": 7, "model": "theirs"}
_USAGE = event({**_CHUNK, "choices": [], "usage": SPENT})
_DONE = event(b"[DONE]")


def _delta(delta: dict[str, Any], finish: str | None = None) -> bytes:
    return event({**_CHUNK, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def _piece(text: str, finish: str | None = None) -> bytes:
    return event({**_LEGACY, "choices": [{"index": 0, "text": text, "finish_reason": finish}]})


def _chat_whole(text: str, model: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    about = {"id": "chatcmpl-1", "object": "chat.completion", "created": 7, "model": model}
    return {**about, "choices": [choice], "usage": SPENT}


def _chat_said(doc: Any) -> str:
    said = [choice.get("delta") or choice.get("message") or {} for choice in doc["choices"]]
    return "".join(each.get("content") or "" for each in said)


def _legacy_whole(text: str, model: str) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "finish_reason": "stop"}
    return {**_LEGACY, "model": model, "choices": [choice], "usage": SPENT}


CHAT = Api(
    "chat",
    "/v1/chat/completions",
    {"messages": [{"role": "user", "content": "Hello?"}]},
    _chat_whole,
    _chat_said,
    lambda text: _delta({"content": text}),
    (_delta({"role": "assistant", "content": ""}),),
    _delta({}, "stop"),
    (_USAGE, _DONE),
)
COMPLETIONS = Api(
    "completions",
    "/v1/completions",
    {"prompt": "Hello?"},
    _legacy_whole,
    lambda doc: "".join(choice["text"] for choice in doc["choices"]),
    _piece,
    (_piece(""),),
    _piece("", "stop"),
    (_USAGE, _DONE),
)

# --- responses ----------------------------------------------------------------------------------

_PARTS = {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12}


def _response(text: str, model: str = "theirs", **more: Any) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    output = [{"type": "message", "id": "msg_1", "role": "assistant", "content": content}]
    return {"id": "resp_1", "object": "response", "model": model, "output": output} | more


def _typed(kind: str, **more: Any) -> bytes:
    return event({"type": kind, **more}, kind)


def _response_said(doc: Any) -> str:
    if "output" in doc:
        return "".join(part["text"] for item in doc["output"] for part in item["content"])
    return str(doc["delta"]) if doc["type"] == "response.output_text.delta" else ""


RESPONSES = Api(
    "responses",
    "/v1/responses",
    {"input": "Hello?"},
    lambda text, model: _response(text, model, status="completed", usage=_PARTS),
    _response_said,
    lambda text: _typed("response.output_text.delta", output_index=0, delta=text),
    (
        _typed("response.created", sequence_number=0, response=_response("", status="queued")),
        _typed("response.output_item.added", sequence_number=1, output_index=0),
    ),
    _typed("response.completed", response=_response("", status="completed", usage=_PARTS)),
)

# --- embeddings ---------------------------------------------------------------------------------


def _embedding(text: str, model: str) -> dict[str, Any]:
    data = [{"object": "embedding", "index": 0, "embedding": [0.5], "said": text}]
    usage = {"prompt_tokens": 5, "total_tokens": 5}
    return {"object": "list", "data": data, "model": model, "usage": usage}


EMBEDDINGS = Api(
    "embeddings",
    "/v1/embeddings",
    {"input": "Hello?"},
    _embedding,
    lambda doc: str(doc["data"][0]["said"]),
)
