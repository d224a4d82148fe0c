"""How figures are written as JSON: dollars exactly, times to the microsecond."""

from __future__ import annotations

from .money import UNITS_PER_USD

# From here on a float may lose the last of the ten decimals: it has 15 digits.
INEXACT = 10**15


def dollars(units: int) -> float:
    """Exact below `INEXACT` units (100,000 US dollars), when written in its shortest form."""
    return units / UNITS_PER_USD


def decimal(units: int) -> str:
    """The same as a JSON number with a point and no exponent, of whatever size."""
    whole, rest = divmod(units, UNITS_PER_USD)
    return f"{whole}.{f'{rest:010}'.rstrip('0') or '0'}"


def milliseconds(seconds: float) -> float:
    """With three decimals; round() takes twice as long."""
    return int(seconds * 1_000_000 + 0.5) / 1000
