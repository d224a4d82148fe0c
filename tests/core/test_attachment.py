from __future__ import annotations

import pytest

from lunar_proxy.core.attachment import Place, Site, locate, sites_at
from lunar_proxy.core.connect import Authority

OPENAI = Site("api.openai.com", "openai", (b"/v1",), 443)
GROQ = Site("gw.example", "groq", (b"/groq/v1",), 443)
MINE = Site("gw.example", "mine", (b"/v1",), 8443)
BARE = Site("api.perplexity.ai", "perplexity", (b"",), 443)
AZURE = Site("*.openai.azure.com", "azure", (b"/openai/v1",), deployments=True, away=True)
GUEST = Site("llm.example", "llm.example", None, away=True)
SITES = (OPENAI, GROQ, MINE, BARE, AZURE, GUEST)

CHAT = b"/v1/chat/completions"
PATHS: dict[tuple[str, bytes], Place | None] = {
    ("api.openai.com:443", CHAT): Place(OPENAI, b"/v1", CHAT),
    ("api.openai.com:443", b"/v1/files/f-1"): Place(OPENAI, b"/v1", b"/v1/files/f-1"),
    ("api.openai.com:443", b"/v1"): None,
    ("api.openai.com:443", b"/v10/models"): None,
    ("api.openai.com:443", b"/dashboard"): None,
    ("api.perplexity.ai:443", b"/chat/completions"): Place(BARE, b"", CHAT),
    ("r.openai.azure.com:443", b"/openai/deployments/d-1/chat/completions"): Place(
        AZURE, b"/openai", CHAT, "d-1"
    ),
    ("r.openai.azure.com:443", b"/openai/v1/responses"): Place(
        AZURE, b"/openai/v1", b"/v1/responses"
    ),
    ("llm.example:9000", b"/api/v3/chat/completions"): Place(GUEST, b"/api/v3", CHAT),
    ("llm.example:9000", b"/completions"): Place(GUEST, b"", b"/v1/completions"),
    ("llm.example:9000", b"/api/v3/models"): None,
    ("elsewhere.example:443", CHAT): None,
}


def authority(text: str) -> Authority:
    host, _, port = text.rpartition(":")
    return Authority(host, int(port))


@pytest.mark.parametrize(("asked", "place"), PATHS.items())
def test_reads_a_path_as_one_of_ours(asked: tuple[str, bytes], place: Place | None) -> None:
    assert locate(sites_at(SITES, authority(asked[0])), asked[1]) == place


@pytest.mark.parametrize(
    ("port", "path", "provider"),
    [
        (443, b"/groq/v1/chat/completions", "groq"),
        (8443, CHAT, "mine"),
        (9999, CHAT, "mine"),
        (9999, b"/groq/v1/chat/completions", "groq"),
    ],
)
def test_providers_that_share_a_host_are_told_apart(port: int, path: bytes, provider: str) -> None:
    place = locate(sites_at(SITES, Authority("gw.example", port)), path)
    assert place is not None
    assert place.site.provider == provider


def test_a_call_to_a_model_goes_before_a_longer_prefix() -> None:
    odd = Site("api.openai.com", "odd", (b"/v1/audio",), 443)
    place = locate((odd, OPENAI), b"/v1/audio/speech")
    assert place is not None
    assert (place.site, place.inference) == (OPENAI, True)
