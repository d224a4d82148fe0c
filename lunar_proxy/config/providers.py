"""Which providers there are, resolved: the file's settings over the built-in table and the
environment. The runtime needs nothing else to reach a provider.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from lunar_proxy.providers.builtin import BUILTIN, DEMO, Builtin

from .schema import Config, ModelPrice, Provider, TimeoutOverrides, Timeouts
from .values import Secret, parse_secret


@dataclass(frozen=True, slots=True)
class ResolvedProvider:
    """A provider as the runtime uses it.

    `enabled`: it can be called with what the proxy has. `bring_key`: the proxy has no key for it
    but may forward the caller's own (CONTRACT 3). A provider with neither is off.
    """

    id: str
    dialect: str
    base_url: str  # no trailing slash; empty only where it is off for want of one
    keys: tuple[Secret, ...] = ()
    enabled: bool = True
    why_disabled: str | None = None
    named: bool = False  # the config file has it, or --demo asked for it
    bring_key: bool = False
    models: tuple[str, ...] | None = None  # globs; None: whatever is asked with its prefix
    prices: Mapping[str, ModelPrice] = field(default_factory=dict)
    headers: Mapping[str, Secret] = field(default_factory=dict)
    api_version: str | None = None
    region: str | None = None
    chat_only: bool = False  # legacy completions are made of its chat
    timeouts: Timeouts = field(default_factory=Timeouts)


def providers(config: Config, environ: Mapping[str, str]) -> tuple[ResolvedProvider, ...]:
    """Those of the file, then the other built-in ones; those that are off too, with the reason."""
    found = [_resolve(id, config, environ) for id in {**config.providers, **BUILTIN}]
    return (*found, *([_demo(config)] if config.demo else []))


def merge_timeouts(base: Timeouts, own: TimeoutOverrides) -> Timeouts:
    """The general timeouts with what a provider or deployment says for itself."""
    return base.model_copy(update=own.model_dump(exclude_none=True))


def _demo(config: Config) -> ResolvedProvider:
    models = ("echo", "lorem")
    return ResolvedProvider(
        DEMO.id,
        DEMO.dialect,
        DEMO.base_url or "",
        named=True,
        models=models,
        timeouts=config.timeouts,
    )


def _resolve(id: str, config: Config, environ: Mapping[str, str]) -> ResolvedProvider:
    named = id in config.providers
    given = config.providers.get(id) or Provider()
    builtin = BUILTIN.get(id) or Builtin(id, None, (), no_key=True)
    keys = _keys(given, builtin, environ)
    base_url = _base_url(given, builtin)
    absent = _absent(given, builtin, base_url, named=named)
    keyed = bool(keys) or builtin.no_key or _AUTH_HEADERS & {name.lower() for name in given.headers}
    why = absent or (None if keyed else f"{' or '.join(builtin.key_variables)} is not set")
    return ResolvedProvider(
        id=id,
        named=named,
        dialect=given.dialect or builtin.dialect,
        base_url=base_url,
        keys=keys,
        enabled=why is None,
        why_disabled=why,
        bring_key=absent is None and not keys and not config.auth.required,
        models=given.models,
        prices=given.prices,
        headers=given.headers,
        api_version=given.api_version,
        region=given.region,
        chat_only=(given.completions or builtin.completions) == "chat",
        timeouts=merge_timeouts(config.timeouts, given.timeouts),
    )


# A provider whose credentials are in one of these needs no key besides.
_AUTH_HEADERS = {"authorization", "api-key", "x-api-key"}


def _keys(given: Provider, builtin: Builtin, environ: Mapping[str, str]) -> tuple[Secret, ...]:
    if (named := _named_keys(given)) is not None:
        return named
    found = (_usable(environ.get(variable, "")) for variable in builtin.key_variables)
    return tuple(key for key in found if key)[:1]


def _named_keys(given: Provider) -> tuple[Secret, ...] | None:
    """Keys the file gives, without empty ones; None where it leaves them to the environment."""
    named = given.api_keys if given.api_key is None else (given.api_key,)
    return None if named is None else tuple(key for key in named if key)


def _usable(key: str) -> Secret | None:
    try:
        return parse_secret(key)
    except ValueError:
        return None


def _base_url(given: Provider, builtin: Builtin) -> str:
    url = given.base_url or builtin.base_url or ""
    return url if not url or urlsplit(url).path else url + builtin.default_path


def _absent(given: Provider, builtin: Builtin, base_url: str, *, named: bool) -> str | None:
    """Why it cannot be called even with a caller's own key; None where it can."""
    if builtin.unsupported:
        return builtin.unsupported
    if builtin.no_key and not named:
        return "is on only where the config names it"
    if _named_keys(given) == ():
        return "api_key is empty"
    return None if base_url else "base_url is not set"
