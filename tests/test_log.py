"""The lines of the call log."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
import pytest

from lunar_proxy.app import Log
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
