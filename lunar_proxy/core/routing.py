"""Which targets may answer a model name, and in which order (CONTRACT 4).

    name -> resolve -> targets            the meaning of one name
    name + fallbacks -> plan -> targets   the whole walk of a call, without repetition

A name is looked up from the most to the least specific: an alias under `models:`, a deployment
(`lunar/NAME`), `PROVIDER/MODEL`, then a bare model id, which any provider known to serve it may
answer. Everything measured comes in as `Facts`, so a plan can be tried in a table.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

from .errors import InvalidRequest, ModelNotFound
from .model import Target

# CONTRACT 4: deployments answer to both.
DEPLOYMENT_PREFIXES = ("lunar", "pureai")
DEPLOYMENTS = "lunar"
# Model families that are OpenAI's own: a release younger than the price table is still found.
_OPENAI_FAMILIES = ("gpt-", "chatgpt-", "o1", "o3", "o4", "ft:gpt-", "text-embedding-", "davinci-")


@dataclass(frozen=True, slots=True)
class Known:
    """What routing needs to know of a configured provider."""

    enabled: bool = True
    bring_key: bool = False  # usable with the caller's own key
    globs: tuple[str, ...] = ()  # models it is known to serve
    why_disabled: str = ""


@dataclass(frozen=True, slots=True)
class Alias:
    targets: tuple[tuple[str, float], ...]  # name and weight
    strategy: str = "order"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is measured or drawn, at the moment of the plan."""

    price: Callable[[Target], float | None] = lambda _t: None  # USD per million, in plus out
    ttft_s: Callable[[Target], float | None] = lambda _t: None
    error_rate: Callable[[Target], float | None] = lambda _t: None
    available: Callable[[Target], bool] = lambda _t: True
    draw: Callable[[], float] = lambda: 0.5  # uniform in [0, 1)
    score: Callable[[Target], float | None] = lambda _t: None  # the router's, lower is better


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every name the config gives a meaning to."""

    providers: Mapping[str, Known] = field(default_factory=dict)
    deployments: frozenset[str] = frozenset()
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    fallbacks: tuple[tuple[str, tuple[str, ...]], ...] = ()
    # Everyone known to serve a bare id, on or off, makers first: see `serves`.
    serves: Callable[[str], Sequence[Target]] = lambda _model: ()


class Asked(NamedTuple):
    """How a call names its model."""

    model: str
    provider: str | None = None
    own_key: bool = False  # the caller brought a provider key
    fallbacks: Sequence[str] | None = None  # None: the config's
    # The provider whose host was asked, as far as the caller knows (HTTPS_PROXY): the model is one
    # of its own names, slashes and all, unless the config gives it a meaning.
    host: str | None = None


def plan(asked: Asked, catalogue: Catalogue, facts: Facts) -> list[Target]:
    """The targets of a call in the order they may be tried. Raises ModelNotFound, InvalidRequest.

    A fallback that names nothing usable is an error when the request named it, and is passed over
    when the config did, since a provider may be off for the day.
    """
    targets = resolve(asked, catalogue, facts)
    names = asked.fallbacks
    if names is None:
        names = configured_fallbacks(asked, targets, catalogue)
    for name in names:
        try:
            more = resolve(Asked(name), catalogue, facts)  # the caller's key is for one provider
        except ModelNotFound:
            if asked.fallbacks is not None:
                raise
            continue
        targets += [target for target in more if target not in targets]
    return targets


def resolve(asked: Asked, catalogue: Catalogue, facts: Facts) -> list[Target]:
    """The targets one name stands for, best first. Raises ModelNotFound or InvalidRequest."""
    alias = catalogue.aliases.get(asked.model)
    if asked.host is not None and alias is None:
        return [_forced(_named(asked, asked.host, asked.model), catalogue)]
    asked = with_provider(asked, catalogue)
    if asked.provider is not None:
        return [_forced(asked, catalogue)]
    if alias is not None:
        return _unique(_alias(asked, alias, catalogue, facts, seen=frozenset({asked.model})))
    return _bare(asked, catalogue, facts)


def serves(
    model: str, providers: Mapping[str, Known], priced: Iterable[Target]
) -> tuple[Target, ...]:
    """Who may be asked for a bare id: providers that list it, then those of the price table."""
    listed = [
        Target(id, model)
        for id, known in providers.items()
        if any(fnmatchcase(model, glob) for glob in known.globs)
    ]
    found = [*listed, *(target for target in priced if target.provider in providers)]
    if not found and "openai" in providers and model.startswith(_OPENAI_FAMILIES):
        found = [Target("openai", model)]
    return tuple(dict.fromkeys(found))


def with_provider(asked: Asked, catalogue: Catalogue) -> Asked:
    """The prefix and the `provider` field brought together: they mean the same."""
    prefix, slash, rest = asked.model.partition("/")
    is_prefix = bool(slash) and (prefix in catalogue.providers or prefix in DEPLOYMENT_PREFIXES)
    if asked.model in catalogue.aliases or not is_prefix:
        prefix, rest = "", asked.model
    elif not rest:
        raise ModelNotFound(f"model '{asked.model}' names a provider alone", param="model")
    if asked.provider is None:
        return _named(asked, prefix or None, rest)
    if prefix and _same(prefix) != _same(asked.provider):
        raise InvalidRequest(
            f"model says provider '{prefix}' and provider says '{asked.provider}': send one",
            code="provider_conflict",
            param="provider",
        )
    if asked.provider not in catalogue.providers and asked.provider not in DEPLOYMENT_PREFIXES:
        raise InvalidRequest(
            f"provider '{asked.provider}' is not configured"
            + _hint(asked.provider, catalogue.providers),
            code="unknown_provider",
            param="provider",
        )
    return _named(asked, asked.provider, rest)


def configured_fallbacks(
    asked: Asked, targets: Sequence[Target], catalogue: Catalogue
) -> Sequence[str]:
    """The config's list for this name; a key without a slash also means any provider's model."""
    names = {asked.model, *(str(t) for t in targets[:1]), *(t.model for t in targets[:1])}
    for glob, listed in catalogue.fallbacks:
        if glob in names:
            return listed
    for glob, listed in catalogue.fallbacks:
        if any(fnmatchcase(name, glob) for name in names):
            return listed
    return ()


# --- policies ------------------------------------------------------------------------------------

Policy = Callable[[list[tuple[Target, float]], Facts], list[Target]]
_LAST = float("inf")


def _order(weighed: list[tuple[Target, float]], facts: Facts) -> list[Target]:
    return [target for target, _ in weighed]


def _weighted(weighed: list[tuple[Target, float]], facts: Facts) -> list[Target]:
    """A weighted shuffle (Efraimidis and Spirakis 2006): the first place goes by weight, and so
    does each further one among those left. Weight 0 comes last, in the order written."""
    keyed = [(facts.draw() ** (1 / w) if w > 0 else -1.0, t) for t, w in weighed]
    return [target for _, target in sorted(keyed, key=lambda pair: -pair[0])]


def _by(measure: Callable[[Facts, Target], float | None], unknown: float) -> Policy:
    def policy(weighed: list[tuple[Target, float]], facts: Facts) -> list[Target]:
        def key(target: Target) -> float:
            value = measure(facts, target)
            return unknown if value is None else value

        return sorted((target for target, _ in weighed), key=key)

    return policy


# Unmeasured targets go first where measuring is the point, so that each gets its first sample; an
# unknown price or score goes last.
POLICIES: Mapping[str, Policy] = {
    "order": _order,
    "weighted": _weighted,
    "cheapest": _by(lambda facts, target: facts.price(target), _LAST),
    "fastest": _by(lambda facts, target: facts.ttft_s(target), 0.0),
    "healthy": _by(lambda facts, target: facts.error_rate(target), 0.0),
    "router": _by(lambda facts, target: facts.score(target), _LAST),
}


# --- inside --------------------------------------------------------------------------------------


def _forced(asked: Asked, catalogue: Catalogue) -> Target:
    provider = asked.provider
    assert provider is not None
    if provider in DEPLOYMENT_PREFIXES:
        if asked.model not in catalogue.deployments:
            raise ModelNotFound(
                f"there is no deployment '{asked.model}'"
                + _hint(asked.model, catalogue.deployments),
                param="model",
            )
        return Target(DEPLOYMENTS, asked.model)
    known = catalogue.providers[provider]
    if not _usable(known, asked.own_key):
        raise ModelNotFound(
            f"provider '{provider}' is off: {known.why_disabled or 'it has no key'}", param="model"
        )
    return Target(provider, asked.model)


def _alias(
    asked: Asked, alias: Alias, catalogue: Catalogue, facts: Facts, seen: frozenset[str]
) -> list[Target]:
    groups: list[tuple[Target, float]] = []
    problem: ModelNotFound | None = None
    for name, weight in alias.targets:
        try:
            inner = catalogue.aliases.get(name)
            if inner is not None and name not in seen:
                found = _alias(asked, inner, catalogue, facts, seen | {name})
            else:
                found = resolve(Asked(name), catalogue, facts)
        except ModelNotFound as error:
            problem = error
            continue
        groups += [(target, weight) for target in found]
    if not groups:
        raise problem or ModelNotFound(f"model '{asked.model}' has no targets", param="model")
    return _healthy_first(POLICIES[alias.strategy](groups, facts), facts)


def _bare(asked: Asked, catalogue: Catalogue, facts: Facts) -> list[Target]:
    """Everyone known to serve the id, ranked by health, then price."""
    found = catalogue.serves(asked.model)
    usable = [t for t in found if catalogue.providers[t.provider].enabled]
    if not usable and asked.own_key:
        # Whose key it is, nobody says: only the model's maker, who is listed first, may see it.
        usable = [t for t in found[:1] if catalogue.providers[t.provider].bring_key]
    if not usable:
        raise _not_found(asked.model, found, catalogue)

    if len(usable) == 1:
        return usable

    def rank(target: Target) -> tuple[float, float]:
        price = facts.price(target)
        return round(facts.error_rate(target) or 0.0, 1), _LAST if price is None else price

    return _healthy_first(sorted(usable, key=rank), facts)


def _healthy_first(targets: Iterable[Target], facts: Facts) -> list[Target]:
    return sorted(targets, key=lambda target: not facts.available(target))


def _not_found(model: str, found: Sequence[Target], catalogue: Catalogue) -> ModelNotFound:
    if found:
        names = ", ".join(sorted({t.provider for t in found}))
        why = catalogue.providers[found[0].provider].why_disabled
        return ModelNotFound(
            f"model '{model}' is served by {names}, which is off: {why}", param="model"
        )
    known = [*catalogue.aliases, *(f"{DEPLOYMENTS}/{name}" for name in catalogue.deployments)]
    known += [f"{id}/{glob}" for id, k in catalogue.providers.items() for glob in k.globs]
    return ModelNotFound(
        f"model '{model}' is not known here{_hint(model, known)}; "
        "PROVIDER/MODEL asks a provider for any model",
        param="model",
    )


def _usable(known: Known, own_key: bool) -> bool:
    return known.enabled or (own_key and known.bring_key)


def _named(asked: Asked, provider: str | None, model: str) -> Asked:
    return Asked(model, provider, asked.own_key, asked.fallbacks)


def _same(provider: str) -> str:
    return DEPLOYMENTS if provider in DEPLOYMENT_PREFIXES else provider


def _unique(targets: Iterable[Target]) -> list[Target]:
    return list(dict.fromkeys(targets))


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
