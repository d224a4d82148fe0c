"""The lines of the call log."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
import pytest

from lunar_proxy.app import Log
from lunar_proxy.cli.serve import text_line
from lunar_proxy.testing import call, outcome


@pytest.mark.parametrize("moments", [(0.0, 0.001, 0.9999, 1.0, 86_399.5, 86_400.0, 1.25), (1.8e9,)])
def test_every_line_says_when_in_milliseconds(moments: tuple[float, ...]) -> None:
    written: list[bytes] = []
    log = Log(written.append)
    log([(outcome(call=call(id=str(n))), at) for n, at in enumerate(moments)])
    (text,) = written
    lines = [orjson.loads(line) for line in text.splitlines()]
    assert [(line["time"], line["request_id"]) for line in lines] == [
        (datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"), str(n))
        for n, at in enumerate(moments)
    ]


def test_a_log_that_is_off_writes_nothing() -> None:
    written: list[bytes] = []
    log = Log(written.append)
    log.enabled = False
    log([(outcome(), 1.0)])
    assert not written


WORDS = {
    "a plain name": ("openai/gpt-4o-2024:beta", "openai/gpt-4o-2024:beta"),
    "nothing": ("", '""'),
    "a line of its own": ("m\nevent=call", r'"m\nevent=call"'),
    "a member of its own": ("m status=200", '"m status=200"'),
    "a quote": ('m"', r'"m\""'),
    "a separator that splits lines": ("m\u2028x", r'"m\u2028x"'),
    "an escape sequence": ("m\x1b[2J", r'"m\u001b[2J"'),
}


@pytest.mark.parametrize(("model", "word"), WORDS.values(), ids=WORDS)
def test_no_name_forges_a_line_of_text(model: str, word: str) -> None:
    written: list[bytes] = []
    Log(written.append)([(outcome(call=call(model=model)), 1.0)])
    line = text_line(written[0])
    assert f" model_asked={word} " in line
    assert len(line.splitlines()) == 1
    assert " key=" not in line
