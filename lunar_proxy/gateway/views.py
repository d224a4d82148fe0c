"""The documents about models, providers and prices (CONTRACT 7), as plain values."""

from __future__ import annotations

from typing import Any

from lunar_proxy.core.errors import ModelNotFound
from lunar_proxy.core.model import Identity, Target
from lunar_proxy.core.policy import may_ask, permits
from lunar_proxy.core.pricing import HourlyPrice, Price
from lunar_proxy.core.routing import DEPLOYMENTS, Asked, resolve
from lunar_proxy.providers.builtin import BUILTIN

from .gateway import Gateway


def models(gateway: Gateway, identity: Identity | None) -> dict[str, Any]:
    """OpenAI's list: what this caller may ask for now, by the names to ask with."""
    runtime = gateway.runtime
    catalogue = runtime.catalogue
    found: dict[str, str] = dict.fromkeys(catalogue.aliases, "lunar-proxy")
    found |= {f"{DEPLOYMENTS}/{name}": DEPLOYMENTS for name in catalogue.deployments}
    for id, known in catalogue.providers.items():
        if known.enabled:
            plain = [glob for glob in known.globs if not set(glob) & set("*?[")]
            found |= {f"{id}/{model}": id for model in plain}
    enabled = [id for id, known in catalogue.providers.items() if known.enabled]
    for row in runtime.prices.catalogue(enabled):
        found |= {f"{sold['id']}/{sold['model_id']}": row["owned_by"] for sold in row["providers"]}
        found.setdefault(row["id"], row["owned_by"])
    return {
        "object": "list",
        "data": [_model(id, owner) for id, owner in found.items() if _visible(identity, id)],
    }


def model(gateway: Gateway, identity: Identity | None, id: str) -> dict[str, Any]:
    for row in models(gateway, identity)["data"]:
        if row["id"] == id:
            found: dict[str, Any] = row
            return found
    raise ModelNotFound(f"model '{id}' is not known here", param="model")


def providers(gateway: Gateway, model: str | None) -> list[dict[str, Any]]:
    """All providers, or those that serve `model`. Raises ModelNotFound."""
    catalogue = gateway.runtime.catalogue
    if model is not None:
        targets = resolve(Asked(model, own_key=True), catalogue, gateway.planner.facts)
        return [_provider(gateway, target.provider, target) for target in targets]
    rows = [_provider(gateway, id, None) for id in catalogue.providers]
    rows += [
        _provider(gateway, DEPLOYMENTS, Target(DEPLOYMENTS, name)) for name in catalogue.deployments
    ]
    return rows


def pricing(gateway: Gateway) -> list[dict[str, Any]]:
    """Every price known, of providers that are on or off alike."""
    return gateway.runtime.prices.catalogue()


def _model(id: str, owner: str) -> dict[str, Any]:
    return {"id": id, "object": "model", "created": 0, "owned_by": owner}


def _visible(identity: Identity | None, id: str) -> bool:
    provider, _, name = id.partition("/")
    return may_ask(identity, id) or (bool(name) and permits(identity, Target(provider, name)))


def _provider(gateway: Gateway, id: str, target: Target | None) -> dict[str, Any]:
    runtime = gateway.runtime
    known = runtime.catalogue.providers.get(id)
    account = runtime.account(target or Target(id, ""))
    params: dict[str, Any] = {}
    if target is not None:
        params = {"model": runtime.model_id(target), **prices(runtime.price(target))}
        params |= measured(gateway, target)
    elif known is not None and known.globs:
        params["models"] = list(known.globs)
    if known is not None and not known.enabled:
        params["disabled"] = known.why_disabled
    enabled = (known is None or known.enabled) and (
        target is None or gateway.health.available(target)
    )
    dialect = BUILTIN[id].dialect if id in BUILTIN else account.dialect.name
    return {"id": id, "type": dialect, "enabled": enabled, "params": params}


def prices(price: Price | HourlyPrice | None) -> dict[str, Any]:
    if isinstance(price, HourlyPrice):
        return {"cost_per_hour": float(price.usd_per_hour)}

    def rate(value: Any) -> float | None:
        return None if value is None else float(value)

    return {
        "input_per_million": rate(price.input) if price else None,
        "output_per_million": rate(price.output) if price else None,
        "cache_input_per_million": rate(price.cache_read) if price else None,
    }


def measured(gateway: Gateway, target: Target) -> dict[str, Any]:
    seen = gateway.health.of(target) if target in gateway.health.snapshot() else None
    return {
        "ttft_ms": round(seen.ttft_s * 1000, 3) if seen and seen.ttft_s is not None else None,
        "error_rate": round(seen.error_rate, 4) if seen and seen.error_rate is not None else None,
        "state": seen.state.name.lower() if seen else "closed",
    }
