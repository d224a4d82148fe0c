"""`model: auto`, POST /v1/router and the strategy `router`, in the real process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
from lunar import Lunar

from lunar_proxy.testing import Request, Script, chat_answer, chat_stream, error_answer

from .harness import Answer, Proxy, Stage, ask, chat, eventually, serving, write_config

USAGE = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
HARD = "Prove that there are infinitely many primes of the form 4k+3, step by step."
# What a cheap and a dear model cost, so that the cost term has something to weigh.
PRICES = {
    "gpt-4o": {"input_per_million": 10, "output_per_million": 30},
    "gpt-4o-mini": {"input_per_million": 0.1, "output_per_million": 0.3},
    "gemma-2-2b-it": {"input_per_million": 0.01, "output_per_million": 0.01},
}
ROUTING = {
    "selected_model",
    "selected_provider",
    "expected_error",
    "cost_adjusted_score",
    "cluster_id",
    "all_scores",
    "reasoning",
    "routing_ms",
    "cache_hit",
}


def config(upstream: str, **more: Any) -> dict[str, Any]:
    return {
        "providers": {
            "house": {"base_url": f"{upstream}/v1", "models": list(PRICES), "prices": PRICES}
        },
        "models": {
            "pick": {"targets": ["house/gemma-2-2b-it", "house/gpt-4o"], "strategy": "router"},
        },
        # The machine that runs the tests may be slow; how late is late has tests of its own.
        "router": {"deadline_ms": 10_000},
        "retries": {"attempts": 1},
        "breaker": {"failures": 100000},
        "auth": {
            "keys": [
                {"name": "all", "key": "pk_test_" + "a" * 32},
                {"name": "mini", "key": "pk_test_" + "m" * 32, "models": ["gpt-4o-mini", "auto"]},
                {"name": "none", "key": "pk_test_" + "n" * 32, "models": ["house/other"]},
            ]
        },
        **more,
    }


@pytest.fixture(scope="module")
def routed(shared_stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("router")
    with serving(folder, config(shared_stage.upstream.url)) as running:
        yield running


def auto(model: str = "auto", text: str = HARD, **more: Any) -> dict[str, Any]:
    return chat(model, messages=[{"role": "user", "content": text}], **more)


def decide(proxy: Proxy, text: str = HARD, **more: Any) -> Answer:
    doc = {"messages": [{"role": "user", "content": text}], **more}
    return ask(proxy.url, doc, path="/v1/router")


def routing(proxy: Proxy, **more: Any) -> dict[str, Any]:
    answer = decide(proxy, execute=False, **more)
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.doc["routing"]
    return found


def by_model(**scripts: Script) -> Any:
    def play(request: Request) -> Script:
        return scripts[str(request.model).replace("-", "_")]

    return play


# --- model: auto ----------------------------------------------------------------------------------


def test_auto_asks_the_model_it_chose_and_says_so(routed: Proxy, stage: Stage, door: str) -> None:
    stage.play(chat_answer("done", usage=USAGE))
    answer = ask(routed.url, auto(), door=door)
    assert answer.status == 200
    assert stage.request.model == "gpt-4o"
    assert answer.headers["x-routing-model"] == "gpt-4o"
    assert answer.headers["x-routing-cluster"].isdigit()
    assert answer.headers["x-lunar-model"] == "gpt-4o"
    assert answer.doc["usage"]["total_cost_usd"] == pytest.approx((1000 + 1500) / 1e6)
    assert "routing" not in answer.doc


def test_auto_streams(routed: Proxy, stage: Stage, door: str) -> None:
    stage.play(chat_stream("it streams", usage=USAGE))
    answer = ask(routed.url, auto(stream=True), door=door)
    assert answer.headers["x-routing-model"] == stage.request.model == "gpt-4o"
    assert answer.body.endswith(b"data: [DONE]\n\n")


def test_auto_routes_legacy_completions_too(routed: Proxy, stage: Stage) -> None:
    stage.play(chat_answer("done", usage=USAGE))
    answer = ask(routed.url, {"model": "auto", "prompt": HARD}, path="/v1/completions")
    assert answer.status == 200
    assert stage.request.path == "/v1/completions"
    assert answer.headers["x-routing-model"] == stage.request.model


def test_auto_may_be_restricted_to_the_models_that_are_named(routed: Proxy, stage: Stage) -> None:
    stage.play(chat_answer("done"))
    answer = ask(routed.url, auto("auto:gpt-4o-mini,house/gemma-2-2b-it"))
    assert answer.headers["x-routing-model"] == stage.request.model == "gpt-4o-mini"


def test_the_cost_weight_decides_with_and_stays_here(routed: Proxy, stage: Stage) -> None:
    stage.play(chat_answer("done"))
    assert ask(routed.url, auto(cost_weight=1, seed=7)).status == 200
    assert stage.request.doc == auto("gpt-4o-mini", seed=7)


def test_the_next_best_model_answers_when_the_chosen_one_fails(routed: Proxy, stage: Stage) -> None:
    stage.play(by_model(gpt_4o=error_answer(500), gpt_4o_mini=chat_answer("done")))
    answer = ask(routed.url, auto())
    assert answer.status == 200
    assert [request.model for request in stage.requests] == ["gpt-4o", "gpt-4o-mini"]
    assert answer.headers["x-routing-model"] == "gpt-4o"
    assert answer.headers["x-lunar-model"] == "gpt-4o-mini"
    assert answer.headers["x-lunar-fallback-index"] == "1"


def test_an_alias_with_the_strategy_router_is_ordered_by_the_prompt(
    routed: Proxy, stage: Stage
) -> None:
    stage.play(chat_answer("done"))
    answer = ask(routed.url, auto("pick"))
    assert answer.headers["x-routing-model"] == "house/gpt-4o"
    assert stage.request.model == "gpt-4o"


def test_a_key_is_routed_among_the_models_it_may_use(routed: Proxy, stage: Stage) -> None:
    stage.play(chat_answer("done"))
    answer = ask(routed.url, auto(), headers={"x-api-key": "pk_test_" + "m" * 32})
    assert answer.headers["x-routing-model"] == stage.request.model == "gpt-4o-mini"


def test_a_key_that_may_use_none_of_them_is_forbidden(routed: Proxy, stage: Stage) -> None:
    answer = ask(routed.url, auto(), headers={"x-api-key": "pk_test_" + "n" * 32})
    assert (answer.status, answer.error["code"]) == (403, "permission_error")
    assert stage.requests == []


def test_openai_sdk_asks_for_auto(routed: Proxy, stage: Stage) -> None:
    stage.play(chat_stream("hello there", usage=USAGE))
    with openai.OpenAI(base_url=f"{routed.url}/v1", api_key="pk_test_" + "a" * 32) as client:
        stream = client.chat.completions.create(**auto(stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "hello there"


def test_lunar_sdk_asks_for_auto(routed: Proxy, stage: Stage) -> None:
    stage.play(chat_answer("hello there", usage=USAGE))
    with Lunar(api_key="pk_test_" + "a" * 32, base_url=routed.url, num_retries=0) as client:
        messages: list[Any] = [{"role": "user", "content": HARD}]
        response = client.chat.completions.create(model="auto", messages=messages)
    assert response.choices[0].message.content == "hello there"
    assert response.usage is not None
    assert response.usage.total_cost_usd == pytest.approx((1000 + 1500) / 1e6)
    assert stage.request.model == "gpt-4o"


# --- POST /v1/router ------------------------------------------------------------------------------


def test_a_decision_alone_asks_nobody(routed: Proxy, stage: Stage) -> None:
    answer = decide(routed, execute=False)
    doc = answer.doc
    assert (answer.status, doc["choices"], doc["usage"]) == (200, [], None)
    assert doc["object"] == "chat.completion"
    assert doc["model"] == doc["routing"]["selected_model"] == "gpt-4o"
    assert doc["id"] == answer.headers["x-request-id"]
    assert set(doc["routing"]) == ROUTING
    assert doc["routing"]["selected_provider"] == "house"
    assert set(doc["routing"]["all_scores"]) == set(PRICES)
    assert min(doc["routing"]["all_scores"], key=doc["routing"]["all_scores"].get) == "gpt-4o"
    assert answer.headers["x-routing-model"] == "gpt-4o"
    assert stage.requests == []


def test_the_same_text_is_embedded_once(routed: Proxy) -> None:
    text = "A text that no other test sends."
    assert [routing(routed, text=text)["cache_hit"] for _ in range(2)] == [False, True]


def test_an_executed_decision_is_an_answer_with_one_member_more(
    routed: Proxy, stage: Stage
) -> None:
    stage.play(chat_answer("done", usage=USAGE))
    answer = decide(routed, temperature=0.5, max_tokens=9, x_unknown={"kept": 1})
    assert stage.request.path == "/v1/chat/completions"
    assert stage.request.doc == {
        "messages": [{"role": "user", "content": HARD}],
        "temperature": 0.5,
        "max_tokens": 9,
        "x_unknown": {"kept": 1},
        "model": "gpt-4o",
    }
    doc = answer.doc
    assert set(doc.pop("routing")) == ROUTING
    assert doc["usage"]["total_cost_usd"] is not None
    assert doc["choices"][0]["message"]["content"] == "done"
    assert answer.headers["x-lunar-provider"] == "house"


def test_an_executed_stream_has_the_decision_in_its_headers(routed: Proxy, stage: Stage) -> None:
    stage.play(chat_stream("it streams", usage=USAGE))
    answer = decide(routed, stream=True, models=["gpt-4o-mini", "gemma-2-2b-it"])
    assert answer.headers["x-routing-model"] == stage.request.model == "gpt-4o-mini"
    assert b'"routing"' not in answer.body


def test_it_is_metered_as_a_call_of_the_router(routed: Proxy, stage: Stage) -> None:
    stage.play(chat_answer("done", usage=USAGE))
    id = decide(routed).headers["x-request-id"]
    metrics = ask(routed.admin, None, path="/metrics", method="GET").body.decode()
    counted = [line for line in metrics.splitlines() if line.startswith("lunar_requests_total{")]
    assert any('endpoint="router"' in line and 'provider="house"' in line for line in counted)
    assert 'lunar_router_decisions_total{model="gpt-4o"}' in metrics
    (record,) = eventually(lambda: [r for r in routed.calls() if r["request_id"] == id])
    assert (record["endpoint"], record["model_asked"]) == ("router", "auto")


WRONG: Mapping[str, tuple[dict[str, Any], str, str]] = {
    "no messages": ({"messages": []}, "invalid_request_error", "messages"),
    "messages of no shape": ({"messages": ["hi"]}, "invalid_request_error", "messages"),
    "one model": ({"models": ["gpt-4o"]}, "INSUFFICIENT_MODELS", "models"),
    "one model twice": ({"models": ["gpt-4o", "gpt-4o"]}, "INSUFFICIENT_MODELS", "models"),
    "models of no shape": ({"models": "gpt-4o"}, "invalid_request_error", "models"),
    "a negative weight": ({"cost_weight": -0.1}, "invalid_request_error", "cost_weight"),
    "a weight of no shape": ({"cost_weight": True}, "invalid_request_error", "cost_weight"),
    "execute": ({"execute": "yes"}, "invalid_request_error", "execute"),
    "max_tokens": ({"max_tokens": 0}, "invalid_request_error", "max_tokens"),
    "temperature": ({"temperature": "hot"}, "invalid_request_error", "temperature"),
    "no profile": ({"models": ["gpt-4o", "unheard-of"]}, "MISSING_PROFILES", "models"),
}


@pytest.mark.parametrize(("more", "code", "param"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_with_a_request_is_said(
    routed: Proxy, stage: Stage, more: dict[str, Any], code: str, param: str
) -> None:
    answer = decide(routed, **more) if "messages" not in more else _ask_raw(routed, more)
    assert (answer.status, answer.error["code"]) == (400, code)
    assert answer.error["param"] == param
    assert stage.requests == []


def _ask_raw(proxy: Proxy, doc: dict[str, Any]) -> Answer:
    return ask(proxy.url, doc, path="/v1/router")


def test_missing_profiles_are_named_with_those_there_are(routed: Proxy) -> None:
    error = decide(routed, models=["gpt-4o", "unheard-of"]).error
    assert error["missing_profiles"] == ["unheard-of"]
    assert "gpt-4o-2024-08-06" in error["available_profiles"]


def test_models_that_nobody_serves_can_be_compared_but_not_asked(routed: Proxy) -> None:
    names = ["claude-3-haiku-20240307", "gpt-3.5-turbo"]
    found = routing(routed, models=names)
    assert set(found["all_scores"]) == set(names)
    assert found["selected_provider"] is None
    answer = decide(routed, models=names)
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


def test_where_nothing_is_served_all_profiles_are_compared(tmp_path: Path) -> None:
    with serving(tmp_path, None, "--demo") as proxy:
        found = routing(proxy)
        assert len(found["all_scores"]) > 10
        assert found["selected_provider"] is None
        assert "o1-mini-2024-09-12" not in found["all_scores"]  # retired
        assert decide(proxy).error["code"] == "INSUFFICIENT_MODELS"
        assert ask(proxy.url, auto()).error["code"] == "model_not_found"


def test_other_methods_are_not_allowed(routed: Proxy) -> None:
    answer = ask(routed.url, None, path="/v1/router", method="GET")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


def test_profiles_are_listed_with_their_sources(routed: Proxy) -> None:
    doc = ask(routed.url, None, path="/v1/router/profiles", method="GET").doc
    assert doc["count"] == len(doc["profiles"]) == len(doc["data"]) > 10
    row = next(row for row in doc["data"] if row["id"] == "gpt-4o-2024-08-06")
    assert row["source"].startswith("public: ")
    assert row["cost_per_1k_tokens"] > 0
    assert row["validation_samples"] >= 400


# --- deadline, reload, nothing when unused --------------------------------------------------------


def test_the_default_answers_what_is_decided_too_late(stage: Stage, tmp_path: Path) -> None:
    late = {"deadline_ms": 0.001, "default_model": "house/gpt-4o-mini"}
    with serving(tmp_path, config(stage.upstream.url, router=late)) as proxy:
        stage.play(chat_answer("done"))
        answer = ask(proxy.url, auto(text="late " + HARD))
        metrics = ask(proxy.admin, None, path="/metrics", method="GET").body.decode()
    assert stage.request.model == "gpt-4o-mini"
    assert "x-routing-model" not in answer.headers
    assert "lunar_router_deadline_total 1.0" in metrics


def test_a_price_in_a_reloaded_config_moves_the_decision(stage: Stage, tmp_path: Path) -> None:
    pair = {"models": ["gpt-4o", "gpt-4o-mini"], "cost_weight": 0.6}
    doc = config(stage.upstream.url)
    with serving(tmp_path, doc) as proxy:
        before = routing(proxy, **pair)
        doc["providers"]["house"]["prices"] = {
            "gpt-4o": PRICES["gpt-4o-mini"],
            "gpt-4o-mini": PRICES["gpt-4o"],
        }
        write_config(proxy.config, doc)
        assert ask(proxy.admin, path="/-/reload").status == 200
        after = routing(proxy, **pair)
    assert (before["selected_model"], after["selected_model"]) == ("gpt-4o-mini", "gpt-4o")
    assert before["expected_error"] != after["expected_error"]


def test_nothing_of_it_is_loaded_until_it_is_asked(stage: Stage, tmp_path: Path) -> None:
    plain = config(stage.upstream.url)
    del plain["router"], plain["models"]
    with serving(tmp_path, plain) as proxy:
        stage.play(chat_answer("done"))
        ask(proxy.url, chat("house/gpt-4o"))
        maps = Path(f"/proc/{proxy.process.pid}/maps")
        assert "onnxruntime" not in maps.read_text()
        assert "numpy" not in maps.read_text()
        assert ask(proxy.url, auto()).headers["x-routing-model"] == "gpt-4o"
        assert "onnxruntime" in maps.read_text()


def test_the_static_embedder_decides_without_onnxruntime(stage: Stage, tmp_path: Path) -> None:
    doc = config(stage.upstream.url)
    doc["router"] = {"embedder": "static"}
    with serving(tmp_path, doc) as proxy:
        assert routing(proxy)["selected_model"] == "gpt-4o"
        maps = Path(f"/proc/{proxy.process.pid}/maps").read_text()
        assert "numpy" in maps
        assert "onnxruntime" not in maps


def test_profiles_that_cannot_be_read_are_a_bad_config(stage: Stage, tmp_path: Path) -> None:
    doc = config(stage.upstream.url)
    with serving(tmp_path, doc) as proxy:
        doc["router"] = {"profiles": str(tmp_path / "nowhere")}
        write_config(proxy.config, doc)
        answer = ask(proxy.admin, path="/-/reload")
        assert (answer.status, answer.error["code"]) == (400, "bad_config")
        assert "nowhere" in answer.error["message"]
        assert routing(proxy)["selected_model"] == "gpt-4o"
    assert orjson.loads(answer.body)["detail"].startswith("nothing was changed")


# --- learning from use ----------------------------------------------------------------------------


def feedback(proxy: Proxy, method: str = "GET", doc: Any = None, query: str = "") -> Answer:
    return ask(proxy.admin, doc, path=f"/-/feedback{query}", method=method)


@pytest.fixture
def learning(stage: Stage, tmp_path: Path) -> Iterator[Proxy]:
    kept = {"deadline_ms": 10_000, "feedback": str(tmp_path / "feedback.json")}
    with serving(tmp_path, config(stage.upstream.url, router=kept)) as running:
        stage.play(chat_answer("done"))
        yield running


def test_scores_move_the_model_that_answered_and_can_be_taken_back(learning: Proxy) -> None:
    before = routing(learning)["all_scores"]
    for number in range(40):
        key = {"x-request-id": f"bad-{number}"}
        assert ask(learning.url, auto("auto:gpt-4o"), headers=key).status == 200
        answer = feedback(learning, "POST", {"request_id": f"bad-{number}", "score": 0})
        assert answer.doc["model"] == "gpt-4o-2024-08-06"
    after = routing(learning)["all_scores"]
    assert after["gpt-4o"] > before["gpt-4o"]
    assert after["gpt-4o-mini"] == before["gpt-4o-mini"]
    (cell,) = feedback(learning).doc["cells"]
    assert (cell["model"], cell["wrong"]) == ("gpt-4o-2024-08-06", 40)

    assert ask(learning.admin, path="/-/reload").status == 200
    assert routing(learning)["all_scores"] == after  # it is in the file
    query = f"?model=gpt-4o-2024-08-06&cluster={cell['cluster']}"
    assert feedback(learning, "DELETE", query=query).doc["cells"] == []
    assert routing(learning)["all_scores"] == before


def test_a_caller_scores_its_own_earlier_call_with_a_header(learning: Proxy) -> None:
    mine, other = ({"x-api-key": "pk_test_" + letter * 32} for letter in "am")
    ask(learning.url, auto("auto:gpt-4o"), headers={**mine, "x-request-id": "scored"})
    ask(learning.url, chat("house/gpt-4o-mini"), headers={**other, "x-lunar-feedback": "scored=1"})
    assert feedback(learning).doc["awaiting_score"] == 1
    ask(learning.url, chat("house/gpt-4o"), headers={**mine, "x-lunar-feedback": "scored=1"})
    (cell,) = eventually(lambda: feedback(learning).doc["cells"])
    assert (cell["model"], cell["right"]) == ("gpt-4o-2024-08-06", 1)


def test_a_call_is_scored_once_and_by_a_number(learning: Proxy) -> None:
    ask(learning.url, auto(), headers={"x-request-id": "once"})
    for score in (2, -1, "good", True, None):
        answer = feedback(learning, "POST", {"request_id": "once", "score": score})
        assert (answer.status, answer.error["param"]) == (400, "score")
    assert feedback(learning, "POST", {"request_id": "once", "score": 1}).status == 200
    assert feedback(learning, "POST", {"request_id": "once", "score": 1}).status == 404


def test_without_being_asked_for_nothing_is_remembered(routed: Proxy, stage: Stage) -> None:
    stage.play(chat_answer("done"))
    ask(routed.url, auto(), headers={"x-request-id": "off"})
    assert feedback(routed).doc == {"enabled": False, "awaiting_score": 0, "cells": []}
    assert feedback(routed, "POST", {"request_id": "off", "score": 1}).status == 400


# --- explained ------------------------------------------------------------------------------------


def explained(proxy: Proxy, doc: dict[str, Any]) -> dict[str, Any]:
    answer = ask(proxy.admin, doc, path="/-/route/explain")
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.doc
    return found


def test_a_plan_is_explained_without_being_carried_out(routed: Proxy, stage: Stage) -> None:
    doc = explained(routed, auto("pick", fallbacks=["house/gpt-4o-mini"]))
    assert [(row["target"], row["index"]) for row in doc["plan"]] == [
        ("house/gpt-4o", 0),
        ("house/gemma-2-2b-it", 1),
        ("house/gpt-4o-mini", 2),
    ]
    assert doc["plan"][0]["why"].startswith("place 1 by the router: expected error 0.")
    assert doc["plan"][2]["why"] == "fallback of the request"
    assert doc["plan"][0]["input_per_million"] == 10
    assert doc["routing"]["selected_model"] == "house/gpt-4o"
    assert stage.requests == []


def test_a_plan_without_the_router_is_explained_too(routed: Proxy) -> None:
    doc = explained(routed, chat("house/gpt-4o"))
    assert doc["routing"] is None
    assert [row["why"] for row in doc["plan"]] == ["the provider that the request names"]
    answer = ask(routed.admin, chat("unheard-of"), path="/-/route/explain")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
