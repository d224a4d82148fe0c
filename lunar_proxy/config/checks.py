"""What settings demand of each other: dead references, cycles, unsafe and impossible combinations.

Each check reads only the sections it is registered under, so it can run although others are broken.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from lunar_proxy.providers.builtin import BUILTIN, DEPLOYMENT_PREFIXES, DIALECTS, RESERVED_IDS

from .problems import Path, Problem, did_you_mean
from .schema import Alias, Config, Deployment, Jwt, Provider
from .values import Address

Check = Callable[[Config], Iterable[Problem]]


def check(config: Config, broken: Iterable[str]) -> list[Problem]:
    """Problems of a config of which the sections `broken` hold defaults instead of their values."""
    bad = set(broken)
    return [
        problem
        for sections, rule in CHECKS
        if not bad.intersection(sections)
        for problem in rule(config)
    ]


# --- providers and deployments ------------------------------------------------------------------


def _providers(config: Config) -> Iterator[Problem]:
    for id, provider in config.providers.items():
        for setting, message in _provider(id, provider):
            yield Problem(("providers", id, *setting), message)


def _provider(id: str, given: Provider) -> Iterator[tuple[Path, str]]:
    builtin = BUILTIN.get(id)
    dialect = given.dialect or (builtin.dialect if builtin else "openai")
    if id in RESERVED_IDS:
        yield (), "this id has a meaning of its own; choose another"
    elif not _ID.fullmatch(id):
        yield (), "an id is letters, digits, '.', '_' and '-'"
    elif builtin and builtin.unsupported:
        yield (), builtin.unsupported
        return
    if dialect not in DIALECTS:
        yield ("dialect",), _unknown_dialect(dialect)
    if given.base_url is None and (builtin is None or builtin.base_url is None):
        yield ("base_url",), "is required" + _unless_builtin(id)
    if dialect == "azure" and _lacks_version(given.base_url, given.api_version):
        yield ("api_version",), "is required for azure"
    if given.api_key is not None and given.api_keys is not None:
        yield ("api_keys",), "excludes api_key; put every key in api_keys"


def _lacks_version(base_url: object, api_version: str | None) -> bool:
    """Azure's newer surface, /openai/v1, has no versions in its query."""
    return api_version is None and not str(base_url or "").endswith("/openai/v1")


def _unless_builtin(id: str) -> str:
    if id in BUILTIN:
        return ""
    return ": this is not a built-in provider" + did_you_mean(id, BUILTIN)


_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _unknown_dialect(dialect: str) -> str:
    return f"must be {' or '.join(DIALECTS)}{did_you_mean(dialect, DIALECTS)}"


def _deployments(config: Config) -> Iterator[Problem]:
    for name, deployment in config.deployments.items():
        for setting, message in _deployment(deployment):
            yield Problem(("deployments", name, setting), message)


def _deployment(given: Deployment) -> Iterator[tuple[str, str]]:
    if given.dialect not in DIALECTS:
        yield "dialect", _unknown_dialect(given.dialect)
    if given.dialect == "azure" and _lacks_version(given.base_url, given.api_version):
        yield "api_version", "is required for azure"
    if given.cost_per_hour is not None and given.price is not None:
        yield "cost_per_hour", "excludes price"


def _loops(config: Config) -> Iterator[Problem]:
    for section, entries in (
        ("providers", config.providers),
        ("deployments", config.deployments),
    ):
        for name, entry in entries.items():
            if entry.base_url and _is(entry.base_url, config.listen):
                yield Problem((section, name, "base_url"), "is this proxy itself (listen)")


def _is(url: str, address: Address) -> bool:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = (parts.hostname or "").lower()
    here = {address.host.lower()} | (
        {"localhost", "127.0.0.1", "::1"} if _local(address) else set()
    )
    return port == address.port and host in here


def _local(address: Address) -> bool:
    return address.loopback or address.host in ("0.0.0.0", "::")


# --- names that stand for targets -----------------------------------------------------------------


def _alias_names(config: Config) -> Iterator[Problem]:
    for name, alias in config.models.items():
        if name == "auto" or name.startswith("auto:"):
            yield Problem(("models", name), "auto is the router's name; choose another")
        if alias.strategy == "weighted" and not any(entry.weight for entry in alias.targets):
            yield Problem(("models", name, "targets"), "needs a weight above 0")
        if name in _reached(name, config.models):
            yield Problem(("models", name, "targets"), _cycle(name, alias))


