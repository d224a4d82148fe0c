"""What the proxy tells of itself: documents, metrics, the log; and no secret in any of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lunar_proxy.testing import chat as scripted
from lunar_proxy.testing import chat_answer, error_answer

from .conftest import PLANTED, config
from .harness import Proxy, Stage, ask, chat, eventually, serving

USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 4},
}


def get(url: str, path: str, **headers: str) -> Any:
    answer = ask(url, path=path, method="GET", headers=headers)
    assert answer.status == 200
    return answer.doc


def sample(metrics: str, name: str, **labels: str) -> float:
    """The sum of all series with these labels; 0 where there is none yet.

    A sum, since tests share a proxy: what another one asked before may have series of its own.
    """
    total = 0.0
    for line in metrics.splitlines():
        found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
        if found and labels.items() <= dict(re.findall(r'(\w+)="(.*?)"', found[1] or "")).items():
            total += float(found[2])
    return total


def metrics(proxy: Proxy) -> str:
    answer = ask(proxy.admin, path="/metrics", method="GET")
    assert answer.status == 200
    return answer.body.decode()


def test_health_is_on_both_listeners(proxy: Proxy) -> None:
    assert get(proxy.url, "/health") == {"status": "ok"}
    assert get(proxy.admin, "/-/health") == {"status": "ok"}
    assert get(proxy.admin, "/-/ready")["status"] == "ready"


def test_head_is_get_without_the_body(proxy: Proxy) -> None:
    for url, path in ((proxy.url, "/health"), (proxy.url, "/v1/models"), (proxy.admin, "/-/ready")):
        whole = ask(url, path=path, method="GET")
        head = ask(url, path=path, method="HEAD")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-length"] == str(len(whole.body))


def test_the_config_is_shown_masked(proxy: Proxy) -> None:
    shown = ask(proxy.admin, path="/-/config", method="GET").body.decode()
    assert "my-vllm" in shown
    for secret in (PLANTED["openai"], PLANTED["azure"], PLANTED["groq"]):
        assert secret not in shown


def test_the_lists_of_models_and_prices(proxy: Proxy) -> None:
    models = get(proxy.url, "/v1/models")
    assert models["object"] == "list"
    assert {"id", "object", "created", "owned_by"} <= models["data"][0].keys()
    assert get(proxy.url, "/v1/models/openai/gpt-4o")["id"] == "openai/gpt-4o"
    prices = {row["id"]: row for row in get(proxy.url, "/v1/pricing/models")}
    assert prices["gpt-4o"]["owned_by"] == "openai"
    assert prices["gpt-4o"]["input_per_million"] > 0
    assert {"openai", "azure"} <= {row["id"] for row in prices["gpt-4o"]["providers"]}


def test_providers_of_a_model(proxy: Proxy, stage: Stage) -> None:
    stage.play(chat_answer("Hi", usage=USAGE))
    assert ask(proxy.url, chat(MODEL)).status == 200
    (row,) = get(proxy.url, f"/v1/providers?model={MODEL}")
    assert (row["id"], row["type"], row["enabled"]) == ("my-vllm", "openai", True)
    assert row["params"]["model"] == "llama-3-70b"
    assert row["params"]["input_per_million"] == 1000
    assert row["params"]["ttft_ms"] > 0
    everyone = {row["id"]: row for row in get(proxy.url, "/v1/providers")}
    assert everyone["azure"]["type"] == "azure"
    assert not everyone["xai"]["enabled"]
    assert "XAI_API_KEY" in everyone["xai"]["params"]["disabled"]


MODEL = "my-vllm/llama-3-70b"


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_counted(proxy: Proxy, stage: Stage, door: str, stream: bool) -> None:
    labels = {"provider": "my-vllm", "model": "llama-3-70b", "endpoint": "chat/completions"}
    labels |= {"status": "200", "stream": str(stream).lower()}
    series = {"gen_ai_provider_name": "my-vllm", "gen_ai_request_model": "llama-3-70b"}
    series |= {"gen_ai_operation_name": "chat", "error_type": ""}
    before = metrics(proxy)
    stage.play(scripted("Hello there", USAGE))
    ask(proxy.url, chat(MODEL, stream=stream), door=door)
    after = metrics(proxy)

    def grew(name: str, **by: str) -> float:
        return sample(after, name, **by) - sample(before, name, **by)

    assert grew("lunar_requests_total", **labels) == 1
    spent = grew("lunar_cost_usd_total", provider="my-vllm", model="llama-3-70b")
    assert spent == pytest.approx(0.0164)
    tokens = {
        kind: grew("gen_ai_client_token_usage_sum", gen_ai_token_type=kind, **series)
        for kind in ("input", "output", "cache_read")
    }
    assert tokens == {"input": 10, "output": 5, "cache_read": 4}
    assert grew("gen_ai_client_operation_duration_seconds_count", **series) == 1
    assert grew("gen_ai_server_time_to_first_token_seconds_count", **series) == 1
    assert grew("lunar_overhead_seconds_count") == 1


def test_an_unknown_price_is_counted_and_an_unknown_model_is_other(
    proxy: Proxy, stage: Stage
) -> None:
    stage.play(chat_answer("Hi", usage=USAGE))
    before = sample(metrics(proxy), "lunar_unpriced_requests_total", provider="my-vllm")
    ask(proxy.url, chat("my-vllm/made-up-by-a-client"))
    after = metrics(proxy)
    assert sample(after, "lunar_unpriced_requests_total", provider="my-vllm") == before + 1
    assert "made-up-by-a-client" not in after
    assert sample(after, "lunar_requests_total", provider="my-vllm", model="other") >= 1


def test_a_call_is_one_line_of_json(proxy: Proxy, stage: Stage, door: str) -> None:
    stage.play(scripted("Hello there", USAGE))
    id = f"log-{door}"
    ask(proxy.url, chat(MODEL, stream=True), door=door, headers={"x-request-id": id})
    (line,) = eventually(lambda: [c for c in proxy.calls() if c["request_id"] == id])
    expected = {
        "endpoint": "chat/completions",
        "model_asked": MODEL,
        "provider": "my-vllm",
        "model": "llama-3-70b",
        "status": 200,
        "error": None,
        "stream": True,
        "input_tokens": 10,
        "output_tokens": 5,
        "cache_read_tokens": 4,
        "cost_usd": 0.0164,
        "attempts": 1,
        "disconnected": None,
    }
    assert {name: line[name] for name in expected} == expected
    assert 0 < line["ttft_ms"] <= line["latency_ms"]


def test_a_refused_call_is_logged_too(proxy: Proxy, stage: Stage) -> None:
    ask(proxy.url, chat("nobody-7b"), headers={"x-request-id": "log-refused"})
    (line,) = eventually(lambda: [c for c in proxy.calls() if c["request_id"] == "log-refused"])
    assert (line["status"], line["error"], line["provider"]) == (404, "model_not_found", None)


def test_no_secret_and_no_prompt_is_seen_anywhere(tmp_path: Path, stage: Stage) -> None:
    """A key each for the provider and the caller, and a prompt, planted in every way to fail."""
    secret = {"authorization": f"Bearer {PLANTED['caller']}", "x-api-key": PLANTED["caller"]}
    said = [{"role": "user", "content": PLANTED["prompt"]}]
    seen = []
    with serving(tmp_path, config(stage.upstream.url), "--demo") as proxy:
        for script in (
            scripted("an answer", USAGE),
            error_answer(500, f"bad key {PLANTED['openai']}"),
            error_answer(401, f"bad key {PLANTED['openai']}"),
        ):
            stage.play(script)
            for stream in (False, True):
                answer = ask(proxy.url, chat(stream=stream) | {"messages": said}, headers=secret)
                seen.append(answer.body.decode() + str(answer.headers))
        cut = ask(proxy.url, b'{"messages": "' + PLANTED["prompt"].encode(), headers=secret)
        seen.append(cut.body.decode())
        key = "pk_live_" + "planted" * 5
        seen.append(ask(proxy.url, chat(), headers={"x-api-key": key}).body.decode())
        seen.append(metrics(proxy))
        seen.append(ask(proxy.admin, path="/-/config", method="GET").body.decode())
    seen.append(proxy.stderr())
    everything = "\n".join(seen)
    assert "an answer" not in proxy.stderr()
    for planted in (PLANTED["openai"], PLANTED["caller"], PLANTED["prompt"], key):
        assert planted not in everything


def test_the_admin_token_guards_all_but_the_probes(tmp_path: Path) -> None:
    guarded = {"admin": {"token": "admin-token-planted"}}
    with serving(tmp_path, guarded, "--demo") as proxy:
        assert get(proxy.admin, "/-/health")["status"] == "ok"
        for path in ("/metrics", "/-/config"):
            assert ask(proxy.admin, path=path, method="GET").status == 401
            wrong = {"authorization": "Bearer nope"}
            assert ask(proxy.admin, path=path, method="GET", headers=wrong).status == 401
            right = {"authorization": "Bearer admin-token-planted"}
            assert ask(proxy.admin, path=path, method="GET", headers=right).status == 200
        assert ask(proxy.admin, path="/-/reload").status == 401
