"""Metrics are asserted as a scraper reads them: names, labels and values of the text format."""

from __future__ import annotations

import json
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from lunar_proxy.core.model import Attempt, Cost, Identity, Outcome, Phase, Target, Usage
from lunar_proxy.core.money import units
from lunar_proxy.metrics import (
    ENDPOINTS,
    FAMILIES,
    OPERATIONS,
    TOKEN_KINDS,
    Metrics,
    Snapshot,
    merge,
    render,
)
from lunar_proxy.testing import call, outcome

A, B = Target("openai", "gpt-4o"), Target("groq", "llama")
KNOWN = frozenset({"gpt-4o", "llama", "lorem"})
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def fresh() -> Metrics:
    return Metrics(known=KNOWN.__contains__, version="1.2.3")


def usd(total: str) -> Cost:
    return Cost(None, None, None, units(Decimal(total)))


def read(text: str, parse: Any = parse_text) -> Samples:
    families = parse(text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def scrape(metrics: Metrics | Snapshot) -> Samples:
    snapshot = metrics.snapshot() if isinstance(metrics, Metrics) else metrics
    return read(render(snapshot)[0].decode())


def seen(*outcomes: Outcome) -> Samples:
    metrics = fresh()
    for each in outcomes:
        metrics.observe(each)
    return scrape(metrics)


def at(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def named(samples: Samples, name: str) -> list[dict[str, str]]:
    return [dict(labels) for (sample, labels) in samples if sample == name]


REQUEST = {
    "endpoint": "chat/completions",
    "provider": "openai",
    "model": "gpt-4o",
    "status": "200",
    "stream": "false",
}
GEN_AI = {
    "gen_ai_operation_name": "chat",
    "gen_ai_provider_name": "openai",
    "gen_ai_request_model": "gpt-4o",
    "error_type": "",
}

REQUESTS: dict[str, tuple[Outcome, dict[str, str]]] = {
    "plain": (outcome(), {}),
    "streamed": (outcome(call=call(stream=True)), {"stream": "true"}),
    "of a family": (outcome(call=call(endpoint="audio/speech")), {"endpoint": "audio/speech"}),
    "with an id in its path": (
        outcome(call=call(endpoint="files/file-1/content")),
        {"endpoint": "files"},
    ),
    "nowhere": (outcome(call=call(endpoint="wp-admin.php")), {"endpoint": "other"}),
    "for a model nobody knows": (outcome(target=Target("openai", "gpt-9")), {"model": "other"}),
    "for a model with settings": (
        outcome(target=Target("demo", "lorem?tps=5")),
        {"provider": "demo", "model": "lorem"},
    ),
    "refused": (
        outcome(target=None, status=401, call=call(model="gpt-4o")),
        {"provider": "none", "status": "401"},
    ),
    "refused, with no model": (
        outcome(target=None, status=401, call=call(model="")),
        {"provider": "none", "model": "none", "status": "401"},
    ),
}


@pytest.mark.parametrize(("happened", "labels"), REQUESTS.values(), ids=REQUESTS.keys())
def test_counts_every_request(happened: Outcome, labels: dict[str, str]) -> None:
    samples = seen(happened, happened)
    assert named(samples, "lunar_requests_total") == [REQUEST | labels]
    assert samples[at("lunar_requests_total", **REQUEST | labels)] == 2
    assert samples[at("lunar_overhead_seconds_count")] == 2


def test_a_call_is_a_gen_ai_operation() -> None:
    samples = seen(
        outcome(
            call=call(stream=True),
            usage=Usage(100, 11, cache_read_tokens=60, cache_write_tokens=5, reasoning_tokens=3),
            latency_s=3.0,
            ttft_s=1.0,
        )
    )
    tokens = {
        labels["gen_ai_token_type"]: samples[at("gen_ai_client_token_usage_sum", **labels)]
        for labels in named(samples, "gen_ai_client_token_usage_sum")
    }
    assert tokens == {
        "input": 100,
        "output": 11,
        "cache_read": 60,
        "cache_write": 5,
        "reasoning": 3,
    }
    for name, total in {
        "gen_ai_client_operation_duration_seconds": 3.0,
        "gen_ai_server_time_to_first_token_seconds": 1.0,
        "gen_ai_server_time_per_output_token_seconds": 0.2,
    }.items():
        assert samples[at(f"{name}_sum", **GEN_AI)] == pytest.approx(total)
        assert samples[at(f"{name}_count", **GEN_AI)] == 1


def test_buckets_are_cumulative_and_hold_their_bound() -> None:
    samples = seen(*(outcome(latency_s=seconds) for seconds in (0.005, 0.01, 0.011, 1000)))
    name = "gen_ai_client_operation_duration_seconds_bucket"
    counts = [samples[at(name, le=le, **GEN_AI)] for le in ("0.01", "0.02", "81.92", "+Inf")]
    assert counts == [2, 3, 3, 4]


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("gen_ai_client_token_usage", [4.0**n for n in range(14)]),
        ("gen_ai_client_operation_duration_seconds", [round(0.01 * 2**n, 2) for n in range(14)]),
    ],
)
def test_buckets_are_those_of_the_conventions(name: str, bounds: list[float]) -> None:
    samples = seen(outcome(usage=Usage(1)))
    found = {float(labels["le"]) for labels in named(samples, f"{name}_bucket")}
    assert sorted(found) == [*bounds, float("inf")]


