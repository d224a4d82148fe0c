"""Which text of a request is scored, and how much of it.

The last user message alone: system text and tools are the same for every prompt of an application,
so they would pull all its prompts into one cluster, and the answer to "which model" is then a
constant.

Its first 104 tokens are read. On the public data, over 8 splits, 104 route as 128 do (MMLU pair
within .003 of APGR, mixed pool within .01 of area) and 96 cost the mixed pool .05 of area. Of as
many tokens, a quarter from the end instead changes nothing on the pairs and costs the mixed pool
.05 to .1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# The tokenizer reads all of its input before it truncates (20,000 characters: 12 ms). English runs
# at 4 characters a token and indented code at up to 8, so this holds the tokens that count.
MAX_CHARS = 1024


def text_of(messages: Any) -> str:
    """The text to score: that of the last user message, or of the last message with any text.

    Takes the `messages` of a chat request, the `prompt` of a legacy completion (a string or a list
    of them), or the `input` of a responses request. Parts that are not text are left out. Whatever
    has another shape gives the empty string, never an error: the provider may understand it.
    """
    if isinstance(messages, str):
        return messages
    if not isinstance(messages, list | tuple):
        return ""
    if all(isinstance(part, str) for part in messages):
        return "\n".join(messages)
    turns = [turn for turn in messages if isinstance(turn, Mapping)]
    asked = [turn for turn in turns if turn.get("role") == "user"]
    texts = (_content(turn) for turn in [*reversed(asked), *reversed(turns)])
    return next((text for text in texts if text), "")


def _content(turn: Mapping[str, Any]) -> str:
    content = turn.get("content")
    if isinstance(content, str):
        return content.strip()
    return "\n".join(_parts(content)).strip() if isinstance(content, list) else ""


def _parts(content: Iterable[Any]) -> Iterable[str]:
    for part in content:
        if isinstance(part, str):
            yield part
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            yield part["text"]


def crop(text: str, limit: int = MAX_CHARS) -> str:
    # JSON may hold half a surrogate pair, which the tokenizer refuses.
    return text[:limit].encode("utf-8", "replace").decode()
