"""Limits at the door: what passes, what a refusal says, and that nothing taken is ever lost."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lunar
import openai
import pytest

from lunar_proxy.testing import (
    Break,
    Request,
    Script,
    Until,
    chat,
    chat_answer,
    chat_stream,
    error_answer,
    json_answer,
)

from .guarded import USAGE, admin, bearer, config
from .harness import Answer, Proxy, Stage, ask, eventually, request_bytes, serving
from .harness import chat as chat_doc

SLOTS, RPM, TPM, BUDGET, SMALL = (f"pk_live_{name}{'0' * 32}" for name in "SRTBM")

KEYS: list[dict[str, Any]] = [
    {"name": "slots", "key": SLOTS, "limits": {"concurrent_requests": 2}},
    {"name": "rpm", "key": RPM, "limits": {"requests_per_minute": 3}},
    {"name": "tpm", "key": TPM, "limits": {"tokens_per_minute": 1000}},
    {"name": "budget", "key": BUDGET, "limits": {"budget": {"usd": 0.2, "per": "month"}}},
    {"name": "small", "key": SMALL, "limits": {"tokens_per_minute": 10}},
]


@pytest.fixture
def proxy(stage: Stage, tmp_path: Path) -> Iterator[Proxy]:
    """For a test that uses limits up."""
    with limited(stage, tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def lasting(shared_stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """For those after which everything must be as it was."""
    with limited(shared_stage, tmp_path_factory.mktemp("limited")) as running:
        yield running


def limited(stage: Stage, folder: Path) -> contextlib.AbstractContextManager[Proxy]:
    auth = {"required": True, "keys": KEYS}
    timeouts = {"connect_s": 2, "first_token_s": 10, "idle_s": 0.3}
    settings = config(stage.upstream.url, auth=auth, timeouts=timeouts)
    return serving(folder, settings)


def call(proxy: Proxy, key: str, door: str = "fast", **more: Any) -> Answer:
    return ask(proxy.url, chat_doc("own/m", **more), headers=bearer(key), door=door)


def test_a_full_minute_may_burst_and_the_refusal_says_when_to_come_back(
    proxy: Proxy, stage: Stage, door: str
) -> None:
    stage.play(chat("Hello"))
    answers = [call(proxy, RPM, door) for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    remaining = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
    assert remaining == ["2", "1", "0", "0"]
    refused = answers[-1]
    assert refused.headers["x-ratelimit-limit-requests"] == "3"
    assert refused.error["type"] == refused.error["code"] == "rate_limit_exceeded"
    wait_s = refused.doc["retry_after"]
    assert 15 < wait_s <= 20  # a third of a minute
    assert int(refused.headers["retry-after"]) == -(-wait_s // 1)
    assert int(refused.headers["retry-after-ms"]) == pytest.approx(wait_s * 1000, abs=1)
    assert 55 < seconds(refused.headers["x-ratelimit-reset-requests"]) <= 60
    assert 'lunar_rate_limited_total{limit="requests"} 1.0' in metrics(proxy)


def seconds(text: str) -> float:
    """`1m0s`, `59.9s` -> 60.0, 59.9"""
    minutes, _, rest = text.rpartition("m") if "m" in text and "ms" not in text else ("0", "", text)
    return int(minutes) * 60 + float(rest.removesuffix("s"))


def metrics(proxy: Proxy) -> str:
    return admin(proxy, "/metrics").body.decode()


def test_tokens_are_held_and_paid_by_what_was_used(proxy: Proxy, stage: Stage) -> None:
    stage.play(chat("Hello", USAGE))
    first = call(proxy, TPM, max_tokens=800)
    assert first.headers["x-ratelimit-limit-tokens"] == "1000"
    assert int(first.headers["x-ratelimit-remaining-tokens"]) < 200  # held: 800 and the prompt
    second = call(proxy, TPM, max_tokens=700)
    assert second.status == 200  # since 120 were paid
    assert int(second.headers["x-ratelimit-remaining-tokens"]) <= 180
    third = call(proxy, TPM, max_tokens=900)
    assert (third.status, third.error["type"]) == (429, "rate_limit_exceeded")
    assert "tokens per minute" in third.error["message"]


# the limit that blocks -> its key, what uses it up and is refused next, what the refusal says of it
# and how long to wait, in seconds
REFUSALS: dict[str, tuple[str, dict[str, Any], str, tuple[float, float]]] = {
    "requests": (RPM, {}, "limit of 3 requests per minute is reached", (15, 20)),
    "tokens": (
        TPM,
        {"max_tokens": 850},
        "limit of 1000 tokens per minute (this request: ",
        (0, 60),
    ),
    "concurrent": (SLOTS, {}, "limit of 2 concurrent requests is reached", (1, 1)),
    "budget": (BUDGET, {}, "budget of 0.2 USD per month is reached", (0, 31 * 86_400)),
}


@pytest.mark.parametrize("limit", REFUSALS)
@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
def test_a_refusal_says_which_limit_and_how_long_in_every_place_that_clients_look(
    proxy: Proxy, stage: Stage, limit: str, streaming: bool
) -> None:
    key, asked, says, (least, most) = REFUSALS[limit]
    stage.play(chat("Hello", USAGE))
    with holding(proxy, stage, key, 2 if limit == "concurrent" else 0):
        answers = [call(proxy, key, stream=streaming, **asked) for _ in range(4)]
        refused = next(answer for answer in answers if answer.status != 200)
        again = call(proxy, key, stream=streaming, **asked)
    assert refused.status == again.status == 429
    kind = "budget_exceeded" if limit == "budget" else "rate_limit_exceeded"
    error = refused.error
    assert (error["type"], error["code"], error["param"]) == (kind, kind, None)
    assert refused.doc["detail"] == error["message"]
    assert error["message"].startswith(says)
    wait_s = refused.doc["retry_after"]
    assert isinstance(wait_s, float)
    assert least <= wait_s <= most
    assert int(refused.headers["retry-after"]) == -(-wait_s // 1)
    assert int(refused.headers["retry-after-ms"]) == pytest.approx(wait_s * 1000, abs=1)
    assert (refused.headers.get("x-should-retry") == "false") is (wait_s > 60)
    told = {name: value for name, value in refused.headers.items() if "ratelimit" in name.lower()}
    gauges = {"requests": 3, "tokens": 1000}
    assert {name.lower() for name in told} == {
        f"x-ratelimit-{part}-{limit}" for part in ("limit", "remaining", "reset") if limit in gauges
    }
    if limit in gauges:
        assert refused.headers[f"x-ratelimit-limit-{limit}"] == str(gauges[limit])
        assert seconds(refused.headers[f"x-ratelimit-reset-{limit}"]) >= wait_s


@contextlib.contextmanager
def holding(proxy: Proxy, stage: Stage, key: str, calls: int) -> Iterator[None]:
    """While so many calls are in flight."""
    plan = stage.event()
    with contextlib.ExitStack() as stack:
        for _ in range(calls):
            stage.play((Until(plan),))
            seen = len(stage.requests)
            client = stack.enter_context(socket.create_connection(proxy.address))
            client.sendall(request_bytes(chat_doc("own/m"), headers=f"x-api-key: {key}\r\n"))
            arrived_after(stage, seen)
        yield


def arrived_after(stage: Stage, seen: int) -> None:
    eventually(lambda: len(stage.requests) > seen)


def test_a_stream_that_its_reader_left_pays_what_was_said_and_gives_the_rest_back(
    proxy: Proxy, stage: Stage
) -> None:
    stage.play((*chat_stream("one two three four")[:5], Until(stage.event())))
    body = chat_doc("own/m", stream=True, max_tokens=900)
    with socket.create_connection(proxy.address) as client:
        client.sendall(request_bytes(body, headers=f"x-api-key: {TPM}\r\n"))
        received = b""
        while b"three" not in received:
            received += client.recv(65536)
        assert call(proxy, TPM, max_tokens=300).status == 429  # 900 and the prompt are held
    (left,) = eventually(lambda: [c for c in proxy.calls() if c.get("disconnected")])
    used = left["input_tokens"] + left["output_tokens"]
    assert left["output_tokens"] >= 3
    stage.play(chat("Hello", USAGE))
    after = call(proxy, TPM, max_tokens=300)
    assert after.status == 200
    held = 300 + len(json.dumps(chat_doc("own/m", max_tokens=300))) // 4
    refilled = 1000 / 60 * 10  # in the ten seconds this takes at most
    remaining = int(after.headers["x-ratelimit-remaining-tokens"])
    assert 1000 - held - used - 10 <= remaining <= 1000 - held - used + refilled + 10


def test_a_request_larger_than_its_limit_is_told_that_waiting_will_not_help(
    lasting: Proxy, stage: Stage
) -> None:
    answer = call(lasting, SMALL, max_tokens=100)
    assert answer.status == 429
    assert answer.headers["x-should-retry"] == "false"
    assert "max_tokens" in answer.error["message"]
    assert stage.requests == []


def test_a_spent_budget_is_its_own_error(proxy: Proxy, stage: Stage) -> None:
    stage.play(chat("Hello", USAGE))
    answers = [call(proxy, BUDGET) for _ in range(3)]  # 0.14 USD each, of 0.2
    assert [answer.status for answer in answers] == [200, 200, 429]
    refused = answers[-1]
    assert (refused.error["type"], refused.error["code"]) == ("budget_exceeded", "budget_exceeded")
    assert "0.2 USD per month" in refused.error["message"]
    assert refused.doc["retry_after"] > 0
    assert 'lunar_rate_limited_total{limit="budget"} 1.0' in metrics(proxy)


def test_calls_at_once_stay_within_the_limit_and_are_never_queued(
    lasting: Proxy, stage: Stage, door: str
) -> None:
    free = stage.event()
    stage.play((Until(free), *chat_answer("Hello", usage=USAGE)))
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        calls = [pool.submit(call, lasting, SLOTS, door) for _ in range(24)]
        refused = eventually(lambda: all_but_two([each for each in calls if each.done()]))
        assert [each.result().status for each in refused] == [429] * 22
        stage.set(free)
        assert sorted(each.result().status for each in calls) == [200] * 2 + [429] * 22
    assert len(stage.requests) == 2
    assert "concurrent" in refused[0].result().error["message"]


def all_but_two(done: list[Any]) -> list[Any]:
    return done if len(done) == 22 else []


def hang_up(proxy: Proxy, stage: Stage, key: str, **more: Any) -> None:
    """A client that leaves once the provider has its request."""
    seen = len(stage.requests)
    with socket.create_connection(proxy.address) as client:
        client.sendall(request_bytes(chat_doc("own/m", **more), headers=f"x-api-key: {key}\r\n"))
        arrived_after(stage, seen)


def by_path(own: Script, openai: Script) -> Callable[[Request], Script]:
    return lambda request: own if request.path.startswith("/own") else openai


def cut(stage: Stage) -> Any:
    return (*chat_stream("one two three", usage=USAGE)[:3], Break())


# how a call may end: what the providers play, what is asked
ENDINGS: dict[str, tuple[Callable[[Stage], Any], dict[str, Any]]] = {
    "an answer": (lambda _: chat_answer("Hi", usage=USAGE), {}),
    "a stream": (lambda _: chat_stream("Hi there", usage=USAGE), {"stream": True}),
    "the provider's error": (lambda _: error_answer(400), {}),
    "a server error": (lambda _: error_answer(500), {}),
    "a fallback": (
        lambda _: by_path(error_answer(500), chat_answer("Hi", usage=USAGE)),
        {"fallbacks": ["openai/gpt-4o"]},
    ),
    "a fallback that fails too": (lambda _: error_answer(500), {"fallbacks": ["openai/gpt-4o"]}),
    "a reset before the answer": (lambda _: (Break(),), {}),
    "a cut stream": (cut, {"stream": True}),
    "a stall": (
        lambda stage: (*chat_stream("one two")[:3], Until(stage.event())),
        {"stream": True},
    ),
    "not JSON": (lambda _: (*chat_answer("Hi")[:1], Break()), {}),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_however_a_call_ends_its_slot_comes_free(
    lasting: Proxy, stage: Stage, ending: str, door: str
) -> None:
    plan, asked = ENDINGS[ending]
    for _ in range(3):  # one more than there are slots
        stage.play(plan(stage))
        assert call(lasting, SLOTS, door, **asked).status != 429
    stage.play(chat("Hello"))
    assert call(lasting, SLOTS).status == 200


@pytest.mark.parametrize("streaming", [False, True])
def test_a_client_that_leaves_gives_its_slot_back(
    lasting: Proxy, stage: Stage, streaming: bool
) -> None:
    for _ in range(3):
        begun = chat_stream("one two")[:3] if streaming else ()
        stage.play((*begun, Until(stage.event())))
        hang_up(lasting, stage, SLOTS, stream=streaming)
        eventually(lambda: in_flight(lasting) == 0)
    stage.play(chat("Hello"))
    assert call(lasting, SLOTS).status == 200


def in_flight(proxy: Proxy) -> int:
    found: int = admin(proxy, "/-/snapshot").doc["inflight"]
    return found


def test_refusals_before_the_limits_take_nothing(proxy: Proxy, stage: Stage) -> None:
    for _ in range(5):
        assert ask(proxy.url, chat_doc("no/such"), headers=bearer(RPM)).status == 404
        assert ask(proxy.url, b"{", headers=bearer(RPM)).status == 400
    stage.play(chat("Hello"))
    assert [call(proxy, RPM).status for _ in range(4)] == [200, 200, 200, 429]


def test_without_auth_every_address_has_the_default_limits(stage: Stage, tmp_path: Path) -> None:
    stage.play(chat("Hello"))
    settings = config(stage.upstream.url, limits={"requests_per_minute": 2})
    with serving(tmp_path, settings) as proxy:
        statuses = [ask(proxy.url, chat_doc()).status for _ in range(3)]
        assert statuses == [200, 200, 429]
        host = "127.0.0.2"  # loopback is a whole network on Linux
        with socket.create_connection(proxy.address, source_address=(host, 0)) as other:
            other.sendall(request_bytes(chat_doc(), close=True))
            assert other.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_key_without_limits_of_its_own_has_the_default_ones(stage: Stage, tmp_path: Path) -> None:
    keys = [{"name": "plain", "key": SLOTS}, {"name": "more", "key": RPM, "limits": {}}]
    settings = config(stage.upstream.url, auth={"keys": keys}, limits={"requests_per_minute": 1})
    stage.play(chat("Hello"))
    with serving(tmp_path, settings) as proxy:
        assert [call(proxy, SLOTS).status for _ in range(2)] == [200, 429]
        assert [call(proxy, RPM).status for _ in range(2)] == [200, 200]


def test_our_limits_take_the_place_of_the_providers_headers(proxy: Proxy, stage: Stage) -> None:
    theirs = {"x-ratelimit-limit-requests": "9999", "x-ratelimit-remaining-tokens": "77"}
    stage.play(json_answer({"choices": [], "usage": USAGE}, headers=theirs))
    headers = call(proxy, RPM).headers
    assert headers["x-ratelimit-limit-requests"] == "3"
    assert "x-ratelimit-remaining-tokens" not in headers


# --- the libraries that people call with ----------------------------------------------------------


def test_openai_raises_its_rate_limit_error_with_the_wait(proxy: Proxy, stage: Stage) -> None:
    stage.play(chat("Hello"))
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=RPM, max_retries=0) as client:
        asking: Any = {"model": "own/m", "messages": [{"role": "user", "content": "Hi"}]}
        for _ in range(3):
            client.chat.completions.create(**asking)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(**asking)
    assert 15 < float(caught.value.response.headers["retry-after-ms"]) / 1000 <= 20
    assert caught.value.code == "rate_limit_exceeded"


def test_openai_waits_as_told_and_gets_through(stage: Stage, tmp_path: Path) -> None:
    keys = [{"name": "brisk", "key": RPM, "limits": {"requests_per_minute": 60}}]
    stage.play(chat("Hello"))
    with serving(tmp_path, config(stage.upstream.url, auth={"keys": keys})) as proxy:
        for _ in range(60):
            assert call(proxy, RPM).status == 200
        with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=RPM, max_retries=1) as client:
            started = time.monotonic()
            for _ in range(2):
                client.chat.completions.create(
                    model="own/m", messages=[{"role": "user", "content": "Hi"}]
                )
            assert time.monotonic() - started < 10


def test_lunar_sdk_raises_its_rate_limit_error_with_the_wait(proxy: Proxy, stage: Stage) -> None:
    stage.play(chat("Hello"))
    asking: Any = {"model": "own/m", "messages": [{"role": "user", "content": "Hi"}]}
    with lunar.Lunar(base_url=proxy.url, api_key=RPM, num_retries=0) as client:
        for _ in range(3):
            client.chat.completions.create(**asking)
        with pytest.raises(lunar.RateLimitError) as caught:
            client.chat.completions.create(**asking)
    assert caught.value.retry_after is not None
    assert 15 < caught.value.retry_after <= 20