@pytest.mark.parametrize(
    ("happened", "error"),
    [
        (outcome(status=504, error="first_token_timeout"), "first_token_timeout"),
        (outcome(status=404), "404"),
        (outcome(status=200, error="upstream_cut"), "upstream_cut"),
        (outcome(error="e" * 1000), "e" * 64),
    ],
)
def test_error_type_is_our_code_or_the_status(happened: Outcome, error: str) -> None:
    samples = seen(happened)
    name = "gen_ai_client_operation_duration_seconds_count"
    assert named(samples, name) == [GEN_AI | {"error_type": error}]


NAMES = {
    ("chat/completions", "openai"): ("chat", "openai"),
    ("messages", "anthropic"): ("chat", "anthropic"),
    ("responses", "azure"): ("chat", "azure.ai.openai"),
    ("completions", "gemini"): ("text_completion", "gcp.gemini"),
    ("embeddings", "my-vllm"): ("embeddings", "my-vllm"),
    ("audio/speech", "bedrock"): ("audio", "aws.bedrock"),
    ("nowhere", "xai"): ("other", "x_ai"),
}


@pytest.mark.parametrize(("asked", "names"), NAMES.items())
def test_operations_and_providers_have_the_conventions_names(
    asked: tuple[str, str], names: tuple[str, str]
) -> None:
    samples = seen(outcome(call=call(endpoint=asked[0]), target=Target(asked[1], "gpt-4o")))
    (labels,) = named(samples, "gen_ai_client_operation_duration_seconds_count")
    assert (labels["gen_ai_operation_name"], labels["gen_ai_provider_name"]) == names


def test_what_no_provider_answered_is_no_operation() -> None:
    samples = seen(outcome(target=None, status=429))
    assert not [name for name, _ in samples if name.startswith("gen_ai")]


def test_what_is_not_known_is_not_reported() -> None:
    samples = seen(outcome(usage=None, ttft_s=None), outcome(usage=Usage(1, 1), ttft_s=0.1))
    assert samples[at("gen_ai_server_time_to_first_token_seconds_count", **GEN_AI)] == 1
    assert not named(samples, "gen_ai_server_time_per_output_token_seconds_count")
    types = [each["gen_ai_token_type"] for each in named(samples, "gen_ai_client_token_usage_sum")]
    assert types == ["input", "output"]


# --- money


