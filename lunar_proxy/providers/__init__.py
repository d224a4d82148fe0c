"""Pure dialects, one file per provider family.

`base` says what a dialect is, `builtin` which providers are known without configuration; DIALECTS
finds the one a provider speaks. Adding a dialect is one file and one line here.
"""

from collections.abc import Mapping

from .azure import AzureDialect
from .base import Account, Dialect, Origin, Timeouts, UpstreamRequest
from .openai import OpenAIDialect

DIALECTS: Mapping[str, Dialect] = {
    "openai": OpenAIDialect(),
    "azure": AzureDialect(),
    "demo": OpenAIDialect(),  # answered in-process, in the same shape
}

__all__ = ["DIALECTS", "Account", "Dialect", "Origin", "Timeouts", "UpstreamRequest"]
