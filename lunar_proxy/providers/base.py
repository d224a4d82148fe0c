"""What a dialect is: the four things that differ from one provider family to the next.

An `Account` is one configured provider; a `Dialect` turns a call for one of its targets into an
`UpstreamRequest` and reads the answers. Dialects are pure and shared by all their accounts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from lunar_proxy.core.errors import ProviderError
from lunar_proxy.core.headers import render
from lunar_proxy.core.model import Call, Headers, Target


class Origin(NamedTuple):
    """Where a connection goes; connections are pooled by it (RFC 6454)."""

    scheme: str  # "http", "https", or "demo": answered in this process
    host: str
    port: int

    @property
    def authority(self) -> str:
        """`host[:port]` as the Host header wants it (RFC 9110 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = {"http": 80, "https": 443}.get(self.scheme)
        return host if self.port == default else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """CONTRACT 2 `timeouts`, all in seconds."""

    connect_s: float = 5.0
    first_token_s: float = 60.0
    idle_s: float = 30.0
    total_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Account:
    """One configured provider, compiled for the hot path."""

    id: str
    dialect: Dialect
    origin: Origin
    base_path: bytes  # "/v1", no trailing slash
    keys: tuple[bytes, ...] = ()
    headers: Headers = ()  # sent with every request
    head: bytes = b""  # those and ours that never change, rendered: `static_head`
    api_version: str | None = None
    globs: tuple[str, ...] = ()  # model ids it is known to serve
    timeouts: Timeouts = field(default_factory=Timeouts)
    bring_key: bool = False  # without a key of ours, the caller's own may go to it
    chat_only: bool = False  # legacy completions are made of its chat (providers.translate)
    enabled: bool = True
    why_disabled: str = ""


def static_head(origin: Origin, headers: Headers) -> bytes:
    """The header lines that are the same in every request to a provider.

    Identity is asked for, since a compressed stream can be neither spliced nor timed.
    """
    own = ((b"host", origin.authority.encode()), (b"accept-encoding", b"identity"), *headers)
    return render(own)


class UpstreamRequest(NamedTuple):
    """A request ready for the wire. `secret` is masked should the provider echo it."""

    origin: Origin
    head: bytes  # request line and headers, without Content-Length and the final empty line
    body: bytes
    secret: bytes = b""


class Dialect(Protocol):
    """How one family of providers wants to be asked, and how it says no.

    Every method is called once per attempt, on the event loop, and must not block or raise
    anything but `ProxyError`.
    """

    name: str

    def request(
        self, call: Call, target: Target, account: Account, key: bytes | None, body: bytes
    ) -> UpstreamRequest:
        """The wire form of `call`; `body` already names the target's model."""
        ...

    def error(
        self, status: int, headers: Headers, body: bytes, *, our_key: bool, now: float
    ) -> ProviderError:
        """Which of our errors an answer of 400 or more is (CONTRACT 6); `now` is epoch seconds."""
        ...
