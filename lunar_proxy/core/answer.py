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


def _texts(doc: dict[str, Any]) -> Iterator[str]:
    """In a loop, since an answer may be nested deeper than our stack."""
    pending: list[Any] = [doc]
    while pending:
        node = pending.pop()
        if isinstance(node, str):
            yield node
        elif isinstance(node, list):
            pending += [item for item in reversed(node) if not isinstance(item, str)]
        elif isinstance(node, dict):
            pending += reversed(list(_in_members(node)))


def _in_members(node: dict[str, Any]) -> Iterator[Any]:
    """The values of an object that are text, or may have some inside."""
    for key, value in node.items():
        if key == "reasoning" and node.get("reasoning_content"):
            continue  # some send both spellings of the same text
        if key in (_TEXT if isinstance(value, str) else _INSIDE) and value:
            yield value
