"""What is counted, and how a scrape sees it.

    metrics = Metrics(known=lambda model: model in models)
    metrics.observe(outcome)                               # once a call; a microsecond or two
    body, content_type = render(metrics.snapshot(), accept)

Counting is plain arithmetic on numbers kept under their label values; what goes into buckets waits
for many of its kind, since it is cheaper to sort them together. A *snapshot* is all of them as
plain lists, fit for JSON: `merge` adds those of several workers up, `render` writes one for
Prometheus. Nothing but `render` knows that library.

Whatever clients send, the number of series is bounded: a model that is not known, an endpoint that
is not ours, and any value past the first 256 of its kind, is `other`.

The `gen_ai_*` names, their labels and buckets are those of the OpenTelemetry semantic conventions
for generative AI, in Prometheus spelling.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Literal

from lunar_proxy.core.limits import bounded
from lunar_proxy.core.model import Attempt, Cost, Identity, Outcome, Target, Usage
from lunar_proxy.core.money import DECIMALS

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

Labels = tuple[str, ...]
# name -> [[label values, number]], a histogram's number being [count of each bucket, sum].
Snapshot = dict[str, list[Any]]

OTHER = "other"
NONE = "none"  # the call ended before there was a provider, or a model

# The conventions' buckets: tokens, and seconds of an operation, to a first token, per token.
_TOKENS = tuple(4.0**power for power in range(14))
_DURATION = tuple(2**power / 100 for power in range(14))
_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
    *(0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
# Ours: the proxy's own share is some 0.2 ms, the router's some 10 ms within its deadline of 50.
_OWN = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

_GEN_AI = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "error_type")
_MOST_VALUES = 256  # of one label that no allow-list bounds, such as the names of keys
_LONGEST_VALUE = 64  # of those: an error code may be a provider's own
_MOST_KINDS = 1024  # of calls whose series is remembered
_MOST_UNCOUNTED = 256  # calls whose times and tokens are in no bucket yet: some 40 kB


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. `together` says what several workers' numbers make."""

    help: str
    labels: Labels = ()
    kind: Literal["counter", "gauge", "histogram"] = "counter"
    buckets: tuple[float, ...] = ()
    digits: int = 0  # the number is kept as a whole one, so many decimal places up
    together: Callable[[Any, Any], Any] = lambda one, other: one + other


def _add_histograms(one: list[Any], other: list[Any]) -> list[Any]:
    return [[a + b for a, b in zip(one[0], other[0], strict=True)], one[1] + other[1]]


def _histogram(help: str, buckets: tuple[float, ...], labels: Labels = ()) -> Family:
    return Family(help, labels, "histogram", buckets, together=_add_histograms)


def _gauge(help: str, labels: Labels = (), together: Callable[[Any, Any], Any] = max) -> Family:
    return Family(help, labels, "gauge", together=together)


