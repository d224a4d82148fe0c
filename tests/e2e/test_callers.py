"""Who is calling: keys in every form and place, and what a provider gets to see of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lunar_proxy.testing import chat, error_answer, json_answer

from .guarded import FORMS, KEYS, MINI, OURS, OWN, SECRETS, STRANGER, TEAM, admin, bearer, config
from .harness import CHAT, Answer, Proxy, Stage, ask, eventually, serving
from .harness import chat as chat_doc

# method, path, body: the local endpoints and one of each kind that is forwarded
ENDPOINTS = {
    "chat": ("POST", CHAT, chat_doc()),
    "completions": ("POST", "/v1/completions", {"model": "openai/davinci-002", "prompt": "Hi"}),
    "responses": ("POST", "/v1/responses", {"model": "openai/gpt-4o", "input": "Hi"}),
    "embeddings": ("POST", "/v1/embeddings", {"model": "openai/e", "input": "Hi"}),
    "speech": ("POST", "/v1/audio/speech", {"model": "openai/tts-1", "input": "Hi"}),
    "files": ("GET", "/v1/files", None),
    "upload": ("POST", "/v1/files", b"raw bytes"),
    "models": ("GET", "/v1/models", None),
    "model": ("GET", "/v1/models/smart", None),
    "providers": ("GET", "/v1/providers", None),
}


@pytest.fixture(scope="module")
def proxy(shared_stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Auth is required; every test of a refusal comes from the one address, so none may be slow to
    be told."""
    auth = {"required": True, "keys": KEYS}
    with serving(
        tmp_path_factory.mktemp("guarded"), config(shared_stage.upstream.url, auth=auth)
    ) as running:
        yield running


