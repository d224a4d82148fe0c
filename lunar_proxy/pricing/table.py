"""What a model costs at a provider, who sells it, and how much it can read.

Three rules keep it honest. A price is the provider's own: a model that another vendor sells has no
price at a provider which does not list it. Unknown is None, never zero. And what clients send can
not make it grow: answers are remembered for a bounded number of ids, and `label` maps any id onto
a finite set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from lunar_proxy.core.pricing import AnyPrice, Price

from .shelf import Entry, Shelf

T = TypeVar("T")
Overrides = Mapping[str, Mapping[str, AnyPrice]]  # provider -> model id or glob -> price

# Ids remembered at a time; there are some 1700 in the table and callers use a handful of them.
REMEMBERED = 4096
# And only if they could be real: a client can send one of megabytes.
LONGEST_ID = 256

# Makers answer to every version of a name they list ("gpt-4o-2024-08-06"), Azure to what its
# deployments are called, which people name after the model, and Bedrock in every region.
_BY_RULE = frozenset(
    {
        "openai",
        "anthropic",
        "gemini",
        "mistral",
        "deepseek",
        "xai",
        "cohere",
        "perplexity",
        "azure",
        "bedrock",
    }
)

_VERSION = re.compile(r"-(latest|20\d\d-?\d\d-?\d\d)$")
# "anthropic.claude-...", "us.anthropic.claude-...": what Bedrock calls a model.
_BEDROCK_ID = re.compile(r"(ai21|[a-z]+)\.")
_ANY_REGION = "regional."  # the price list's own word for "us.", "eu." and the plain id

_FIELDS: Mapping[str, str] = {
    "input_per_million": "input",
    "output_per_million": "output",
    "cache_input_per_million": "cache_read",
    "cache_write_per_million": "cache_write",
    "reasoning_per_million": "reasoning",
    "input_audio_per_million": "input_audio",
    "output_audio_per_million": "output_audio",
    "per_request": "per_request",
}


def price_from(fields: Mapping[str, Any]) -> Price:
    """A price as the config writes it: `{input_per_million: 0.5, output_per_million: 1.5, ...}`.

    Floats are read as they are written (0.1 is a tenth). Raises ValueError for a negative or
    infinite number, KeyError for an unknown field.
    """
    rates: dict[str, Any] = {_FIELDS[name]: _money(name, fields[name]) for name in fields}
    return Price(**rates)


def _money(name: str, value: Any) -> Decimal | None:
    if value is None:
        return None
    amount = Decimal(str(value))
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"{name}: {value} is no price")
    return amount


class PriceTable:
    """Prices, windows and sellers of every model known; it never changes.

    `now` is asked at each lookup, because some prices depend on the date or the time of day.
    """

    def __init__(
        self,
        shelves: Mapping[str, Shelf],
        *,
        now: Callable[[], datetime],
        overrides: Overrides | None = None,
    ) -> None:
        self._shelves = shelves
        self._now = now
        self._overrides = {id_: dict(prices) for id_, prices in (overrides or {}).items()}
        self._listed = {id_: tuple(_ids(id_, shelf)) for id_, shelf in shelves.items()}
        self._spellings = {id_: _spellings(ids) for id_, ids in self._listed.items()}
        self._names = frozenset(self._every_name())
        self._found: dict[tuple[str, str], Entry | None] = {}
        self._lasting: dict[tuple[str, str], AnyPrice | None] = {}

    def price(self, provider: str, model: str) -> AnyPrice | None:
        """What `model` costs at `provider` now: the operator's price, else the table's own."""
        key = (provider, model)
        try:
            return self._lasting[key]
        except KeyError:
            pass
        price, lasts = self._price_now(provider, model)
        if lasts:
            _remember(self._lasting, key, price)
        return price

    def window(self, provider: str, model: str) -> int | None:
        """The most tokens a prompt may have, None when nobody has told us.

        A window is the model's and not the seller's, so where the provider's list is silent
        OpenRouter's entry for the same model is asked.
        """
        own = self._own(provider, model)
        if isinstance(own, Price) and own.max_input_tokens is not None:
            return own.max_input_tokens
        entry = self._entry(provider, model)
        if entry is None or entry.max_input_tokens is not None:
            return None if entry is None else entry.max_input_tokens
        spelled = self._spellings.get("openrouter", {}).get(model.lower())
        elsewhere = None if spelled is None else self._entry("openrouter", spelled)
        return None if elsewhere is None else elsewhere.max_input_tokens

    def providers_of(self, model: str) -> list[tuple[str, str]]:
        """Who sells a bare model id, and what each of them calls it: `[(provider, model id)]`.

        Makers first. Resellers count only where they list the very name, with or without a
        vendor in front ("openai/gpt-oss-120b"), and only one model of that name.
        """
        sellers = {
            provider: spelled
            for provider in self._shelves
            if (spelled := self._spelled(provider, model)) is not None
        }
        priced = {
            provider: model for provider, prices in self._overrides.items() if model in prices
        }
        return list((sellers | priced).items())

    @property
    def names(self) -> frozenset[str]:
        """Every name a model is listed under, in lower case."""
        return self._names

    def known(self, model: str) -> bool:
        """Whether this very name is listed somewhere; the names are a finite set."""
        return model.lower() in self._names

    def label(self, model: str) -> str:
        """A name for metrics: the model's, without the date of its version, or "other"."""
        name = model.lower()
        for candidate in (name, _VERSION.sub("", name)):
            if candidate in self._names:
                return candidate
        bedrock = self._entry("bedrock", model) if _BEDROCK_ID.match(name) else None
        return "other" if bedrock is None else bedrock.id.removeprefix(_ANY_REGION)

    def catalogue(self, providers: Collection[str] | None = None) -> list[dict[str, Any]]:
        """The rows of /v1/models and /v1/pricing/models, of all providers or of those named.

        Each row is a model under its maker's name for it: `{id, owned_by, max_input_tokens,
        input_per_million, output_per_million, cache_input_per_million, providers: [{id, model_id,
        the same prices}]}`. The row's own prices are those of its first provider. Prices are
        floats, or None where unknown.
        """
        rows: dict[str, dict[str, Any]] = {}
        for provider, model in self._everything():
            if providers is not None and provider not in providers:
                continue
            seller = self._quoted(provider, model)
            row = rows.setdefault(_bare(model), {})
            if not row:
                row |= {"id": self._asked_as(model), "owned_by": provider, **seller}
            row.setdefault("providers", []).append({"id": provider, "model_id": model, **seller})
        return list(rows.values())

    # --- looking up -------------------------------------------------------------------------

    def _price_now(self, provider: str, model: str) -> tuple[AnyPrice | None, bool]:
        """The price, and whether it is the same at any time."""
        if (own := self._own(provider, model)) is not None:
            return own, True
        entry = self._entry(provider, model)
        if entry is None:
            return None, True
        return entry.price(self._now()), all(since is None for since, _ in entry.prices)

    def _own(self, provider: str, model: str) -> AnyPrice | None:
        prices = self._overrides.get(provider)
        if not prices:
            return None
        if (exact := prices.get(model)) is not None:
            return exact
        return next((price for glob, price in prices.items() if fnmatchcase(model, glob)), None)

    def _entry(self, provider: str, model: str) -> Entry | None:
        key = (provider, model)
        try:
            return self._found[key]
        except KeyError:
            pass
        shelf = self._shelves.get(provider)
        entry = None if shelf is None else shelf.find(model)
        _remember(self._found, key, entry)
        return entry

    def _spelled(self, provider: str, model: str) -> str | None:
        """What `provider` calls a bare `model`, None when it does not sell it."""
        by_rule = _BEDROCK_ID.match(model) if provider == "bedrock" else "/" not in model
        if provider in _BY_RULE and by_rule and self._entry(provider, model) is not None:
            return model
        return self._spellings[provider].get(model.lower())

    # --- listing ----------------------------------------------------------------------------

    def _every_name(self) -> Iterator[str]:
        for provider, shelf in self._shelves.items():
            for entry in shelf.entries:
                yield from (entry.id.lower(), *entry.names, *entry.stems)
            yield from self._spellings[provider]
        for prices in self._overrides.values():
            yield from (name.lower() for name in prices if not _is_glob(name))

    def _everything(self) -> Iterator[tuple[str, str]]:
        for provider, ids in self._listed.items():
            yield from ((provider, id_) for id_ in ids)
        for provider, prices in self._overrides.items():
            listed = self._listed.get(provider, ())
            yield from ((provider, n) for n in prices if not _is_glob(n) and n not in listed)

    def _asked_as(self, model: str) -> str:
        """A name a client may ask for: "openai/gpt-oss-120b" would be taken for OpenAI's."""
        vendor, _, bare = model.partition("/")
        return bare if vendor in self._shelves and bare else model

    def _quoted(self, provider: str, model: str) -> dict[str, Any]:
        price = self.price(provider, model)
        known = price if isinstance(price, Price) else Price()
        return {
            "input_per_million": _float(known.input),
            "output_per_million": _float(known.output),
            "cache_input_per_million": _float(known.cache_read),
            "cache_write_per_million": _float(known.cache_write),
            "max_input_tokens": self.window(provider, model),
        }