def _cycle(name: str, alias: Alias) -> str:
    if any(entry.target == name for entry in alias.targets):
        return f"refers to itself; name the provider, such as openai/{name.rpartition('/')[2]}"
    return "refers to itself through other names"


def _reached(start: str, aliases: Mapping[str, Alias]) -> set[str]:
    """Every name that can be come to from `start`, in one step or more."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        alias = aliases.get(todo.pop())
        for entry in alias.targets if alias else ():
            if entry.target not in seen:
                seen.add(entry.target)
                todo.append(entry.target)
    return seen


def _references(config: Config) -> Iterator[Problem]:
    for path, name in _named_targets(config):
        if message := _dead(name, config):
            yield Problem(path, message)


def _named_targets(config: Config) -> Iterator[tuple[Path, str]]:
    for alias, value in config.models.items():
        for index, entry in enumerate(value.targets):
            yield ("models", alias, "targets", index), entry.target
    for key, targets in config.fallbacks.items():
        if "/" in key and not _GLOB.search(key):
            yield ("fallbacks", key), key
        for index, target in enumerate(targets):
            yield ("fallbacks", key, index), target
    if config.router.default_model is not None:
        yield ("router", "default_model"), config.router.default_model


_GLOB = re.compile(r"[*?\[]")


def _dead(name: str, config: Config) -> str | None:
    """Why nothing can be called by this name; None where something can, or nobody can tell."""
    if name in config.models:
        return None
    if _GLOB.search(name):
        return "must name one model; a glob can only be called by its left side"
    prefix, slash, rest = name.partition("/")
    if not slash or _served_whole(name, config):
        return None
    if not rest:
        return "has no model after the slash"
    return _dead_prefix(prefix, rest, config)


def _dead_prefix(prefix: str, rest: str, config: Config) -> str | None:
    if prefix in DEPLOYMENT_PREFIXES:
        if rest in config.deployments:
            return None
        return "no such deployment" + did_you_mean(rest, config.deployments)
    if prefix == "demo":
        return None if config.demo else "demo is there only with --demo"
    known = {**BUILTIN, **config.providers}
    return None if prefix in known else "no such provider" + did_you_mean(prefix, known)


def _served_whole(name: str, config: Config) -> bool:
    """`meta-llama/Llama-3` is a model id as it stands where a provider lists it."""
    return any(
        fnmatchcase(name, glob)
        for provider in config.providers.values()
        for glob in provider.models or ()
    )


def _intercept_hosts(config: Config) -> Iterator[Problem]:
    known = {**BUILTIN, **config.providers}
    for index, entry in enumerate(config.intercept.hosts):
        if entry.provider is not None and entry.provider not in known:
            message = "no such provider" + did_you_mean(entry.provider, known)
            yield Problem(("intercept", "hosts", index), message)


# --- who may call ---------------------------------------------------------------------------


def _open_door(config: Config) -> Iterator[Problem]:
    if not (config.listen.loopback or config.auth.required or config.auth.insecure):
        yield Problem(
            ("auth", "required"),
            "must be true when listen is not on loopback, or anybody could spend your keys "
            "(insecure: true if that is meant)",
            near=("listen",),
        )


def _admin(config: Config) -> Iterator[Problem]:
    if not config.admin.listen.loopback and not config.admin.token:
        yield Problem(("admin", "token"), "is required when admin.listen is not on loopback")


def _one_address_each(config: Config) -> Iterator[Problem]:
    ours, admin = config.listen, config.admin.listen
    if ours.port and (ours.host, ours.port) == (admin.host, admin.port):
        yield Problem(("admin", "listen"), "is the same address as listen", near=("listen",))


_KEY = re.compile(r"pk_(live|test)_[0-9A-Za-z]{32,}")  # CONTRACT 3


def _auth_keys(config: Config) -> Iterator[Problem]:
    names: set[str] = set()
    secrets: set[str] = set()
    for index, entry in enumerate(config.auth.keys):
        at = ("auth", "keys", index)
        if not entry.key:
            yield Problem((*at, "key"), "is empty")
        elif not _KEY.fullmatch(entry.key.reveal()):
            yield Problem(
                (*at, "key"),
                "must be pk_live_ or pk_test_ and at least 32 letters and digits; "
                "`lunar-proxy keys create` makes one",
            )
        elif entry.key.reveal() in secrets:
            yield Problem((*at, "key"), "is the key of another entry too")
        if entry.name in names:
            yield Problem((*at, "name"), "is the name of another entry too")
        names.add(entry.name)
        secrets.add(entry.key.reveal())


def _jwt(config: Config) -> Iterator[Problem]:
    if config.auth.jwt is not None:
        for setting, message in _jwt_settings(config.auth.jwt):
            yield Problem(("auth", "jwt", *setting), message)


def _jwt_settings(jwt: Jwt) -> Iterator[tuple[Path, str]]:
    if jwt.secret is not None and not jwt.secret:
        yield ("secret",), "is empty, so anybody could sign"
    sources = (jwt.jwks_url, jwt.public_key_file, jwt.secret)
    if sum(source is not None for source in sources) != 1:
        yield (), "needs one of jwks_url, public_key_file and secret"
    elif jwt.secret is not None and set(jwt.algorithms) != {"HS256"}:
        yield ("algorithms",), "must be HS256 alone with secret"
    elif jwt.secret is None and "HS256" in jwt.algorithms:
        yield ("algorithms",), "HS256 needs secret; a public key would be the secret otherwise"
    if jwt.public_key_file is not None and not jwt.public_key_file.is_file():
        yield ("public_key_file",), "no such file"


# --- the rest -----------------------------------------------------------------------------------


def _shared_limits(config: Config) -> Iterator[Problem]:
    if config.workers > 1 and config.store.kind == "memory" and _limits_anywhere(config):
        yield Problem(
            ("store",),
            "memory is not shared between workers, so each would grant the whole limit; "
            "use redis or sqlite, or workers: 1",
            near=("workers",),
        )


def _limits_anywhere(config: Config) -> bool:
    own = [config.limits, *(entry.limits for entry in config.auth.keys)]
    claimed = config.auth.jwt is not None and config.auth.jwt.limits_claim is not None
    return claimed or any(limits and not limits.compiled().empty for limits in own)


def _feedback(config: Config) -> Iterator[Problem]:
    if config.workers > 1 and config.router.feedback is not False:
        yield Problem(
            ("router", "feedback"),
            "is kept by each worker alone, so they would decide differently; use workers: 1",
        )


_NOT_AUTO = "auto is for clients to ask for; use an alias with strategy: router"


def _auto(config: Config) -> Iterator[Problem]:
    """What the router chooses among cannot be the router's choice again."""
    for path, name in _named_targets(config):
        if name == "auto" or name.startswith("auto:"):
            yield Problem(path, _NOT_AUTO)