@pytest.fixture(scope="module")
def open_proxy(shared_stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    auth = {"keys": KEYS}
    with serving(
        tmp_path_factory.mktemp("open"), config(shared_stage.upstream.url, auth=auth)
    ) as running:
        yield running


def call(proxy: Proxy, endpoint: str, headers: dict[str, str], door: str = "fast") -> Answer:
    method, path, body = ENDPOINTS[endpoint]
    if isinstance(body, bytes):
        headers = headers | {"content-type": "application/octet-stream"}
    return ask(proxy.url, body, path=path, method=method, headers=headers, door=door)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_endpoint_takes_a_key_in_every_form(
    proxy: Proxy, stage: Stage, endpoint: str, form: str
) -> None:
    stage.play(json_answer({"object": "list", "data": []}))
    answer = call(proxy, endpoint, FORMS[form](TEAM))
    assert answer.status == 200, answer.body
    for request in stage.requests:
        assert request.header("authorization") == f"Bearer {OURS}"
        assert TEAM not in repr(request)
        assert request.header("x-api-key") is None


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_no_endpoint_answers_a_stranger(proxy: Proxy, stage: Stage, endpoint: str) -> None:
    for headers in ({}, {"authorization": "Bearer sk-own"}, bearer("")):
        answer = call(proxy, endpoint, headers)
        assert (answer.status, answer.error["type"]) == (401, "authentication_error")
        assert "pk_live_" in answer.error["message"]  # what to send
    assert stage.requests == []


def test_what_tells_no_secret_is_open_to_all(proxy: Proxy) -> None:
    for path in ("/health", "/v1/pricing/models"):
        assert ask(proxy.url, path=path, method="GET").status == 200


BAD = {
    "unknown": bearer(STRANGER),
    "unknown, in x-api-key": {"x-api-key": STRANGER},
    "truncated": bearer(TEAM[:-1]),
    "cut to its prefix": bearer("pk_live_"),
    "too long": bearer(TEAM + "A"),
    "a space within": bearer(TEAM[:20] + " " + TEAM[20:]),
    "huge": bearer("pk_live_" + "A" * 9000),
    "as Basic": {"authorization": f"Basic {TEAM}"},
    "without a scheme": {"authorization": TEAM},
    "in api-key": {"api-key": TEAM},
    "in x-goog-api-key": {"x-goog-api-key": TEAM},
    "two different ones": bearer(TEAM) | {"x-api-key": MINI},
    "one good, one unknown": bearer(TEAM) | {"x-api-key": STRANGER},
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_key_is_401_even_where_none_is_needed(
    open_proxy: Proxy, stage: Stage, bad: str, door: str
) -> None:
    answer = ask(open_proxy.url, chat_doc(), headers=BAD[bad], door=door)
    assert (answer.status, answer.error["type"]) == (401, "authentication_error"), answer.body
    assert not any(secret in answer.body.decode() for secret in SECRETS)
    assert stage.requests == []


@pytest.mark.parametrize("headers", [{}, bearer(OWN), bearer(TEAM)], ids=["", "own", "ours"])
def test_a_key_in_the_url_is_told_where_it_belongs_and_goes_nowhere(
    open_proxy: Proxy, stage: Stage, headers: dict[str, str], door: str
) -> None:
    """Where Gemini's clients put theirs; a URL is in every log on its way."""
    stage.play(chat("Hello"))
    path = f"{CHAT}?alt=sse&key={TEAM}"
    answer = ask(open_proxy.url, chat_doc(), path=path, headers=headers, door=door)
    assert (answer.status, answer.error["type"]) == (401, "authentication_error")
    assert "x-api-key" in answer.error["message"]
    assert TEAM not in answer.body.decode() + open_proxy.stderr()
    assert stage.requests == []


def test_a_key_and_the_callers_own_key_may_come_together(open_proxy: Proxy, stage: Stage) -> None:
    stage.play(chat("Hello"))
    headers = {"x-api-key": TEAM, "authorization": f"Bearer {OWN}"}
    assert ask(open_proxy.url, chat_doc("together/x"), headers=headers).status == 200
    assert stage.request.header("authorization") == f"Bearer {OWN}"
    assert TEAM not in repr(stage.request)


# where the caller's own key ends up: model asked for, whether auth is required -> key sent, status
OWN_KEYS = {
    "the provider has no key": ("together/x", False, OWN, 200),
    "the provider has one": ("openai/gpt-4o", False, OURS, 200),
    "auth is required": ("openai/gpt-4o", True, None, 401),
}


@pytest.mark.parametrize("case", OWN_KEYS)
def test_a_callers_own_key_goes_where_the_contract_says(
    proxy: Proxy, open_proxy: Proxy, stage: Stage, case: str, door: str
) -> None:
    model, required, sent, status = OWN_KEYS[case]
    stage.play(chat("Hello"))
    where = proxy if required else open_proxy
    answer = ask(where.url, chat_doc(model), headers=bearer(OWN), door=door)
    assert answer.status == status
    seen = [request.header("authorization") for request in stage.requests]
    assert seen == ([] if sent is None else [f"Bearer {sent}"])


def test_an_own_key_beside_one_of_ours_stays_here_where_auth_is_required(
    proxy: Proxy, stage: Stage
) -> None:
    stage.play(chat("Hello"))
    headers = {"x-api-key": TEAM, "authorization": f"Bearer {OWN}"}
    assert ask(proxy.url, chat_doc(), headers=headers).status == 200
    assert stage.request.header("authorization") == f"Bearer {OURS}"
    assert ask(proxy.url, chat_doc("together/x"), headers=headers).status == 404


# model or body -> status, for a key that may use own/* and smart
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "its own": ({"model": "own/m"}, 200),
    "an alias, wherever it leads": ({"model": "smart"}, 200),
    "bare": ({"model": "m"}, 200),
    "another's": ({"model": "openai/gpt-4o"}, 403),
    "another's, by a field": ({"model": "gpt-4o", "provider": "openai"}, 403),
    "a fallback within": ({"model": "own/m", "fallbacks": ["smart"]}, 200),
    "a fallback outside": ({"model": "own/m", "fallbacks": ["openai/gpt-4o"]}, 403),
    "OpenRouter's list": ({"models": ["own/m", "openai/gpt-4o"]}, 403),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_key_reaches_the_models_of_its_list_only(
    proxy: Proxy, stage: Stage, case: str, door: str
) -> None:
    asked, status = MODELS[case]
    stage.play(chat("Hello"))
    doc = {"messages": [{"role": "user", "content": "Hi"}]} | asked
    answer = ask(proxy.url, doc, headers=bearer(MINI), door=door)
    assert answer.status == status, answer.body
    if status == 403:
        assert answer.error["type"] == "permission_error"
        assert stage.requests == []


@pytest.mark.parametrize("path", ["/v1/files", "/v1/audio/speech"])
def test_a_provider_outside_the_list_is_out_of_reach_without_a_model_too(
    proxy: Proxy, stage: Stage, path: str
) -> None:
    stage.play(json_answer({}))
    for provider, status in (("own", 200), ("openai", 403)):
        headers = bearer(MINI) | {"x-lunar-provider": provider}
        assert ask(proxy.url, path=path, method="GET", headers=headers).status == status


def test_models_outside_the_list_are_not_listed(proxy: Proxy) -> None:
    def listed(key: str) -> set[str]:
        answer = ask(proxy.url, path="/v1/models", method="GET", headers=bearer(key))
        return {row["id"] for row in answer.doc["data"]}

    assert listed(MINI) == {"smart", "own/m"} | (listed(MINI) & {"m"})
    assert "openai/gpt-4o" in listed(TEAM)
    hidden = ask(proxy.url, path="/v1/models/openai/gpt-4o", method="GET", headers=bearer(MINI))
    assert hidden.status == 404


def test_no_output_holds_a_secret(proxy: Proxy, open_proxy: Proxy, stage: Stage) -> None:
    """Planted in every header a credential can be in, through good calls, bad ones and failures,
    and looked for in all the proxy says to anybody."""
    outputs: list[str] = []
    for running in (proxy, open_proxy):
        for plan in (chat("Hello"), error_answer(400, f"no: {OURS}"), error_answer(500)):
            stage.play(plan)
            for headers in (
                bearer(TEAM),
                {"x-api-key": MINI, "authorization": f"Bearer {OWN}"},
                bearer(STRANGER),
                {"authorization": f"Basic {TEAM}", "cookie": TEAM},
            ):
                for doc in (chat_doc(), chat_doc("own/m", stream=True), chat_doc("nothing")):
                    answer = ask(running.url, doc, headers=headers)
                    outputs += [repr(answer.headers), answer.body.decode()]
        for path in ("/metrics", "/-/config", "/-/ready", "/-/snapshot", "/-/keys", "/-/usage"):
            answer = admin(running, path)
            assert answer.status == 200
            outputs += [repr(answer.headers), answer.body.decode()]
        outputs.append(eventually(running.stderr))
    for secret in SECRETS:
        assert not [text for text in outputs if secret in text]
    ours = [secret for secret in SECRETS if secret.startswith("pk_")]
    assert not [r for r in stage.requests if any(secret in repr(r) for secret in ours)]


def test_failures_are_limited_per_address_and_success_is_not(
    shared_stage: Stage, tmp_path_factory: pytest.TempPathFactory, stage: Stage
) -> None:
    auth = {"required": True, "keys": KEYS}
    folder = tmp_path_factory.mktemp("prober")
    stage.play(chat("Hello"))
    with serving(folder, config(shared_stage.upstream.url, auth=auth)) as proxy:
        statuses = [ask(proxy.url, chat_doc(), headers=bearer(STRANGER)).status for _ in range(60)]
        refused = ask(proxy.url, chat_doc(), headers=bearer(STRANGER))
        assert set(statuses) == {401}
        assert (refused.status, refused.error["type"]) == (429, "rate_limit_exceeded")
        assert int(refused.headers["retry-after"]) == 1
        assert 0 < int(refused.headers["retry-after-ms"]) <= 1000
        assert ask(proxy.url, chat_doc(), headers=bearer(TEAM)).status == 200
        metrics = admin(proxy, "/metrics").body.decode()
        assert 'lunar_rate_limited_total{limit="authentication"} 1.0' in metrics
