from __future__ import annotations

from typing import Any

import orjson
import pytest

from lunar_proxy.core.shapes import CHAT, COMPLETION, OPAQUE, RESPONSES, Meaning, Shape


def choice(delta: Any, finish: Any = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


USAGE = {"prompt_tokens": 1}

MEANINGS: dict[str, tuple[Shape, Any, Meaning]] = {
    "content": (CHAT, choice({"content": "a"}), Meaning(content=True)),
    "role": (CHAT, choice({"role": "assistant", "content": ""}), Meaning()),
    "no delta": (CHAT, {"choices": [{"delta": None}]}, Meaning()),
    "finish": (CHAT, choice({}, "stop"), Meaning(finished=(0,))),
    "an empty finish_reason": (CHAT, choice({}, ""), Meaning()),
    "finish in error": (CHAT, choice({}, "error"), Meaning(finished=(0,), error=True)),
    "no index": (CHAT, {"choices": [{"finish_reason": "stop"}]}, Meaning(finished=(0,))),
    "usage": (CHAT, {"choices": [], "usage": USAGE}, Meaning(usage=USAGE, bare=True)),
    "usage without choices": (CHAT, {"usage": USAGE}, Meaning(usage=USAGE, bare=True)),
    "empty usage": (CHAT, {"choices": [], "usage": {}}, Meaning(bare=True)),
    "null choices": (CHAT, {"choices": None}, Meaning(bare=True)),
    "odd choices": (CHAT, {"choices": [1, {}]}, Meaning()),
    "groq": (
        CHAT,
        {"choices": [], "x_groq": {"id": "r", "usage": USAGE}},
        Meaning(usage=USAGE, usage_path=("x_groq", "usage"), bare=True),
    ),
    "an empty list": (CHAT, [], Meaning()),
    "a number": (CHAT, 7, Meaning()),
    "text": (COMPLETION, {"choices": [{"text": "a"}]}, Meaning(content=True)),
    "no text": (COMPLETION, {"choices": [{"text": ""}]}, Meaning()),
    "thinking": (COMPLETION, {"choices": [{"text": "", "reasoning": "hm"}]}, Meaning(content=True)),
    "opaque usage": (OPAQUE, {"usage": USAGE}, Meaning(usage=USAGE)),
    "opaque": (OPAQUE, [1], Meaning()),
}


@pytest.mark.parametrize(("shape", "doc", "meaning"), MEANINGS.values(), ids=MEANINGS.keys())
def test_reads_an_event(shape: Shape, doc: Any, meaning: Meaning) -> None:
    assert shape.read(b"", doc) == meaning


RESPONSE_EVENTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "created": ({"type": "response.created"}, {}),
    "delta": ({"type": "response.output_text.delta", "delta": "a"}, {"content": True}),
    "empty delta": ({"type": "response.output_text.delta", "delta": ""}, {}),
    "a tool at work": ({"type": "response.web_search_call.searching"}, {"content": True}),
    "completed": (
        {"type": "response.completed", "response": {"usage": {"input_tokens": 1}}},
        {"finished": (0,), "done": True, "usage": {"input_tokens": 1}},
    ),
    "incomplete": (
        {"type": "response.incomplete", "response": {"usage": None}},
        {"finished": (0,), "done": True},
    ),
    "failed": ({"type": "response.failed"}, {"error": True}),
    "error": ({"type": "error"}, {"error": True}),
    "a bare error": ({"error": {"message": "x"}}, {"error": True}),
}


@pytest.mark.parametrize(("doc", "expected"), RESPONSE_EVENTS.values(), ids=RESPONSE_EVENTS.keys())
def test_reads_a_responses_event(doc: dict[str, Any], expected: dict[str, Any]) -> None:
    meaning = RESPONSES.read(b"", doc)
    assert {name: getattr(meaning, name) for name in expected} == expected
    flags = ("content", "done", "error")
    assert [name for name in flags if getattr(meaning, name)] == [n for n in flags if n in expected]


