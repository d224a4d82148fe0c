"""Coroutines that are driven by what they wait for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from lunar_proxy.tasks import Drive, Moment, in_task

Said = list[str]


async def story(said: Said, *waits: Awaitable[object]) -> None:
    said.append("begun")
    try:
        for wait in waits:
            try:
                await wait
                said.append("on")
            except ValueError as error:
                said.append(str(error))
    except asyncio.CancelledError:
        said.append("cancelled")
        raise
    finally:
        said.append("over")


def driven(*waits: Awaitable[object]) -> tuple[Drive, Said]:
    said: Said = []
    drive = Drive(story(said, *waits), name="story")
    drive.go_on()
    return drive, said


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_it_begins_at_once_and_goes_on_inside_what_sets_the_moment() -> None:
    first, second = Moment(), Moment()
    _, said = driven(first, second)
    assert said == ["begun"]
    first.set()
    assert said == ["begun", "on"]
    second.set(ValueError("no"))
    assert said == ["begun", "on", "no", "over"]


async def test_a_moment_that_was_is_not_waited_for() -> None:
    good, bad = Moment(), Moment()
    good.set()
    bad.set(ValueError("no"))
    bad.set()
    _, said = driven(good, bad)
    assert said == ["begun", "on", "no", "over"]


async def test_what_awaits_anything_else_goes_on_as_a_task() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    moment = Moment()
    _, said = driven(asyncio.sleep(0), future, moment, in_task())
    await turns()
    assert said == ["begun", "on"]
    future.set_exception(ValueError("no"))
    await turns()
    assert said == ["begun", "on", "no"]
    moment.set()
    assert said == ["begun", "on", "no"]  # a task is woken by the loop
    await turns()
    assert said == ["begun", "on", "no", "on", "on", "over"]


async def test_in_task_there_is_a_current_task() -> None:
    seen: list[bool] = []

    async def look() -> None:
        await in_task()
        async with asyncio.timeout(5):
            seen.append(asyncio.current_task() is not None)
            await asyncio.sleep(0)

    Drive(look(), name="look").go_on()
    assert not seen
    await turns()
    assert seen == [True]


async def test_one_may_set_the_moment_of_another() -> None:
    first, second = Moment(), Moment()

    async def pass_on() -> None:
        second.set()

    _, theirs = driven(second)
    _, said = driven(first, pass_on())
    first.set()
    assert said == ["begun", "on", "on", "over"]
    assert theirs == ["begun", "on", "over"]


WAITS: dict[str, Callable[[], Awaitable[object]]] = {
    "a moment": Moment,
    "a future": lambda: asyncio.get_running_loop().create_future(),
    "a moment, as a task": lambda: _later(Moment()),
}


async def _later(moment: Moment) -> None:
    await asyncio.sleep(0)
    await moment


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS.keys())
async def test_it_is_cancelled_where_it_waits(wait: Callable[[], Awaitable[object]]) -> None:
    drive, said = driven(wait())
    await turns()
    drive.cancel()
    await turns()
    assert said == ["begun", "cancelled", "over"]
    drive.cancel()
    assert said == ["begun", "cancelled", "over"]


async def test_a_moment_after_a_cancellation_wakes_nobody() -> None:
    moment = Moment()
    drive, said = driven(moment)
    drive.cancel()
    moment.set()
    assert said == ["begun", "cancelled", "over"]


async def test_it_may_cancel_itself() -> None:
    said: Said = []
    drives: list[Drive] = []

    async def leave() -> None:
        drives[0].cancel()

    drives.append(Drive(story(said, leave(), Moment()), name="story"))
    drives[0].go_on()
    assert said == ["begun", "on"]
    await turns()
    assert said == ["begun", "on", "cancelled", "over"]


async def test_an_error_is_logged_and_ends_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    moment = Moment()

    async def fail() -> None:
        await moment
        raise RuntimeError("a fault")

    Drive(fail(), name="the call").go_on()
    with caplog.at_level(logging.ERROR):
        moment.set()
    assert "the call failed" in caplog.text
