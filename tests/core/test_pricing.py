"""Money: exact, each token once, and None where a rate is missing."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal as D
from decimal import localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.core.model import Cost, Usage
from lunar_proxy.core.money import units
from lunar_proxy.core.pricing import HourlyPrice, Price, cost, plain_cost

GPT_4O = Price(input=D("2.5"), output=D("10"), cache_read=D("1.25"))
CLAUDE = Price(input=D("3"), output=D("15"), cache_read=D("0.3"), cache_write=D("3.75"))
LONG = replace(
    CLAUDE, tiers=((200_000, Price(input=D("6"), output=D("22.5"), cache_read=D("0.6"))),)
)
AUDIO = Price(
    input=D("4"),
    output=D("16"),
    cache_read=D("0.4"),
    input_audio=D("32"),
    output_audio=D("64"),
    cache_audio_read=D("0.5"),
)
SONAR = Price(input=D("1"), output=D("1"), per_request=D("0.012"))
RESEARCH = Price(input=D("2"), output=D("8"), reasoning=D("3"))


def parts(input_: str, output: str, cache_input: str) -> Cost:
    given_ = units(D(input_)), units(D(output)), units(D(cache_input))
    return Cost(*given_, total=sum(given_))


@pytest.mark.parametrize(
    ("price", "usage", "expected"),
    [
        (GPT_4O, Usage(), parts("0", "0", "0")),
        (GPT_4O, Usage(1000, 100), parts("0.0025", "0.001", "0")),
        # cached tokens are part of the prompt and paid once, under cache_input
        (GPT_4O, Usage(1000, 0, cache_read_tokens=400), parts("0.0015", "0", "0.0005")),
        (GPT_4O, Usage(1000, 0, cache_read_tokens=1000), parts("0", "0", "0.00125")),
        # more cached than prompted is cut, not a negative input
        (GPT_4O, Usage(10, 0, cache_read_tokens=99), parts("0", "0", "0.0000125")),
        # where no cache price is known, the input price
        (
            Price(input=D(2), output=D(4)),
            Usage(10, 0, cache_read_tokens=5),
            parts("1e-5", "0", "1e-5"),
        ),
        # cache writes are paid under input
        (
            CLAUDE,
            Usage(1000, 10, cache_read_tokens=600, cache_write_tokens=300),
            parts("0.001425", "0.00015", "0.00018"),
        ),
        (GPT_4O, Usage(1000, 0, cache_write_tokens=1000), parts("0.0025", "0", "0")),
        # crossing a tier re-prices the whole request; standing on it does not
        (LONG, Usage(200_000, 1000), parts("0.6", "0.015", "0")),
        (LONG, Usage(200_001, 1000), parts("1.200006", "0.0225", "0")),
        (LONG, Usage(300_000, 0, cache_read_tokens=300_000), parts("0", "0", "0.18")),
        # audio where it has its own price
        (
            AUDIO,
            Usage(100, 50, input_audio_tokens=60, output_audio_tokens=20),
            parts("0.00208", "0.00176", "0"),
        ),
        (
            AUDIO,
            Usage(
                100,
                0,
                cache_read_tokens=50,
                input_audio_tokens=60,
                cache_audio_read_tokens=40,
            ),
            parts("0.00076", "0", "0.000024"),
        ),
        (
            GPT_4O,
            Usage(100, 50, input_audio_tokens=60, output_audio_tokens=20),
            parts("0.00025", "0.0005", "0"),
        ),
        # cached audio that has no price for being cached is still audio
        (
            Price(input=D(1), output=D(2), input_audio=D(10)),
            Usage(10, 0, cache_read_tokens=10, input_audio_tokens=4, cache_audio_read_tokens=4),
            parts("0", "0", "0.000046"),
        ),
        # reasoning is paid under output
        (GPT_4O, Usage(0, 100, reasoning_tokens=90), parts("0", "0.001", "0")),
        (RESEARCH, Usage(0, 100, reasoning_tokens=90), parts("0", "0.00035", "0")),
        (SONAR, Usage(1000, 1000), parts("0.013", "0.001", "0")),
        # an embedding model has no output price and needs none
        (Price(input=D("0.02")), Usage(8, 0), parts("0.00000016", "0", "0")),
        # a free model costs nothing, which is known
        (Price(input=D(0), output=D(0)), Usage(8, 8), parts("0", "0", "0")),
    ],
)
def test_each_token_is_paid_once_in_its_part(price: Price, usage: Usage, expected: Cost) -> None:
    assert cost(usage, price) == expected


@pytest.mark.parametrize(
    ("price", "usage"),
    [
        (Price(), Usage(1, 0)),
        (Price(input=D(1)), Usage(1, 1)),
        (Price(output=D(1)), Usage(1, 1)),
        (Price(output=D(1)), Usage(1, 0, cache_read_tokens=1)),
    ],
)
def test_a_rate_that_is_needed_and_missing_means_no_cost(price: Price, usage: Usage) -> None:
    assert cost(usage, price) is None


def test_by_the_hour_only_the_total_is_known() -> None:
    assert cost(Usage(9, 9), HourlyPrice(D("2.4")), duration_s=1.5) == Cost(
        None, None, None, 10_000_000
    )


def test_a_clock_that_went_backwards_costs_nothing() -> None:
    assert cost(Usage(), HourlyPrice(D("2.4")), duration_s=-1) == Cost(None, None, None, 0)


def test_every_part_is_whole_units() -> None:
    less = cost(Usage(1, 1, cache_read_tokens=1), Price(D("0.000033"), D("0.000017")))
    assert less == Cost(0, 0, 0, 0)
    spent = cost(Usage(3, 0), Price(D("0.15")))
    assert spent == Cost(4500, 0, 0, 4500)
    assert spent is not None
    assert [type(part) for part in spent] == [int] * 4


RATES = st.decimals(min_value=0, max_value=1000, places=5)
PRICES = st.builds(
    Price,
    input=RATES,
    output=RATES,
    cache_read=st.none() | RATES,
    cache_write=st.none() | RATES,
    reasoning=st.none() | RATES,
    input_audio=st.none() | RATES,
    output_audio=st.none() | RATES,
    cache_audio_read=st.none() | RATES,
)
TOKENS = st.integers(0, 10**12)
USAGES = st.builds(Usage, *[TOKENS] * 8)


@given(USAGES, PRICES)
def test_the_total_is_the_sum_of_its_parts_and_none_is_negative(usage: Usage, price: Price) -> None:
    spent = cost(usage, price)
    assert spent is not None
    assert spent.input is not None
    assert spent.output is not None
    assert spent.cache_input is not None
    assert min(spent.input, spent.output, spent.cache_input) >= 0
    assert spent.input + spent.output + spent.cache_input == spent.total


@given(USAGES, PRICES, st.integers(1, 10**6))
def test_more_tokens_never_cost_less(usage: Usage, price: Price, more: int) -> None:
    before = cost(usage, price)
    longer = cost(usage._replace(output_tokens=usage.output_tokens + more), price)
    assert before is not None
    assert longer is not None
    assert longer.total >= before.total


@given(PRICES, TOKENS, st.integers(1, 10**6))
def test_a_longer_plain_prompt_never_costs_less(price: Price, tokens: int, more: int) -> None:
    short, long = cost(Usage(tokens), price), cost(Usage(tokens + more), price)
    assert short is not None
    assert long is not None
    assert long.total >= short.total


# Of four decimals per million, so that plain tokens need no rounding.
@given(PRICES, TOKENS, TOKENS)
def test_plain_tokens_may_be_priced_without_their_parts(
    price: Price, prompt: int, output: int
) -> None:
    known = cost(Usage(prompt, output), price)
    assert plain_cost(price, prompt, output) == (None if known is None else known.total)


@pytest.mark.parametrize("tokens", [200_000, 200_001])
def test_a_long_prompt_is_dearer_before_it_is_sent_too(tokens: int) -> None:
    known = cost(Usage(tokens, 1), LONG)
    assert known is not None
    assert plain_cost(LONG, tokens, 1) == known.total


WHOLE = st.decimals(min_value=0, max_value=1000, places=4)


@given(USAGES, st.builds(Price, input=WHOLE, output=WHOLE, cache_read=st.none() | WHOLE))
def test_a_rate_named_twice_changes_nothing(usage: Usage, price: Price) -> None:
    named = replace(price, cache_write=price.input, reasoning=price.output)
    spent, same = cost(usage, price), cost(usage, named)
    assert spent == same
    assert str(spent) == str(same)


@pytest.mark.parametrize("rate", ["0.0001", "0.00005", "0.00015", "1000000", "1000001"])
@pytest.mark.parametrize("tokens", [0, 1, 3, 10**12])
def test_plain_tokens_cost_their_number_times_the_rate(rate: str, tokens: int) -> None:
    spent = cost(Usage(tokens, tokens), Price(D(rate), D(rate)))
    with localcontext(prec=60):
        exact = units((tokens * D(rate)).scaleb(-6))
        assert spent == Cost(exact, exact, 0, exact + exact)