@given(st.lists(st.integers(0, 10**12), max_size=30))
def test_money_adds_up_to_the_last_digit(spent: list[int]) -> None:
    metrics = fresh()
    for each in spent:
        metrics.observe(outcome(cost=Cost(None, None, None, each)))
    rows = metrics.snapshot()["lunar_cost_usd_total"]
    assert [number for _, number in rows] == ([sum(spent)] if spent else [])
    if sum(spent):
        rendered = scrape(metrics)[at("lunar_cost_usd_total", provider="openai", model="gpt-4o")]
        assert rendered == float(Decimal(sum(spent)).scaleb(-10))


def test_absurd_costs_leave_a_snapshot_that_can_be_sent() -> None:
    metrics, absurd = fresh(), Cost(None, None, None, 10**19)
    lost = Attempt(A, None, "upstream_cut", 1.0, cost=absurd)
    for _ in range(2):
        metrics.observe(outcome(cost=absurd, attempts=(lost, lost)))
    assert orjson.dumps(metrics.snapshot())


def test_cost_is_charged_to_who_answered_and_who_asked() -> None:
    asked = call(identity=Identity("k1", "team-a"))
    billed = Attempt(A, None, "upstream_cut", 1.0, cost=usd("0.25"))
    last = Attempt(B, 200, None, 1.0, cost=usd("0.5"))
    samples = seen(outcome(call=asked, target=B, cost=usd("0.5"), attempts=(billed, last)))
    assert samples[at("lunar_cost_usd_total", provider="openai", model="gpt-4o")] == 0.25
    assert samples[at("lunar_cost_usd_total", provider="groq", model="llama")] == 0.5
    assert samples[at("lunar_cost_usd_by_key_total", key="team-a")] == 0.75


def test_an_unknown_price_is_counted_and_is_no_cost() -> None:
    samples = seen(
        outcome(usage=Usage(1), priced=False),
        outcome(usage=None, priced=False),  # an error: nothing was used
        outcome(usage=Usage(1), cost=usd("1")),
    )
    assert samples[at("lunar_unpriced_requests_total", provider="openai")] == 1
    assert samples[at("lunar_cost_usd_total", provider="openai", model="gpt-4o")] == 1
    assert not named(seen(outcome(priced=False)), "lunar_cost_usd_total")


def test_the_names_of_keys_are_bounded() -> None:
    metrics = fresh()
    for number in range(300):
        asked = call(identity=Identity(str(number), f"sub-{number}"))
        metrics.observe(outcome(call=asked, cost=usd("1")))
    samples = scrape(metrics)
    assert len(named(samples, "lunar_cost_usd_by_key_total")) == 257
    assert samples[at("lunar_cost_usd_by_key_total", key="other")] == 44


# --- failures and states


def test_attempts_that_were_given_up_are_retries_and_fallbacks() -> None:
    failed = Attempt(A, 503, "upstream_busy", 0.1)
    samples = seen(outcome(target=B, attempts=(failed, failed, Attempt(B, 200, None, 0.1))))
    retried = at("lunar_retries_total", provider="openai", reason="upstream_busy")
    moved = {"from": "openai/gpt-4o", "to": "groq/llama", "reason": "upstream_busy"}
    assert samples[retried] == 1
    assert samples[at("lunar_fallbacks_total", **moved)] == 1


def test_a_hedge_that_lost_is_a_fallback() -> None:
    samples = seen(outcome(attempts=(Attempt(A, None, None, 1), Attempt(B, 200, None, 1))))
    (labels,) = named(samples, "lunar_fallbacks_total")
    assert labels == {"from": "openai/gpt-4o", "to": "groq/llama", "reason": "hedged"}


@pytest.mark.parametrize("phase", Phase)
def test_a_hang_up_is_counted_where_it_was(phase: Phase) -> None:
    samples = seen(outcome(status=499, disconnected=phase))
    assert samples[at("lunar_client_disconnects_total", phase=phase.value)] == 1


