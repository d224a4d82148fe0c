"""What a token costs and how many there are.

    genai-prices --load()------> {provider: Shelf} --+
    config `prices:` --price_from()--> overrides ----+--> PriceTable --> price(provider, model)
    the clock ------------------------------ now() --+        core.pricing makes it a Cost

`Shelf` (shelf) is what one provider sells: entries, found by name or by rule, with prices that may
change by date or by time of day. `load` (bundled) is the only place that knows genai-prices.
`PriceTable` (table) answers for all providers, the operator's own prices first; it never changes,
so a reload builds another from the same shelves and swaps the reference. `TokenCounter` (tokens)
counts where a provider did not.
"""

from .bundled import load
from .shelf import Entry, Shelf
from .table import PriceTable, price_from
from .tokens import TokenCounter

__all__ = ["Entry", "PriceTable", "Shelf", "TokenCounter", "load", "price_from"]
