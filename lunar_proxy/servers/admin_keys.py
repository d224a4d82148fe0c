"""`/-/keys` and `/-/usage` of the admin listener: what `lunar-proxy keys` and `usage` do, here.

A key is in one answer only, that which made it. All else shows its first characters.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol, get_args

import orjson
from aiohttp import web

from lunar_proxy.config import Config
from lunar_proxy.core.durations import LONGEST_S, duration_s
from lunar_proxy.core.errors import BodyTooLarge, InvalidRequest
from lunar_proxy.core.limits import Budget, Limits, Per
from lunar_proxy.gateway import Gateway
from lunar_proxy.stores import KeyRecord, Store, keys, report
from lunar_proxy.stores.base import Dimension

# Far above any request of an operator's.
MAX_BODY = 64 * 1024

Reply = tuple[int, bytes, str]  # status, body, content type


class Ledgers(Protocol):
    """The part of the running proxy that keeps keys and accounts (`app.App`)."""

    config: Config
    gateway: Gateway
    store: Store


class KeyDesk:
    def __init__(self, process: Ledgers) -> None:
        self._process = process

    def route(self, method: str, path: str) -> Callable[[web.BaseRequest], Awaitable[Reply]] | None:
        """Who answers this, if it is about keys or usage."""
        first, *rest = path.removeprefix("/-/").split("/")
        match method, first, rest:
            case "GET", "usage", []:
                return self._usage
            case "GET", "keys", []:
                return self._list
            case "POST", "keys", []:
                return self._create
            case "POST", "keys", [id, "rotate"]:
                return lambda request: self._rotate(request, id)
            case "DELETE", "keys", [id]:
                return lambda request: self._revoke(id)
            case _:
                return None

    # --- keys -------------------------------------------------------------------------------------

    async def _list(self, request: web.BaseRequest) -> Reply:
        now = self._now()
        configured = [
            keys.describe(record, now) | {"source": "config"}
            for record in self._process.gateway.callers.configured()
        ]
        stored = [
            keys.describe(record, now) | {"source": "store"}
            for record in await self._process.store.keys()
        ]
        return _json({"keys": configured + stored})

    async def _create(self, request: web.BaseRequest) -> Reply:
        self._check_shared("a key made here would be known to one of them only")
        doc = await _document(request)
        now = self._now()
        wanted = _wanted(doc, now)
        self._check_free(wanted["name"])
        record, key = await keys.create(self._process.store, now=now, **wanted)
        return _json(self._made(record, key), 201)

    async def _rotate(self, request: web.BaseRequest, id: str) -> Reply:
        self._check_stored(id)
        doc = await _document(request) if request.can_read_body else {}
        grace_s = _grace_s(doc.pop("grace_s", 86_400))
        _nothing_else(doc)
        record, key = await keys.rotate(self._process.store, id, now=self._now(), grace_s=grace_s)
        return _json(self._made(record, key))

    async def _revoke(self, id: str) -> Reply:
        self._check_stored(id)
        record = await keys.revoke(self._process.store, id, now=self._now())
        return _json(keys.describe(record, self._now()))

    def _made(self, record: KeyRecord, key: str) -> dict[str, Any]:
        return keys.describe(record, self._now()) | {"key": key}

    def _check_free(self, name: str) -> None:
        if any(record.name == name for record in self._process.gateway.callers.configured()):
            raise InvalidRequest(f"the config has a key named {name!r}", param="name")

    def _check_stored(self, id: str) -> None:
        if id.startswith("config:"):
            raise InvalidRequest("this key is in the config: change it there, and reload")
        self._check_shared("a change made here would be known to one of them only")

    def _check_shared(self, why: str) -> None:
        if self._process.config.workers > 1 and not self._process.store.shared:
            raise InvalidRequest(
                f"the store `memory` is not shared between workers: {why}; use redis or sqlite"
            )

    # --- usage ------------------------------------------------------------------------------------

    async def _usage(self, request: web.BaseRequest) -> Reply:
        self._check_shared("each has a part of the ledger")
        query = request.query
        by: Any = _choice(query, "by", "key", get_args(Dimension))
        form = _choice(query, "format", "json", ("json", "csv"))
        try:
            since_s = duration_s(query.get("since", "7d"))
        except ValueError as error:
            raise InvalidRequest(f"since: {error}", param="since") from None
        self._process.gateway.books.enter()
        spends = await self._process.store.query(max(0.0, self._now() - since_s), by)
        if form == "csv":
            return 200, report.as_csv(spends, by).encode(), "text/csv; charset=utf-8"
        return _json(report.rows(spends, by, await self._names() if by == "key" else {}))

    async def _names(self) -> Mapping[str, str]:
        records = self._process.gateway.callers.configured() + await self._process.store.keys()
        return {record.id: record.name for record in records}

    def _now(self) -> float:
        return self._process.gateway.ports.wall()


# --- what is asked for --------------------------------------------------------------------------


async def _document(request: web.BaseRequest) -> dict[str, Any]:
    """The JSON object of a request. A form of a web page cannot send this content type, so no
    page an operator visits can make keys (OWASP, cross-site request forgery)."""
    if request.content_type != "application/json":
        raise InvalidRequest("send JSON, as `Content-Type: application/json`")
    body = b""
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY:
            raise BodyTooLarge(f"the body is larger than {MAX_BODY} bytes")
    try:
        doc = orjson.loads(body)
    except orjson.JSONDecodeError:
        doc = None
    if not isinstance(doc, dict):
        raise InvalidRequest("the body must be a JSON object", code="invalid_json")
    return doc


def _wanted(doc: dict[str, Any], now: float) -> dict[str, Any]:
    """The arguments of `keys.create`."""
    name, test = doc.pop("name", None), doc.pop("test", False)
    if not isinstance(name, str):
        raise InvalidRequest("name is missing: say whose key it is", param="name")
    if not isinstance(test, bool):
        raise InvalidRequest("test must be true or false", param="test")
    wanted = {
        "name": name,
        "models": _models(doc.pop("models", None)),
        "limits": _limits(doc),
        "expires_at": _expiry(doc.pop("expires", None), now),
        "test": test,
    }
    _nothing_else(doc)
    return wanted


def _models(value: object) -> tuple[str, ...]:
    globs = value.split(",") if isinstance(value, str) else value
    if globs is None:
        return ()
    if not isinstance(globs, list) or not all(isinstance(glob, str) for glob in globs):
        raise InvalidRequest("models must be a list of globs", param="models")
    return tuple(glob.strip() for glob in globs if glob.strip())


def _limits(doc: dict[str, Any]) -> Limits | None:
    """None, which is the configured default, when no limit is given."""
    rpm, tpm, slots = (_count(doc.pop(name, None), name) for name in ("rpm", "tpm", "concurrent"))
    limits = Limits(rpm, tpm, slots, _budget(doc.pop("budget_usd", None), doc.pop("per", None)))
    return None if limits.empty else limits


def _count(value: object, name: str) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 10**9:
        raise InvalidRequest(f"{name} must be a whole number above 0", param=name)
    return value


def _budget(usd: object, per: object) -> Budget | None:
    if usd is None and per is None:
        return None
    if usd is None:
        raise InvalidRequest("per is the window of a budget: give budget_usd too", param="per")
    try:
        amount = Decimal(str(usd))
    except InvalidOperation:
        amount = Decimal("NaN")
    if isinstance(usd, bool) or not amount.is_finite() or not 0 < amount <= 10**9:
        raise InvalidRequest("budget_usd must be an amount above 0", param="budget_usd")
    window: Any = "month" if per is None else per
    if window not in get_args(Per):
        raise InvalidRequest(f"per must be one of {', '.join(get_args(Per))}", param="per")
    return Budget(amount, window)


def _expiry(value: object, now: float) -> float | None:
    """How long it is good, `90d`; null or 0: for ever."""
    if value is None:
        return None
    try:
        lasts_s = duration_s(str(value))
    except ValueError as error:
        raise InvalidRequest(f"expires: {error}", param="expires") from None
    return now + lasts_s if lasts_s else None


def _grace_s(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= LONGEST_S:
        raise InvalidRequest("grace_s must be seconds, 0 or more", param="grace_s")
    return float(value)


def _nothing_else(doc: dict[str, Any]) -> None:
    if doc:
        raise InvalidRequest(f"unknown members: {', '.join(sorted(doc))}"[:200])


def _choice(query: Mapping[str, str], name: str, default: str, among: tuple[str, ...]) -> str:
    value = query.get(name, default)
    if value not in among:
        raise InvalidRequest(f"{name} must be one of {', '.join(among)}", param=name)
    return value


def _json(doc: Any, status: int = 200) -> Reply:
    return status, orjson.dumps(doc), "application/json"
