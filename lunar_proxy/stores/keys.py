"""What is done with keys: tell who one belongs to; make, revoke and rotate them.

The rules are here, once for every store; a store only keeps records. A rotated key keeps its id,
so its limits, its budget and its rows in the ledger go on; the key before it stays good for a
grace period. A key that is lost is rotated with a grace of 0.
"""

from __future__ import annotations

import hmac
import secrets
import string
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from lunar_proxy.core.errors import InvalidRequest, NotFound, Unauthorized
from lunar_proxy.core.identity import LIVE, SHOWN, TEST, digest, unknown_key
from lunar_proxy.core.limits import Limits
from lunar_proxy.core.model import Identity

from .base import KeyRecord, KeyStore
from .codec import limits_as_dict
from .memory import MemoryKeys

_BASE62 = string.digits + string.ascii_letters
_LENGTH = 40  # 238 bits; the contract asks for 32 characters at least

MAX_NAME = 100


class Keyring:
    """Tells who a key belongs to: first the keys of the config, then those of the store."""

    def __init__(self, store: KeyStore | None = None, listed: Iterable[KeyRecord] = ()) -> None:
        self._store = store
        self._listed = MemoryKeys(listed)

    def configured(self) -> list[KeyRecord]:
        """The keys of the config, with their times of use."""
        return self._listed.records()

    def identify(self, key: str, now: float) -> Identity:
        """Raises Unauthorized, or StoreUnavailable while the keys could not be read."""
        hashed = digest(key)
        record = self._listed.find(hashed, now)
        if record is None and self._store is not None:
            record = self._store.find(hashed, now)
        if record is None:
            raise unknown_key(key)
        _check(record, hashed, now)
        return record.identity


def _check(record: KeyRecord, hashed: str, now: float) -> None:
    if record.revoked_at is not None:
        raise Unauthorized("the API key was revoked")
    if record.expires_at is not None and now >= record.expires_at:
        raise Unauthorized("the API key has expired")
    old = record.old_digest
    if old is not None and hmac.compare_digest(hashed, old) and now >= (record.old_until or 0):
        raise Unauthorized("the API key was replaced by a newer one")


def listed(
    name: str, key: str, models: tuple[str, ...] = (), limits: Limits | None = None
) -> KeyRecord:
    """The record of a key under `auth.keys`. Its id is its name, the same on every replica."""
    return KeyRecord(f"config:{name}", name, digest(key), key[:SHOWN], models, limits)


async def create(
    store: KeyStore,
    name: str,
    *,
    now: float,
    models: tuple[str, ...] = (),
    limits: Limits | None = None,
    expires_at: float | None = None,
    test: bool = False,
) -> tuple[KeyRecord, str]:
    """A new record and its key, which is told here and never again."""
    _check_name(name)
    if any(known.name == name and active(known, now) for known in await store.keys()):
        raise InvalidRequest(f"there is already a key named {name!r}", param="name")
    key = _mint(TEST if test else LIVE)
    record = KeyRecord(
        id=f"key_{secrets.token_hex(6)}",
        name=name,
        digest=digest(key),
        prefix=key[:SHOWN],
        models=models,
        limits=limits,
        created_at=now,
        expires_at=expires_at,
    )
    await store.save(record)
    return record, key


async def revoke(store: KeyStore, id_or_name: str, *, now: float) -> KeyRecord:
    """From now on the key is refused, the one before a rotation too. Revoked stays revoked."""
    record = await _the(store, id_or_name, now)
    if record.revoked_at is None:
        record = replace(record, revoked_at=now)
        await store.save(record)
    return record


async def rotate(
    store: KeyStore, id_or_name: str, *, now: float, grace_s: float = 86_400.0
) -> tuple[KeyRecord, str]:
    """The same record with a new key; the present one stays good for `grace_s`."""
    record = await _the(store, id_or_name, now)
    if not active(record, now):
        raise InvalidRequest(f"the key {id_or_name!r} is revoked or expired; create a new one")
    key = _mint(TEST if record.prefix.startswith(TEST) else LIVE)
    record = replace(
        record,
        digest=digest(key),
        prefix=key[:SHOWN],
        old_digest=record.digest,
        old_until=now + grace_s,
    )
    await store.save(record)
    return record, key


def describe(record: KeyRecord, now: float) -> dict[str, Any]:
    """What an administrator is shown of a key, as JSON: never the key, nor its digest."""
    graced = active(record, now) and record.old_until is not None and record.old_until > now
    return {
        "id": record.id,
        "name": record.name,
        "prefix": record.prefix,
        "state": _state(record, now),
        "models": list(record.models),
        "limits": None if record.limits is None else limits_as_dict(record.limits),
        "created_at": _when(record.created_at or None),  # the config does not say
        "expires_at": _when(record.expires_at),
        "revoked_at": _when(record.revoked_at),
        "last_used_at": _when(record.last_used_at),
        "old_key_until": _when(record.old_until if graced else None),
    }


def _state(record: KeyRecord, now: float) -> str:
    if active(record, now):
        return "active"
    return "expired" if record.revoked_at is None else "revoked"


def _when(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(int(at), UTC).isoformat()


def active(record: KeyRecord, now: float) -> bool:
    return record.revoked_at is None and (record.expires_at is None or now < record.expires_at)


def _mint(kind: str) -> str:
    return kind + "".join(secrets.choice(_BASE62) for _ in range(_LENGTH))


def _check_name(name: str) -> None:
    if not name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise InvalidRequest(f"a key's name is 1 to {MAX_NAME} printable characters", param="name")


async def _the(store: KeyStore, id_or_name: str, now: float) -> KeyRecord:
    """The record of that id, else the active one of that name, else any of that name."""
    records = await store.keys()
    found = [record for record in records if record.id == id_or_name] or [
        record for record in records if record.name == id_or_name
    ]
    found = [record for record in found if active(record, now)] or found
    if not found:
        raise NotFound(f"there is no key {id_or_name!r}")
    if len(found) > 1:
        ids = ", ".join(record.id for record in found)
        raise InvalidRequest(f"several keys are named {id_or_name!r}; give one of the ids {ids}")
    return found[0]
