"""Money that was spent: whole units, a ten-billionth of a US dollar each.

Those are the ten decimals that clients are told (CONTRACT 5). Whole numbers add up exactly in any
order, and take a fraction of what `Decimal` does. Prices and budgets are what people write, so they
are `Decimal` US dollars: a price becomes units where a call is priced, a budget where it is read.
"""

from __future__ import annotations

from decimal import Decimal

DECIMALS = 10
UNITS_PER_USD: int = 10**DECIMALS
UNIT = Decimal(1).scaleb(-DECIMALS)


def units(usd: Decimal) -> int:
    """Half a unit rounds to even."""
    return int(usd.quantize(UNIT).scaleb(DECIMALS))


def usd(units: int) -> Decimal:
    """Exact, with ten decimals."""
    return Decimal(units).scaleb(-DECIMALS)