FAMILIES: dict[str, Family] = {
    "gen_ai_client_token_usage": _histogram(
        "Tokens of one call, by type; cached and reasoning tokens are also part of the whole.",
        _TOKENS,
        (*_GEN_AI, "gen_ai_token_type"),
    ),
    "gen_ai_client_operation_duration_seconds": _histogram(
        "From the request accepted to its answer over.", _DURATION, _GEN_AI
    ),
    "gen_ai_server_time_to_first_token_seconds": _histogram(
        "From the request accepted to the first content written.", _FIRST_TOKEN, _GEN_AI
    ),
    "gen_ai_server_time_per_output_token_seconds": _histogram(
        "Time per token of a stream, after the first.", _PER_TOKEN, _GEN_AI
    ),
    "lunar_requests_total": Family(
        "Calls, by what the client was told.", ("endpoint", "provider", "model", "status", "stream")
    ),
    "lunar_cost_usd_total": Family(
        "US dollars spent, failed attempts that were billed included.",
        ("provider", "model"),
        digits=DECIMALS,
    ),
    "lunar_cost_usd_by_key_total": Family(
        "US dollars spent, by the name of the caller's key.", ("key",), digits=DECIMALS
    ),
    "lunar_unpriced_requests_total": Family(
        "Calls whose price is not known, so that no cost counts them.", ("provider",)
    ),
    "lunar_overhead_seconds": _histogram("The proxy's own share of a call's time.", _OWN),
    "lunar_fallbacks_total": Family("Moves from one target to the next.", ("from", "to", "reason")),
    "lunar_retries_total": Family("Further tries on one target.", ("provider", "reason")),
    "lunar_rate_limited_total": Family("Calls refused by a limit, by its name.", ("limit",)),
    "lunar_client_disconnects_total": Family(
        "Calls whose client hung up, by where the call was.", ("phase",)
    ),
    "lunar_inflight_requests": _gauge("Calls going on.", together=lambda one, other: one + other),
    "lunar_target_state": _gauge("Breaker: 0 closed, 1 half-open, 2 open.", ("target",)),
    "lunar_target_degraded": _gauge("1: the provider refuses our key.", ("target",)),
    "lunar_store_degraded": _gauge("1: the shared store is out of reach, limits are local."),
    "lunar_router_seconds": _histogram("Time the router took to decide.", _OWN),
    "lunar_router_decisions_total": Family("Models the router chose.", ("model",)),
    "lunar_router_deadline_total": Family(
        "Calls that did not wait for the router: it was late, or could not be loaded."
    ),
    # The least: a generation is in force once every worker has it.
    "lunar_config_generation": _gauge("Configs loaded since the start.", together=min),
    "lunar_build_info": _gauge("The version that runs.", ("version",)),
}

# Values of gen_ai.operation.name; one that the conventions do not have is the endpoint's own name.
OPERATIONS = {
    "chat/completions": "chat",
    "responses": "chat",
    "messages": "chat",
    "router": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
    "audio": "audio",
    "images": "images",
    "moderations": "moderations",
}
TOKEN_KINDS = ("input", "output", "cache_read", "cache_write", "reasoning")
_SHARES = TOKEN_KINDS[2:]  # of the input and the output
ENDPOINTS = frozenset(OPERATIONS) | {
    *("audio/speech", "audio/transcriptions", "audio/translations"),
    *("images/generations", "images/edits", "images/variations"),
    *("batches", "files", "models", "pricing/models", "providers", "router/profiles", "uploads"),
}

# Values of gen_ai.provider.name where they differ from our ids.
PROVIDER_NAMES = {
    "azure": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "xai": "x_ai",
}


@dataclass(slots=True)
class _Count:
    value: int = 0

    def read(self) -> int:
        return self.value


