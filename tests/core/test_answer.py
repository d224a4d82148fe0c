from __future__ import annotations

from typing import Any

import pytest

from lunar_proxy.core.answer import text_of


def message(**members: Any) -> dict[str, Any]:
    return {"id": "x", "model": "m", "choices": [{"index": 0, "message": members}]}


def nested(value: Any, levels: int = 5000) -> Any:
    """Deeper than the stack."""
    for _ in range(levels):
        value = [value]
    return value


ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "chat": (message(role="assistant", content="hi"), "hi"),
    "several choices": (
        {"choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}]},
        "a\nb",
    ),
    "refusal": (message(content=None, refusal="no"), "no"),
    "thinking": (message(reasoning_content="hm", content="hi"), "hm\nhi"),
    "thinking spelled twice": (message(reasoning="hm", reasoning_content="hm", content=""), "hm"),
    "thinking spelled the other way": (message(reasoning="hm", reasoning_content=None), "hm"),
    "typed parts": (
        message(
            content=[
                {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                {"type": "text", "text": "hi"},
            ]
        ),
        "hm\nhi",
    ),
    "tool call": (
        message(
            content=None,
            tool_calls=[{"id": "1", "function": {"name": "f", "arguments": '{"a":1}'}}],
        ),
        'f\n{"a":1}',
    ),
    "function call": (message(function_call={"name": "f", "arguments": "{}"}), "f\n{}"),
    "legacy completion": ({"choices": [{"text": "hi", "logprobs": {"tokens": ["hi"]}}]}, "hi"),
    "responses": (
        {
            "instructions": "not this",
            "text": {"format": {"type": "text"}},
            "tools": [{"name": "not this"}],
            "output": [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
                {"type": "message", "content": [{"type": "output_text", "text": "hi"}]},
                {"type": "function_call", "name": "f", "arguments": "{}"},
            ],
        },
        "hm\nhi\nf\n{}",
    ),
    "embeddings": ({"object": "list", "data": [{"embedding": [0.1]}]}, ""),
    "deep down": (message(content=nested({"text": "hi"})), "hi"),
    "nothing": ({}, ""),
}


@pytest.mark.parametrize(("doc", "text"), ANSWERS.values(), ids=ANSWERS.keys())
def test_all_that_was_generated_counts_and_nothing_else(doc: dict[str, Any], text: str) -> None:
    assert text_of(doc) == text
