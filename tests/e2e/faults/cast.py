"""The providers of a proxy under test, each on a port of its own, all on one loop."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Self, TypeVar

from lunar_proxy.testing import Request, Script, ScriptedUpstream, error_answer

T = TypeVar("T")
Play = Script | Callable[[Request], Script]

# So that a hung proxy fails a test and not the run.
PATIENCE_S = 20.0


class Cast:
    """Scripted upstreams by name. What one answers depends on the model it is asked for: every
    test has models of its own, so neither scripts nor breakers of two tests can meet."""

    def __init__(
        self,
        *names: str,
        greetings: Mapping[str, Script] | None = None,
        tls: Mapping[str, ssl.SSLContext] | None = None,
    ) -> None:
        """`greetings`: what some say on every connection before they are asked anything."""
        self._scripts: dict[tuple[str, str | None], Play] = {}
        self.upstreams = {
            name: ScriptedUpstream(
                self._player(name),
                on_connect=(greetings or {}).get(name, ()),
                tls=(tls or {}).get(name),
            )
            for name in names
        }
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cast", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        for upstream in self.upstreams.values():
            self.run(upstream.start())
        return self

    def __exit__(self, *_: object) -> None:
        for upstream in self.upstreams.values():
            self.run(upstream.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def url(self, name: str) -> str:
        return f"{self.upstreams[name].url}/v1"

    def plays(self, name: str, model: str, play: Play) -> None:
        self._scripts[name, model] = play

    def asked(self, name: str, model: str) -> list[Request]:
        """What this provider was asked of this model, in order."""
        return [r for r in list(self.upstreams[name].requests) if r.model == model]

    def closed(self, name: str, connection: int, *, within_s: float) -> None:
        """Return once the proxy has closed that connection; TimeoutError if it does not."""
        self.run(self.upstreams[name].closed_by_peer(connection, within_s=within_s))

    def event(self) -> asyncio.Event:
        """For `Until`; set it by `set`."""
        return asyncio.Event()

    def set(self, event: asyncio.Event) -> None:
        self._loop.call_soon_threadsafe(event.set)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE_S)

    def _player(self, name: str) -> Callable[[Request], Script]:
        def play(request: Request) -> Script:
            found = self._scripts.get((name, request.model))
            if found is None:
                return error_answer(418, f"{name} has no script for {request.model}")
            return found(request) if callable(found) else found

        return play


def in_turn(*plays: Play) -> Callable[[Request], Script]:
    """One for each request; the last one for ever."""
    left = list(plays)

    def play(request: Request) -> Script:
        found = left.pop(0) if len(left) > 1 else left[0]
        return found(request) if callable(found) else found

    return play
