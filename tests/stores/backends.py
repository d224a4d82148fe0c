"""What the store tests run on: a clock to turn, and a real redis-server to stop and kill."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

T0 = 1_800_000_000.0


class Clock:
    """The wall clock of a test."""

    def __init__(self, now: float = T0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        self.now += seconds
        return self.now


def _quiet_port() -> int:
    """A free one that stays free while no redis-server is on it: the kernel hands out others
    (net.ipv4.ip_local_port_range), to all those who ask for any and to every outgoing connection.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    pytest.fail("no free port below 32000")


class RedisServer:
    """A redis-server of our own on a free loopback port, to be frozen and killed."""

    def __init__(self, directory: Path) -> None:
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            pytest.fail("these tests need a redis-server: apt-get install redis-server")
        self._program = program
        self._directory = directory
        self.port = _quiet_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self._process = subprocess.Popen(
            [self._program, *arguments, "--dir", str(self._directory)],
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if b"Ready to accept connections" in line:
                return
        pytest.fail("the redis-server did not start")

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def empty(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port)) as client:
            client.sendall(b"FLUSHALL\r\n")
            assert client.recv(64).startswith(b"+OK")

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)
