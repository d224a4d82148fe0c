"""How coroutines run: as tasks, or driven by what they wait for.

`spawn` is the way to start a task: named, referenced until it ends, its failure logged.

A call waits twice, for content and for the end of it, and both are told by a socket's callback. A
task would go through the loop each time: once more around, with caches that are cold by then. So a
`Drive` runs a coroutine at once, until it awaits a `Moment`, and goes on with it inside the call
that sets the moment. What awaits anything else becomes a task there and then, and stays one.

Rules for code that may run in a drive:
1. Who sets a moment must be done with its own state: the coroutine runs before `set` returns.
2. asyncio.timeout() and others that ask for the current task need one: `await in_task()` first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any

logger = logging.getLogger(__name__)


def spawn(coro: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
    """Start `coro` on the running loop.

    The loop itself keeps only a weak reference to a task, so one nobody holds may vanish mid-way;
    the set below holds it until it is done.
    """
    task = asyncio.get_running_loop().create_task(coro, name=name)
    _running.add(task)
    task.add_done_callback(_ended)
    return task


_running: set[asyncio.Task[Any]] = set()


def _ended(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("task %s failed", task.get_name(), exc_info=error)


class Moment:
    """Something that happens once, well or not. One coroutine may await it, in a drive or a task.

    To set it again changes nothing.
    """

    __slots__ = ("_error", "_wake", "done")

    def __init__(self) -> None:
        self.done = False
        self._error: BaseException | None = None
        self._wake: Callable[[], object] | None = None

    def set(self, error: BaseException | None = None) -> None:
        """It has happened; with `error`, whoever awaits it is told that."""
        if self.done:
            return
        self.done, self._error = True, error
        wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    def __await__(self) -> Generator[Any, None, None]:
        if not self.done:
            drive = _driving[-1]
            if drive is not None:
                self._wake = drive.go_on
                yield self
            else:
                yield from self._by_future().__await__()
        if self._error is not None:
            raise self._error

    def forget(self) -> None:
        """Nobody waits any more."""
        self._wake = None

    def _by_future(self) -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not future.done():
                future.set_result(None)

        self._wake = wake
        return future


class Drive:
    """One coroutine on its way. It should let no error out; one that it does is logged."""

    __slots__ = ("_coro", "_name", "_over", "_task", "_waiting")

    def __init__(self, coro: Coroutine[Any, Any, None], *, name: str) -> None:
        self._coro = coro
        self._name = name
        self._task: asyncio.Task[None] | None = None
        self._waiting: Moment | None = None
        self._over = False

    def go_on(self) -> None:
        """Run until it waits for something, or is over; this also starts it."""
        self._waiting = None
        self._step(self._coro.send, None)

    def cancel(self) -> None:
        """As a task is cancelled: CancelledError where it waits."""
        if self._task is not None:
            self._task.cancel()
        elif self._waiting is not None:
            self._waiting.forget()
            self._waiting = None
            self._step(self._coro.throw, asyncio.CancelledError())
        elif not self._over:  # it is running, and cancels itself
            asyncio.get_running_loop().call_soon(self.cancel)

    def _step(self, resume: Callable[[Any], Any], value: BaseException | None) -> None:
        _driving.append(self)
        try:
            awaited = resume(value)
        except (StopIteration, asyncio.CancelledError):
            self._over = True
            return
        except Exception as error:
            self._over = True
            logger.error("%s failed", self._name, exc_info=error)
            return
        finally:
            _driving.pop()
        if type(awaited) is Moment:
            self._waiting = awaited
        else:
            self._task = spawn(_from(self._coro, awaited), name=self._name)


# Who is running; the last is the innermost. None: a task, or nobody, which comes to the same.
_driving: list[Drive | None] = [None]


async def in_task() -> None:
    """From here on there is a current task."""
    if _driving[-1] is not None:
        await asyncio.sleep(0)


@coroutine
def _from(coro: Coroutine[Any, Any, None], awaited: Any) -> Generator[Any, Any, None]:
    """The rest of a coroutine that waits for `awaited`, to be run as a task."""
    while True:
        error: BaseException | None = None
        try:
            yield awaited
        except BaseException as raised:  # noqa: BLE001 - the cancellation is for the coroutine
            error = raised
        try:
            awaited = coro.send(None) if error is None else coro.throw(error)
        except StopIteration:
            return
