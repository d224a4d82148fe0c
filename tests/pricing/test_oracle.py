"""Our costs against genai-prices' own arithmetic, over every model both can price."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

import pytest
from genai_prices import Usage as TheirUsage
from genai_prices import calc_price
from genai_prices.data import providers as THEIRS

from lunar_proxy.core.model import Usage
from lunar_proxy.core.money import units
from lunar_proxy.core.pricing import cost
from lunar_proxy.pricing import PriceTable, Shelf
from lunar_proxy.pricing.bundled import THEIR_IDS

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
# Twice a tier's border and beyond, one hour of each deepseek price, and days on both sides of a
# price change.
MOMENTS = (
    NOON,
    datetime(2026, 11, 22, 2, tzinfo=UTC),
    datetime(2026, 11, 22, 20, tzinfo=UTC),
    datetime(2025, 1, 1, tzinfo=UTC),
)
USAGES = (
    Usage(1000, 500),
    Usage(1000, 0),
    Usage(1000, 500, cache_read_tokens=400),
    Usage(1000, 500, cache_read_tokens=400, cache_write_tokens=300),
    Usage(200_000, 500, cache_read_tokens=100_000),
    Usage(200_001, 500, cache_read_tokens=100_000),
    Usage(1_000_000, 500, cache_write_tokens=7),
    Usage(1000, 500, reasoning_tokens=333),
    Usage(1000, 500, input_audio_tokens=600, output_audio_tokens=100),
    Usage(
        1000,
        500,
        cache_read_tokens=500,
        input_audio_tokens=600,
        cache_audio_read_tokens=300,
    ),
)
# Priced by what `usage` does not say (see bundled).
OUTPUT_UNKNOWN = ("output_image_mtok", "output_video_mtok")


def theirs(usage: Usage) -> TheirUsage:
    return TheirUsage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        output_reasoning_tokens=usage.reasoning_tokens,
        input_audio_tokens=usage.input_audio_tokens,
        output_audio_tokens=usage.output_audio_tokens,
        cache_audio_read_tokens=usage.cache_audio_read_tokens,
        cache_write_1h_tokens=0,
        cache_write_5m_tokens=0,
        input_image_tokens=0,
        cache_image_read_tokens=0,
        output_image_tokens=0,
        input_video_tokens=0,
        output_video_tokens=0,
        output_citation_tokens=0,
        web_searches=0,
        storage_searches=0,
        audio_seconds=0,
        input_audio_seconds=0,
    )


def priced_models(shelves: Mapping[str, Shelf]) -> Iterator[tuple[str, str, str]]:
    for ours, their_id in THEIR_IDS.items():
        for entry in shelves[ours].entries:
            if shelves[ours].find(entry.id) is entry:
                yield ours, their_id, entry.id


@pytest.mark.parametrize("now", MOMENTS, ids=str)
def test_every_model_costs_what_genai_prices_says(
    shelves: Mapping[str, Shelf], now: datetime
) -> None:
    table = PriceTable(shelves, now=lambda: now)
    compared = 0
    for ours, their_id, model in priced_models(shelves):
        price = table.price(ours, model)
        for usage in USAGES:
            spent = None if price is None else cost(usage, price)
            if spent is None:
                continue
            expected = calc_price(
                theirs(usage), model, provider_id=their_id, genai_request_timestamp=now
            )
            assert spent.total == units(expected.total_price), (ours, model, usage)
            compared += 1
    assert compared > 10_000


def test_what_is_left_unpriced_is_what_tokens_cannot_price(
    shelves: Mapping[str, Shelf], table: PriceTable
) -> None:
    listed = {
        (provider.id, model.id): model.get_prices(NOON)
        for provider in THEIRS
        for model in provider.models
    }
    for ours, their_id, model in priced_models(shelves):
        price = table.price(ours, model)
        if price is None or cost(Usage(1, 1), price) is None:
            rates = {name for name, rate in vars(listed[their_id, model]).items() if rate}
            by_tokens = {"input_mtok", "output_mtok"} <= rates
            assert not by_tokens or rates & set(OUTPUT_UNKNOWN), (ours, model, rates)


def test_a_price_follows_the_hour(shelves: Mapping[str, Shelf]) -> None:
    clock = [NOON]
    table = PriceTable(shelves, now=lambda: clock[0])
    seen = set()
    for _ in range(24):
        seen.add(table.price("deepseek", "deepseek-chat"))
        clock[0] += timedelta(hours=1)
    assert len(seen) == 2
