"""A config, compiled: every name, price and address looked up once, for the hot path.

A reload compiles another `Runtime` and swaps one reference; calls under way keep the one they
began with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from lunar_proxy.config import Config, ResolvedProvider, merge_timeouts, providers
from lunar_proxy.config.schema import Deployment, ModelPrice
from lunar_proxy.core import routing
from lunar_proxy.core.attachment import Site
from lunar_proxy.core.exchange import Rules
from lunar_proxy.core.headers import field_value
from lunar_proxy.core.model import Annotate, Headers, Target
from lunar_proxy.core.pricing import HourlyPrice, Price
from lunar_proxy.core.routing import DEPLOYMENTS, Alias, Catalogue, Known
from lunar_proxy.pricing import PriceTable, Shelf, price_from
from lunar_proxy.providers import DIALECTS, demo
from lunar_proxy.providers.base import Account, Origin, Timeouts, static_head
from lunar_proxy.relay.engine import Listing
from lunar_proxy.relay.health import Breaker

from .sites import Find, compile_sites, finder, guests

# Bare model ids whose sellers are remembered, and targets; callers use a handful of them.
REMEMBERED = 1024
_PORTS = {"http": 80, "https": 443, "demo": 0}


@dataclass(frozen=True, slots=True)
class Runtime:
    """What one config means. It is the `Directory` that the engine asks."""

    config: Config
    generation: int
    accounts: Mapping[str, Account]  # by provider id; deployments by "lunar/NAME"
    prices: PriceTable
    deployments: Mapping[str, Deployment]
    catalogue: Catalogue
    rules: Rules
    breaker: Breaker
    annotate: Annotate
    annotate_there: Annotate  # for calls to a provider's host (HTTPS_PROXY)
    sites: tuple[Site, ...]  # for what comes by HTTPS_PROXY
    find_site: Find
    visited: Catalogue  # the same, and with the hosts of `intercept.hosts` that are nobody's
    names: frozenset[str]  # every model the config names, for bounded labels
    routed: frozenset[str]  # aliases whose order, or part of it, is the router's to say
    _deployment_prices: Mapping[str, Price | HourlyPrice | None] = field(default_factory=dict)
    _listings: dict[Target, Listing] = field(default_factory=dict)

    def listing(self, target: Target) -> Listing:
        known = self._listings.get(target)
        if known is None:
            if len(self._listings) >= REMEMBERED:
                self._listings.clear()
            known = self._listings[target] = self._listed(target)
        return known

    def _listed(self, target: Target) -> Listing:
        model_id = self.model_id(target)
        said: Headers = ((b"x-lunar-provider", target.provider.encode()),)
        if model_id:
            said += ((b"x-lunar-model", field_value(model_id)),)
        return Listing(self.account(target), model_id, said)

    def account(self, target: Target) -> Account:
        if target.provider == DEPLOYMENTS:
            return self.accounts[str(target)]
        return self.accounts[target.provider]

    def catalogue_for(self, host: str | None) -> Catalogue:
        """The names for a call that was sent to us, or (HTTPS_PROXY) to a provider's host."""
        return self.catalogue if host is None else self.visited

    def model_id(self, target: Target) -> str:
        if target.provider == DEPLOYMENTS:
            return self.deployments[target.model].model
        return target.model

    def price(self, target: Target) -> Price | HourlyPrice | None:
        if target.provider == DEPLOYMENTS:
            return self._deployment_prices[target.model]
        if target.provider == "demo":  # its names carry settings behind a `?`
            return self.prices.price("demo", demo.base_model(target.model))
        return self.prices.price(target.provider, target.model)

    def window(self, target: Target) -> int | None:
        return self.prices.window(target.provider, self.model_id(target))

    def list_price(self, target: Target) -> float | None:
        """USD per million tokens, prompt and answer added: what `cheapest` compares."""
        price = self.price(target)
        if not isinstance(price, Price) or price.input is None:
            return None
        return float(price.input + (price.output or Decimal(0)))

    def known(self, model: str) -> bool:
        """Whether a metric may show this name (CONTRACT 8)."""
        return model in self.names or self.prices.known(model)


def compile_config(
    config: Config,
    environ: Mapping[str, str],
    shelves: Mapping[str, Shelf],
    *,
    generation: int,
    now: Callable[[], datetime],
) -> Runtime:
    resolved = providers(config, environ)
    overrides: dict[str, dict[str, Price]] = {
        provider.id: {name: _price(price) for name, price in provider.prices.items()}
        for provider in resolved
    }
    if config.demo:
        overrides["demo"] = {name: price_from(price) for name, price in demo.DEMO_PRICES.items()}
    prices = PriceTable(shelves, now=now, overrides=overrides)
    accounts = {provider.id: _account(provider) for provider in resolved}
    for name, deployment in config.deployments.items():
        accounts[f"{DEPLOYMENTS}/{name}"] = _deployment(name, deployment, config)
    sites = compile_sites(config, resolved)
    catalogue = _catalogue(config, resolved, prices)
    for host in guests(sites):
        accounts[host] = _guest(host, config)
    return Runtime(
        config=config,
        generation=generation,
        accounts=accounts,
        prices=prices,
        deployments=config.deployments,
        catalogue=catalogue,
        sites=sites,
        find_site=finder(sites),
        visited=_visited(catalogue, guests(sites)),
        rules=_rules(config),
        breaker=Breaker(config.breaker.failures, config.breaker.window_s, config.breaker.open_s),
        annotate=config.annotate,
        annotate_there=config.intercept_annotate,
        names=_names(config, resolved),
        routed=_routed(config),
        _deployment_prices={
            name: _deployment_price(deployment) for name, deployment in config.deployments.items()
        },
    )


