"""Estimates: near the truth where it is known, bounded in work, and never in the way."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.pricing import TokenCounter
from lunar_proxy.pricing.tokens import (
    COUNTED_CHARS,
    TOKENS_PER_IMAGE,
    TOKENS_PER_MESSAGE,
    TOKENS_PER_REPLY,
)

WRAPPED_ONCE = TOKENS_PER_REPLY + TOKENS_PER_MESSAGE


@pytest.fixture(scope="module")
def counter() -> TokenCounter:
    return TokenCounter()


@pytest.mark.parametrize(
    ("text", "o200k", "off_by"),
    [  # tokens of o200k_base
        ("The architecture of a proxy decides what can be known about each call.", 14, 0.1),
        ('{"id": "chatcmpl-123", "object": "chat.completion", "created": 1677652288}', 27, 0.4),
        (
            "人工智能是计算机科学的一个分支，它企图了解智能的实质，"  # noqa: RUF001
            "并生产出一种新的能以人类智能相似的方式做出反应的智能机器。",
            40,
            0.1,
        ),
        (
            "인공지능은 인간의 학습능력, 추론능력, 지각능력을 인공적으로 "
            "구현하려는 컴퓨터 과학의 세부 분야 중 하나이다.",
            38,
            0.1,
        ),
        (
            "الذكاء الاصطناعي هو سلوك وخصائص معينة تتسم بها البرامج "
            "الحاسوبية تجعلها تحاكي القدرات الذهنية البشرية وأنماط عملها.",
            37,
            0.1,
        ),
        (
            "Искусственный интеллект — это свойство интеллектуальных систем выполнять "
            "творческие функции, которые традиционно считаются прерогативой человека.",
            29,
            0.6,
        ),
        ("😀🎉🚀" * 20, 100, 0.1),
    ],
)
def test_is_near_the_truth(counter: TokenCounter, text: str, o200k: int, off_by: float) -> None:
    assert counter.count(text) == pytest.approx(o200k, rel=off_by)


def test_no_text_is_no_token_and_some_text_is_some(counter: TokenCounter) -> None:
    assert counter.count("") == 0
    assert counter.count(" ") == 1


def test_beyond_the_head_a_text_is_taken_to_go_on_as_it_began(counter: TokenCounter) -> None:
    head = ("lorem ipsum dolor sit amet " * COUNTED_CHARS)[:COUNTED_CHARS]
    assert counter.count(head * 20) == 20 * counter.count(head)


def test_a_word_without_end_is_not_one_token(counter: TokenCounter) -> None:
    assert counter.count("a" * 4000) > 400


@given(st.text(max_size=200))
def test_any_text_has_a_count_in_proportion(counter: TokenCounter, text: str) -> None:
    assert bool(text) <= counter.count(text) <= 2 * len(text) + 1


@pytest.mark.parametrize(
    ("endpoint", "doc", "plain", "extra"),
    [
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "good morning"}]},
            "user good morning",
            WRAPPED_ONCE,
        ),
        (
            "chat/completions",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "good morning"}]},
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [
                            {
                                "id": "call_abcdefghij",
                                "type": "function",
                                "function": {"name": "weather", "arguments": '{"city":"Rome"}'},
                            }
                        ],
                    },
                    {"role": "tool", "tool_call_id": "call_abcdefghij", "content": "sunny"},
                ]
            },
            'user good morning assistant weather {"city":"Rome"} tool sunny',
            TOKENS_PER_REPLY + 3 * TOKENS_PER_MESSAGE,
        ),
        (
            "chat/completions",
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": "data:" + "A" * 9000}},
                            {"type": "input_audio", "input_audio": {"data": "A" * 9000}},
                        ],
                    }
                ]
            },
            "user",
            WRAPPED_ONCE + TOKENS_PER_IMAGE,
        ),
        (
            "chat/completions",
            {"messages": [], "tools": [{"type": "function", "function": {"name": "weather"}}]},
            '[{"type":"function","function":{"name":"weather"}}]',
            0,
        ),
        ("completions", {"prompt": "once upon"}, "once upon", 0),
        ("completions", {"prompt": ["once", "upon"]}, "once upon", 0),
        ("completions", {"prompt": [1, 2, 3]}, "", 3),
        ("embeddings", {"input": [[1, 2], [3, 4]]}, "", 4),
        ("embeddings", {"input": ["good", "morning"]}, "good morning", 0),
        ("responses", {"instructions": "be kind", "input": "hello"}, "be kind hello", 0),
        (
            "responses",
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
                    {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
                ]
            },
            "user hello sunny",
            TOKENS_PER_REPLY + 2 * TOKENS_PER_MESSAGE,
        ),
        (
            "messages",
            {
                "system": [{"type": "text", "text": "be kind"}],
                "messages": [{"role": "user", "content": "hello"}],
            },
            "be kind user hello",
            WRAPPED_ONCE,
        ),
        ("audio", {"input": "read this"}, "read this", 0),
        ("chat/completions", {}, "", 0),
        ("chat/completions", {"prompt": "not of this endpoint"}, "", 0),
    ],
)
def test_counts_what_the_model_reads(
    counter: TokenCounter, endpoint: str, doc: dict[str, Any], plain: str, extra: int
) -> None:
    assert counter.count_request(doc, endpoint) == counter.count(plain) + extra


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["messages", "input", "prompt", "tools", "system"]), JSON))
def test_a_body_of_any_shape_has_a_count(counter: TokenCounter, doc: dict[str, Any]) -> None:
    for endpoint in ("chat/completions", "responses", "messages", "images"):
        assert counter.count_request(doc, endpoint) >= 0


def test_a_deep_body_does_not_recurse(counter: TokenCounter) -> None:
    deep: Any = "leaf"
    for _ in range(sys.getrecursionlimit() * 2):
        deep = [deep]
    assert counter.count_request({"messages": deep}, "chat/completions") == counter.count("leaf")


def test_threads_share_one_vocabulary() -> None:
    counter = TokenCounter()
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(counter.count, ["good morning, everyone"] * 32))) == 1


def test_without_the_tokenizers_package_four_bytes_are_a_token(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert TokenCounter().count("abcd" * 25) == 25
    assert "estimated by bytes" in caplog.text
