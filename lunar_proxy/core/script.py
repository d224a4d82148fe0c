"""The steps of an answer nobody has sent yet: what the demo provider yields, what a test scripts.

A script says what goes over the wire and when, not how: the engine plays it without a socket,
`lunar_proxy.testing` plays it on a real one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .model import Headers


@dataclass(frozen=True, slots=True, init=False)
class Head:
    """Status line and header fields. Framing is the player's: it knows its transport."""

    status: int
    headers: Headers

    def __init__(self, status: int = 200, headers: Mapping[str, str] | Headers = ()) -> None:
        pairs = headers
        if isinstance(pairs, Mapping):  # the brief spelling, for scripts written by hand
            pairs = tuple((k.lower().encode(), v.encode()) for k, v in pairs.items())
        object.__setattr__(self, "status", status)
        object.__setattr__(self, "headers", pairs)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of the body that arrive together."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Pause:
    """Silence on an open connection."""

    seconds: float


@dataclass(frozen=True, slots=True)
class End:
    """The body is complete."""


Step = Head | Chunk | Pause | End