def _backoff(config: Config) -> Iterator[Problem]:
    given = config.retries.model_fields_set
    if {"backoff_s", "max_backoff_s"} <= given and (
        config.retries.max_backoff_s < config.retries.backoff_s
    ):
        yield Problem(("retries", "max_backoff_s"), "is less than backoff_s")


def _files(config: Config) -> Iterator[Problem]:
    if config.upstream_ca is not None and not config.upstream_ca.is_file():
        yield Problem(("upstream_ca",), "no such file")


CHECKS: tuple[tuple[tuple[str, ...], Check], ...] = (
    (("providers",), _providers),
    (("deployments",), _deployments),
    (("providers", "deployments", "listen"), _loops),
    (("models",), _alias_names),
    (("models", "fallbacks", "router", "providers", "deployments", "demo"), _references),
    (("intercept", "providers"), _intercept_hosts),
    (("listen", "auth"), _open_door),
    (("admin",), _admin),
    (("listen", "admin"), _one_address_each),
    (("auth",), _auth_keys),
    (("auth",), _jwt),
    (("workers", "store", "limits", "auth"), _shared_limits),
    (("workers", "router"), _feedback),
    (("models", "fallbacks", "router"), _auto),
    (("retries",), _backoff),
    (("upstream_ca",), _files),
)
