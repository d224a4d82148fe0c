from __future__ import annotations

from pathlib import Path

import pytest

from lunar_proxy.config import Config, ResolvedProvider, load, providers
from lunar_proxy.providers.builtin import BUILTIN

BASE_URLS = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com/v1",
    "gemini": "https://generativelanguage.googleapis.com/v1beta/openai",
    "mistral": "https://api.mistral.ai/v1",
    "groq": "https://api.groq.com/openai/v1",
    "deepseek": "https://api.deepseek.com/v1",
    "perplexity": "https://api.perplexity.ai",
    "cerebras": "https://api.cerebras.ai/v1",
    "sambanova": "https://api.sambanova.ai/v1",
    "together": "https://api.together.xyz/v1",
    "fireworks": "https://api.fireworks.ai/inference/v1",
    "cohere": "https://api.cohere.com/compatibility/v1",
    "xai": "https://api.x.ai/v1",
    "openrouter": "https://openrouter.ai/api/v1",
}


def resolve(text: str, environ: dict[str, str], tmp_path: Path) -> dict[str, ResolvedProvider]:
    path = tmp_path / "lunar.yaml"
    path.write_text(text)
    return {p.id: p for p in providers(load(path, environ), environ)}


@pytest.mark.parametrize(("id", "base_url"), BASE_URLS.items())
def test_a_key_in_the_environment_turns_a_built_in_provider_on(id: str, base_url: str) -> None:
    environ = {f"{id.upper()}_API_KEY": "sk-1\n"}
    on = [p for p in providers(load(None, environ), environ) if p.enabled]
    assert [(p.id, p.base_url, p.dialect) for p in on] == [(id, base_url, "openai")]
    assert [key.reveal() for key in on[0].keys] == ["sk-1"]


def test_gemini_also_reads_the_key_of_google() -> None:
    environ = {"GOOGLE_API_KEY": "g"}
    assert [p.id for p in providers(Config(), environ) if p.enabled] == ["gemini"]


def test_without_any_key_a_caller_may_bring_one() -> None:
    found = {p.id: p for p in providers(Config(), {})}
    assert list(found) == list(BUILTIN)
    assert not any(p.enabled for p in found.values())
    assert {id for id, p in found.items() if p.bring_key} == set(BASE_URLS)
    assert found["openai"].why_disabled == "OPENAI_API_KEY is not set"
    assert found["gemini"].why_disabled == "GEMINI_API_KEY or GOOGLE_API_KEY is not set"


def test_nobody_brings_a_key_where_the_proxy_asks_for_its_own(tmp_path: Path) -> None:
    found = resolve("auth: {required: true}\n", {}, tmp_path)
    assert not any(p.bring_key for p in found.values())


@pytest.mark.parametrize(
    "setting", ['api_key: "${OPENAI_API_KEY:-}"', "api_key: ''", "api_keys: ['', '']"]
)
def test_an_empty_key_turns_its_provider_off(tmp_path: Path, setting: str) -> None:
    found = resolve(f"providers: {{openai: {{{setting}}}}}\n", {}, tmp_path)["openai"]
    assert (found.enabled, found.bring_key) == (False, False)
    assert found.why_disabled == "api_key is empty"


def test_the_file_wins_over_the_environment(tmp_path: Path) -> None:
    text = "providers: {openai: {api_key: ''}, groq: {api_keys: [a, '', b]}, mistral: }\n"
    environ = {"OPENAI_API_KEY": "x", "GROQ_API_KEY": "y", "MISTRAL_API_KEY": "z"}
    found = resolve(text, environ, tmp_path)
    assert not found["openai"].enabled
    assert [key.reveal() for key in found["groq"].keys] == ["a", "b"]
    assert [key.reveal() for key in found["mistral"].keys] == ["z"]
    assert list(found)[:3] == ["openai", "groq", "mistral"]
    assert [p.named for p in found.values()][:4] == [True, True, True, False]


