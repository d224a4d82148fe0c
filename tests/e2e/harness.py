"""The real process on real sockets: what starts it, what it calls, and how the tests ask.

Stage     a scripted upstream on a loop of its own; each test says what it plays
Proxy     one `lunar-proxy serve`, started as a user would and stopped by SIGTERM
ask()     one request through either door; talk() one over a bare socket
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import orjson
import yaml

from lunar_proxy.testing import Request, Script, ScriptedUpstream, error_answer

T = TypeVar("T")

# Nothing should take this long; it is there so that a hung proxy fails a test and not the run.
PATIENCE_S = 60.0
CHAT = "/v1/chat/completions"
# How a request is sent decides which door takes it; the answers must not differ.
DOORS = ("fast", "aiohttp")


# --- the provider's side ------------------------------------------------------------------------


class Stage:
    """A `ScriptedUpstream` that blocking tests can direct."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.upstream = ScriptedUpstream(self._answer, tls=tls)
        self._plan: Script | Callable[[Request], Script] = error_answer(500, "no script is set")
        self._seen = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stage", daemon=True)

    def __enter__(self) -> Stage:
        self._thread.start()
        self.run(self.upstream.start())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self.upstream.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def play(self, plan: Script | Callable[[Request], Script]) -> None:
        self._plan = plan

    def clear(self) -> None:
        """Forget what came; fails the test when something came that is not HTTP."""
        failures, self.upstream.failures = self.upstream.failures, []
        self._seen = len(self.upstream.requests)
        self._plan = error_answer(500, "no script is set")
        assert failures == []

    @property
    def requests(self) -> list[Request]:
        """What this test's proxy has asked so far."""
        return self.upstream.requests[self._seen :]

    @property
    def request(self) -> Request:
        """The one request there was."""
        (only,) = self.requests
        return only

    def event(self) -> asyncio.Event:
        """For an `Until` step; set it with `set`."""
        return asyncio.Event()

    def set(self, event: asyncio.Event) -> None:
        self._loop.call_soon_threadsafe(event.set)

    def arrived(self) -> Request:
        """The next request of this test, waited for."""
        return self.run(self.upstream.request(self._seen, within_s=PATIENCE_S))

    def closed_by_proxy(self, request: Request, within_s: float = 1.0) -> None:
        """Return once the proxy has let go of that request's connection, or raise TimeoutError."""
        self.run(self.upstream.closed_by_peer(request.connection, within_s=within_s))

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE_S)

    def _answer(self, request: Request) -> Script:
        return self._plan(request) if callable(self._plan) else self._plan


# --- the proxy ----------------------------------------------------------------------------------


@dataclass
class Proxy:
    process: subprocess.Popen[bytes]
    url: str
    admin: str
    log: Path
    config: Path
    killed: bool = False

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def stderr(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def records(self) -> list[dict[str, Any]]:
        """The log so far, a document a line."""
        return [json.loads(line) for line in self.stderr().splitlines()]

    def calls(self) -> list[dict[str, Any]]:
        return [record for record in self.records() if record["event"] == "call"]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """Without a chance to tidy up; `serving` then does not ask for one."""
        self.killed = True
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(PATIENCE_S)


def environment(**more: str) -> dict[str, str]:
    """Ours without any provider's key or proxy: the tests call nobody but the stage."""
    unwanted = ("_API_KEY", "_PROXY", "_proxy")
    kept = {name: value for name, value in os.environ.items() if not name.endswith(unwanted)}
    return kept | more


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "lunar_proxy", *args]


@contextlib.contextmanager
def serving(
    folder: Path, config: Mapping[str, Any] | None, *args: str, **env: str
) -> Iterator[Proxy]:
    """A running proxy; leaving it stops it, and it must have stopped as asked."""
    path = folder / "lunar.yaml"
    if config is not None:
        write_config(path, config)
        args = ("--config", str(path), *args)
    log = folder / "stderr"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command("serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", *args),
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment(**env),
        )
    try:
        started = first_line(process, log)
        proxy = Proxy(process, started["proxy"], started["admin"], log, path)
        yield proxy
        assert proxy.killed or proxy.stop() == 0, proxy.stderr()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(config), encoding="utf-8")


