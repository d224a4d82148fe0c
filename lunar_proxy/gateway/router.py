"""The router in the life of a request: from a call to the targets it may go to, best first.

    route    `model: auto`, `auto:...` and aliases with `strategy: router`
    choose   POST /v1/router, which wants the decision itself
    profiles GET /v1/router/profiles

What it finds becomes a plan by the same rules as everything else: `auto` is an alias whose targets
stand in the order of their scores, and to the strategy `router` a score is the target's place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from lunar_proxy.core.errors import Forbidden, ModelNotFound, ProxyError, RouterNotReady
from lunar_proxy.core.intake import MAX_FALLBACKS
from lunar_proxy.core.model import Call, Headers, Identity, Target
from lunar_proxy.core.policy import may_ask, permits
from lunar_proxy.core.routerask import (
    MIN_MODELS,
    Ask,
    auto_models,
    cost_weight,
    is_auto,
    missing_profiles,
    too_few,
)
from lunar_proxy.core.routing import Alias, Asked, Catalogue, Facts, resolve
from lunar_proxy.tasks import spawn

from .admission import BYTES_PER_TOKEN, max_tokens
from .choices import PER_1K, Choice, Served, Size, allowed, expected_cost, per_1k, usable
from .decider import Decider, Loaded, Verdict
from .runtime import Runtime

if TYPE_CHECKING:  # numpy, for nobody but the router
    from lunar_proxy.scoring.decide import Candidate

# Endpoints whose calls have a prompt to decide by.
ROUTABLE = frozenset({"chat/completions", "completions", "responses"})
# The chosen model and as many more as a request may name fallbacks.
MOST_MODELS = 1 + MAX_FALLBACKS


class Counts(Protocol):
    """`metrics.Metrics`, as far as the router is concerned."""

    def routed(self, model: str, seconds: float) -> None: ...

    def unrouted(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision and what it was made among."""

    verdict: Verdict
    choices: Mapping[str, Choice]  # by name

    @property
    def selected(self) -> Choice:
        return self.choices[self.verdict.decision.selected]

    @property
    def ranking(self) -> list[Choice]:
        return [self.choices[name] for name in self.verdict.decision.ranking]

    def document(self) -> dict[str, Any]:
        """`routing`, as CONTRACT 7 spells it."""
        decision, targets = self.verdict.decision, self.selected.targets
        return {
            "selected_model": decision.selected,
            "selected_provider": targets[0].provider if targets else None,
            "expected_error": round(decision.expected_error, 6),
            "cost_adjusted_score": round(decision.cost_adjusted_score, 6),
            "cluster_id": decision.cluster_id,
            "all_scores": {name: round(s, 6) for name, s in decision.all_scores.items()},
            "reasoning": decision.reasoning,
            "routing_ms": round(self.verdict.seconds * 1000, 3),
            "cache_hit": self.verdict.cached,
        }

    def headers(self) -> Headers:
        decision = self.verdict.decision
        name = decision.selected.encode("ascii", "replace").translate(None, b"\r\n\x00")
        return (
            (b"x-routing-model", name),
            (b"x-routing-cluster", b"%d" % decision.cluster_id),
        )


@dataclass(frozen=True, slots=True)
class Routed:
    """What `core.routing.plan` makes a plan of; `decided` None: the default stands in."""

    asked: Asked
    catalogue: Catalogue
    facts: Facts
    decided: Decided | None = None

    @property
    def headers(self) -> Headers:
        return self.decided.headers() if self.decided is not None else ()

    def measured_as(self, target: Target) -> tuple[str, int] | None:
        """The profile of a target and the prompt's cluster; None for one not chosen by prompt."""
        if self.decided is None:
            return None
        cluster = self.decided.verdict.decision.cluster_id
        choices = self.decided.choices.values()
        return next((((c.profile.id, cluster)) for c in choices if target in c.targets), None)