def test_a_key_that_no_header_can_carry_is_no_key() -> None:
    environ = {"OPENAI_API_KEY": "a\nb: c"}
    assert not any(p.enabled for p in providers(Config(), environ))


def test_a_key_may_be_in_a_header(tmp_path: Path) -> None:
    text = "providers: {openai: {headers: {Authorization: Bearer x}}}\n"
    assert resolve(text, {}, tmp_path)["openai"].enabled


def test_an_own_server_needs_no_key(tmp_path: Path) -> None:
    found = resolve("providers: {v: {base_url: 'http://h:8000/v1/'}}\n", {}, tmp_path)["v"]
    assert (found.enabled, found.keys, found.base_url) == (True, (), "http://h:8000/v1")


def test_ollama_is_on_only_where_it_is_named(tmp_path: Path) -> None:
    assert resolve("providers: {ollama: }\n", {}, tmp_path)["ollama"].enabled
    off = resolve("", {}, tmp_path)["ollama"]
    assert off.why_disabled == "is on only where the config names it"


@pytest.mark.parametrize(
    ("given", "base_url"),
    [
        ("http://127.0.0.1:9", "http://127.0.0.1:9/v1"),
        ("http://127.0.0.1:9/x", "http://127.0.0.1:9/x"),
    ],
)
def test_a_host_alone_gets_the_path_of_the_built_in(
    tmp_path: Path, given: str, base_url: str
) -> None:
    text = f"providers: {{anthropic: {{base_url: '{given}', api_key: x}}}}\n"
    assert resolve(text, {}, tmp_path)["anthropic"].base_url == base_url


def test_azure_is_on_with_its_address_and_version(tmp_path: Path) -> None:
    text = "providers: {azure: {base_url: 'https://x.openai.azure.com', api_version: 2024-10-21}}\n"
    found = resolve(text, {"AZURE_API_KEY": "k"}, tmp_path)["azure"]
    assert (found.enabled, found.dialect, found.api_version) == (True, "azure", "2024-10-21")


def test_a_provider_changes_the_timeouts_it_names_only(tmp_path: Path) -> None:
    text = "timeouts: {idle_s: 7}\nproviders: {openai: {timeouts: {total_s: 9}}}\n"
    timeouts = resolve(text, {}, tmp_path)["openai"].timeouts
    assert (timeouts.idle_s, timeouts.total_s, timeouts.connect_s) == (7, 9, 5)


def test_demo_is_there_when_asked_for() -> None:
    assert "demo" not in {p.id for p in providers(load(None, {}), {})}
    config = load(None, {}, overrides={"demo": True})
    (demo,) = [p for p in providers(config, {}) if p.id == "demo"]
    assert (demo.enabled, demo.models) == (True, ("echo", "lorem"))


def test_repr_hides_keys() -> None:
    key = "sk-planted-0123456789"
    assert key not in repr(providers(Config(), {"OPENAI_API_KEY": key}))


# By their API references: who has no legacy /completions below the base URL.
ONLY_CHAT = {
    *("anthropic", "cohere", "deepseek", "gemini", "groq", "mistral", "perplexity", "sambanova"),
    "xai",
}


def test_legacy_completions_go_where_the_provider_has_them() -> None:
    found = {p.id: p.chat_only for p in providers(Config(), {})}
    assert {id for id, chat_only in found.items() if chat_only} == ONLY_CHAT


@pytest.mark.parametrize(
    ("id", "said", "chat_only"),
    [
        ("groq", "", True),
        ("groq", "completions: native", False),
        ("openai", "", False),
        ("openai", "completions: chat", True),
        ("my-server", "base_url: http://h/v1", False),
        ("my-server", "base_url: http://h/v1, completions: chat", True),
    ],
)
def test_the_config_says_it_better(id: str, said: str, chat_only: bool, tmp_path: Path) -> None:
    found = resolve(f"providers: {{{id}: {{{said}}}}}", {}, tmp_path)
    assert found[id].chat_only is chat_only
