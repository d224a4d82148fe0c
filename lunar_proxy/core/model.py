"""The nouns every part of the proxy speaks: what was asked, of whom, and what came of it.

None of them changes once it is made. Times are seconds on the monotonic clock of `app`, money is
in units (`core.money`), token counts are whole tokens as the provider bills them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def noun(cls: type[T]) -> type[T]:
    """A dataclass that the type checker holds to be frozen, for what every call makes and reads.

    It is not frozen at run time: that makes one four times as expensive to make. A named tuple is
    made as fast, but each look at one of its fields takes ten times as long.
    """
    return dataclass(slots=True)(cls)


# Header names are lower-cased on arrival (RFC 9110 5.1: they are case-insensitive), values are the
# bytes that came. Order and repetition are kept.
Headers = tuple[tuple[bytes, bytes], ...]


@noun
class Said:
    """What the header fields of a request say to us (CONTRACT 4), whatever its body is.

    What may be wrong is kept as it came: the error is due when its turn comes, not before.
    """

    id: str | None  # the client's own, if it can be repeated in a header and a log line unharmed
    encoded: bool  # the body is in a coding of its own
    annotate: bytes | None = None
    timeout_s: bytes | None = None
    provider: str | None = None
    fallbacks: bytes | None = None
    feedback: bytes | None = None
    debug: bool = False
    guides: bool = False  # it says who may answer: `provider` or `fallbacks`

    @classmethod
    def by(cls, first: Mapping[bytes, bytes]) -> Said:
        get = first.get
        raw = get(b"x-request-id", b"")
        fit = 0 < len(raw) <= _LONGEST_ID and _ID_CHARACTERS.issuperset(raw)
        id = raw.decode("ascii") if fit else None
        encoded = get(b"content-encoding", b"identity") != b"identity"
        if _ASIDES.isdisjoint(first):
            return cls(id, encoded)
        provider, fallbacks = get(b"x-lunar-provider"), get(b"x-lunar-fallbacks")
        return cls(
            id,
            encoded,
            annotate=get(b"x-lunar-annotate"),
            timeout_s=get(b"x-lunar-timeout-s"),
            provider=provider.decode("latin-1").strip() if provider else None,
            fallbacks=fallbacks,
            feedback=get(b"x-lunar-feedback"),
            debug=get(b"x-lunar-debug") == b"1",
            guides=provider is not None or fallbacks is not None,
        )


_LONGEST_ID = 128
_ID_CHARACTERS = frozenset(
    b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/+=@"
)
_ASIDES = frozenset(
    f"x-lunar-{name}".encode()
    for name in ("annotate", "debug", "fallbacks", "feedback", "provider", "timeout-s")
)


class Fields:
    """The header fields of a request: `pairs` are all of them, in order, `first` those by name, of
    a repeated one the first; `get` looks one up. `said` is what they say to us.

    A client sends the same head again and again on one connection, and such requests share one
    `Fields`, so what follows from the fields alone need be worked out only `once`.
    """

    __slots__ = ("_made", "first", "get", "pairs", "said")

    def __init__(self, pairs: Headers) -> None:
        self.pairs = pairs
        self.first = dict(reversed(pairs))
        self.get = self.first.get
        self.said = Said.by(self.first)
        self._made: dict[object, Any] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fields) and self.pairs == other.pairs

    def __hash__(self) -> int:
        return hash(self.pairs)

    def once(self, make: Callable[[Headers], T]) -> T:
        """`make(pairs)`, of the first time it was asked for; one that raises is asked again."""
        made: T
        try:
            made = self._made[make]
        except KeyError:
            made = self._made[make] = make(self.pairs)
        return made


class Annotate(Enum):
    """How much the proxy adds to an answer (CONTRACT 5)."""

    FULL = "full"
    HEADERS = "headers"
    OFF = "off"


class Target(NamedTuple):
    """One place an answer can come from: a model at a provider.

    `provider` is the configured id ("openai", "lunar" for a deployment); `model` is the name the
    proxy calls it by, which is the provider's own id except for a deployment.
    """

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is calling. `id` names the limits and the ledger row; it is never the key itself."""

    id: str
    name: str
    models: tuple[str, ...] = ()  # globs the caller may ask for; empty: all
    limits: Any = None  # core.limits.Limits, None: the configured default


@noun
class Call:
    """One request, as the client sent it. `doc` is its JSON body parsed, None for any other."""

    id: str
    method: bytes
    path: bytes  # without the query
    query: bytes  # with its leading "?", or empty
    fields: Fields
    body: bytes
    doc: dict[str, Any] | None
    endpoint: str  # "chat/completions": the path below /v1/, or a family such as "audio"
    model: str
    stream: bool
    annotate: Annotate
    include_usage: bool | None  # what stream_options said; None: it said nothing
    accepted_at: float
    client: str  # the peer's address
    identity: Identity | None = None
    own_key: bytes | None = None  # the caller's own provider key
    via: str | None = None  # the provider whose host was addressed, not ours (HTTPS_PROXY)
    by_name: bool = False  # nothing but the name of its model says who may answer

    def __repr__(self) -> str:
        """Short, and without the headers and the body, which no log should hold."""
        return f"<Call {self.id} {self.endpoint} {self.model}>"


class Usage(NamedTuple):
    """Tokens of one answer. The parts are shares of the whole, never added to it.

    input_tokens counts the whole prompt, cached and cache-written tokens included, as OpenAI's
    `prompt_tokens` does (Anthropic's `input_tokens` leaves them out; its dialect adds them).
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0  # of input_tokens
    cache_write_tokens: int = 0  # of input_tokens
    reasoning_tokens: int = 0  # of output_tokens
    input_audio_tokens: int = 0  # of input_tokens
    output_audio_tokens: int = 0  # of output_tokens
    cache_audio_read_tokens: int = 0  # of input_audio_tokens and of cache_read_tokens
    estimated: bool = False  # counted here, because the provider said nothing

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


class Cost(NamedTuple):
    """What one answer cost, in units of 1e-10 US dollars (`core.money`), so that the parts add up.

    By the hour (`cost_per_hour`) only `total` is known and the three parts are None.
    """

    input: int | None
    output: int | None
    cache_input: int | None
    total: int


class Phase(Enum):
    """Where a call was when the client hung up."""

    CONNECT = "connect"
    HEADERS = "headers"
    FIRST_TOKEN = "first_token"
    STREAM = "stream"
    BACKOFF = "backoff"
    BODY = "body"


class Attempt(NamedTuple):
    """One call made upstream and how it ended. `error` is a ProxyError code, None for success."""

    target: Target
    status: int | None
    error: str | None
    duration_s: float
    usage: Usage | None = None
    cost: Cost | None = None


class Outcome(NamedTuple):
    """What is known once a call is over; ledger, metrics and log line are made of it.

    A tuple, because those take it apart all at once.
    """

    call: Call
    target: Target | None  # who answered, or was tried last
    index: int  # type: ignore[assignment]  # place of the target in the plan; 0: first choice
    status: int  # what the client was told; 499 when it had gone
    error: str | None  # ProxyError code
    usage: Usage | None
    cost: Cost | None
    priced: bool
    latency_s: float  # accepted to over
    ttft_s: float | None  # accepted to first content written
    overhead_s: float  # latency less the time spent waiting for a provider
    attempts: tuple[Attempt, ...] = ()
    disconnected: Phase | None = None
