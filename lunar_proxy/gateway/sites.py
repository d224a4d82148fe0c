"""Which provider lives at which host, read off the config: for what came by HTTPS_PROXY.

config -> Sites     compiled with the runtime
Attachment + path -> Visit      whose call it is, and where it has to go
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from urllib.parse import urlsplit

from lunar_proxy.config import Config, ResolvedProvider
from lunar_proxy.core.attachment import Attachment, Place, Site, locate, sites_at
from lunar_proxy.core.connect import Authority, host_pattern
from lunar_proxy.core.model import Target
from lunar_proxy.core.pricing import HourlyPrice, Price
from lunar_proxy.providers.base import Account, Origin, static_head
from lunar_proxy.providers.builtin import BUILTIN
from lunar_proxy.relay.engine import Directory, Listing

# An Azure resource has a host of its own below this one; a base URL names but one of them.
AZURE = "*.openai.azure.com"
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Visit:
    """One request to a provider's host. `place` None: its path belongs to no API we know."""

    via: Attachment
    site: Site | None
    place: Place | None

    @property
    def provider(self) -> str:
        return self.site.provider if self.site is not None else self.via.authority.host


# Host and path -> who lives there, and what of theirs the path is.
Find = Callable[[Authority, bytes], tuple[Site | None, Place | None]]
# Requests of an application differ in their bodies, hardly in their paths; ids make some endless.
_REMEMBERED, _LONGEST = 1024, 256


def finder(sites: Sequence[Site]) -> Find:
    def find(authority: Authority, path: bytes) -> tuple[Site | None, Place | None]:
        here = sites_at(sites, authority)
        place = locate(here, path)
        return (place.site if place is not None else next(iter(here), None)), place

    known = lru_cache(maxsize=_REMEMBERED)(find)
    return lambda authority, path: (known if len(path) < _LONGEST else find)(authority, path)


def visit(find: Find, via: Attachment, path: bytes) -> Visit:
    return Visit(via, *find(via.authority, path))


def compile_sites(config: Config, resolved: Sequence[ResolvedProvider]) -> tuple[Site, ...]:
    """Those of `intercept.hosts` that name a provider, then every provider's own, then the rest."""
    by_id = {provider.id: provider for provider in resolved}
    usable = [each for each in resolved if each.enabled or each.bring_key]
    own = [site for provider in usable for site in _own(provider)]
    named, guests = [], []
    for host in config.intercept.hosts:
        pattern = host_pattern(host.host)
        if pattern is None:
            continue
        if host.provider is not None:
            named.append(_named(pattern, by_id[host.provider]))
        elif not any(site.pattern == pattern for site in own):
            guests.append(Site(pattern, pattern, prefixes=None, away=True))
    return (*named, *own, *guests)


def guests(sites: Iterable[Site]) -> tuple[str, ...]:
    """Hosts that are nobody's: each is an OpenAI-shaped provider of its own."""
    return tuple(dict.fromkeys(site.provider for site in sites if site.prefixes is None))


def urls_of(provider: ResolvedProvider) -> Iterator[str]:
    """Its base URL and, where that was moved, its maker's: the application asks for the latter."""
    builtin = BUILTIN.get(provider.id)
    makers = (builtin.base_url or "") + builtin.default_path if builtin else ""
    for url in dict.fromkeys((provider.base_url, makers)):
        if urlsplit(url).scheme in _PORTS:
            yield url


def _own(provider: ResolvedProvider) -> Iterator[Site]:
    azure = provider.dialect == "azure"
    for url in urls_of(provider):
        parts = urlsplit(url)
        pattern = host_pattern(parts.hostname or "")
        if pattern is not None:
            port = parts.port or _PORTS[parts.scheme]
            yield Site(pattern, provider.id, (_path(url),), port, deployments=azure)
    if azure:
        yield Site(AZURE, provider.id, (b"/openai/v1",), deployments=True, away=True)


def _named(pattern: str, provider: ResolvedProvider) -> Site:
    urls = list(urls_of(provider))
    prefixes = tuple(dict.fromkeys((*map(_path, urls), b"/v1")))
    home = pattern in {host_pattern(urlsplit(url).hostname or "") for url in urls}
    azure = provider.dialect == "azure"
    return Site(pattern, provider.id, prefixes, deployments=azure, away=not home)


def _path(url: str) -> bytes:
    return urlsplit(url).path.rstrip("/").encode()


# --- where a request has to go ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Visited:
    """The directory, but with one account at the host that the caller addressed."""

    rest: Directory
    moved: Account

    def listing(self, target: Target) -> Listing:
        listed = self.rest.listing(target)
        if target.provider != self.moved.id:
            return listed
        return replace(listed, account=self.moved)

    def price(self, target: Target) -> Price | HourlyPrice | None:
        return self.rest.price(target)


def moved(via: Attachment, place: Place, account: Account) -> Account | None:
    """The provider at the very host the caller addressed, where a call has to go there.

    That is so where the provider has several hosts, or none that we know, and the credentials are
    the caller's: they are for that host. Ours never go to a host that a client may choose.
    """
    if not place.site.away or account.keys or account.headers:
        return None
    origin = origin_of(via)
    head = static_head(origin, account.headers)
    return replace(account, origin=origin, base_path=place.base, head=head)


def destination(seen: Visit, accounts: Mapping[str, Account], path: bytes) -> tuple[Origin, bytes]:
    """Where a request goes that is none of our business, and the path it asks there.

    The host it was sent to; but a maker's host stands for the base URL, where that was moved.
    """
    site, place = seen.site, seen.place
    account = accounts.get(site.provider) if site is not None else None
    if site is None or account is None or site.away:
        return origin_of(seen.via), path
    if account.origin.host == seen.via.authority.host:
        return origin_of(seen.via), path
    if place is not None and not place.model:
        path = account.base_path + place.path.removeprefix(b"/v1")
    return account.origin, path


def origin_of(via: Attachment) -> Origin:
    scheme = "https" if via.secure else "http"
    return Origin(scheme, via.authority.host, via.authority.port)
