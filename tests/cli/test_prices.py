"""`lunar-proxy prices show MODEL`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from lunar_proxy.cli import prices

CONFIG = """
providers:
  openai: {prices: {gpt-4o: {input_per_million: 1, output_per_million: 2}}}
  my-vllm:
    base_url: http://127.0.0.1:8000/v1
    prices: {llama-3-70b: {input_per_million: 0.5, output_per_million: 1.5}}
deployments:
  support-bot: {base_url: "http://127.0.0.1:8001/v1", model: v2, cost_per_hour: 2.4}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "lunar.yaml"
    path.write_text(CONFIG)
    return str(path)


def show(*args: str) -> int:
    parser = argparse.ArgumentParser()
    prices.add(parser.add_subparsers())
    parsed = parser.parse_args(["prices", "show", *args])
    code: int = parsed.run(parsed)
    return code


def test_prints_a_line_for_each_seller(capsys: pytest.CaptureFixture[str]) -> None:
    assert show("gpt-4o") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["PROVIDER", "MODEL", "INPUT", "OUTPUT", "CACHED", "WINDOW"]
    assert ["openai", "gpt-4o", "2.5", "10", "1.25", "128000"] in lines
    assert ["openrouter", "openai/gpt-4o", "2.5", "10", "1.25", "128000"] in lines


def test_prints_tiers_and_rarer_prices_below(capsys: pytest.CaptureFixture[str]) -> None:
    assert show("anthropic/claude-sonnet-4-5") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:4] == [
        ["anthropic", "claude-sonnet-4-5", "3", "15", "0.3", "200000"],
        ["prompts", "above", "200000", "6", "22.5", "0.6"],
        ["cache_write", "3.75"],
    ]


def test_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert show("openai/gpt-4o", "--json") == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "provider": "openai",
            "model_id": "gpt-4o",
            "max_input_tokens": 128000,
            "input_per_million": 2.5,
            "output_per_million": 10.0,
            "cache_input_per_million": 1.25,
        }
    ]


def test_a_model_without_a_token_price_is_listed_as_unpriced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert show("whisper-1") == 0
    assert ["openai", "whisper-1", "-", "-", "-", "-"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("openai/gpt-4o", {"input_per_million": 1.0, "output_per_million": 2.0}),
        ("llama-3-70b", {"provider": "my-vllm", "input_per_million": 0.5}),
        ("my-vllm/llama-3-70b", {"provider": "my-vllm", "output_per_million": 1.5}),
        ("lunar/support-bot", {"provider": "lunar", "cost_per_hour": 2.4}),
        ("pureai/support-bot", {"provider": "lunar", "cost_per_hour": 2.4}),
    ],
)
def test_a_configs_prices_come_first(
    config: str, model: str, expected: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(model, "--config", config, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert expected.items() <= row.items()


def test_an_hourly_price_is_printed_as_one(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert show("lunar/support-bot", "--config", config) == 0
    assert "2.4 an hour" in capsys.readouterr().out


def test_an_unknown_model_is_exit_1_with_close_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert show("gpt-4o-mimi") == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "no provider lists 'gpt-4o-mimi'; did you mean gpt-4o-mini" in printed.err


def test_a_model_like_no_other_gets_no_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert show("§§§") == 1
    assert capsys.readouterr().err == "no provider lists '§§§'\n"


def test_a_bad_config_is_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("listem: x\n")
    assert show("gpt-4o", "--config", str(path)) == 2
    assert "listem" in capsys.readouterr().err
