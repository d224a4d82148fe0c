"""The only reader of files and environment: YAML in, frozen values out.

    file -> document -> schema -> checks -> Config -> providers -> ResolvedProvider, ...

`document` makes plain values of YAML and `${NAME}` and knows the line of each, `schema` holds every
setting with its meaning, `values` the small types they are made of, `checks` what they demand of
each other, `problems` the words for what is wrong. `providers` lays the file over the built-in
table and the environment. `docs` lists every setting for the README.
"""

from .load import load, resolved
from .problems import ConfigError
from .providers import ResolvedProvider, merge_timeouts, providers
from .schema import Config
from .values import Address, Secret, Store, parse_address, parse_store

__all__ = [
    "Address",
    "Config",
    "ConfigError",
    "ResolvedProvider",
    "Secret",
    "Store",
    "load",
    "merge_timeouts",
    "parse_address",
    "parse_store",
    "providers",
    "resolved",
]
