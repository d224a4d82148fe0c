"""What one provider sells: its entries, and which entry a model id means.

Ids are matched as genai-prices does it: in lower case, entries in their order, the first whose
names or rules accept the id wins. Nearly all rules are plain names, so those are one dictionary;
only the few entries with real rules (a prefix, a regular expression) are tried one by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime, time

from lunar_proxy.core.pricing import Price

Test = Callable[[str], bool]  # of a lower-case model id

# "-20251211" at the end of a part, as LiteLLM and OpenRouter write dates.
_COMPACT_DATE = re.compile(r"-(20\d{2})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")


@dataclass(frozen=True, slots=True)
class Since:
    """In force from the start of a day, UTC."""

    day: date

    def active(self, now: datetime) -> bool:
        return now.date() >= self.day


@dataclass(frozen=True, slots=True)
class Daily:
    """In force between two times of every day, UTC; over midnight when `end` is the earlier."""

    start: time
    end: time

    def active(self, now: datetime) -> bool:
        clock = now.time()
        if self.end < self.start:
            return clock >= self.start or clock < self.end
        return self.start <= clock < self.end


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of a provider. `prices`: the last one in force counts, else the first.

    A price of None is one nobody has told us.
    """

    id: str
    prices: tuple[tuple[Since | Daily | None, Price | None], ...]
    max_input_tokens: int | None = None
    names: tuple[str, ...] = ()  # lower-case ids that mean this entry, `id` not among them
    rules: tuple[Test, ...] = ()
    stems: tuple[str, ...] = ()  # prefixes among the rules, as names a model is known by

    def price(self, now: datetime) -> Price | None:
        for since, price in reversed(self.prices):
            if since is None or since.active(now):
                return price
        return self.prices[0][1] if self.prices else None


class Shelf:
    """The entries of one provider, and where to look when it has none for an id.

    `beyond` are the shelves of makers whose models this provider sells at their price (Azure sells
    OpenAI's); it is one step deep.
    """

    def __init__(self, entries: Iterable[Entry], beyond: tuple[Shelf, ...] = ()) -> None:
        self.entries = tuple(entries)
        self.beyond = beyond
        self._named: dict[str, int] = {}
        for place, entry in enumerate(self.entries):
            for name in entry.names:
                self._named.setdefault(name, place)
        self._ruled = [(place, entry) for place, entry in enumerate(self.entries) if entry.rules]

    def find(self, model: str) -> Entry | None:
        """The entry a model id means, by name or by rule."""
        model = model.lower()
        found = self._find_here_or_beyond(model)
        if found is None and (dashed := _COMPACT_DATE.sub(r"-\1-\2-\3", model)) != model:
            found = self._find_here_or_beyond(dashed)
        return found

    def named(self, model: str) -> Entry | None:
        """The entry whose name is exactly this id."""
        place = self._named.get(model.lower())
        return None if place is None else self.entries[place]

    def _find_here_or_beyond(self, model: str) -> Entry | None:
        for shelf in (self, *self.beyond):
            if (found := shelf._find_here(model)) is not None:
                return found
        return None

    def _find_here(self, model: str) -> Entry | None:
        named = self._named.get(model, len(self.entries))
        for place, entry in self._ruled:
            if place >= named:
                break
            if any(rule(model) for rule in entry.rules):
                return entry
        return self.entries[named] if named < len(self.entries) else None
