from __future__ import annotations

from pathlib import Path

import pytest

from lunar_proxy.config import Config, load, providers
from lunar_proxy.core.connect import Authority, HostTable
from lunar_proxy.servers.hosts import opened_hosts, policy, signable_hosts

ENVIRON = {"OPENAI_API_KEY": "sk-one"}
TEXT = """
providers:
  groq: {api_key: k, base_url: "http://127.0.0.1:9000/v1"}
  azure: {api_key: k, base_url: "https://acme.openai.azure.com", api_version: "2024-10-21"}
  mine: {dialect: openai, base_url: "https://llm.corp/v1"}
intercept: {enabled: true, hosts: [api.openai.com=mine, gpt.corp], tunnel: ["*.example"]}
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "lunar.yaml").write_text(TEXT)
    return load(tmp_path / "lunar.yaml", ENVIRON)


OPENED = {
    "api.openai.com": "mine",
    "api.groq.com": "groq",
    "127.0.0.1": "groq",
    "acme.openai.azure.com": "azure",
    "other.openai.azure.com": "azure",
    "llm.corp": "mine",
    "api.anthropic.com": "anthropic",
}


@pytest.mark.parametrize(("host", "provider"), OPENED.items())
def test_hosts_are_opened_for_the_provider_they_belong_to(
    config: Config, host: str, provider: str
) -> None:
    found = opened_hosts(config, providers(config, ENVIRON)).find(Authority(host, 443))
    assert found is not None
    assert found.provider == provider


def test_a_named_host_without_a_provider_is_opened_all_the_same(config: Config) -> None:
    found = opened_hosts(config, providers(config, ENVIRON)).find(Authority("gpt.corp", 443))
    assert found is not None
    assert found.provider is None


def test_nothing_is_opened_without_a_ca_or_where_it_is_off(config: Config) -> None:
    found = providers(config, ENVIRON)
    assert policy(config, found, has_ca=False).intercept == HostTable()
    assert policy(load(None, {}), found, has_ca=True).intercept == HostTable()
    on = policy(config, found, has_ca=True)
    assert on.intercept.entries
    assert on.tunnel == ("*.example",)
    assert not on.exposed


def test_an_address_others_can_reach_is_exposed(tmp_path: Path) -> None:
    (tmp_path / "lunar.yaml").write_text("listen: 0.0.0.0:8080\nauth: {required: true}\n")
    exposed = load(tmp_path / "lunar.yaml", {})
    assert policy(exposed, (), has_ca=False).exposed


def test_a_ca_is_made_for_providers_that_are_off_too(config: Config) -> None:
    hosts = signable_hosts(config, providers(config, {}))
    assert {"api.openai.com", "api.mistral.ai", "gpt.corp", "*.openai.azure.com"} <= set(hosts)
