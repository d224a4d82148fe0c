"""Where a call may go: what it asks for, made a plan of targets that its key may use.

`known` is the plan that such a call had before. Without one, `waits` says whether the router has to
be asked: then `planned`, else `plan`, which never waits.
"""

from __future__ import annotations

from lunar_proxy.core import routing
from lunar_proxy.core.errors import NotFound
from lunar_proxy.core.intake import MODEL_ENDPOINTS, fallbacks
from lunar_proxy.core.model import Call, Identity, Target
from lunar_proxy.core.routerask import is_auto
from lunar_proxy.core.routing import Asked, Catalogue, Facts

from .admission import permitted
from .router import ROUTABLE, Routed, Router
from .runtime import Runtime

# Plans of a single target that are remembered; names come from clients, so there is a bound.
MAX_PLANS = 1024


class Planner:
    """Plans under one config; raises what says that there is no such target, or none allowed."""

    def __init__(self, runtime: Runtime, facts: Facts, router: Router) -> None:
        self.runtime = runtime
        self.facts = facts
        self._router = router
        self._plans: dict[Asked, list[Target]] = {}
        # The same for calls that say no more than a name, and whether they bring a key.
        self._by_name: dict[tuple[str, bool], list[Target]] = {}

    def known(self, call: Call) -> list[Target] | None:
        """The plan of a call like this one; None: it has to be made."""
        identity = call.identity
        if not call.by_name or (identity is not None and identity.models):
            return None
        return self._by_name.get((call.model, call.own_key is not None))

    def waits(self, call: Call) -> bool:
        """Whether the model, or the order of an alias, is the router's to say."""
        return self._is_routed(call) and call.endpoint in ROUTABLE

    def _is_routed(self, call: Call) -> bool:
        return call.model in self.runtime.routed or (is_auto(call.model) and call.via is None)

    async def planned(self, call: Call) -> tuple[Asked, Routed | None, list[Target]]:
        """What a call asks for, and the targets it may go to; waits for the router if need be."""
        asked = self.asked(call)
        if not self.waits(call):
            return asked, None, self.plan(call)
        routed = await self._router.route(self.runtime, self.facts, call, asked)
        return asked, routed, self.routed_plan(routed, call)

    def routed_plan(self, routed: Routed, call: Call) -> list[Target]:
        plan = routing.plan(routed.asked, routed.catalogue, routed.facts)
        return self._narrowed(call.identity, routed.asked, plan, routed.catalogue, routed.facts)

    def plan(self, call: Call) -> list[Target]:
        asked = self.asked(call)
        if not asked.model and asked.provider is not None and call.endpoint not in MODEL_ENDPOINTS:
            known = self.runtime.catalogue_for(call.via).providers
            if asked.provider not in known:
                raise NotFound(f"provider '{asked.provider}' is not configured")
            return permitted(call.identity, f"{asked.provider}/", [Target(asked.provider, "")])
        plan = self._plan_of(asked)
        if call.by_name and asked in self._plans and not self._is_routed(call):
            self._by_name[call.model, call.own_key is not None] = plan
        catalogue = self.runtime.catalogue_for(asked.host)
        return self._narrowed(call.identity, asked, plan, catalogue, self.facts)

    def _narrowed(
        self,
        identity: Identity | None,
        asked: Asked,
        plan: list[Target],
        catalogue: Catalogue,
        facts: Facts,
    ) -> list[Target]:
        """What the key may use of a plan. A fallback that the request names is asked for as much
        as the model is; one of the config's comes with the model."""
        if identity is None or not identity.models:
            return plan
        if not asked.fallbacks:
            return permitted(identity, _full_name(asked, self.runtime), plan)
        first = routing.resolve(asked, catalogue, facts)
        allowed = set(permitted(identity, _full_name(asked, self.runtime), first))
        for name in asked.fallbacks:
            allowed.update(
                permitted(identity, name, routing.resolve(Asked(name), catalogue, facts))
            )
        return [target for target in plan if target in allowed]

    def _plan_of(self, asked: Asked) -> list[Target]:
        catalogue = self.runtime.catalogue_for(asked.host)
        if asked.fallbacks is not None:
            return routing.plan(asked, catalogue, self.facts)
        if (known := self._plans.get(asked)) is not None:
            return known
        plan = routing.plan(asked, catalogue, self.facts)
        if len(plan) == 1 and len(self._plans) < MAX_PLANS:
            self._plans[asked] = plan  # nothing measured can change the order of one target
        return plan

    def asked(self, call: Call) -> Asked:
        if call.via is not None:
            return self._asked_there(call, call.via)
        doc = call.doc or {}
        provider = doc.get("provider")
        if not isinstance(provider, str):  # OpenRouter's `provider` is an object: not ours
            provider = call.fields.said.provider
        listed = fallbacks(doc, call.fields) if call.endpoint in MODEL_ENDPOINTS else []
        model = call.model
        if not model and listed:
            model, listed = listed[0], listed[1:]
        if not model and provider is None:
            provider = self._default_provider()
        return Asked(model, provider, call.own_key is not None, listed)

    def _asked_there(self, call: Call, via: str) -> Asked:
        """What the body says besides the model was said to that provider, not to us."""
        own_key = call.own_key is not None
        if not call.model:
            return Asked("", via, own_key)
        listed = fallbacks({}, call.fields) if call.endpoint in MODEL_ENDPOINTS else []
        return Asked(call.model, None, own_key, listed, host=via)

    def _default_provider(self) -> str:
        """CONTRACT 7: openai; where it is off, the only provider there is."""
        enabled = [id for id, known in self.runtime.catalogue.providers.items() if known.enabled]
        return enabled[0] if len(enabled) == 1 else "openai"


def _full_name(asked: Asked, runtime: Runtime) -> str:
    """What a key must allow: at a provider's host a name is that provider's, slashes and all."""
    if asked.host is None or asked.model in runtime.catalogue.aliases:
        return asked.model
    return f"{asked.host}/{asked.model}"
