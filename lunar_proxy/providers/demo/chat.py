"""Chat completions, and the legacy endpoint that streams the same way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import orjson

from lunar_proxy.core.errors import InvalidRequest
from lunar_proxy.core.script import Step

from .ask import Ask, read_turns
from .reply import Reply, compose, last_user_text, stream, whole


def chat(ask: Ask) -> Iterator[Step]:
    if ask.doc.get("n") not in (None, 1):
        raise InvalidRequest("demo answers one choice", param="n")
    turns = read_turns(ask.doc.get("messages"), "messages")
    tool = _wanted_tool(ask.doc)
    forced = _forced_text(ask.doc, last_user_text(turns), tool)
    reply = compose(ask, turns, ask.limit("max_completion_tokens", "max_tokens"), forced)
    finish = "tool_calls" if tool is not None and not reply.cut else reply.finish_reason
    base = {"id": f"chatcmpl-{ask.id}", "created": ask.created, "model": ask.model}
    if ask.stream:
        base["object"] = "chat.completion.chunk"
        first, tokens = _deltas(reply, tool, ask.id)
        choices = [_choice("delta", delta, None) for delta in [first, *tokens]]
        return stream(ask, base, choices, _choice("delta", {}, finish), reply)
    base["object"] = "chat.completion"
    message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
    if tool is not None:
        message |= {"content": None, "tool_calls": [_tool_call(ask.id, tool, reply.text)]}
    choice = _choice("message", message, finish)
    return whole(ask, base | {"choices": [choice], "usage": reply.usage()}, reply)


def _choice(kind: str, said: dict[str, Any], finish: str | None) -> dict[str, Any]:
    return {"index": 0, kind: said, "logprobs": None, "finish_reason": finish}


def _deltas(
    reply: Reply, tool: str | None, id: str
) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """The delta that opens the message, and one for each token."""
    if tool is None:
        opening = {"role": "assistant", "content": "", "refusal": None}
        return opening, ({"content": token} for token in reply.tokens)
    call = {"index": 0} | _tool_call(id, tool, "")
    return {"role": "assistant", "content": None, "tool_calls": [call]}, (
        {"tool_calls": [{"index": 0, "function": {"arguments": token}}]} for token in reply.tokens
    )


def _tool_call(id: str, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{id}", "type": "function", "function": function}


def _wanted_tool(doc: dict[str, Any]) -> str | None:
    """The function that `tool_choice` makes the model call; it calls none of its own accord."""
    choice = doc.get("tool_choice")
    if choice != "required" and not isinstance(choice, dict):
        return None
    tools = doc.get("tools")
    functions = [tool.get("function") for tool in tools or () if isinstance(tool, dict)]
    names = [function.get("name") for function in functions if isinstance(function, dict)]
    wanted = names[0] if names and choice == "required" else None
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        wanted = choice["function"].get("name")
    if wanted is None or wanted not in names:
        raise InvalidRequest("tool_choice names no tool of this request", param="tool_choice")
    return str(wanted)


def _forced_text(doc: dict[str, Any], said: str, tool: str | None) -> str | None:
    """JSON where the request insists on it: the message, if it is an object, or the nearest."""
    wanted = doc.get("response_format")
    json_wanted = isinstance(wanted, dict) and wanted.get("type") in ("json_object", "json_schema")
    if tool is None and not json_wanted:
        return None
    with suppress(orjson.JSONDecodeError):
        if isinstance(orjson.loads(said), dict):
            return said
    return "{}" if tool is not None else orjson.dumps({"echo": said}).decode()


# --- legacy completions


def completion(ask: Ask) -> Iterator[Step]:
    prompt = ask.doc.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise InvalidRequest("demo takes one prompt, a string", param="prompt")
    reply = compose(ask, [("user", prompt)], ask.limit("max_tokens"))
    base = {"id": f"cmpl-{ask.id}", "object": "text_completion", "created": ask.created}
    base |= {"model": ask.model}
    if ask.stream:
        choices = [_completion_choice(text, None) for text in ["", *reply.tokens]]
        return stream(ask, base, choices, _completion_choice("", reply.finish_reason), reply)
    choice = _completion_choice(reply.text, reply.finish_reason)
    return whole(ask, base | {"choices": [choice], "usage": reply.usage()}, reply)


def _completion_choice(text: str, finish: str | None) -> dict[str, Any]:
    return {"text": text, "index": 0, "logprobs": None, "finish_reason": finish}
