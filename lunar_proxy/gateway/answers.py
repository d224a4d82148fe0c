"""How POST /v1/router answers: a decision alone, or an answer with the decision put in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lunar_proxy.core.model import Headers
from lunar_proxy.core.routerask import with_routing
from lunar_proxy.relay.client import Client, Source


@dataclass(frozen=True, slots=True)
class Told:
    """An answer of our own, for a request that asks nobody else."""

    client: Client
    headers: Headers
    body: bytes

    def run(self) -> None:
        fields = ((b"content-type", b"application/json"), *self.headers)
        self.client.answer(200, fields, self.body)


class WithRouting(Client):
    """A client to which a JSON answer goes with the member `routing`; a stream as it is.

    The engine has a JSON answer whole before it writes any of it, so holding it costs no time.
    """

    def __init__(self, client: Client, routing: Mapping[str, Any], *, stream: bool) -> None:
        self._client = client
        self._routing = routing
        self._stream = stream
        self._head: tuple[int, list[tuple[bytes, bytes]]] | None = None
        self._body: list[bytes] = []

    def head(self, status: int, headers: Iterable[tuple[bytes, bytes]], length: int | None) -> None:
        if self._stream or status != 200 or length is None:
            self._client.head(status, headers, length)
        else:
            self._head = (status, list(headers))

    def write(self, data: bytes) -> None:
        if self._head is None:
            self._client.write(data)
        else:
            self._body.append(data)

    def end(self) -> None:
        if self._head is not None:
            (status, headers), self._head = self._head, None
            body = with_routing(b"".join(self._body), self._routing)
            self._client.answer(status, headers, body)
        else:
            self._client.end()

    def cut(self) -> None:
        self._client.cut()

    def follow(self, source: Source | None) -> None:
        self._client.follow(source)
