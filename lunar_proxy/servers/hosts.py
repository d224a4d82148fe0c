"""Which hosts are opened, read off the config: for CONNECT, and for what a CA is made for."""

from __future__ import annotations

from collections.abc import Iterable

from lunar_proxy.config import Config, ResolvedProvider
from lunar_proxy.core.connect import HostTable, Policy, host_table
from lunar_proxy.gateway.sites import AZURE, urls_of


def policy(config: Config, providers: Iterable[ResolvedProvider], *, has_ca: bool) -> Policy:
    """What CONNECT may do under this config; nothing is opened until there is a CA."""
    opened = config.intercept.enabled and has_ca
    return Policy(
        intercept=opened_hosts(config, providers) if opened else HostTable(),
        tunnel=config.intercept.tunnel,
        exposed=not config.listen.loopback,
    )


def opened_hosts(config: Config, providers: Iterable[ResolvedProvider]) -> HostTable:
    """The hosts of every provider that can be called, with our key or the caller's own.

    A provider is known by its base URL and, where that was moved, by its maker's host as well: the
    application still asks for the latter.
    """
    usable = [each for each in providers if each.enabled or each.bring_key]
    urls = [(each.id, url) for each in usable for url in urls_of(each)]
    wild = [(AZURE, each.id) for each in usable if each.dialect == "azure"]
    named = [(host.host, host.provider) for host in config.intercept.hosts]
    return host_table(urls, [*named, *wild])


def signable_hosts(config: Config, providers: Iterable[ResolvedProvider]) -> tuple[str, ...]:
    """What a CA is made for: also hosts of providers that are off, so that a key that is added
    later needs no new CA.
    """
    urls = [(each.id, url) for each in providers for url in urls_of(each)]
    named = [(host.host, host.provider) for host in config.intercept.hosts]
    return host_table(urls, [*named, (AZURE, None)]).patterns
