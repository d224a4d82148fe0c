"""The side that asked, as the engine sees it; each door has its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Protocol


class Source(Protocol):
    """What fills a client, and can be told to wait for it."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Client(Protocol):
    """Where an answer goes. Called on the event loop; nothing here may block.

    `head` once, then `write` any number of times, then `end` or `cut` once; or `answer`, which is
    all of that. A client that has gone swallows all of it; the door cancels the call.
    """

    def answer(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """A whole answer that is at hand."""
        self.head(status, headers, len(body))
        self.write(body)
        self.end()

    @abstractmethod
    def head(self, status: int, headers: Iterable[tuple[bytes, bytes]], length: int | None) -> None:
        """Begin the answer; `length` None: until `end`, however long that is."""
        ...

    @abstractmethod
    def write(self, data: bytes) -> None: ...

    @abstractmethod
    def end(self) -> None: ...

    @abstractmethod
    def cut(self) -> None:
        """End in a way that no HTTP client takes for a complete answer."""
        ...

    @abstractmethod
    def follow(self, source: Source | None) -> None:
        """From now on `source` is paused while this client is slower than it."""
        ...
