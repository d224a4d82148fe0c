from __future__ import annotations

import pytest

from lunar_proxy.core.errors import InvalidRequest
from lunar_proxy.core.model import Target
from lunar_proxy.providers import DIALECTS
from lunar_proxy.providers.base import Account, Origin, static_head
from lunar_proxy.testing import call

ORIGIN = Origin("https", "res.openai.azure.com", 443)
VERSION = "2024-10-21"


def account(base: str = "", version: str | None = VERSION) -> Account:
    return Account(
        "azure",
        DIALECTS["azure"],
        ORIGIN,
        base.encode(),
        head=static_head(ORIGIN, ()),
        api_version=version,
    )


def asked(
    path: str, base: str = "", query: str = "", model: str = "gpt-4o", version: str | None = VERSION
) -> str:
    """The target of the request line."""
    made = call(path=path.encode(), query=query.encode())
    request = DIALECTS["azure"].request(
        made, Target("azure", model), account(base, version), b"k", b"{}"
    )
    assert request.body == b"{}"  # `model` stays in it
    return request.head.split(b" ", 2)[1].decode()


DEPLOYED = "/openai/deployments/gpt-4o"
URLS = {
    "chat": ("/v1/chat/completions", {}, f"{DEPLOYED}/chat/completions?api-version={VERSION}"),
    "legacy": ("/v1/completions", {}, f"{DEPLOYED}/completions?api-version={VERSION}"),
    "embeddings": ("/v1/embeddings", {}, f"{DEPLOYED}/embeddings?api-version={VERSION}"),
    "audio": (
        "/v1/audio/speech",
        {"model": "tts"},
        f"/openai/deployments/tts/audio/speech?api-version={VERSION}",
    ),
    "images": (
        "/v1/images/generations",
        {"model": "dall-e"},
        f"/openai/deployments/dall-e/images/generations?api-version={VERSION}",
    ),
    "base with /openai": (
        "/v1/embeddings",
        {"base": "/openai"},
        f"{DEPLOYED}/embeddings?api-version={VERSION}",
    ),
    "base behind a gateway": (
        "/v1/embeddings",
        {"base": "/team"},
        f"/team{DEPLOYED}/embeddings?api-version={VERSION}",
    ),
    "base with its deployment": (
        "/v1/embeddings",
        {"base": "/openai/deployments/other"},
        f"/openai/deployments/other/embeddings?api-version={VERSION}",
    ),
    "name to quote": (
        "/v1/embeddings",
        {"model": "my model/2"},
        f"/openai/deployments/my%20model%2F2/embeddings?api-version={VERSION}",
    ),
    "client's query": (
        "/v1/embeddings",
        {"query": "?a=1&b"},
        f"{DEPLOYED}/embeddings?a=1&b&api-version={VERSION}",
    ),
    "client's own version": (
        "/v1/embeddings",
        {"query": "?api-version=2025-01-01-preview"},
        f"{DEPLOYED}/embeddings?api-version=2025-01-01-preview",
    ),
    "no version": ("/v1/embeddings", {"version": None}, f"{DEPLOYED}/embeddings"),
    "version to quote": (
        "/v1/embeddings",
        {"version": "a&b"},
        f"{DEPLOYED}/embeddings?api-version=a%26b",
    ),
    "models": ("/v1/models", {}, f"/openai/models?api-version={VERSION}"),
    "file": ("/v1/files/f-1", {}, f"/openai/files/f-1?api-version={VERSION}"),
    "responses": ("/v1/responses", {}, f"/openai/responses?api-version={VERSION}"),
    "vector stores": ("/v1/vector_stores", {}, f"/openai/vector_stores?api-version={VERSION}"),
    "a name that begins alike": (
        "/v1/modelsets",
        {},
        f"{DEPLOYED}/modelsets?api-version={VERSION}",
    ),
    "no model": ("/v1/anything", {"model": ""}, f"/openai/anything?api-version={VERSION}"),
    "v1 surface": ("/v1/chat/completions", {"base": "/openai/v1"}, "/openai/v1/chat/completions"),
    "v1 surface, client's query": (
        "/v1/responses",
        {"base": "/openai/v1", "query": "?api-version=preview"},
        "/openai/v1/responses?api-version=preview",
    ),
}


@pytest.mark.parametrize(("path", "options", "url"), URLS.values(), ids=URLS.keys())
def test_the_deployment_stands_in_the_path_and_the_version_in_the_query(
    path: str, options: dict[str, str], url: str
) -> None:
    assert asked(path, **options) == url


@pytest.mark.parametrize("base", ["", "/openai/v1"])
def test_the_key_travels_as_azure_wants_it(base: str) -> None:
    made = DIALECTS["azure"].request(call(), Target("azure", "m"), account(base), b"k-1", b"")
    assert b"\r\napi-key: k-1\r\n" in made.head
    assert b"authorization" not in made.head
    assert made.secret == b"k-1"


def test_without_a_key_none_is_sent() -> None:
    made = DIALECTS["azure"].request(call(), Target("azure", "m"), account(), None, b"")
    assert b"api-key" not in made.head
    assert made.secret == b""


@pytest.mark.parametrize("model", [".", ".."])
def test_a_model_cannot_lead_to_another_path(model: str) -> None:
    with pytest.raises(InvalidRequest):
        asked("/v1/chat/completions", model=model)
