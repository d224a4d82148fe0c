"""Keys: made, told apart, revoked, rotated."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from lunar_proxy.core.errors import InvalidRequest, NotFound, Unauthorized
from lunar_proxy.core.identity import digest
from lunar_proxy.core.limits import Limits
from lunar_proxy.core.model import Identity
from lunar_proxy.stores.codec import dump_key
from lunar_proxy.stores.keys import Keyring, create, listed, revoke, rotate
from lunar_proxy.stores.memory import MemoryStore

from .backends import T0

LISTED = "pk_live_" + "L" * 32


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


async def test_a_key_is_shown_once_and_never_stored(store: MemoryStore) -> None:
    record, key = await create(store, "team-a", now=T0)
    assert re.fullmatch(r"pk_live_[0-9A-Za-z]{40}", key)
    assert record.prefix == key[:12]
    assert record.digest == digest(key)
    assert key.encode() not in dump_key(record)
    _, test_key = await create(store, "tests", now=T0, test=True)
    assert test_key.startswith("pk_test_")


async def test_a_key_tells_whose_it_is(store: MemoryStore) -> None:
    limits = Limits(requests_per_minute=5)
    record, key = await create(store, "team-a", now=T0, models=("openai/*",), limits=limits)
    ring = Keyring(store, [listed("from-config", LISTED, ("auto",))])
    assert ring.identify(key, T0) == Identity(record.id, "team-a", ("openai/*",), limits)
    assert ring.identify(LISTED, T0) == Identity("config:from-config", "from-config", ("auto",))


@pytest.mark.parametrize(
    ("key", "says"),
    [("pk_live_" + "X" * 40, "unknown"), (LISTED[:20], "cut short"), ("pk_", "malformed")],
)
def test_a_key_nobody_knows_is_unauthorized_and_not_repeated(key: str, says: str) -> None:
    with pytest.raises(Unauthorized, match=says) as caught:
        Keyring(MemoryStore(), [listed("a", LISTED)]).identify(key, T0)
    assert key not in caught.value.message or key == "pk_"


async def test_a_key_expires_to_the_second(store: MemoryStore) -> None:
    _, key = await create(store, "a", now=T0, expires_at=T0 + 10)
    ring = Keyring(store)
    ring.identify(key, T0 + 9.9)
    with pytest.raises(Unauthorized, match="expired"):
        ring.identify(key, T0 + 10)


async def test_a_revoked_key_is_refused_and_its_name_is_free_again(store: MemoryStore) -> None:
    _, key = await create(store, "a", now=T0)
    with pytest.raises(InvalidRequest, match="already"):
        await create(store, "a", now=T0)
    await revoke(store, "a", now=T0)
    with pytest.raises(Unauthorized, match="revoked"):
        Keyring(store).identify(key, T0)
    second, _ = await create(store, "a", now=T0)
    assert (await revoke(store, "a", now=T0)).id == second.id


async def test_a_rotated_key_keeps_its_id_and_the_old_one_its_grace(store: MemoryStore) -> None:
    record, old = await create(store, "a", now=T0, test=True)
    rotated, new = await rotate(store, record.id, now=T0, grace_s=60)
    ring = Keyring(store)
    assert rotated.id == ring.identify(new, T0).id == ring.identify(old, T0 + 59).id == record.id
    assert new.startswith("pk_test_")
    ring.identify(new, T0 + 1e6)
    with pytest.raises(Unauthorized, match="replaced"):
        ring.identify(old, T0 + 60)


async def test_a_lost_key_is_rotated_without_grace(store: MemoryStore) -> None:
    _, old = await create(store, "a", now=T0)
    await rotate(store, "a", now=T0, grace_s=0)
    with pytest.raises(Unauthorized):
        Keyring(store).identify(old, T0)


async def test_what_is_revoked_cannot_be_rotated_back(store: MemoryStore) -> None:
    _, key = await create(store, "a", now=T0)
    await rotate(store, "a", now=T0)
    await revoke(store, "a", now=T0)
    with pytest.raises(InvalidRequest, match="create a new one"):
        await rotate(store, "a", now=T0)
    with pytest.raises(Unauthorized, match="revoked"):  # the grace is over too
        Keyring(store).identify(key, T0)


async def test_an_unknown_or_ambiguous_name_changes_nothing(store: MemoryStore) -> None:
    with pytest.raises(NotFound, match="no key 'a'"):
        await revoke(store, "a", now=T0)
    record, _ = await create(store, "a", now=T0)
    await store.save(replace(record, id="key_2", digest="0" * 64))
    with pytest.raises(InvalidRequest, match=f"{record.id}, key_2"):
        await revoke(store, "a", now=T0)
    assert all(key.revoked_at is None for key in await store.keys())


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 101])
async def test_a_name_is_printable_and_short(store: MemoryStore, name: str) -> None:
    with pytest.raises(InvalidRequest, match="name"):
        await create(store, name, now=T0)