def test_counts_what_no_outcome_tells() -> None:
    metrics = fresh()
    metrics.fallback(A, Target("openai", "secret-model"), "breaker_open")
    metrics.retry("openai", "reset")
    metrics.rate_limited("requests_per_minute")
    metrics.routed("gpt-4o", 0.004)
    metrics.routed("gpt-9", 0.2)
    samples = scrape(metrics)
    moved = {"from": "openai/gpt-4o", "to": "openai/other", "reason": "breaker_open"}
    assert samples[at("lunar_fallbacks_total", **moved)] == 1
    assert samples[at("lunar_retries_total", provider="openai", reason="reset")] == 1
    assert samples[at("lunar_rate_limited_total", limit="requests_per_minute")] == 1
    assert samples[at("lunar_router_seconds_bucket", le="0.005")] == 1
    assert samples[at("lunar_router_decisions_total", model="gpt-4o")] == 1
    assert samples[at("lunar_router_decisions_total", model="other")] == 1


def test_says_how_things_stand() -> None:
    metrics = fresh()
    metrics.targets({A: 0, B: 2, Target("openai", "x"): 2, Target("openai", "y"): 1}, degraded=[B])
    metrics.inflight += 3
    metrics.store_degraded = True
    samples = scrape(metrics)
    assert samples[at("lunar_target_state", target="openai/gpt-4o")] == 0
    assert samples[at("lunar_target_state", target="groq/llama")] == 2
    assert samples[at("lunar_target_state", target="openai/other")] == 2  # the worst of them
    assert named(samples, "lunar_target_degraded") == [{"target": "groq/llama"}]
    assert samples[at("lunar_inflight_requests")] == 3
    assert samples[at("lunar_store_degraded")] == 1
    assert samples[at("lunar_config_generation")] == 1
    assert samples[at("lunar_build_info", version="1.2.3")] == 1
    metrics.targets({A: 1})
    assert named(scrape(metrics), "lunar_target_state") == [{"target": "openai/gpt-4o"}]


def test_a_reload_keeps_the_counts_and_asks_anew_who_is_known() -> None:
    metrics = fresh()
    metrics.observe(outcome())
    metrics.reload(lambda model: False)
    metrics.observe(outcome())
    samples = scrape(metrics)
    assert samples[at("lunar_config_generation")] == 2
    assert {labels["model"] for labels in named(samples, "lunar_requests_total")} == {
        "gpt-4o",
        "other",
    }


# --- bounds


@given(
    st.lists(
        st.builds(
            outcome,
            call=st.builds(call, endpoint=st.text(), model=st.text(), stream=st.booleans()),
            target=st.none() | st.builds(Target, st.just("openai"), st.text()),
            usage=st.none() | st.builds(Usage, st.integers(0, 99), st.integers(0, 99)),
            ttft_s=st.none() | st.floats(0, 1),
        ),
        max_size=20,
    )
)
def test_whatever_clients_send_makes_few_series(outcomes: Iterable[Outcome]) -> None:
    metrics = fresh()
    for each in outcomes:
        metrics.observe(each)
    rows = [labels for family in metrics.snapshot().values() for labels, _ in family]
    words = {value for labels in rows for value in labels}
    ours = {"", "openai", "other", "none", "200", "true", "false", "1.2.3", *TOKEN_KINDS}
    assert words <= ours | KNOWN | ENDPOINTS | set(OPERATIONS.values())


# --- workers and formats


SECONDS = st.one_of(st.sampled_from([0.0, 0.01, 0.02, 0.1, 1.0, 81.92, 100.0]), st.floats(0, 200))


