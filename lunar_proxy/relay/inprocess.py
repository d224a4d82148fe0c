"""A connection without a socket: plays the demo provider's script to a receiver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

from lunar_proxy.core.script import Chunk, End, Head, Pause, Step
from lunar_proxy.providers.base import UpstreamRequest

from .upstream import Receiver

# (method, path, body) -> the steps of an answer
Answer = Callable[[str, str, bytes], Iterator[Step]]


class Script:
    """One request and its answer. Steps without a pause between them are played at once, a slice
    at a time, so that a long answer does not keep the loop from others."""

    reused = False
    _SLICE = 64

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._steps: Iterator[Step] = iter(())
        self._receiver: Receiver | None = None
        self._handle: asyncio.Handle | None = None
        self._paused = False

    def ask(self, request: UpstreamRequest, receiver: Receiver) -> None:
        method, path, _ = request.head.decode("latin-1").split(" ", 2)
        self._steps = self._answer(method, path, request.body)
        self._receiver = receiver
        self._soon(0.0)

    def tell(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def ask_streaming(
        self,
        request: UpstreamRequest,
        chunks: AsyncIterator[bytes],
        length: int | None,
        receiver: Receiver,
    ) -> None:
        body = b"".join([chunk async for chunk in chunks])
        self.ask(UpstreamRequest(request.origin, request.head, body), receiver)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._soon(0.0)

    def close(self) -> None:
        self._receiver = None
        if self._handle is not None:
            self._handle.cancel()

    def _soon(self, delay_s: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = asyncio.get_running_loop().call_later(delay_s, self._play)

    def _play(self) -> None:
        for _ in range(self._SLICE):
            if self._paused or self._receiver is None:
                return
            step = next(self._steps, None)
            match step:
                case Head():
                    self._receiver.head(step.status, step.headers)
                case Chunk():
                    self._receiver.body(step.data)
                case Pause():
                    self._soon(step.seconds)
                    return
                case End() | None:
                    receiver, self._receiver = self._receiver, None
                    receiver.end()
                    return
        self._soon(0.0)