class Router:
    """One for the process; what changes with a config comes in with every call."""

    def __init__(self, decider: Decider, counts: Counts) -> None:
        self.decider = decider
        self._counts = counts
        self._served: Served | None = None

    async def route(self, runtime: Runtime, facts: Facts, call: Call, asked: Asked) -> Routed:
        """The order of targets for a call that leaves it to us.

        Raises ModelNotFound, Forbidden, InvalidRequest; RouterNotReady where there is no default.
        """
        weight = cost_weight(call.doc or {})
        if is_auto(asked.model):
            return await self._auto(runtime, facts, call, asked, weight)
        return await self._alias(runtime, facts, call, asked, weight)

    async def choose(self, runtime: Runtime, facts: Facts, call: Call, ask: Ask) -> Decided:
        """The decision that POST /v1/router asks for; it has no deadline, since it is the answer.

        Raises InvalidRequest, Forbidden, RouterNotReady.
        """
        served = self._serving(await self.decider.load(), runtime)
        given = served.all() if ask.models is None else self._named(served, ask.models, facts)
        choices = self._usable(given, runtime, facts, call.identity)
        if ask.execute and ask.models is None and len(choices) < MIN_MODELS:
            raise too_few(len(choices))
        if ask.execute and not choices:
            raise _nobody(given, call.identity)
        if not ask.execute:  # nobody is going to be asked, so it need not be served either
            if ask.models is not None:
                choices = given
            elif len(choices) < MIN_MODELS:
                choices = served.everything()
        decided = await self._decide(runtime, call, choices, ask.cost_weight)
        assert decided is not None  # without a deadline it is never late
        return decided

    async def profiles(self, runtime: Runtime) -> dict[str, Any]:
        """The document of GET /v1/router/profiles. Raises RouterNotReady."""
        router = (await self.decider.load()).router
        rows = router.profiles(lambda id: per_1k(router, runtime, id))
        return {"profiles": [row["id"] for row in rows], "count": len(rows), "data": rows}

    def planned(self, runtime: Runtime, facts: Facts, asked: Asked, decided: Decided) -> Routed:
        """A plan by a decision: the models from best to worst, all targets of each in turn."""
        targets = [t for choice in decided.ranking[:MOST_MODELS] for t in choice.targets]
        return _planned(runtime, facts, asked, targets, decided)

    # --- inside -----------------------------------------------------------------------------------

    async def _auto(
        self, runtime: Runtime, facts: Facts, call: Call, asked: Asked, weight: float | None
    ) -> Routed:
        default = runtime.config.router.default_model
        loaded = self.decider.loaded
        if loaded is None and default is not None:
            self._load_beside()
            return self._instead(runtime, facts, asked, default, [])
        loaded = loaded or await self.decider.load()
        choices = self._choices(self._serving(loaded, runtime), runtime, facts, call, asked)
        if not choices and default is not None:
            return self._instead(runtime, facts, asked, default, [])
        if not choices:
            raise ModelNotFound(
                "auto: no configured provider serves a model that has a profile; "
                "GET /v1/router/profiles lists those that do",
                param="model",
            )
        decided = await self._decide(runtime, call, choices, weight, self._within_s(runtime))
        if decided is None:
            by_mean = sorted(choices, key=lambda choice: (choice.profile.error, choice.name))
            targets = [target for choice in by_mean[:MOST_MODELS] for target in choice.targets]
            return self._instead(runtime, facts, asked, default, targets)
        return self.planned(runtime, facts, asked, decided)

    async def _alias(
        self, runtime: Runtime, facts: Facts, call: Call, asked: Asked, weight: float | None
    ) -> Routed:
        """An alias with `strategy: router`; without a decision, as the config orders it."""
        plain = Routed(asked, runtime.catalogue_for(asked.host), facts)
        targets = resolve(asked, plain.catalogue, facts)
        loaded = self.decider.loaded
        if loaded is None:
            self._load_beside()
            self._counts.unrouted()
            return plain
        choices = self._serving(loaded, runtime).each(targets)
        if not may_ask(call.identity, asked.model):  # it may use some of the targets all the same
            choices = [c for c in choices if permits(call.identity, c.targets[0])]
        if not (choices := usable(choices, facts)):
            return plain
        decided = await self._decide(runtime, call, choices, weight, self._within_s(runtime))
        if decided is None:
            self._counts.unrouted()
            return plain
        place = {choice.targets[0]: float(n) for n, choice in enumerate(decided.ranking)}
        return replace(plain, facts=replace(facts, score=place.get), decided=decided)

    def _choices(
        self, served: Served, runtime: Runtime, facts: Facts, call: Call, asked: Asked
    ) -> list[Choice]:
        names = auto_models(asked.model)
        given = served.all() if names is None else self._named(served, names, facts)
        if asked.provider is not None:
            given = [_of_provider(choice, asked.provider) for choice in given]
        choices = self._usable(given, runtime, facts, call.identity)
        if not choices and (names is not None or any(choice.targets for choice in given)):
            raise _nobody(given, call.identity)
        return choices

    def _usable(
        self, given: Sequence[Choice], runtime: Runtime, facts: Facts, identity: Identity | None
    ) -> list[Choice]:
        return usable(allowed(given, identity, runtime.catalogue.aliases), facts)

    async def _decide(
        self,
        runtime: Runtime,
        call: Call,
        choices: Sequence[Choice],
        weight: float | None,
        within_s: float | None = None,
    ) -> Decided | None:
        from lunar_proxy.scoring.text import text_of

        doc = call.doc or {}
        text = text_of(doc.get("messages") or doc.get("prompt") or doc.get("input"))
        settings = runtime.config.router
        weight = settings.default_cost_weight if weight is None else weight
        candidates = _candidates(runtime, call, choices)
        verdict = await self.decider.decide(text, candidates, weight, within_s)
        if verdict is None:
            return None
        decided = Decided(verdict, {choice.name: choice for choice in choices})
        targets = decided.selected.targets
        label = targets[0].model if targets else decided.selected.name
        self._counts.routed(label, verdict.seconds)
        return decided

    def _named(self, served: Served, names: Iterable[str], facts: Facts) -> list[Choice]:
        choices, missing = served.named(names, facts)
        if missing:
            raise missing_profiles(missing, served.router.ids)
        return choices

    def _instead(
        self,
        runtime: Runtime,
        facts: Facts,
        asked: Asked,
        default: str | None,
        others: Sequence[Target],
    ) -> Routed:
        self._counts.unrouted()
        first = [] if default is None else resolve(Asked(default), runtime.catalogue, facts)
        return _planned(runtime, facts, asked, [*first, *others], None)

    def _serving(self, loaded: Loaded, runtime: Runtime) -> Served:
        served = self._served
        if served is None or served.router is not loaded.router or served.runtime is not runtime:
            served = self._served = Served(loaded.router, runtime)
        return served

    def _load_beside(self) -> None:
        """Begin to load for the calls to come; this one does not wait."""
        _ = spawn(_quietly(self.decider.load), name="router")

    def _within_s(self, runtime: Runtime) -> float:
        return runtime.config.router.deadline_ms / 1000


