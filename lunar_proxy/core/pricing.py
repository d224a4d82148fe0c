"""Usage x price -> cost, exact.

A usage is cut into shares that do not overlap (plain, cached, cache-written, audio, reasoning),
each share is priced once, and the shares are summed into the three parts of a `Cost`:

    input        plain, cache-written and audio prompt tokens, and the fee per request if any
    cache_input  prompt tokens read from a cache
    output       everything generated, reasoning included

A share without a price of its own costs what the share around it costs: providers list a price
for what differs only. Prices are `Decimal` dollars and costs whole units (`core.money`); floats
exist where an answer is written, not here.

Nearly every answer is plain tokens, at rates which are whole units a token: there a part is one
product of integers, and needs no rounding (`_PerToken`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import NamedTuple

from .model import Cost, Usage
from .money import UNITS_PER_USD, units

PER_MILLION = Decimal("0.000001")
# A dollar a token: more is no rate that anyone pays, and need not be quick.
DEAREST = Decimal(10**6)
SECONDS_PER_HOUR = Decimal(3600)

# What a named tuple is made by is a function in Python around this.
_cost: Callable[[tuple[int, int, int, int]], Cost] = partial(tuple.__new__, Cost)


class _PerToken(NamedTuple):
    """Units per token."""

    input: int
    output: int
    cache_read: int
    always: bool  # no share of a usage has another rate


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens, except `per_request`. None: no price of its own is known.

    `tiers` are the prices which take this one's place for the whole request once its prompt has
    more than so many tokens, in ascending order (the "long context" prices of Anthropic, Google
    and OpenAI work this way: crossing the line re-prices every token).
    """

    input: Decimal | None = None
    output: Decimal | None = None
    cache_read: Decimal | None = None
    cache_write: Decimal | None = None
    reasoning: Decimal | None = None
    input_audio: Decimal | None = None
    output_audio: Decimal | None = None
    cache_audio_read: Decimal | None = None
    per_request: Decimal | None = None  # US dollars for each request
    max_input_tokens: int | None = None
    tiers: tuple[tuple[int, Price], ...] = ()
    _per_token: _PerToken | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_per_token", _per_token(self))

    def at(self, input_tokens: int) -> Price:
        """The price of a request whose whole prompt has `input_tokens`."""
        for above, price in reversed(self.tiers):
            if input_tokens > above:
                return price
        return self


@dataclass(frozen=True, slots=True)
class HourlyPrice:
    """A server paid by the hour: a call costs the time it took."""

    usd_per_hour: Decimal


AnyPrice = Price | HourlyPrice


def cost(usage: Usage, price: AnyPrice, *, duration_s: float = 0.0) -> Cost | None:
    """What an answer cost; None when `price` lacks a rate the usage needs.

    `duration_s` matters by the hour only. Half a unit rounds to even.
    """
    if isinstance(price, HourlyPrice):
        return _by_the_hour(price, duration_s)
    if price.tiers:
        price = price.at(usage.input_tokens)
    rates = price._per_token
    if rates is not None and (rates.always or _is_plain(usage)):
        return _plainly(usage, rates)
    read = min(usage.cache_read_tokens, usage.input_tokens)
    read_audio = min(usage.cache_audio_read_tokens, usage.input_audio_tokens, read)
    input_ = _input(usage, price, read, read_audio)
    cache_input = _cache_input(price, read, read_audio)
    output = _output(usage, price)
    if input_ is None or cache_input is None or output is None:
        return None
    return Cost(input_, output, cache_input, input_ + cache_input + output)


def plain_cost(price: Price, input_tokens: int, output_tokens: int) -> int | None:
    """The total of `cost` for so many plain tokens: what a call may come to, before it is sent."""
    if price.tiers:
        price = price.at(input_tokens)
    rates = price._per_token
    if rates is not None:
        return input_tokens * rates.input + output_tokens * rates.output
    known = cost(Usage(input_tokens, output_tokens), price)
    return None if known is None else known.total


def _per_token(price: Price) -> _PerToken | None:
    """What plain tokens cost, None where that takes more than three rates of whole units."""
    input_, output = _whole_units(price.input), _whole_units(price.output)
    cache_read = _whole_units(_known(price.cache_read, price.input))
    if input_ is None or output is None or cache_read is None or price.per_request is not None:
        return None
    others = (
        price.cache_write,
        price.reasoning,
        price.input_audio,
        price.output_audio,
        price.cache_audio_read,
    )
    return _PerToken(input_, output, cache_read, all(rate is None for rate in others))


def _whole_units(rate: Decimal | None) -> int | None:
    """Units of one token, None where they are not whole."""
    if rate is None or rate > DEAREST:
        return None
    exact = rate * PER_MILLION * UNITS_PER_USD
    return int(exact) if exact == int(exact) else None


def _is_plain(usage: Usage) -> bool:
    return not (
        usage.cache_write_tokens
        or usage.reasoning_tokens
        or usage.input_audio_tokens
        or usage.output_audio_tokens
    )


def _plainly(usage: Usage, rates: _PerToken) -> Cost:
    prompt, generated, read, *_ = usage
    input_rate, output_rate, cache_rate, _ = rates
    output = generated * output_rate
    if not read:  # as mostly
        input_ = prompt * input_rate
        return _cost((input_, output, 0, input_ + output))
    if read > prompt:
        read = prompt
    input_ = (prompt - read) * input_rate
    cache_input = read * cache_rate
    return _cost((input_, output, cache_input, input_ + cache_input + output))


def _by_the_hour(price: HourlyPrice, duration_s: float) -> Cost:
    total = price.usd_per_hour * Decimal(max(duration_s, 0.0)) / SECONDS_PER_HOUR
    return Cost(None, None, None, units(total))


def _input(usage: Usage, price: Price, read: int, read_audio: int) -> int | None:
    write = min(usage.cache_write_tokens, usage.input_tokens - read)
    audio = min(usage.input_audio_tokens - read_audio, usage.input_tokens - read - write)
    spent = _spent(
        (usage.input_tokens - read - write - audio, price.input),
        (write, _known(price.cache_write, price.input)),
        (audio, _known(price.input_audio, price.input)),
    )
    return spent if spent is None or price.per_request is None else spent + units(price.per_request)


def _cache_input(price: Price, read: int, read_audio: int) -> int | None:
    if not read:
        return 0
    audio = _known(price.cache_read, _known(price.input_audio, price.input))
    return _spent(
        (read - read_audio, _known(price.cache_read, price.input)),
        (read_audio, _known(price.cache_audio_read, audio)),
    )


def _output(usage: Usage, price: Price) -> int | None:
    reasoning = min(usage.reasoning_tokens, usage.output_tokens)
    audio = min(usage.output_audio_tokens, usage.output_tokens - reasoning)
    return _spent(
        (usage.output_tokens - reasoning - audio, price.output),
        (reasoning, _known(price.reasoning, price.output)),
        (audio, _known(price.output_audio, price.output)),
    )


def _known(rate: Decimal | None, otherwise: Decimal | None) -> Decimal | None:
    return otherwise if rate is None else rate


def _spent(*shares: tuple[int, Decimal | None]) -> int | None:
    """The sum of tokens x rate in units, or None if a share that is not empty has no rate."""
    millionths = Decimal(0)
    for tokens, rate in shares:
        if tokens:
            if rate is None:
                return None
            millionths += tokens * rate
    return units(millionths * PER_MILLION)
