"""What a call is carried with: the nouns between the gateway and the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from lunar_proxy.core.model import Headers, Target
from lunar_proxy.core.multipart import FormModel
from lunar_proxy.core.pricing import HourlyPrice, Price
from lunar_proxy.providers.base import Account, Origin, UpstreamRequest

from .health import Health
from .meter import Counter
from .reply import Link
from .upstream import Receiver
from .watch import Watch


class Line(Link, Protocol):
    """A connection that can be asked one thing."""

    @property
    def reused(self) -> bool: ...

    def ask(self, request: UpstreamRequest, receiver: Receiver) -> None: ...

    def tell(self, receiver: Receiver) -> None:
        """The answer that is awaited is for this receiver from now on."""
        ...

    async def ask_streaming(
        self,
        request: UpstreamRequest,
        chunks: AsyncIterator[bytes],
        length: int | None,
        receiver: Receiver,
    ) -> None: ...


class Asked(NamedTuple):
    """A question that was put, and when, in monotonic seconds. The line on which the answer is to
    come; None: it is here already, or will not come, and whoever asked has yet to say so."""

    line: Line | None
    at: float


class Lines(Protocol):
    """Where lines come from. `idle` is one that is open and has nothing to do, if there is one;
    it may have been closed at the other end this very moment. `connect` opens one: it raises
    ConnectFailed, ConnectTimeout or TlsFailed, and nothing has been sent by then.
    """

    def idle(self, origin: Origin) -> Line | None: ...

    async def connect(self, origin: Origin, *, timeout_s: float) -> Line: ...


@dataclass(frozen=True, slots=True)
class Listing:
    """A target as the compiled config knows it. `said` are the header fields that name it."""

    account: Account
    model_id: str  # the provider's own name of the model
    said: Headers


class Directory(Protocol):
    """Where targets are looked up; a price apart, since it may change with the date."""

    def listing(self, target: Target) -> Listing: ...

    def price(self, target: Target) -> Price | HourlyPrice | None: ...


@dataclass(frozen=True, slots=True)
class Hedge:
    """CONTRACT 2 `hedge`; `after_s` None: the target's own 95th percentile."""

    enabled: bool = False
    after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """One for the whole proxy, made anew with every config."""

    directory: Directory
    lines: Lines
    health: Health
    counter: Counter
    now: Callable[[], float]  # monotonic seconds
    wall: Callable[[], float]  # seconds since 1970
    draw: Callable[[], float]  # uniform in [0, 1)
    watch: Watch
    no_usage: set[str]  # providers that refused stream_options: not asked again
    only_chat: set[Target] = field(default_factory=set)  # said so when asked for a completion
    hedge: Hedge = Hedge()


@dataclass(slots=True)
class Upload:
    """A request body that is still arriving. `held` was read already, to find the form's `model`.

    It can be sent once: after its first chunk has left, no other target can be asked.
    """

    chunks: AsyncIterator[bytes]
    length: int | None
    held: bytes = b""
    model: FormModel | None = None

    def body(self, model_id: str) -> tuple[AsyncIterator[bytes], int | None]:
        """The body with the model replaced, and its length if it is known."""
        held = self.held
        if self.model is not None:
            held = held[: self.model.start] + model_id.encode() + held[self.model.end :]
        length = None if self.length is None else self.length + len(held) - len(self.held)
        return self._all(held), length

    def untouched(self) -> tuple[AsyncIterator[bytes], int | None]:
        return self._all(self.held), self.length

    async def _all(self, held: bytes) -> AsyncIterator[bytes]:
        if held:
            yield held
        async for chunk in self.chunks:
            yield chunk
