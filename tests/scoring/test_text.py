from typing import Any

import pytest

from lunar_proxy.scoring.text import MAX_CHARS, crop, text_of

CASES: dict[str, tuple[Any, str]] = {
    "one": ([{"role": "user", "content": "hi"}], "hi"),
    "last user turn": (
        [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "answer"},
            {"role": "user", "content": " second "},
        ],
        "second",
    ),
    "tool result after it": (
        [{"role": "user", "content": "ask"}, {"role": "tool", "content": "42"}],
        "ask",
    ),
    "parts": (
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what is"},
                    {"type": "image_url", "image_url": {"url": "data:..."}},
                    {"type": "text", "text": "this?"},
                ],
            }
        ],
        "what is\nthis?",
    ),
    "image only falls back to earlier text": (
        [
            {"role": "user", "content": "look"},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        ],
        "look",
    ),
    "no user": ([{"role": "system", "content": "only this"}], "only this"),
    "prompt": ("complete me", "complete me"),
    "prompts": (["a", "b"], "a\nb"),
    "content of another shape": ([{"role": "user", "content": 7}], ""),
    "turns of another shape": ([7, None], ""),
    "nothing": (None, ""),
    "empty": ([], ""),
}


@pytest.mark.parametrize(("messages", "text"), CASES.values(), ids=CASES.keys())
def test_scores_the_last_user_message(messages: Any, text: str) -> None:
    assert text_of(messages) == text


def test_crops_long_text_before_it_is_tokenized() -> None:
    assert crop("x" * 5000) == "x" * MAX_CHARS
