"""A provider that ignores our FIN: it says its part, and then neither reads nor closes.

The proxy cannot make it let go, and must not wait for it: what it holds on to is then the kernel's.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lunar_proxy.testing import SelfSigned, self_signed
from tests.e2e.harness import PATIENCE_S, Proxy, Stage, ask, chat, eventually, opened, serving

from .apis import CHAT, TEXT, parse
from .world import SHORT_S

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


WORD = HEAD + chunk(CHAT.word("Hello "))
# Everything but the last chunk, which would say that this is all.
WHOLE = WORD + chunk(CHAT.finish) + b"".join(map(chunk, CHAT.ending))


class Clinging:
    """Answers every connection's first request with `says`; what comes after it is not read."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.says = b""
        self._tls = tls
        self._held: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._run, name="clinging", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        self._thread.join()
        for sock in (self._server, *self._held):
            sock.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._server.accept()
                sock.settimeout(PATIENCE_S)
                if self._tls is not None:
                    sock = self._tls.wrap_socket(sock, server_side=True)
                self._held.append(sock)
                request = b""
                while b'"messages"' not in request:
                    request += sock.recv(65536)
                sock.sendall(self.says)

    def held_by(self, proxy: Proxy) -> int:
        """How many sockets of the process lead here (proc(5): an inode is a socket it has open,
        whatever state of TCP that is in).

        Only its own, each once: others on this machine come and go while the table is read, which
        may show a row twice or have a client of another server behind the same port number.
        """
        rows = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
        fields = [row.split() for row in rows]
        leading_here = {f"socket:[{f[9]}]" for f in fields if f[2] == f"0100007F:{self.port:04X}"}
        return len(leading_here & set(open_files(proxy)))


def open_files(proxy: Proxy) -> Iterator[str]:
    """What the process's descriptors stand for."""
    folder = Path(f"/proc/{proxy.process.pid}/fd")
    for descriptor in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield os.readlink(folder / descriptor)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage() as running:
        running.play(CHAT.says(TEXT))
        yield running


@pytest.fixture(scope="module")
def certificate() -> SelfSigned:
    return self_signed()


@pytest.fixture(scope="module", params=["plain", "tls"])
def provider(request: pytest.FixtureRequest, certificate: SelfSigned) -> Iterator[Clinging]:
    clinging = Clinging(certificate.server if request.param == "tls" else None)
    yield clinging
    clinging.stop()


@pytest.fixture(scope="module")
def proxy(
    tmp_path_factory: pytest.TempPathFactory,
    stage: Stage,
    provider: Clinging,
    certificate: SelfSigned,
) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("clinging")
    trusted = folder / "ca.pem"
    trusted.write_bytes(certificate.pem)
    config = {
        "upstream_ca": str(trusted),
        "providers": {
            "clings": {
                "base_url": f"{provider.url}/v1",
                "api_key": "k",
                "timeouts": {"first_token_s": SHORT_S},
            },
            "b": {"base_url": f"{stage.upstream.url}/v1", "api_key": "k"},
        },
    }
    with serving(folder, config) as running:
        yield running


def is_let_go(provider: Clinging, proxy: Proxy) -> None:
    eventually(lambda: provider.held_by(proxy) == 0, within_s=1)


def test_its_silence_moves_on(proxy: Proxy, provider: Clinging) -> None:
    provider.says = b""
    doc = chat("clings/m", stream=True, fallbacks=["b/m"])
    answer = ask(proxy.url, doc)
    assert answer.headers["x-lunar-provider"] == "b"
    assert CHAT.text(parse(answer.body)) == TEXT
    is_let_go(provider, proxy)


def test_the_client_of_its_stream_may_leave(proxy: Proxy, provider: Clinging) -> None:
    provider.says = WORD
    with opened(proxy.url, chat("clings/m", stream=True)) as response:
        assert response.read1()
        assert provider.held_by(proxy) == 1
    is_let_go(provider, proxy)


def test_its_answer_is_over_when_it_is_complete(proxy: Proxy, provider: Clinging) -> None:
    provider.says = WHOLE
    answer = ask(proxy.url, chat("clings/m", stream=True))
    assert CHAT.text(parse(answer.body)) == "Hello "
    assert parse(answer.body)[-1].data == b"[DONE]"
    is_let_go(provider, proxy)


def test_nor_does_the_end_of_the_proxy_wait_for_it(
    tmp_path: Path, proxy: Proxy, provider: Clinging
) -> None:
    provider.says = WORD
    config = yaml.safe_load(proxy.config.read_text()) | {"drain_s": 0.2}
    with serving(tmp_path, config) as another, opened(another.url, chat("clings/m", stream=True)):
        assert another.stop() == 0
