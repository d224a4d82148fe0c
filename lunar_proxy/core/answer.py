"""The text in a whole JSON answer, for when its provider did not count it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Members that hold generated text, in chat, legacy completions and responses alike.
_TEXT = frozenset(
    {
        "content",
        "text",
        "refusal",
        "reasoning",
        "reasoning_content",
        "thinking",
        "arguments",
        "name",
    }
)
_INSIDE = frozenset(
    {
        "choices",
        "message",
        "tool_calls",
        "function_call",
        "function",
        "output",
        "content",
        "thinking",
        "summary",
    }
)


def text_of(doc: dict[str, Any]) -> str:
    """All text a model generated, in the order of the document."""
    # Half a surrogate pair, as it may stand in an answer, is nothing a tokenizer takes.
    return "\n".join(_texts(doc)).encode("utf-8", "replace").decode()


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for item in node:
            yield from _texts(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "reasoning" and node.get("reasoning_content"):
                continue  # some send both spellings of the same text
            if isinstance(value, str):
                if key in _TEXT and value:
                    yield value
            elif key in _INSIDE:
                yield from _texts(value)