def _catalogue(
    config: Config, resolved: Sequence[ResolvedProvider], prices: PriceTable
) -> Catalogue:
    known = {
        p.id: Known(p.enabled, p.bring_key, tuple(p.models or ()), p.why_disabled or "")
        for p in resolved
    }

    @lru_cache(maxsize=REMEMBERED)
    def serves(model: str) -> Sequence[Target]:
        priced = (Target(provider, id) for provider, id in prices.providers_of(model))
        return routing.serves(model, known, priced)

    return Catalogue(
        providers=known,
        deployments=frozenset(config.deployments),
        aliases={
            name: Alias(tuple((t.target, t.weight) for t in alias.targets), alias.strategy)
            for name, alias in config.models.items()
        },
        fallbacks=tuple((name, tuple(listed)) for name, listed in config.fallbacks.items()),
        serves=serves,
    )


def _visited(catalogue: Catalogue, hosts: Sequence[str]) -> Catalogue:
    known = dict.fromkeys(hosts, Known(enabled=True, bring_key=True))
    return replace(catalogue, providers={**catalogue.providers, **known})


def _guest(host: str, config: Config) -> Account:
    """A host of nobody's; where it really is, the request that asks for it says."""
    return Account(
        id=host,
        dialect=DIALECTS["openai"],
        origin=Origin("https", host, 443),
        base_path=b"/v1",
        timeouts=_timeouts(config.timeouts),
        bring_key=True,
    )


def _account(provider: ResolvedProvider) -> Account:
    origin, path = _split(provider.base_url)
    headers = _headers(provider.headers)
    return Account(
        id=provider.id,
        # A provider whose dialect does not exist yet is off, but listed, with the reason.
        dialect=DIALECTS.get(provider.dialect, DIALECTS["openai"]),
        origin=origin,
        base_path=path,
        keys=tuple(key.reveal().encode() for key in provider.keys),
        headers=headers,
        head=static_head(origin, headers),
        api_version=provider.api_version,
        globs=tuple(provider.models or ()),
        timeouts=_timeouts(provider.timeouts),
        bring_key=provider.bring_key,
        chat_only=provider.chat_only,
        enabled=provider.enabled,
        why_disabled=provider.why_disabled or "",
    )


def _deployment(name: str, deployment: Deployment, config: Config) -> Account:
    origin, path = _split(str(deployment.base_url))
    headers = _headers(deployment.headers)
    key = deployment.api_key
    return Account(
        id=DEPLOYMENTS,
        dialect=DIALECTS[deployment.dialect],
        origin=origin,
        base_path=path,
        keys=(key.reveal().encode(),) if key else (),
        headers=headers,
        head=static_head(origin, headers),
        api_version=deployment.api_version,
        globs=(name,),
        timeouts=_timeouts(merge_timeouts(config.timeouts, deployment.timeouts)),
        chat_only=deployment.completions == "chat",
    )


def _deployment_price(deployment: Deployment) -> Price | HourlyPrice | None:
    if deployment.cost_per_hour is not None:
        return HourlyPrice(deployment.cost_per_hour)
    return _price(deployment.price) if deployment.price is not None else None


def _price(price: ModelPrice) -> Price:
    return price_from(price.model_dump())


def _split(base_url: str) -> tuple[Origin, bytes]:
    parts = urlsplit(base_url or "http://unset.invalid")
    origin = Origin(parts.scheme, parts.hostname or "", parts.port or _PORTS[parts.scheme])
    return origin, parts.path.rstrip("/").encode()


def _headers(given: Mapping[str, Any]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name.lower().encode(), v.reveal().encode()) for name, v in given.items())


def _timeouts(t: Any) -> Timeouts:
    return Timeouts(t.connect_s, t.first_token_s, t.idle_s, t.total_s)


def _rules(config: Config) -> Rules:
    r = config.retries
    return Rules(
        attempts=r.attempts,
        backoff_s=r.backoff_s,
        max_backoff_s=r.max_backoff_s,
        retry_after_cap_s=r.retry_after_cap_s,
        splice=config.stream_recovery == "splice",
    )


def wants_router(config: Config) -> bool:
    """Whether the config speaks of the router, so that calls will need it."""
    return bool(config.router.model_fields_set or _routed(config))


def _routed(config: Config) -> frozenset[str]:
    """Aliases with `strategy: router`, and those that lead to one."""
    found = {name for name, alias in config.models.items() if alias.strategy == "router"}
    while True:
        more = {
            name
            for name, alias in config.models.items()
            if name not in found and any(entry.target in found for entry in alias.targets)
        }
        if not more:
            return frozenset(found)
        found |= more


def _names(config: Config, resolved: Sequence[ResolvedProvider]) -> frozenset[str]:
    """Names without wildcards that the config gives: aliases, targets, listed and priced models."""
    names = {*config.models, *(d.model for d in config.deployments.values()), *config.deployments}
    targets = [t.target for alias in config.models.values() for t in alias.targets]
    targets += [name for listed in config.fallbacks.values() for name in listed]
    names |= {*targets, *(target.partition("/")[2] or target for target in targets)}
    names |= {glob for p in resolved for glob in (p.models or ()) if not set(glob) & set("*?[")}
    return frozenset(names | {name for p in resolved for name in p.prices})