def _remember(known: dict[tuple[str, str], T], key: tuple[str, str], value: T) -> None:
    if len(known) >= REMEMBERED:
        known.clear()
    if len(key[1]) <= LONGEST_ID:
        known[key] = value


def _float(amount: Decimal | None) -> float | None:
    return None if amount is None else float(amount)


def _is_glob(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _bare(model: str) -> str:
    return model.rpartition("/")[2].lower()


def _spellings(ids: Collection[str]) -> dict[str, str]:
    """Every name a reseller's list has for a model -> the id to call it by.

    The bare name is one of them unless two vendors share it: then nobody can tell which is meant.
    """
    bare: dict[str, set[str]] = {}
    for id_ in ids:
        bare.setdefault(_bare(id_), set()).add(id_)
    unique = {name: min(same) for name, same in bare.items() if len(same) == 1}
    return unique | {id_.lower(): id_ for id_ in ids}


def _ids(provider: str, shelf: Shelf) -> Iterator[str]:
    """The ids to call a provider's models by, each once."""
    seen: set[str] = set()
    for part in (shelf, *shelf.beyond):
        for entry in part.entries:
            id_ = _callable_id(provider, part, entry)
            if id_ is not None and id_ not in seen:
                seen.add(id_)
                yield id_


def _callable_id(provider: str, shelf: Shelf, entry: Entry) -> str | None:
    """The id to put into a request for this entry, None where its list does not tell.

    Mostly the entry's own; where its rules do not even accept that (Fireworks, whose ids want a
    path in front) the first name they do. OpenRouter's ids have a vendor, and those of
    its batch prices are no models.
    """
    candidates = (entry.id.removeprefix(_ANY_REGION), *entry.names)
    for id_ in candidates:
        if provider == "openrouter" and ("/" not in id_ or id_.endswith(":batch")):
            continue
        if shelf.find(id_) is entry:
            return id_
    return None