@given(st.lists(st.tuples(SECONDS, st.integers(0, 5**14), st.booleans()), max_size=40))
def test_what_is_counted_together_is_what_is_counted_one_by_one(
    happened: list[tuple[float, int, bool]],
) -> None:
    together, one_by_one = fresh(), fresh()
    for seconds, tokens, stream in happened:
        each = outcome(
            call=call(stream=stream),
            usage=Usage(tokens, tokens // 7, tokens // 3),
            latency_s=seconds,
            ttft_s=seconds / 3,
            overhead_s=seconds / 1000,
        )
        together.observe(each)
        one_by_one.observe(each)
        one_by_one.snapshot()
    assert together.snapshot() == one_by_one.snapshot()


def test_not_many_wait_for_their_bucket() -> None:
    metrics = fresh()
    for _ in range(1000):
        metrics.observe(outcome(usage=Usage(3, 7)))
    waiting = [len(histogram.noted) for histogram in metrics._histograms]
    assert 0 < max(waiting) < 256
    assert scrape(metrics)[at("lunar_overhead_seconds_count")] == 1000


def test_the_kinds_that_are_remembered_are_few_and_of_this_config() -> None:
    metrics = fresh()
    for n in range(3000):
        metrics.observe(outcome(status=200 + n % 1500, error=None))
        metrics.observe(outcome(target=Target("openai", f"gpt-{n}")))
    assert 0 < len(metrics._kinds) <= 1024
    metrics.reload(lambda _: False)
    metrics.observe(outcome())
    assert "other" in {row["model"] for row in named(scrape(metrics), "lunar_requests_total")}


def test_the_workers_numbers_are_one_processs_numbers() -> None:
    first, second, alone = fresh(), fresh(), fresh()
    for metrics in (first, alone):
        metrics.observe(outcome(usage=Usage(10, 20), cost=usd("0.1"), ttft_s=0.25))
        metrics.inflight += 1
    for metrics in (second, alone):
        metrics.observe(outcome(usage=Usage(30, 5), cost=usd("0.2"), ttft_s=0.5))
        metrics.observe(outcome(status=502, error="upstream_reset", target=B))
        metrics.inflight += 2
    sent = json.dumps([first.snapshot(), second.snapshot()])
    assert scrape(merge(json.loads(sent))) == scrape(alone)


def test_gauges_of_workers_show_the_worst() -> None:
    first, second = fresh(), fresh()
    first.targets({A: 0})
    second.targets({A: 2})
    second.reload(KNOWN.__contains__)
    second.store_degraded = True
    samples = scrape(merge([first.snapshot(), second.snapshot()]))
    assert samples[at("lunar_target_state", target="openai/gpt-4o")] == 2
    assert samples[at("lunar_config_generation")] == 1  # not every worker has the second
    assert samples[at("lunar_store_degraded")] == 1
    assert samples[at("lunar_build_info", version="1.2.3")] == 1


def busy() -> Metrics:
    metrics = fresh()
    attempts = (Attempt(A, 503, "upstream_busy", 0.1), Attempt(A, 200, None, 0.1))
    metrics.observe(
        outcome(
            call=call(stream=True, identity=Identity("k", 'a"b\\c\nd')),
            usage=Usage(5, 5),
            cost=usd("1"),
            ttft_s=0.1,
            attempts=attempts,
        )
    )
    return metrics


PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "text/plain;version=1.0.0;q=0.4,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "type", "parse"),
    [
        ("", "text/plain; version=0.0.4", parse_text),
        ("*/*", "text/plain; version=0.0.4", parse_text),
        ("text/plain; version=wrong", "text/plain; version=0.0.4", parse_text),
        ("application/openmetrics-text", "application/openmetrics-text", parse_openmetrics),
        (PROMETHEUS_3, "application/openmetrics-text; version=1.0.0", parse_openmetrics),
    ],
)
def test_speaks_the_format_asked_for(accept: str, type: str, parse: Any) -> None:
    body, content_type = render(busy().snapshot(), accept)
    assert content_type.startswith(type)
    samples = read(body.decode(), parse)
    assert samples[at("lunar_requests_total", **REQUEST | {"stream": "true"})] == 1
    assert samples[at("lunar_cost_usd_by_key_total", key='a"b\\c\nd')] == 1


def test_every_family_is_described_even_before_anything_happened() -> None:
    text = render(fresh().snapshot())[0].decode()
    for name, family in FAMILIES.items():
        assert f"# HELP {name} {family.help}\n# TYPE {name} {family.kind}\n" in text
