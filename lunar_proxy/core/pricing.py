"""Usage x price -> cost, exact.

A usage is cut into shares that do not overlap (plain, cached, cache-written, audio, reasoning),
each share is priced once, and the shares are summed into the three parts of a `Cost`:

    input        plain, cache-written and audio prompt tokens, and the fee per request if any
    cache_input  prompt tokens read from a cache
    output       everything generated, reasoning included

A share without a price of its own costs what the share around it costs: providers list a price
for what differs only. All money is `Decimal`; floats exist where an answer is written, not here.

Nearly every answer is plain tokens, at rates per token which are whole in the tenth decimal: there
a part is one exact product, and needs no rounding (`_PerToken`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import NamedTuple

from .model import Cost, Usage

PER_MILLION = Decimal("0.000001")
TENTH_DECIMAL = Decimal("1E-10")  # CONTRACT 5: ten decimals
NOTHING = Decimal("0E-10")
# A dollar a token. Products with the most tokens an answer may have stay within 28 digits.
DEAREST = Decimal(10**6)
SECONDS_PER_HOUR = Decimal(3600)

# What a named tuple is made by is a function in Python around this.
_cost: Callable[[tuple[Decimal, Decimal, Decimal, Decimal]], Cost] = partial(tuple.__new__, Cost)


class _PerToken(NamedTuple):
    """US dollars per token, each with ten decimals."""

    input: Decimal
    output: Decimal
    cache_read: Decimal
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
    """What an answer cost, in US dollars; None when `price` lacks a rate the usage needs.

    `duration_s` matters by the hour only. Half a unit in the tenth decimal rounds to even.
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


def plain_cost(price: Price, input_tokens: int, output_tokens: int) -> Decimal | None:
    """The total of `cost` for so many plain tokens: what a call may come to, before it is sent."""
    if price.tiers:
        price = price.at(input_tokens)
    rates = price._per_token
    if rates is not None:
        return input_tokens * rates.input + output_tokens * rates.output
    known = cost(Usage(input_tokens, output_tokens), price)
    return None if known is None else known.total


def _per_token(price: Price) -> _PerToken | None:
    """What plain tokens cost, None where that takes more than three rates of ten decimals."""
    input_, output = _ten_decimals(price.input), _ten_decimals(price.output)
    cache_read = _ten_decimals(_known(price.cache_read, price.input))
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


def _ten_decimals(rate: Decimal | None) -> Decimal | None:
    """The rate of one token, None where ten decimals do not hold it."""
    if rate is None or rate > DEAREST:
        return None
    exact = rate * PER_MILLION
    rounded = exact.quantize(TENTH_DECIMAL)
    return rounded if rounded == exact else None


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
        return _cost((input_, output, NOTHING, input_ + output))
    if read > prompt:
        read = prompt
    input_ = (prompt - read) * input_rate
    cache_input = read * cache_rate
    return _cost((input_, output, cache_input, input_ + cache_input + output))


def _by_the_hour(price: HourlyPrice, duration_s: float) -> Cost:
    total = price.usd_per_hour * Decimal(max(duration_s, 0.0)) / SECONDS_PER_HOUR
    return Cost(None, None, None, total.quantize(TENTH_DECIMAL))


def _input(usage: Usage, price: Price, read: int, read_audio: int) -> Decimal | None:
    write = min(usage.cache_write_tokens, usage.input_tokens - read)
    audio = min(usage.input_audio_tokens - read_audio, usage.input_tokens - read - write)
    spent = _dollars(
        (usage.input_tokens - read - write - audio, price.input),
        (write, _known(price.cache_write, price.input)),
        (audio, _known(price.input_audio, price.input)),
    )
    return spent if spent is None or price.per_request is None else spent + price.per_request


def _cache_input(price: Price, read: int, read_audio: int) -> Decimal | None:
    if not read:
        return NOTHING
    audio = _known(price.cache_read, _known(price.input_audio, price.input))
    return _dollars(
        (read - read_audio, _known(price.cache_read, price.input)),
        (read_audio, _known(price.cache_audio_read, audio)),
    )


def _output(usage: Usage, price: Price) -> Decimal | None:
    reasoning = min(usage.reasoning_tokens, usage.output_tokens)
    audio = min(usage.output_audio_tokens, usage.output_tokens - reasoning)
    return _dollars(
        (usage.output_tokens - reasoning - audio, price.output),
        (reasoning, _known(price.reasoning, price.output)),
        (audio, _known(price.output_audio, price.output)),
    )


def _known(rate: Decimal | None, otherwise: Decimal | None) -> Decimal | None:
    return otherwise if rate is None else rate


def _dollars(*shares: tuple[int, Decimal | None]) -> Decimal | None:
    """The sum of tokens x rate, or None if a share that is not empty has no rate."""
    millionths = NOTHING
    for tokens, rate in shares:
        if tokens:
            if rate is None:
                return None
            millionths += tokens * rate
    return (millionths * PER_MILLION).quantize(TENTH_DECIMAL)
