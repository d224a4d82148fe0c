"""The responses API: one document, or the events that lead to it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import orjson

from lunar_proxy.core.script import Step

from .ask import Ask, read_turns
from .reply import Events, Reply, compose, play, whole


def responses(ask: Ask) -> Iterator[Step]:
    instructions = ask.doc.get("instructions")
    turns = read_turns(ask.doc.get("input"), "input")
    if isinstance(instructions, str):
        turns = [("system", instructions), *turns]
    reply = compose(ask, turns, ask.limit("max_output_tokens"))
    done = _response_doc(ask, reply)
    if not ask.stream:
        return whole(ask, done, reply)
    return play(ask, *_response_events(done, reply))


def _response_doc(ask: Ask, reply: Reply) -> dict[str, Any]:
    status = "incomplete" if reply.cut else "completed"
    usage = {
        "input_tokens": reply.prompt_tokens,
        "input_tokens_details": {"cached_tokens": reply.cached_tokens},
        "output_tokens": len(reply.tokens),
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": reply.prompt_tokens + len(reply.tokens),
    }
    return {
        "id": f"resp_{ask.id}",
        "object": "response",
        "created_at": ask.created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if reply.cut else None,
        "instructions": ask.doc.get("instructions"),
        "metadata": {},
        "model": ask.model,
        "output": [_output_item(ask.id, status, [_output_text(reply.text)])],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": usage,
    }


def _output_item(id: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    message = {"id": f"msg_{id}", "type": "message", "role": "assistant"}
    return message | {"status": status, "content": content}


def _output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _response_events(done: dict[str, Any], reply: Reply) -> Events:
    """The event stream as OpenAI sends it; the last event holds the whole answer."""
    began = done | {
        "status": "in_progress",
        "incomplete_details": None,
        "output": [],
        "usage": None,
    }
    item = done["output"][0]
    part = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    place = {"output_index": 0}
    empty = item | {"status": "in_progress", "content": []}
    number = count()

    def event(type: str, more: dict[str, Any]) -> bytes:
        data = orjson.dumps({"type": type, "sequence_number": next(number)} | more)
        return b"event: " + type.encode() + b"\ndata: " + data + b"\n\n"

    def text(type: str, more: dict[str, Any]) -> bytes:
        return event(f"response.output_text.{type}", part | more | {"logprobs": []})

    return (
        [
            event("response.created", {"response": began}),
            event("response.in_progress", {"response": began}),
            event("response.output_item.added", place | {"item": empty}),
            event("response.content_part.added", part | {"part": _output_text("")}),
        ],
        [text("delta", {"delta": token}) for token in reply.tokens],
        [
            text("done", {"text": reply.text}),
            event("response.content_part.done", part | {"part": item["content"][0]}),
            event("response.output_item.done", place | {"item": item}),
            event(f"response.{done['status']}", {"response": done}),
        ],
    )
