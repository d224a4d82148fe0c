"""The `usage` objects providers really send, and the junk they might."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.core.model import Usage
from lunar_proxy.core.usage import MAX_TOKENS, read_usage

DIALECTS: dict[str, tuple[dict[str, Any], Usage]] = {
    "openai chat": (
        {
            "prompt_tokens": 2006,
            "completion_tokens": 300,
            "total_tokens": 2306,
            "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 128,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 7,
                "rejected_prediction_tokens": 2,
            },
        },
        Usage(2006, 300, cache_read_tokens=1920, reasoning_tokens=128),
    ),
    "openai audio": (
        {
            "prompt_tokens": 120,
            "completion_tokens": 80,
            "total_tokens": 200,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 100},
            "completion_tokens_details": {"audio_tokens": 60, "reasoning_tokens": 0},
        },
        Usage(120, 80, input_audio_tokens=100, output_audio_tokens=60),
    ),
    "openai responses": (
        {
            "input_tokens": 328,
            "input_tokens_details": {"cached_tokens": 256},
            "output_tokens": 52,
            "output_tokens_details": {"reasoning_tokens": 40},
            "total_tokens": 380,
        },
        Usage(328, 52, cache_read_tokens=256, reasoning_tokens=40),
    ),
    "openai embeddings": ({"prompt_tokens": 8, "total_tokens": 8}, Usage(8, 0)),
    "openai transcription": (
        {
            "type": "tokens",
            "input_tokens": 14,
            "input_token_details": {"text_tokens": 4, "audio_tokens": 10},
            "output_tokens": 45,
            "total_tokens": 59,
        },
        Usage(14, 45, input_audio_tokens=10),
    ),
    "openai realtime": (
        {
            "input_tokens": 100,
            "input_token_details": {
                "cached_tokens": 60,
                "audio_tokens": 80,
                "cached_tokens_details": {"text_tokens": 10, "audio_tokens": 50},
            },
            "output_tokens": 20,
            "output_token_details": {"text_tokens": 5, "audio_tokens": 15},
            "total_tokens": 120,
        },
        Usage(
            100,
            20,
            cache_read_tokens=60,
            input_audio_tokens=80,
            output_audio_tokens=15,
            cache_audio_read_tokens=50,
        ),
    ),
    "deepseek": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "total_tokens": 150,
            "prompt_cache_hit_tokens": 64,
            "prompt_cache_miss_tokens": 36,
        },
        Usage(100, 50, cache_read_tokens=64),
    ),
    "deepseek, both spellings are one quantity": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "total_tokens": 150,
            "prompt_cache_hit_tokens": 64,
            "prompt_tokens_details": {"cached_tokens": 64},
        },
        Usage(100, 50, cache_read_tokens=64),
    ),
    "anthropic, OpenAI-shaped, cached within the prompt": (
        {
            "prompt_tokens": 1100,
            "completion_tokens": 20,
            "total_tokens": 1120,
            "cache_read_input_tokens": 900,
            "cache_creation_input_tokens": 100,
        },
        Usage(1100, 20, cache_read_tokens=900, cache_write_tokens=100),
    ),
    "anthropic, OpenAI-shaped, cached beside the prompt": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 20,
            "total_tokens": 1120,
            "cache_read_input_tokens": 900,
            "cache_creation_input_tokens": 100,
        },
        Usage(1100, 20, cache_read_tokens=900, cache_write_tokens=100),
    ),
    "anthropic's own": (
        {
            "input_tokens": 100,
            "output_tokens": 20,
            "cache_read_input_tokens": 900,
            "cache_creation_input_tokens": 100,
        },
        Usage(1100, 20, cache_read_tokens=900, cache_write_tokens=100),
    ),
    "mistral": (
        {
            "prompt_tokens": 16,
            "completion_tokens": 34,
            "total_tokens": 50,
            "prompt_audio_seconds": None,
            "num_cached_tokens": 8,
        },
        Usage(16, 34, cache_read_tokens=8),
    ),
    "groq": (
        {
            "queue_time": 0.05,
            "prompt_tokens": 24,
            "prompt_time": 0.001,
            "completion_tokens": 377,
            "completion_time": 0.63,
            "total_tokens": 401,
            "total_time": 0.63,
        },
        Usage(24, 377),
    ),
    "xai, reasoning beside the completion": (
        {
            "prompt_tokens": 32,
            "completion_tokens": 9,
            "total_tokens": 135,
            "prompt_tokens_details": {"text_tokens": 32, "cached_tokens": 6},
            "completion_tokens_details": {"reasoning_tokens": 94},
            "num_sources_used": 0,
        },
        Usage(32, 103, cache_read_tokens=6, reasoning_tokens=94),
    ),
    "xai, no total": (
        {
            "prompt_tokens": 32,
            "completion_tokens": 9,
            "completion_tokens_details": {"reasoning_tokens": 94},
        },
        Usage(32, 103, reasoning_tokens=94),
    ),
    "xai, as much reasoned as cached": (
        {
            "prompt_tokens": 200,
            "completion_tokens": 10,
            "total_tokens": 310,
            "prompt_tokens_details": {"cached_tokens": 100},
            "completion_tokens_details": {"reasoning_tokens": 100},
        },
        Usage(200, 110, cache_read_tokens=100, reasoning_tokens=100),
    ),
    "gemini, thinking in the total only": (
        {"prompt_tokens": 11, "completion_tokens": 30, "total_tokens": 541},
        Usage(11, 530, reasoning_tokens=500),
    ),
    "gemini, nothing but thinking": (
        {"prompt_tokens": 11, "total_tokens": 511},
        Usage(11, 500, reasoning_tokens=500),
    ),
    "perplexity": (
        {
            "prompt_tokens": 14,
            "completion_tokens": 303,
            "total_tokens": 317,
            "search_context_size": "low",
            "cost": {"input_tokens_cost": 1e-05, "total_cost": 0.005},
        },
        Usage(14, 303),
    ),
    "perplexity deep research": (
        {
            "prompt_tokens": 33,
            "completion_tokens": 7163,
            "total_tokens": 7196,
            "citation_tokens": 20016,
            "num_search_queries": 18,
            "reasoning_tokens": 73997,
        },
        Usage(33, 81160, reasoning_tokens=73997),
    ),
    "openrouter": (
        {
            "prompt_tokens": 194,
            "completion_tokens": 2,
            "total_tokens": 196,
            "cost": 0.00095,
            "is_byok": False,
            "prompt_tokens_details": {
                "cached_tokens": 100,
                "cache_write_tokens": 50,
                "audio_tokens": 0,
            },
            "cost_details": {"upstream_inference_cost": 19},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
        Usage(194, 2, cache_read_tokens=100, cache_write_tokens=50),
    ),
    "sglang, reasoning within": (
        {
            "prompt_tokens": 5,
            "completion_tokens": 20,
            "total_tokens": 25,
            "prompt_tokens_details": None,
            "reasoning_tokens": 12,
        },
        Usage(5, 20, reasoning_tokens=12),
    ),
    "a gateway with both spellings, one of them zero": (
        {"prompt_tokens": 7, "completion_tokens": 3, "input_tokens": 0, "output_tokens": 0},
        Usage(7, 3),
    ),
    "voyage": ({"total_tokens": 10}, Usage(10, 0)),
}


@pytest.mark.parametrize(("raw", "usage"), DIALECTS.values(), ids=DIALECTS.keys())
def test_reads_what_each_dialect_reports(raw: dict[str, Any], usage: Usage) -> None:
    assert read_usage(raw) == usage


@pytest.mark.parametrize(
    "raw",
    [
        None,
        "12",
        7,
        [],
        {},
        {"prompt_tokens": None},
        {"prompt_tokens": "12"},
        {"prompt_tokens": -1, "completion_tokens": -1},
        {"prompt_tokens": 1.5},
        {"prompt_tokens": True},
        {"prompt_tokens": MAX_TOKENS + 1},
        {"prompt_tokens": {"cached_tokens": 3}},
        {"prompt_tokens_details": {"cached_tokens": 3}},
        {"type": "duration", "seconds": 9},
    ],
)
def test_no_usable_count_is_no_usage(raw: object) -> None:
    assert read_usage(raw) is None


@pytest.mark.parametrize("junk", [None, "5", -5, 5.0, True, [], {}, 10**30])
@pytest.mark.parametrize("field", ["cached_tokens", "audio_tokens", "cache_write_tokens"])
def test_a_junk_field_is_as_good_as_absent(field: str, junk: object) -> None:
    raw = {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {field: junk}}
    assert read_usage(raw) == Usage(9, 1)


@pytest.mark.parametrize("junk", [None, "x", 5, [], True])
def test_details_that_are_no_object_are_as_good_as_absent(junk: object) -> None:
    raw = {
        "prompt_tokens": 9,
        "completion_tokens": 1,
        "prompt_tokens_details": junk,
        "completion_tokens_details": junk,
    }
    assert read_usage(raw) == Usage(9, 1)


NAMES = sorted({name for raw, _ in DIALECTS.values() for name in raw} | {"cached_tokens"})
COUNTS = st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.just(2**63)
VALUES = st.recursive(
    COUNTS,
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(NAMES) | st.text(), inner),
)


@given(VALUES | st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_whatever_a_provider_sends_the_shares_fit_the_whole(raw: object) -> None:
    usage = read_usage(raw)
    if usage is None:
        return
    shares = (usage.cache_read_tokens, usage.cache_write_tokens, usage.cache_audio_read_tokens)
    assert all(share >= 0 for share in shares)
    assert usage.cache_read_tokens + usage.cache_write_tokens <= usage.input_tokens
    assert 0 <= usage.input_audio_tokens <= usage.input_tokens
    assert usage.cache_audio_read_tokens <= min(usage.input_audio_tokens, usage.cache_read_tokens)
    assert 0 <= usage.reasoning_tokens <= usage.output_tokens
    assert 0 <= usage.output_audio_tokens <= usage.output_tokens
    assert usage.estimated is False


COUNT = st.integers(-1, 12) | st.sampled_from([MAX_TOKENS, MAX_TOKENS + 1, None, 1.5, True])
INSIDE = st.dictionaries(st.sampled_from(["cached_tokens", "audio_tokens", "x"]), COUNT)
OUTSIDE = st.dictionaries(st.sampled_from(["reasoning_tokens", "audio_tokens", "x"]), COUNT)


@given(COUNT, COUNT, st.none() | COUNT, st.none() | INSIDE, st.none() | OUTSIDE)
def test_the_short_way_reads_what_the_long_one_does(
    prompt: Any, output: Any, total: Any, inside: Any, outside: Any
) -> None:
    if total is None and type(prompt) is type(output) is int:
        total = prompt + output
    raw = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": total}
    raw |= {"prompt_tokens_details": inside, "completion_tokens_details": outside}
    the_long_way = raw | {"thinking_tokens": 0}
    assert read_usage(raw) == read_usage(the_long_way)
