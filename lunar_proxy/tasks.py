"""The way to start a task: named, referenced until it ends, its failure logged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
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


def begin(coro: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
    """The same for a caller that keeps the task itself and a `coro` that lets no error out, at
    half the price; for what is started thousands of times a second."""
    return asyncio.get_running_loop().create_task(coro, name=name)


_running: set[asyncio.Task[Any]] = set()


def _ended(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("task %s failed", task.get_name(), exc_info=error)