def nested(value: Any, levels: int = 5000) -> Any:
    """Deeper than the stack."""
    for _ in range(levels):
        value = [value]
    return value


PIECES: dict[str, tuple[Shape, Any, list[Any]]] = {
    "content": (CHAT, choice({"content": "a"}), [(0, "content", "a")]),
    "refusal": (CHAT, choice({"refusal": "a"}), [(0, "content", "a")]),
    "both spellings": (
        CHAT,
        choice({"reasoning": "a", "reasoning_content": "a"}),
        [(0, "reasoning", "a")],
    ),
    "a tool call": (
        CHAT,
        choice({"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}),
        [(0, "arguments", "f{")],
    ),
    "its name alone": (
        CHAT,
        choice({"tool_calls": [{"function": {"name": "f"}}]}),
        [(0, "arguments", "f")],
    ),
    "a function call": (
        CHAT,
        choice({"function_call": {"name": "f", "arguments": None}}),
        [(0, "arguments", "f")],
    ),
    "odd content": (CHAT, choice({"content": [{"type": "image"}, 7]}), [(0, "content", "")]),
    "parts and texts, in order": (
        CHAT,
        choice({"content": [{"text": ["a", "b"]}, "c", {"thinking": [{"text": "d"}]}]}),
        [(0, "content", "abcd")],
    ),
    "deep down": (CHAT, choice({"content": nested("a")}), [(0, "content", "a")]),
    "no delta": (CHAT, {"choices": [{"delta": 1}]}, []),
    "no document": (CHAT, 7, []),
    "text": (COMPLETION, {"choices": [{"index": 1, "text": "a"}]}, [(1, "content", "a")]),
    "text and thinking": (
        COMPLETION,
        {"choices": [{"text": "a", "reasoning": "hm", "reasoning_content": "hm", "echo": "b"}]},
        [(0, "content", "a"), (0, "reasoning", "hm")],
    ),
    "responses text": (
        RESPONSES,
        {"type": "response.output_text.delta", "output_index": 2, "delta": "a"},
        [(2, "content", "a")],
    ),
    "responses reasoning": (
        RESPONSES,
        {"type": "response.reasoning_summary_text.delta", "delta": "a"},
        [(0, "reasoning", "a")],
    ),
    "responses arguments": (
        RESPONSES,
        {"type": "response.function_call_arguments.delta", "delta": "a"},
        [(0, "arguments", "a")],
    ),
    "responses without text": (RESPONSES, {"type": "response.created"}, []),
    "opaque": (OPAQUE, {"text": "a"}, []),
}


@pytest.mark.parametrize(("shape", "doc", "pieces"), PIECES.values(), ids=PIECES.keys())
def test_finds_the_text(shape: Shape, doc: Any, pieces: list[Any]) -> None:
    assert list(shape.pieces(doc)) == pieces


MARKED: dict[str, tuple[Shape, bytes, bool]] = {
    "a chunk": (CHAT, orjson.dumps(choice({"content": "a"})), False),
    "with spaces": (CHAT, b'{"finish_reason": null, "usage": null}', False),
    "finish": (CHAT, b'{"finish_reason":"stop"}', True),
    "one of two": (CHAT, b'{"finish_reason":null}{"finish_reason":"stop"}', True),
    "usage": (CHAT, b'"usage":{}', True),
    "null usage": (CHAT, b'"usage":null', False),
    "error": (CHAT, b'"error"', True),
    "done": (CHAT, b"data: [DONE]", True),
    "named error": (CHAT, b"event: error", True),
    "in a text": (CHAT, orjson.dumps(choice({"content": '"usage":{"error"'})), False),
    "responses delta": (RESPONSES, b'{"type":"response.output_text.delta"}', False),
    "responses end": (RESPONSES, b'{"type":"response.completed"}', True),
    "opaque": (OPAQUE, b'{"error"}', False),
}


@pytest.mark.parametrize(("shape", "data", "expected"), MARKED.values(), ids=MARKED.keys())
def test_marks_what_has_to_be_read(shape: Shape, data: bytes, expected: bool) -> None:
    assert shape.marked(data) is expected
