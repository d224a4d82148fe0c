"""The command that shows a config, run as its user runs it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import yaml

from lunar_proxy.cli import check


def run(*args: str) -> int:
    parser = argparse.ArgumentParser()
    check.add(parser.add_subparsers())
    parsed = parser.parse_args(["check", *args])
    code = parsed.run(parsed)
    assert isinstance(code, int)
    return code


def test_prints_what_is_in_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lunar.yaml"
    path.write_text("drain_s: 7\nproviders: {openai: {api_key: sk-planted-0123456789}}\n")
    assert run(str(path)) == 0

    out = capsys.readouterr().out
    printed = yaml.safe_load(out)
    assert printed["drain_s"] == 7
    assert printed["retries"]["attempts"] == 2
    assert printed["providers"]["openai"]["api_key"] == "****6789"
    assert "planted" not in out
    assert "#   openai: on, https://api.openai.com/v1\n" in out


def test_says_what_is_wrong_and_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lunar.yaml"
    path.write_text("providers:\n  openai:\n    api_kee: x\nworkers: 0\n")
    assert run(str(path)) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"{path}:3: providers.openai.api_kee: unknown key, did you mean api_key?\n"
        f"{path}:4: workers: must be at least 1\n"
    )


def test_without_a_file_it_shows_what_the_environment_turns_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GROQ_API_KEY", "x")
    monkeypatch.delenv("XAI_API_KEY", raising=False)
    assert run() == 0
    out = capsys.readouterr().out
    assert "#   groq: on, https://api.groq.com/openai/v1\n" in out
    assert "#   xai: off, XAI_API_KEY is not set; a caller's own key is passed on\n" in out
