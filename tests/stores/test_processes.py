"""Several processes on one store, killed while they hold slots."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from lunar_proxy.core.limits import TOTAL_WAIT_S, Budget, Limits, Verdict
from lunar_proxy.stores.base import Reservation
from lunar_proxy.stores.opening import open_store

from .backends import T0, RedisServer

# Asks for 150 slots and says how many it got; when told to, settles half of them, says how many,
# and waits to be killed.
PROGRAM = """
import asyncio, sys
from decimal import Decimal
from lunar_proxy.core.limits import Ask, Budget, Limits, Verdict
from lunar_proxy.stores.base import Reservation
from lunar_proxy.stores.opening import open_store

async def ask(store, reservation, now):
    answer = store.take(reservation, now)
    return answer if isinstance(answer, Verdict) else await answer

async def main(url, now):
    store = open_store(url, lambda: now)
    store._deadline_s = 10.0  # of redis: the machine of the tests may be loaded
    await store.start()
    limits = Limits(concurrent_requests=100, budget=Budget(Decimal(1), "total"))
    asked = [Reservation("s", limits) for _ in range(150)]
    await asyncio.gather(*(ask(store, reservation, now) for reservation in asked))
    held = [reservation for reservation in asked if reservation.held]
    print(len(held), flush=True)
    sys.stdin.readline()
    for reservation in held[::2]:
        store.settle(reservation, 0, 1, now)
    await ask(store, Reservation("behind what was settled", limits), now)
    print(len(held[::2]), flush=True)
    sys.stdin.readline()

asyncio.run(main(sys.argv[1], float(sys.argv[2])))
"""


class Worker:
    def __init__(self, url: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, url, str(T0)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def told(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


async def used_up(url: str, units: int) -> bool:
    """Whether that many units were spent; asked with what a budget of as many says."""
    store = open_store(url, lambda: T0)
    vars(store)["_deadline_s"] = 10.0  # as above
    await store.start()
    limits = Limits(budget=Budget(Decimal(units) / 10**10, "total"))
    answer = store.take(Reservation("s", limits), T0)
    verdict = answer if isinstance(answer, Verdict) else await answer
    await store.close()
    return verdict.blocked is not None and verdict.blocked.retry_after_s == TOTAL_WAIT_S


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_two_processes_pass_no_limit_and_when_killed_forget_no_spending(
    kind: str, tmp_path: Path, redis_server: RedisServer
) -> None:
    url = f"sqlite:{tmp_path / 'lunar.db'}" if kind == "sqlite" else redis_server.url
    workers = [Worker(url) for _ in range(2)]
    assert sum(worker.told() for worker in workers) == 100
    for worker in workers:
        worker.go_on()
    settled = sum(worker.told() for worker in workers)
    for worker in workers:
        worker.kill()
    assert await used_up(url, settled)
    assert not await used_up(url, settled + 1)