def _nobody(given: Iterable[Choice], identity: Identity | None) -> ProxyError:
    served = [choice.name for choice in given if choice.targets]
    if served and identity is not None:
        return Forbidden("this key may use none of the models to choose from", param="model")
    names = ", ".join(choice.name for choice in given)
    return ModelNotFound(f"no configured provider serves {names}", param="model")


async def _quietly(load: Callable[[], Any]) -> None:
    with suppress(RouterNotReady):  # logged where it happened; who needs it is told
        await load()


def _candidates(runtime: Runtime, call: Call, choices: Iterable[Choice]) -> list[Candidate]:
    from lunar_proxy.scoring.decide import Candidate

    by_1k = runtime.config.router.cost_scale == "usd"
    size = Size(len(call.body) // BYTES_PER_TOKEN, max_tokens(call))
    return [
        Candidate(
            choice.name,
            expected_cost(choice, runtime, PER_1K if by_1k else size.usage(choice.profile)),
            choice.profile.id,
        )
        for choice in choices
    ]


def _planned(
    runtime: Runtime,
    facts: Facts,
    asked: Asked,
    targets: Iterable[Target],
    decided: Decided | None,
) -> Routed:
    alias = Alias(tuple((str(target), 1.0) for target in dict.fromkeys(targets)))
    catalogue = runtime.catalogue
    catalogue = replace(catalogue, aliases={**catalogue.aliases, asked.model: alias})
    return Routed(asked._replace(provider=None), catalogue, facts, decided)


def _of_provider(choice: Choice, provider: str) -> Choice:
    return replace(choice, targets=tuple(t for t in choice.targets if t.provider == provider))
