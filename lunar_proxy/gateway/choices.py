"""Which models the router may choose among, and what each would cost.

    auto                 every profiled model that an enabled provider serves
    auto:a,b             those of them that the call names
    an alias             its targets, one by one (`strategy: router`)

A profile goes by many names: its own id, its aliases, each also behind `PROVIDER/`, and whatever a
deployment calls the model it runs. `Served` finds out once per config who serves which profile;
what changes by the minute (breakers, prices, keys) is looked at per call.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lunar_proxy.core.errors import ModelNotFound
from lunar_proxy.core.figures import dollars
from lunar_proxy.core.model import Identity, Target, Usage
from lunar_proxy.core.policy import permits
from lunar_proxy.core.pricing import Price, cost
from lunar_proxy.core.routerask import AUTO
from lunar_proxy.core.routing import DEPLOYMENTS, Asked, Facts, resolve

from .runtime import Runtime

if TYPE_CHECKING:  # numpy, for nobody but the router
    from lunar_proxy.scoring.profiles import Profile
    from lunar_proxy.scoring.router import Router

# An answer of a model whose profile does not tell: the mean of the public ones is 200.
USUAL_OUTPUT = 200
# USD "per 1,000 tokens" of the raw cost term: three of the prompt to one of the answer, the mix
# that price comparisons of language models commonly use, and `lunar-proxy router` too.
PER_1K = Usage(input_tokens=750, output_tokens=250)
# Names of unserved models whose sellers are remembered.
MOST_NAMES = 1024
_GLOB = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Choice:
    """A model that may be chosen, by the name its client knows it by."""

    name: str
    profile: Profile
    targets: tuple[Target, ...]  # who serves it; empty: nobody does
    sellers: tuple[tuple[str, str], ...] = ()  # where nobody does: who would, provider and model


@dataclass(frozen=True, slots=True)
class Size:
    """How large a call is: what it costs at a price follows from it."""

    input_tokens: int
    max_tokens: int | None = None

    def usage(self, profile: Profile) -> Usage:
        output = profile.output_tokens or USUAL_OUTPUT
        if self.max_tokens is not None:
            output = min(output, self.max_tokens)
        return Usage(input_tokens=self.input_tokens, output_tokens=round(output))


class Served:
    """Who serves which profile, by one config and one set of profiles."""

    def __init__(self, router: Router, runtime: Runtime) -> None:
        self.router = router
        self.runtime = runtime
        self._found: dict[str, dict[str, Target]] = {}  # by profile id, then provider
        for profile, target in self._every_target():
            place = str(target) if target.provider == DEPLOYMENTS else target.provider
            self._found.setdefault(profile.id, {}).setdefault(place, target)
        self._selling: dict[str, tuple[tuple[str, str], ...]] = {}
        profiles = {profile.id: profile for profile in router}
        self._all = [
            Choice(_name(next(iter(places.values()))), profiles[id], tuple(places.values()))
            for id, places in self._found.items()
        ]

    def all(self) -> list[Choice]:
        """What `auto` chooses among: one choice for each profile that somebody serves."""
        return self._all

    def named(self, names: Iterable[str], facts: Facts) -> tuple[list[Choice], list[str]]:
        """The choices that names stand for, and the names without a profile."""
        found, missing = [], []
        for name in dict.fromkeys(names):
            targets = self._targets(name, facts)
            profile = self.router.find(name) or self._profile(targets)
            if profile is None:
                missing.append(name)
                continue
            places = tuple(targets or self._elsewhere(name, profile))
            found.append(Choice(name, profile, places, () if places else self._sellers(name)))
        return found, missing

    def each(self, targets: Iterable[Target]) -> list[Choice]:
        """The targets of an alias that have a profile, each a choice of its own."""
        profiled = ((target, self._profile([target])) for target in targets)
        return [Choice(str(t), profile, (t,)) for t, profile in profiled if profile is not None]

    def everything(self) -> list[Choice]:
        """All profiles, served or not, but for retired models that nobody serves: for a decision
        that is not going to be carried out."""
        served = {choice.profile.id: choice for choice in self.all()}
        others = [p for p in self.router if p.id not in served and not p.stale]
        return [*served.values(), *(Choice(p.id, p, (), self._sellers(p.id)) for p in others)]

    # --- inside -----------------------------------------------------------------------------------

    def _targets(self, name: str, facts: Facts) -> list[Target]:
        try:
            return resolve(Asked(name), self.runtime.catalogue, facts)
        except ModelNotFound:
            return []

    def _sellers(self, name: str) -> tuple[tuple[str, str], ...]:
        """Who has a price for a model: a search of the whole table, so made once a name."""
        if (found := self._selling.get(name)) is None:
            found = tuple(self.runtime.prices.providers_of(name))
            if len(self._selling) < MOST_NAMES:  # clients may spell a name in many ways
                self._selling[name] = found
        return found

    def _elsewhere(self, name: str, profile: Profile) -> list[Target]:
        """Who serves the model by another name than the client's, which may be the profile's id."""
        if name.partition("/")[0] in self.runtime.catalogue.providers:
            return []
        return list(self._found.get(profile.id, {}).values())

    def _profile(self, targets: Sequence[Target]) -> Profile | None:
        if not targets:
            return None
        target = targets[0]
        return self.router.find(str(target)) or self.router.find(self.runtime.model_id(target))

    def _every_target(self) -> Iterator[tuple[Profile, Target]]:
        """Most telling first: what the operator lists, then what the price table knows.

        A model that its vendor has retired is there only where it is listed or named.
        """
        for target in self._listed():
            if (profile := self._profile([target])) is not None:
                yield profile, target
        catalogue = self.runtime.catalogue
        for profile in self.router:
            if profile.stale:
                continue
            for name in (profile.id, *profile.aliases):
                for target in catalogue.serves(name):
                    if catalogue.providers[target.provider].enabled:
                        yield profile, target

    def _listed(self) -> Iterator[Target]:
        for id, known in self.runtime.catalogue.providers.items():
            if known.enabled:
                yield from (Target(id, glob) for glob in known.globs if not _GLOB & set(glob))
        yield from (Target(DEPLOYMENTS, name) for name in self.runtime.deployments)


def usable(choices: Iterable[Choice], facts: Facts) -> list[Choice]:
    """Those that can answer now, their targets best first.

    Where every breaker is open all stay: the walk along the plan says so with the time to wait.
    """
    ordered = [_ordered(choice, facts) for choice in choices if choice.targets]
    now = [choice for choice in ordered if any(map(facts.available, choice.targets))]
    return now or ordered


def allowed(
    choices: Sequence[Choice], identity: Identity | None, aliases: Container[str]
) -> list[Choice]:
    """The part of `auto` that a key may use: where it lists models too, these; else all."""
    globs = identity.models if identity is not None else ()
    if all(glob == AUTO or glob in aliases for glob in globs):
        return list(choices)
    narrowed = [
        Choice(c.name, c.profile, tuple(t for t in c.targets if permits(identity, t)))
        for c in choices
    ]
    return [choice for choice in narrowed if choice.targets]


def expected_cost(choice: Choice, runtime: Runtime, usage: Usage) -> float | None:
    """US dollars at whoever serves it for least; None when no price is known.

    One paid by the hour has none: what a call takes of the hour is known when it is over.
    """
    prices = [runtime.price(target) for target in choice.targets]
    if not choice.targets:
        prices = [runtime.prices.price(provider, model) for provider, model in choice.sellers]
    costs = [cost(usage, price) for price in prices if isinstance(price, Price)]
    totals = [found.total for found in costs if found is not None]
    return dollars(min(totals)) if totals else None


def per_1k(router: Router, runtime: Runtime, id: str) -> float | None:
    """US dollars per 1,000 tokens of a profile, at its maker or whoever sells it, on or off."""
    profile = router.find(id)
    totals: list[int] = []
    for name in (id, *(profile.aliases if profile is not None else ())):
        for provider, model in runtime.prices.providers_of(name):
            price = runtime.prices.price(provider, model)
            found = cost(PER_1K, price) if isinstance(price, Price) else None
            totals += [found.total] if found is not None else []
        if totals:
            break
    return dollars(totals[0]) if totals else None


def _ordered(choice: Choice, facts: Facts) -> Choice:
    def rank(target: Target) -> tuple[bool, float, float]:
        price = facts.price(target)
        error_rate = round(facts.error_rate(target) or 0.0, 1)
        return not facts.available(target), error_rate, float("inf") if price is None else price

    if len(choice.targets) < 2:
        return choice
    return Choice(choice.name, choice.profile, tuple(sorted(choice.targets, key=rank)))


def _name(target: Target) -> str:
    return str(target) if target.provider == DEPLOYMENTS else target.model