def first_line(process: subprocess.Popen[bytes], log: Path) -> dict[str, str]:
    """The start-up line, the one thing on stdout."""
    assert process.stdout is not None
    timer = threading.Timer(PATIENCE_S, process.kill)
    timer.start()
    line = process.stdout.readline()
    timer.cancel()
    assert line, f"no start-up line; stderr: {log.read_text()}"
    started: dict[str, str] = json.loads(line)
    assert started["event"] == "listening"
    return started


# --- the client's side --------------------------------------------------------------------------


@dataclass
class Answer:
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def doc(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The `error` object, of an answer that has the shape every error of ours has."""
        doc = self.doc
        assert self.headers["content-type"] == "application/json"
        assert set(doc["error"]) >= {"message", "type", "code", "param"}
        assert doc["detail"] == doc["error"]["message"]
        found: dict[str, Any] = doc["error"]
        return found


def ask(
    url: str,
    doc: Any = None,
    *,
    path: str = CHAT,
    method: str = "POST",
    door: str = "fast",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request and its whole answer. `doc`: bytes go as they are, anything else as JSON.

    The fast door takes a Content-Length, and hands a chunked body over to the other.
    """
    with opened(url, doc, path=path, method=method, door=door, headers=headers) as response:
        body = response.read()
        fields = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, fields, body)


@contextlib.contextmanager
def opened(
    url: str,
    doc: Any = None,
    *,
    path: str = CHAT,
    method: str = "POST",
    door: str = "fast",
    headers: Mapping[str, str] | None = None,
) -> Iterator[http.client.HTTPResponse]:
    """The same, as soon as its head is there."""
    body = doc if isinstance(doc, bytes | None) else orjson.dumps(doc)
    fields = {"content-type": "application/json"} | dict(headers or {})
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_S)
    try:
        if body is not None and door == "aiohttp":
            fields["transfer-encoding"] = "chunked"
            connection.request(method, path, iter([body]), fields, encode_chunked=True)
        else:
            connection.request(method, path, body, fields)
        yield connection.getresponse()
    finally:
        connection.close()


def chat(model: str = "openai/gpt-4o", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hello"}]} | more


def talk(address: tuple[str, int], data: bytes) -> bytes:
    """Send bytes as they are; everything that comes back until the other side closes."""
    with socket.create_connection(address, timeout=PATIENCE_S) as sock:
        say(sock, data)
        return drain(sock)


def say(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):  # it may answer, and close, before the end
        sock.sendall(data)


def answer_on(sock: socket.socket) -> Answer:
    """The next answer on a connection, however it was asked for."""
    response = http.client.HTTPResponse(sock)
    response.begin()
    fields = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, fields, response.read())


def drain(sock: socket.socket) -> bytes:
    received = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(65536):
            received += data
    return bytes(received)


def request_bytes(
    doc: Any, *, path: str = CHAT, door: str = "fast", headers: str = "", close: bool = False
) -> bytes:
    """A request as it stands on the wire, for the tests that hold the socket themselves."""
    body = doc if isinstance(doc, bytes) else orjson.dumps(doc)
    framing = f"Content-Length: {len(body)}\r\n"
    if door == "aiohttp":
        framing = "Transfer-Encoding: chunked\r\n"
        body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    if close:
        framing += "Connection: close\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: proxy\r\nContent-Type: application/json\r\n"
    return (head + framing + headers + "\r\n").encode() + body


def eventually(holds: Callable[[], T], within_s: float = 5.0) -> T:
    """What `holds` returns once it is true. For what is told by a file or by another process."""
    end = time.monotonic() + within_s
    while not (found := holds()):
        assert time.monotonic() < end, "it did not come true in time"
        threading.Event().wait(0.02)
    return found
