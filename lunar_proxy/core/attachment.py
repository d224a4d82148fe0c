"""Requests that were sent to a provider's host and reached us by HTTPS_PROXY, or in absolute form.

    Attachment    the host that the application believes it talks to
    Site          a provider at a host, and where its API begins there
    Place         one path, read as one below our own /v1

An inference call then goes the way of a call to our own /v1; anything else goes to the host as it
is, since that is whom the application talks to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .connect import Authority, covers

# Calls that use a model. What else hosts offer (files, batches, lists, dashboards) is their own.
INFERENCE = frozenset(
    {
        "chat/completions",
        "completions",
        "responses",
        "embeddings",
        "moderations",
        "audio/speech",
        "audio/transcriptions",
        "audio/translations",
        "images/generations",
        "images/edits",
        "images/variations",
    }
)
_V1 = b"/v1/"
_ENDINGS = tuple(f"/{endpoint}".encode() for endpoint in INFERENCE)
# Azure names the deployment in the path: /openai/deployments/NAME/chat/completions.
_DEPLOYMENT = re.compile(rb"(?P<base>.*)/openai/deployments/(?P<name>[^/]+)/(?P<tail>.+)")


@dataclass(frozen=True, slots=True)
class Attachment:
    """Where the application wanted to go, and the credentials it gave to the proxy on its way."""

    authority: Authority
    secure: bool
    proxy_authorization: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Site:
    """One provider at one host. `pattern` is a name, an address or `*.NAME`.

    `prefixes` are the paths its API may begin with, the likeliest first; None: whatever comes
    before the endpoint. `away`: the host is not the one of the provider's base URL, nor its
    maker's, so what only the host can answer is asked there.
    """

    pattern: str
    provider: str
    prefixes: tuple[bytes, ...] | None
    port: int | None = None
    deployments: bool = False  # Azure's paths
    away: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """A path at a site: `base` is what stands before the endpoint, `path` is ours for it."""

    site: Site
    base: bytes
    path: bytes
    model: str = ""  # where the path names one

    @property
    def inference(self) -> bool:
        return self.path.removeprefix(_V1).decode("latin-1") in INFERENCE


def sites_at(sites: Iterable[Site], authority: Authority) -> list[Site]:
    """The sites of a host; those with the very port that was asked for, if there are any."""
    found = [site for site in sites if covers(site.pattern, authority.host)]
    exact = [site for site in found if site.port in (None, authority.port)]
    return exact or found


def locate(sites: Sequence[Site], path: bytes) -> Place | None:
    """Whose API the path belongs to, and what it asks there; None: it is below none of them.

    Providers may share a host: an inference call goes before any other reading of the path, then
    the longest prefix, then the order of `sites`.
    """
    places = [place for site in sites for place in _places(site, path)]
    return max(places, key=lambda place: (place.inference, len(place.base)), default=None)


def _places(site: Site, path: bytes) -> Iterable[Place]:
    if site.deployments and (found := _DEPLOYMENT.fullmatch(path)):
        name = found["name"].decode("latin-1")
        yield Place(site, found["base"] + b"/openai", _V1 + found["tail"], name)
        return
    if site.prefixes is None:
        endings = [ending for ending in _ENDINGS if path.endswith(ending)]
        prefixes = [path[: -len(max(endings, key=len))]] if endings else []
    else:
        prefixes = [prefix for prefix in site.prefixes if path.startswith(prefix + b"/")]
    for prefix in prefixes:
        yield Place(site, prefix, _V1 + path[len(prefix) + 1 :])