class _Histogram:
    """`observe` notes a value, `count` puts all that were noted into their buckets."""

    __slots__ = ("bounds", "counts", "noted", "observe", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last is above every bound
        self.sum = 0.0
        self.noted: list[float] = []
        self.observe = self.noted.append

    def count(self) -> None:
        """Once sorted, a bucket's values are found by its bound, and most are in few buckets."""
        noted, bounds, counts = self.noted, self.bounds, self.counts
        if not noted:
            return
        self.sum = sum(noted, self.sum)  # in the order they came
        noted.sort()
        bucket, counted = bisect_left(bounds, noted[0]), 0
        while counted < len(noted):
            last = bucket == len(bounds)
            below = len(noted) if last else bisect_right(noted, bounds[bucket], counted)
            counts[bucket] += below - counted
            bucket, counted = bucket + 1, below
        noted.clear()

    def read(self) -> list[Any]:
        self.count()
        return [list(self.counts), self.sum]


@dataclass(slots=True)
class _Series:
    """Where the numbers of one kind of call go: looked up once, then only added to."""

    requests: _Count
    cost: _Count
    duration: _Histogram
    first_token: _Histogram
    per_token: _Histogram
    input: _Histogram
    output: _Histogram
    gen_ai: Labels
    shares: dict[str, _Histogram] = field(default_factory=dict)  # of input and output, by type


class Metrics:
    """The numbers of one process. `known`: whether a model may be a label value."""

    def __init__(self, *, known: Callable[[str], bool], version: str = "") -> None:
        self.inflight = 0
        self.config_generation = 1
        self.store_degraded = False
        self._known = known
        self._version = version
        self._numbers: dict[str, dict[Labels, _Count | _Histogram]]
        self._numbers = {name: {} for name in FAMILIES}
        self._histograms: list[_Histogram] = []
        self._uncounted = 0
        self._series: dict[tuple[str, str, str, int, bool, str], _Series] = {}
        self._kinds: dict[tuple[object, ...], _Series] = {}
        self._models: dict[str, str] = {}
        self._values: dict[str, set[str]] = {}
        self._states: Mapping[Target, int] = {}
        self._degraded: Iterable[Target] = ()
        self._overhead = self._histogram("lunar_overhead_seconds", ())
        self._router = self._histogram("lunar_router_seconds", ())

    # --- what happened

    def observe(self, outcome: Outcome) -> None:
        """Count a call that is over: itself, its attempts, its cost and its caller."""
        # At once: to ask a named tuple for four of its members takes as long.
        call, target, _, status, error, usage, cost, priced, latency, ttft, own, tries, gone = (
            outcome
        )
        kind = (target, call.endpoint, call.stream, status, error)
        series = self._kinds.get(kind) or self._series_of(outcome, kind)
        series.requests.value += 1
        self._overhead.observe(own)
        if target is not None:
            series.duration.observe(latency)
            if ttft is not None:
                series.first_token.observe(ttft)
            if usage is not None:
                self._observe_usage(series, usage)
                if call.stream and ttft is not None and usage.output_tokens > 1:
                    series.per_token.observe((latency - ttft) / (usage.output_tokens - 1))
                if not priced:
                    self._count("lunar_unpriced_requests_total", (target.provider,)).value += 1
            if cost is not None:
                spent = bounded(cost.total)
                series.cost.value += spent
                if call.identity is not None:
                    self._charge(call.identity, spent)
        if gone is not None:
            self._count("lunar_client_disconnects_total", (gone.value,)).value += 1
        if len(tries) > 1:
            self._observe_attempts(outcome)
        self._uncounted += 1
        if self._uncounted >= _MOST_UNCOUNTED:
            self._uncounted = 0
            for histogram in self._histograms:
                histogram.count()

    def fallback(self, source: Target, to: Target, reason: str) -> None:
        """A move that made no attempt, such as past an open breaker; `observe` sees the others."""
        labels = (self._target(source), self._target(to), self._bounded("reason", reason))
        self._count("lunar_fallbacks_total", labels).value += 1

    def retry(self, provider: str, reason: str) -> None:
        """A retry that no `Outcome` will tell of; `observe` sees the others."""
        labels = (provider, self._bounded("reason", reason))
        self._count("lunar_retries_total", labels).value += 1

    def rate_limited(self, limit: str) -> None:
        labels = (self._bounded("limit", limit),)
        self._count("lunar_rate_limited_total", labels).value += 1

    def routed(self, model: str, seconds: float) -> None:
        """The router has chosen `model`."""
        self._router.observe(seconds)
        self._router.count()
        self._count("lunar_router_decisions_total", (self._model(model),)).value += 1

    def unrouted(self) -> None:
        """The default, or the first target, answers a call that the router was to decide."""
        self._count("lunar_router_deadline_total", ()).value += 1

    # --- how things stand

    def reload(self, known: Callable[[str], bool]) -> None:
        """Another config is in force: what was counted stays, what may be a label is asked anew."""
        self._known = known
        self._models.clear()
        self._kinds.clear()
        self.config_generation += 1

    def targets(self, states: Mapping[Target, int], degraded: Iterable[Target] = ()) -> None:
        """Breaker states (0 closed, 1 half-open, 2 open) and refused keys; replaces the last ones.

        Called before a snapshot rather than on every change: an open breaker becomes half-open
        by the clock alone.
        """
        self._states, self._degraded = states, degraded

    def snapshot(self) -> Snapshot:
        """All numbers as plain lists: a worker sends it, `merge` adds it up, `render` writes it."""
        snapshot = {
            name: [[list(labels), number.read()] for labels, number in numbers.items()]
            for name, numbers in self._numbers.items()
        }
        return snapshot | {
            "lunar_inflight_requests": [[[], self.inflight]],
            "lunar_config_generation": [[[], self.config_generation]],
            "lunar_store_degraded": [[[], int(self.store_degraded)]],
            "lunar_build_info": [[[self._version], 1]],
            "lunar_target_state": self._worst(self._states),
            "lunar_target_degraded": self._worst(dict.fromkeys(self._degraded, 1)),
        }

    # --- one call

    def _observe_usage(self, series: _Series, usage: Usage) -> None:
        prompt, output, read, write, reasoning, *_ = usage
        if prompt:
            series.input.observe(prompt)
        if output:
            series.output.observe(output)
        if read or write or reasoning:
            for kind, tokens in zip(_SHARES, (read, write, reasoning), strict=True):
                if tokens:
                    self._share(series, kind).observe(tokens)

    def _share(self, series: _Series, kind: str) -> _Histogram:
        if kind not in series.shares:
            series.shares[kind] = self._tokens(series.gen_ai, kind)
        return series.shares[kind]

    def _observe_attempts(self, outcome: Outcome) -> None:
        """Every attempt but the last was given up: for another try, or for another target."""
        for attempt, following in pairwise(outcome.attempts):
            reason = attempt.error or "hedged"  # no error: a faster one was preferred
            if attempt.target == following.target:
                self.retry(attempt.target.provider, reason)
            else:
                self.fallback(attempt.target, following.target, reason)
            if attempt.cost is not None:
                self._charge_attempt(outcome, attempt, attempt.cost)

    def _charge_attempt(self, outcome: Outcome, attempt: Attempt, cost: Cost) -> None:
        labels = (attempt.target.provider, self._model(attempt.target.model))
        spent = bounded(cost.total)
        self._count("lunar_cost_usd_total", labels).value += spent
        if outcome.call.identity is not None:
            self._charge(outcome.call.identity, spent)

    def _charge(self, identity: Identity, spent: int) -> None:
        labels = (self._bounded("key", identity.name),)
        self._count("lunar_cost_usd_by_key_total", labels).value += spent

    def _series_of(self, outcome: Outcome, kind: tuple[object, ...]) -> _Series:
        """Remembered under `kind` where that is all short names: some are a client's to choose."""
        call, target = outcome.call, outcome.target
        endpoint = call.endpoint if call.endpoint in ENDPOINTS else _endpoint(call.endpoint)
        provider = target.provider if target is not None else NONE
        model = self._model(target.model if target is not None else call.model)
        said = outcome.error or (str(outcome.status) if outcome.status >= 400 else "")
        error = self._bounded("error", said) if said else ""
        key = (endpoint, provider, model, outcome.status, call.stream, error)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = self._new_series(*key)
        if target is not None and (call.endpoint, target.model, error) == (endpoint, model, said):
            if len(self._kinds) >= _MOST_KINDS:
                self._kinds.clear()
            self._kinds[kind] = series
        return series

    def _new_series(
        self, endpoint: str, provider: str, model: str, status: int, stream: bool, error: str
    ) -> _Series:
        request = (endpoint, provider, model, str(status), "true" if stream else "false")
        operation = OPERATIONS.get(endpoint) or OPERATIONS.get(endpoint.partition("/")[0], endpoint)
        gen_ai = (operation, PROVIDER_NAMES.get(provider, provider), model, error)
        return _Series(
            requests=self._count("lunar_requests_total", request),
            cost=self._count("lunar_cost_usd_total", (provider, model)),
            duration=self._histogram("gen_ai_client_operation_duration_seconds", gen_ai),
            first_token=self._histogram("gen_ai_server_time_to_first_token_seconds", gen_ai),
            per_token=self._histogram("gen_ai_server_time_per_output_token_seconds", gen_ai),
            input=self._tokens(gen_ai, "input"),
            output=self._tokens(gen_ai, "output"),
            gen_ai=gen_ai,
        )

    def _tokens(self, gen_ai: Labels, kind: str) -> _Histogram:
        return self._histogram("gen_ai_client_token_usage", (*gen_ai, kind))

    # --- numbers and label values

    def _count(self, name: str, labels: Labels) -> _Count:
        number = self._numbers[name].get(labels)
        if number is None:
            number = self._numbers[name][labels] = _Count()
        assert isinstance(number, _Count)
        return number

    def _histogram(self, name: str, labels: Labels) -> _Histogram:
        number = self._numbers[name].get(labels)
        if number is None:
            number = self._numbers[name][labels] = _Histogram(FAMILIES[name].buckets)
            self._histograms.append(number)
        assert isinstance(number, _Histogram)
        return number

    def _model(self, name: str) -> str:
        label = self._models.get(name)
        if label is None:
            base = name.partition("?")[0]  # the demo's models carry settings after it
            if not self._known(base):
                return OTHER if name else NONE
            label = base
            if name == base:  # only known names are kept, so clients cannot fill the table
                self._models[name] = label
        return label

    def _target(self, target: Target) -> str:
        return f"{target.provider}/{self._model(target.model)}"

    def _bounded(self, label: str, value: str) -> str:
        value = value[:_LONGEST_VALUE]
        values = self._values.setdefault(label, set())
        if value not in values:
            if len(values) >= _MOST_VALUES:
                return OTHER
            values.add(value)
        return value

    def _worst(self, states: Mapping[Target, int]) -> list[Any]:
        worst: dict[str, int] = {}
        for target, state in states.items():
            name = self._target(target)
            worst[name] = max(state, worst.get(name, 0))
        return [[[name], state] for name, state in worst.items()]


def _endpoint(endpoint: str) -> str:
    """The family of a path such as `files/file-123/content`, which ids make endless."""
    family = endpoint.partition("/")[0]
    return family if family in ENDPOINTS else OTHER


# --- snapshots ---------------------------------------------------------------------------------


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """One snapshot of several workers': counts add up, a gauge is what its family says."""
    merged: dict[str, dict[Labels, Any]] = {name: {} for name in FAMILIES}
    for snapshot in snapshots:
        for name, rows in snapshot.items():
            together, numbers = FAMILIES[name].together, merged[name]
            for labels, number in rows:
                key = tuple(labels)
                numbers[key] = together(numbers[key], number) if key in numbers else number
    return {
        name: [[list(labels), number] for labels, number in numbers.items()]
        for name, numbers in merged.items()
    }


def render(snapshot: Snapshot, accept: str = "") -> tuple[bytes, str]:
    """The body of a scrape and its content type: OpenMetrics or text, as the header `accept` asks.

    An `Accept` that cannot be read gets the text format.
    """
    # Imported here: it drags in an HTTP server, 12 MB that a proxy nobody scrapes does not need.
    from prometheus_client.exposition import choose_encoder

    try:
        encode, content_type = choose_encoder(accept)
    except (ValueError, TypeError):  # a version that is not a number
        encode, content_type = choose_encoder("")
    return encode(_Collector(snapshot)), content_type


@dataclass(frozen=True, slots=True)
class _Collector:
    """A snapshot as the library's encoders read it."""

    snapshot: Snapshot

    def collect(self) -> Iterator[Metric]:
        for name, family in FAMILIES.items():
            yield _metric(name, family, self.snapshot.get(name, []))


def _metric(name: str, family: Family, rows: list[Any]) -> Metric:
    from prometheus_client import metrics_core as core

    if family.kind == "histogram":
        histogram = core.HistogramMetricFamily(name, family.help, labels=family.labels)
        for labels, (counts, total) in rows:
            if any(counts) or not labels:  # a series nobody has observed yet says nothing
                histogram.add_metric(labels, _cumulative(family.buckets, counts), total)
        return histogram
    make = core.CounterMetricFamily if family.kind == "counter" else core.GaugeMetricFamily
    metric = make(name, family.help, labels=family.labels)
    scale = 10**family.digits
    for labels, number in rows:
        if number or not family.digits:  # no cost is no series: the price may be unknown
            metric.add_metric(labels, number / scale)
    return metric


def _cumulative(bounds: tuple[float, ...], counts: list[int]) -> list[tuple[str, float]]:
    from prometheus_client.utils import floatToGoString

    names = [str(floatToGoString(b)) for b in (*bounds, math.inf)]  # type: ignore[no-untyped-call]
    return [*zip(names, map(float, accumulate(counts)), strict=True)]
