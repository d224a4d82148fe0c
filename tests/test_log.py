"""The lines of the call log."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
import pytest

from lunar_proxy.app import Log


@pytest.mark.parametrize("moments", [(0.0, 0.001, 0.9999, 1.0, 86_399.5, 86_400.0, 1.25), (1.8e9,)])
async def test_every_line_says_when_in_milliseconds(moments: tuple[float, ...]) -> None:
    written: list[bytes] = []
    clock = iter(moments)
    log = Log(written.append, lambda: next(clock))
    for n in range(len(moments)):
        log({"n": n})
    assert not written
    log.flush()
    lines = [orjson.loads(line) for line in b"".join(written).splitlines()]
    assert lines == [
        {"time": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"), "n": n}
        for n, at in enumerate(moments)
    ]


async def test_a_log_that_is_off_writes_nothing() -> None:
    written: list[bytes] = []
    log = Log(written.append)
    log.enabled = False
    log({"n": 1})
    log.flush()
    assert not written
