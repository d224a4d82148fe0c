"""What would be asked for a request, in which order and why: /-/route/explain."""

from __future__ import annotations

from typing import Any

from lunar_proxy.core.intake import Incoming, read_call
from lunar_proxy.core.model import Annotate, Target
from lunar_proxy.core.routing import Asked, resolve

from .gateway import Gateway
from .router import Routed
from .views import measured, prices


async def explain(gateway: Gateway, incoming: Incoming) -> dict[str, Any]:
    """The plan of a chat request that is not carried out. Raises what planning it would raise."""
    call = read_call(incoming, id="explain", annotate=Annotate.OFF)
    runtime = gateway.runtime
    asked, routed, plan = await gateway.planner.planned(call)
    facts = routed.facts if routed is not None else gateway.planner.facts
    catalogue = routed.catalogue if routed is not None else runtime.catalogue
    first = resolve(routed.asked if routed is not None else asked, catalogue, facts)
    rows = []
    for index, target in enumerate(plan):
        why = _why(gateway, asked, routed, target) if target in first else _fallback(asked)
        rows.append({"index": index, "target": str(target), "why": why, **_row(gateway, target)})
    decided = routed.decided if routed is not None else None
    return {
        "model": call.model,
        "plan": rows,
        "routing": decided.document() if decided is not None else None,
    }


def _row(gateway: Gateway, target: Target) -> dict[str, Any]:
    runtime = gateway.runtime
    return {
        "provider": target.provider,
        "model": runtime.model_id(target),
        "available": gateway.health.available(target),
        **prices(runtime.price(target)),
        **measured(gateway, target),
    }


def _why(gateway: Gateway, asked: Asked, routed: Routed | None, target: Target) -> str:
    if routed is not None:
        return _by_router(routed, target)
    alias = gateway.runtime.catalogue.aliases.get(asked.model)
    if alias is not None:
        return f"target of '{asked.model}', strategy {alias.strategy}"
    if asked.provider is not None or asked.model.startswith(f"{target.provider}/"):
        return "the provider that the request names"
    return "known to serve the model; by health, then price"


def _by_router(routed: Routed, target: Target) -> str:
    decided = routed.decided
    if decided is None:
        return "the router had no decision: router.default_model, or the order without it"
    decision = decided.verdict.decision
    for place, choice in enumerate(decided.ranking, 1):
        if target in choice.targets:
            error, score = decision.expected_errors[choice.name], decision.all_scores[choice.name]
            return f"place {place} by the router: expected error {error:.3f}, score {score:.3f}"
    return "no profile, or not available, so the router ranks it last"


def _fallback(asked: Asked) -> str:
    return "fallback of the request" if asked.fallbacks else "fallback of the config"
