"""What the workers of one proxy ask each other: a line each way, over sockets in their own folder.

A scrape reaches one worker; it asks the others for their numbers and adds them up. One that does
not answer in time is left out: it is starting, or on its way out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

PATIENCE_S = 1.0
# Of an answer: a snapshot with a series for every known model is far smaller.
MAX_LINE = 64 * 1024 * 1024

Command = Callable[[], Any]  # what it gives is awaited if it takes its time


class Peers:
    """`slot`: which worker this is, of `count`."""

    def __init__(self, folder: Path, slot: int, count: int) -> None:
        self._folder = folder
        self._slot = slot
        self._count = count

    async def serve(self, commands: Mapping[str, Command]) -> asyncio.Server:
        """Answer the others. The folder is its owner's alone, so whoever connects is one of us."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    command = commands.get((await reader.readline()).decode().strip())
                    said = command() if command is not None else None
                    if isinstance(said, asyncio.Future):
                        said = await asyncio.shield(said)  # it goes on when we no longer wait
                    writer.write(orjson.dumps(said) + b"\n")
                    await writer.drain()
            except (OSError, TimeoutError):
                pass  # it asks again
            finally:
                writer.close()

        path = self._path(self._slot)
        path.unlink(missing_ok=True)  # of the worker that had this slot before
        return await asyncio.start_unix_server(answer, path)

    async def ask(self, command: str) -> list[Any]:
        """What the others answer, without those that do not."""
        others = [slot for slot in range(self._count) if slot != self._slot]
        answers = await asyncio.gather(*(self._ask(slot, command) for slot in others))
        return [answer for answer in answers if answer is not None]

    async def _ask(self, slot: int, command: str) -> Any:
        try:
            async with asyncio.timeout(PATIENCE_S):
                reader, writer = await asyncio.open_unix_connection(
                    self._path(slot), limit=MAX_LINE
                )
                try:
                    writer.write(command.encode() + b"\n")
                    return orjson.loads(await reader.readline())
                finally:
                    writer.close()
        except (OSError, TimeoutError, ValueError):
            return None

    def _path(self, slot: int) -> Path:
        return self._folder / f"{slot}.sock"
