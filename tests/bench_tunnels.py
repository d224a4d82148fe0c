"""What idle tunnels cost: thousands of blind CONNECTs, held open, and then used once each.

    python tests/bench_tunnels.py [COUNT]

The server behind the tunnels and the clients in front of them are processes of their own, since
each needs as many open files as there are tunnels, and the proxy twice as many.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

# Clients that are on their way at the same time; the listener's backlog is what bounds it.
AT_ONCE = 64
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def allow_many_files() -> int:
    """As many as the administrator lets us have open, and how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def serve_echo(tell: Connection) -> None:
    """A server that says back what it hears."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1024):
            writer.write(data)
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0, backlog=1024)
        tell.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())


Tunnel = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def open_tunnels(count: int, proxy: tuple[str, int], target: int) -> list[Tunnel]:
    room = asyncio.Semaphore(AT_ONCE)

    async def one() -> Tunnel:
        async with room:
            reader, writer = await asyncio.open_connection(*proxy)
            writer.write(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % target)
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head[:20], head
            return reader, writer

    return await asyncio.gather(*(one() for _ in range(count)))


async def use_each(tunnels: list[Tunnel]) -> None:
    for reader, writer in tunnels:
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"


class Proxy:
    """A running `lunar-proxy serve`, and what it takes of the machine."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["proxy"]
        host, _, port = url.removeprefix("http://").rpartition(":")
        self.address = host, int(port)

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2]
        return sum(map(int, fields.split()[11:13])) * TICK_S

    def memory_kb(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1])

    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


async def measure(count: int, proxy: Proxy, target: int) -> None:
    empty_kb, began, cpu = proxy.memory_kb(), time.monotonic(), proxy.cpu_s()
    tunnels = await open_tunnels(count, proxy.address, target)
    took_s, cpu_s = time.monotonic() - began, proxy.cpu_s() - cpu
    print(f"{count} tunnels in {took_s:.1f} s, {cpu_s / count * 1e6:.0f} us CPU each")
    kb = (proxy.memory_kb() - empty_kb) / count
    print(f"{proxy.files()} open files, {kb:.1f} KB a tunnel")
    cpu = proxy.cpu_s()
    await asyncio.sleep(10)
    print(f"idle for 10 s: {(proxy.cpu_s() - cpu) / 10:.1%} of a core")
    began = time.monotonic()
    await use_each(tunnels)
    each_us = (time.monotonic() - began) / count * 1e6
    print(f"every one still carries, one after another {each_us:.0f} us each, there and back")
    for _, writer in tunnels:
        writer.transport.abort()
    while proxy.files() > 100:  # noqa: ASYNC110  it is another process
        await asyncio.sleep(0.05)
    print(f"all closed: {proxy.files()} open files, {proxy.memory_kb() - empty_kb} KB more")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    if (most := (allow_many_files() - 100) // 2) < count:
        print(f"the hard limit of open files allows {most} tunnels")
        count = most
    told, tell = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.Process(target=serve_echo, args=(tell,))
    server.start()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "lunar.yaml"
        config.write_text("admin: {listen: 127.0.0.1:0}\nlisten: 127.0.0.1:0\n")
        command = [sys.executable, "-m", "lunar_proxy", "serve", "--config", str(config)]
        # Started as from a shell; it raises the soft limit itself.
        process = subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=_usual(1024))
        try:
            asyncio.run(measure(count, Proxy(process), told.recv()))
        finally:
            for each in (process.pid, server.pid):
                os.kill(each or 0, signal.SIGINT)
            print(f"exit code {process.wait()}")
            server.join()


def _usual(soft: int) -> Callable[[], None]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


if __name__ == "__main__":
    main()
