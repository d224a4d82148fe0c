"""One connection to Redis with many commands in flight, answered in the order they were sent.

A pool gives each command a connection of its own, which costs more and loses the order: a call's
`settle` could arrive after the next call's `take` and refuse it. Here what was sent first is done
first, and nobody waits for anyone else's answer before sending.

The connection itself (URL, TLS, AUTH, RESP) is that of redis-py.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import lru_cache
from hashlib import sha1
from typing import TYPE_CHECKING, Any, cast

from lunar_proxy.tasks import spawn

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

Argument = str | bytes | int


class PipeBroken(Exception):
    """The connection is gone; whether the command was carried out is not known."""


class NotConnected(PipeBroken):
    """Nothing was sent."""


def _packed(command: tuple[Argument, ...]) -> bytes:
    """An array of bulk strings (redis.io, protocol specification). A dozen short arguments are
    what a decision takes; redis-py packs them with a care that costs as much as Redis' work.
    """
    parts = [b"*%d" % len(command)]
    for argument in command:
        data = argument if isinstance(argument, bytes) else str(argument).encode()
        parts += (b"$%d" % len(data), data)
    parts.append(b"")
    return b"\r\n".join(parts)


# Turns of the loop from bytes that have arrived to the answer they are: poll, feed, parse, wake.
_TURNS = 5


async def _within(seconds: float | None, answer: asyncio.Future[Any]) -> Any:
    """The answer, or TimeoutError once it is late. Where the loop itself was held up for that long,
    the answer may have come and not been read: so it is given the turns that this takes.
    """
    if seconds is None:
        return await answer
    patience = asyncio.get_running_loop().call_later(seconds, _give_up, answer, _TURNS)
    try:
        return await answer
    finally:
        patience.cancel()


def _give_up(answer: asyncio.Future[Any], turns: int) -> None:
    if answer.done():
        return
    if turns:
        answer.get_loop().call_soon(_give_up, answer, turns - 1)
    else:
        answer.set_exception(TimeoutError())


@lru_cache(maxsize=32)
def _sha(script: str) -> str:
    return sha1(script.encode(), usedforsecurity=False).hexdigest()


class Pipe:
    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: AbstractConnection | None = None
        self._outgoing: list[tuple[tuple[Argument, ...], asyncio.Future[Any]]] = []
        self._expected: deque[asyncio.Future[Any]] = deque()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def connected(self) -> bool:
        return self._connection is not None

    async def connect(self, scripts: tuple[str, ...], timeout_s: float) -> None:
        """Dial, log in and load the scripts. Raises PipeBroken."""
        # redis-py takes tens of milliseconds and megabytes, which only its users should pay.
        from redis.asyncio import ConnectionPool
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError

        self.abort()
        pool = ConnectionPool.from_url(
            self._url,
            protocol=2,  # answers are plain lists under it, and no server pushes
            socket_timeout=None,  # the reader waits for as long as there is silence
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        connection = cast("AbstractConnection", pool.make_connection())  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(timeout_s):
                await connection.connect()  # type: ignore[no-untyped-call]
                for script in scripts:
                    await connection.send_command("SCRIPT", "LOAD", script)
                    await connection.read_response()
        except (RedisError, OSError, TimeoutError) as error:
            await connection.disconnect(nowait=True)
            raise PipeBroken(type(error).__name__) from error
        self._connection = connection
        self._tasks = [
            spawn(self._write(connection), name="redis-write"),
            spawn(self._read(connection), name="redis-read"),
        ]

    def send(self, *command: Argument) -> asyncio.Future[Any]:
        """Queue a command behind those sent before. Raises NotConnected; the future PipeBroken, or
        redis' own ResponseError.
        """
        if self._connection is None:
            raise NotConnected("not connected")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._outgoing.append((command, future))
        self._wake.set()
        return future

    def send_script(self, script: str, keys: list[str], *args: Argument) -> asyncio.Future[Any]:
        """EVALSHA, behind what was sent before; fails where the server has lost its scripts."""
        return self.send("EVALSHA", _sha(script), len(keys), *keys, *args)

    async def run(
        self, script: str, keys: list[str], *args: Argument, within_s: float | None = None
    ) -> Any:
        """The same, and EVAL once more where the server has lost its scripts; TimeoutError after
        `within_s` for each.
        """
        from redis.exceptions import NoScriptError

        try:
            return await _within(within_s, self.send_script(script, keys, *args))
        except NoScriptError:
            return await _within(within_s, self.send("EVAL", script, len(keys), *keys, *args))

    def abort(self) -> None:
        """Drop the connection; every answer still due fails."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        for task in self._tasks:
            task.cancel()
        self._tasks.append(spawn(connection.disconnect(nowait=True), name="redis-disconnect"))
        due = [*self._expected, *(future for _, future in self._outgoing)]
        self._expected.clear()
        self._outgoing.clear()
        for future in due:
            if not future.done():
                future.set_exception(PipeBroken("the connection was lost"))

    async def close(self) -> None:
        tasks = self._tasks
        self.abort()
        if tasks:
            await asyncio.wait(tasks)

    async def _write(self, connection: AbstractConnection) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._outgoing = self._outgoing, []
            self._expected.extend(future for _, future in batch)
            packed = b"".join([_packed(command) for command, _ in batch])
            try:
                await connection.send_packed_command(packed, check_health=False)
            except Exception:  # noqa: BLE001 - redis-py's or the socket's: the connection is gone
                self._lost(connection)
                return

    async def _read(self, connection: AbstractConnection) -> None:
        from redis.exceptions import ResponseError

        while True:
            answer: Any
            try:
                answer = await connection.read_response(disable_decoding=True)
            except ResponseError as error:
                answer = error
            except Exception:  # noqa: BLE001 - as above
                self._lost(connection)
                return
            future = self._expected.popleft()
            if future.done():  # nobody waits any more
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _lost(self, connection: AbstractConnection) -> None:
        if connection is self._connection:
            self.abort()
