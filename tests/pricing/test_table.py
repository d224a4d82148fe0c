"""Who sells what, at whose price, and nothing made up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal as D

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.core.pricing import HourlyPrice, Price
from lunar_proxy.pricing import Entry, PriceTable, Shelf, price_from
from lunar_proxy.pricing.shelf import Since
from lunar_proxy.pricing.table import REMEMBERED

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("provider", "model", "input_", "output"),
    [
        ("openai", "gpt-4o", "2.5", "10"),
        ("openai", "GPT-4o-2024-08-06", "2.5", "10"),
        ("openai", "gpt-4o-mini", "0.15", "0.6"),
        ("openai", "text-embedding-3-small", "0.02", None),
        ("azure", "gpt-4o", "2.5", "10"),
        ("anthropic", "claude-sonnet-4-5", "3", "15"),
        ("anthropic", "claude-sonnet-4-5-20250929", "3", "15"),
        ("gemini", "gemini-2.5-pro", "1.25", "10"),
        ("groq", "llama-3.3-70b-versatile", "0.59", "0.79"),
        ("openrouter", "openai/gpt-4o", "2.5", "10"),
        ("openrouter", "meta-llama/llama-3.3-70b-instruct:free", "0", "0"),
        ("bedrock", "us.anthropic.claude-3-5-sonnet-20240620-v1:0", "3", "15"),
    ],
)
def test_lists_the_providers_own_price(
    table: PriceTable, provider: str, model: str, input_: str, output: str | None
) -> None:
    price = table.price(provider, model)
    assert isinstance(price, Price)
    assert price.input == D(input_)
    assert price.output == (None if output is None else D(output))


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-9-imaginary"),
        ("openai", "claude-sonnet-4-5"),
        ("gemini", "claude-sonnet-4-5"),  # that is Vertex
        ("azure", "deepseek-chat"),  # DeepSeek's off-peak price is DeepSeek's
        ("my-vllm", "gpt-4o"),
        ("ollama", "llama3"),
        ("sambanova", "Meta-Llama-3.3-70B-Instruct"),
        ("cerebras", "qwen-3-coder-480b"),  # listed, without a price
        ("openai", "whisper-1"),  # by the minute
        ("openai", ""),
        ("", ""),
    ],
)
def test_unknown_is_none_and_never_another_vendors_price(
    table: PriceTable, provider: str, model: str
) -> None:
    assert table.price(provider, model) is None


def test_the_operators_price_comes_first(shelves: Mapping[str, Shelf]) -> None:
    cheap, glob, hourly = Price(D(1), D(2)), Price(D(3)), HourlyPrice(D("2.4"))
    table = PriceTable(
        shelves,
        now=lambda: NOON,
        overrides={
            "openai": {"gpt-4*": glob, "gpt-4o": cheap},
            "my-vllm": {"llama-*": cheap},
            "lunar": {"support-bot": hourly},
        },
    )
    assert table.price("openai", "gpt-4o") == cheap
    assert table.price("openai", "gpt-4o-mini") == glob
    assert table.price("openai", "o3") != glob
    assert table.price("my-vllm", "llama-3-70b") == cheap
    assert table.price("my-vllm", "gpt-4o") is None
    assert table.price("lunar", "support-bot") == hourly


@pytest.mark.parametrize(
    ("fields", "price"),
    [
        (
            {"input_per_million": 0.5, "output_per_million": 1.5, "cache_input_per_million": 0.1},
            Price(D("0.5"), D("1.5"), cache_read=D("0.1")),
        ),
        ({"input_per_million": D("0.1"), "output_per_million": None}, Price(D("0.1"))),
        ({"input_per_million": 1, "cache_write_per_million": "2"}, Price(D(1), cache_write=D(2))),
    ],
)
def test_reads_a_price_as_it_is_written(fields: Mapping[str, object], price: Price) -> None:
    assert price_from(fields) == price


@pytest.mark.parametrize("amount", [-1, math.inf, math.nan])
def test_an_impossible_price_is_refused(amount: float) -> None:
    with pytest.raises(ValueError, match="input_per_million"):
        price_from({"input_per_million": amount})


def test_a_price_of_an_unknown_field_is_refused() -> None:
    with pytest.raises(KeyError, match="per_word"):
        price_from({"per_word": 1})


@pytest.mark.parametrize(
    ("provider", "model", "window"),
    [
        ("openai", "gpt-4o", 128_000),
        ("anthropic", "claude-sonnet-4-5-20250929", 200_000),
        ("gemini", "gemini-2.5-pro", 1_048_576),  # from OpenRouter's list
        ("openai", "gpt-9-imaginary", None),
        ("my-vllm", "gpt-4o", None),
    ],
)
def test_windows(table: PriceTable, provider: str, model: str, window: int | None) -> None:
    assert table.window(provider, model) == window


@pytest.mark.parametrize(
    ("model", "sellers"),
    [
        ("gpt-4o", {"openai": "gpt-4o", "azure": "gpt-4o", "openrouter": "openai/gpt-4o"}),
        ("gpt-4o-2024-08-06", {"openai": "gpt-4o-2024-08-06", "azure": "gpt-4o-2024-08-06"}),
        ("gemini-2.5-pro", {"gemini": "gemini-2.5-pro", "openrouter": "google/gemini-2.5-pro"}),
        (
            "claude-sonnet-4-5-20250929",
            {"anthropic": "claude-sonnet-4-5-20250929", "azure": "claude-sonnet-4-5-20250929"},
        ),
        ("llama-3.3-70b-versatile", {"groq": "llama-3.3-70b-versatile"}),
        ("us.anthropic.claude-3-haiku-20240307-v1:0", {"bedrock": None}),
        ("gpt-9-imaginary", {}),
        ("", {}),
    ],
)
def test_who_sells_a_bare_model(
    table: PriceTable, model: str, sellers: Mapping[str, str | None]
) -> None:
    found = dict(table.providers_of(model))
    assert {k: v for k, v in found.items() if v} == {k: v or model for k, v in sellers.items()} | (
        {k: v for k, v in found.items() if (k, v) == ("openrouter", f"openai/{model}")}
    )


def test_open_weights_are_found_under_every_sellers_own_spelling(table: PriceTable) -> None:
    sellers = dict(table.providers_of("gpt-oss-120b"))
    assert sellers["groq"] == "openai/gpt-oss-120b"
    assert sellers["cerebras"] == "gpt-oss-120b"
    assert sellers["fireworks"] == "accounts/fireworks/models/gpt-oss-120b"
    assert "openai" not in sellers


def test_a_name_that_two_vendors_share_is_nobodys() -> None:
    shelf = Shelf([Entry(id, ((None, None),), names=(id,)) for id in ("a/x", "b/x", "b/y")])
    table = PriceTable({"together": shelf}, now=lambda: NOON)
    assert table.providers_of("x") == []
    assert table.providers_of("y") == [("together", "b/y")]
    assert table.providers_of("A/X") == [("together", "a/x")]


def test_who_sells_includes_what_the_operator_prices(shelves: Mapping[str, Shelf]) -> None:
    own = {"my-vllm": {"llama-3-70b": Price(D(1)), "any-*": Price(D(1))}}
    table = PriceTable(shelves, now=lambda: NOON, overrides=own)
    assert table.providers_of("llama-3-70b") == [("my-vllm", "llama-3-70b")]
    assert table.providers_of("any-thing") == []
    assert table.known("llama-3-70b")


@pytest.mark.parametrize(
    ("model", "known", "label"),
    [
        ("gpt-4o", True, "gpt-4o"),
        ("GPT-4o", True, "gpt-4o"),
        ("gpt-4o-mini-2024-07-18", True, "gpt-4o-mini-2024-07-18"),
        ("claude-sonnet-4-5", True, "claude-sonnet-4-5"),
        ("claude-opus-4-1-20250805", True, "claude-opus-4-1-20250805"),
        ("claude-3-haiku-20241313", False, "claude-3-haiku"),
        ("claude-3-5-sonnet-latest", False, "claude-3-5-sonnet"),
        ("openai/gpt-4o", True, "openai/gpt-4o"),
        ("us.anthropic.claude-3-haiku-20240307-v1:0", False, None),
        ("gpt-4o-hallucinated", False, "other"),
        ("claude-sonnet-4-5-hallucinated", False, "other"),
        ("", False, "other"),
    ],
)
def test_labels(table: PriceTable, model: str, known: bool, label: str | None) -> None:
    assert table.known(model) is known
    assert table.label(model) == (label or "anthropic.claude-3-haiku-20240307-v1:0")


@given(
    st.sampled_from(["gpt-4o", "claude-sonnet-4-5", "us.anthropic.claude-3-haiku-20240307", "x"]),
    st.text(),
)
def test_invented_names_are_one_label(table: PriceTable, stem: str, tail: str) -> None:
    label = table.label(stem + tail)
    assert label == "other" or table.known(label)


def test_invented_names_do_not_pile_up(table: PriceTable) -> None:
    for n in range(REMEMBERED + 10):
        assert table.price("openai", f"invented-{n}") is None
    assert len(table._found) <= REMEMBERED
    assert table.price("openai", "gpt-4o") is not None


def test_names_of_megabytes_are_not_kept(table: PriceTable) -> None:
    name = "gpt-4o-" + "x" * 2**20
    table.price("openai", name)
    assert not any(model == name for _, model in (*table._found, *table._lasting))


def test_a_price_that_depends_on_the_time_is_asked_for_each_time() -> None:
    old, new = Price(D(1)), Price(D(2))
    days = iter((NOON, NOON + timedelta(days=1), NOON))
    dated = Entry("m", ((None, old), (Since(date(2026, 11, 23)), new)), names=("m",))
    table = PriceTable({"openai": Shelf([dated])}, now=lambda: next(days))
    assert [table.price("openai", "m") for _ in range(3)] == [old, new, old]


def test_the_catalogue_has_a_row_for_each_model_under_a_name_one_can_ask_for(
    table: PriceTable,
) -> None:
    rows = {row["id"]: row for row in table.catalogue()}
    assert len(rows) == len(table.catalogue())
    gpt = rows["gpt-4o"]
    assert gpt["owned_by"] == "openai"
    assert (gpt["input_per_million"], gpt["output_per_million"]) == (2.5, 10.0)
    assert gpt["cache_input_per_million"] == 1.25
    assert {seller["id"]: seller["model_id"] for seller in gpt["providers"]} == {
        "openai": "gpt-4o",
        "azure": "gpt-4o",
        "openrouter": "openai/gpt-4o",
    }
    assert rows["whisper-1"]["input_per_million"] is None
    for id_, row in rows.items():
        sellers = table.providers_of(id_)
        assert any(seller["id"] in dict(sellers) for seller in row["providers"]), id_


def test_the_catalogue_of_some_providers_is_theirs_alone(table: PriceTable) -> None:
    rows = table.catalogue({"groq"})
    assert rows
    assert {seller["id"] for row in rows for seller in row["providers"]} == {"groq"}
    assert {row["owned_by"] for row in rows} == {"groq"}
    assert table.catalogue(()) == []


def test_the_catalogue_lists_the_operators_models_and_prices(
    shelves: Mapping[str, Shelf],
) -> None:
    own = {"my-vllm": {"llama-3-70b": Price(D("0.5"), D("1.5"), D("0.1")), "x-*": Price(D(1))}}
    table = PriceTable(shelves, now=lambda: NOON, overrides=own)
    assert table.catalogue({"my-vllm"}) == [
        {
            "id": "llama-3-70b",
            "owned_by": "my-vllm",
            "input_per_million": 0.5,
            "output_per_million": 1.5,
            "cache_input_per_million": 0.1,
            "cache_write_per_million": None,
            "max_input_tokens": None,
            "providers": [
                {
                    "id": "my-vllm",
                    "model_id": "llama-3-70b",
                    "input_per_million": 0.5,
                    "output_per_million": 1.5,
                    "cache_input_per_million": 0.1,
                    "cache_write_per_million": None,
                    "max_input_tokens": None,
                }
            ],
        }
    ]
