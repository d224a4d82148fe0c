"""Lengths of time as people write them: `90d`, `24h`, `30m`, `45s`, `2w`."""

from __future__ import annotations

import re

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
LONGEST_S = 100 * 365 * 86_400  # a date so far away can still be written
_SHAPE = re.compile(r"([0-9]{1,9})([smhdw])")


def duration_s(text: str) -> float:
    """Seconds; `0` is none. Raises ValueError with a sentence."""
    found = _SHAPE.fullmatch(text)
    if found is None and text != "0":
        raise ValueError(f"{text[:40]!r} is not a time such as 30m, 24h or 90d")
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if seconds > LONGEST_S:
        raise ValueError(f"{text!r} is longer than 100 years")
    return seconds
