"""What interception costs: the same call by base URL, through HTTPS_PROXY, and through mitmproxy.

    python tests/bench_https_proxy.py --proxybench ../shared/proxybench [--mitmdump FILE]

All of them ask the same TLS upstream, over loopback. Runs alternate and the best of each counts,
since noise only ever adds; the ratios are the result, not the numbers. Kept-alive requests are
compared by the CPU of the proxy; first connections by time, one after another by a client that
blocks, at the quickest and at the first quartile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class Contestant:
    name: str
    pid: int
    url: str
    via: str | None = None

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2]
        user, system = fields.split()[11:13]
        return (int(user) + int(system)) * TICK_S


@contextlib.contextmanager
def running(*command: str, log: Path, **env: str) -> Iterator[int]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **env})
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"nothing listens on {port}")


def load(bench: Path, contestant: Contestant, seconds: float) -> float:
    """Requests over 16 kept connections; the proxy's CPU for one, in microseconds."""
    command = [sys.executable, str(bench / "client.py"), "closed", "--url", contestant.url]
    command += ["--concurrency", "16", "--seconds", str(seconds)]
    command += ["--connect-via", contestant.via] if contestant.via else []
    before = contestant.cpu_s()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if found["errors"]:
        raise SystemExit(f"{contestant.name}: {found['errors']} errors")
    requests: int = found["requests"]
    return (contestant.cpu_s() - before) / max(1, requests) * 1e6


def connect(contestant: Contestant, count: int) -> list[float]:
    """From nothing to the first bytes of an answer, in milliseconds, each time."""
    assert contestant.via is not None
    proxy, target = urlsplit(contestant.via), urlsplit(contestant.url)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    body = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi"}]}'
    request = (
        f"POST {target.path} HTTP/1.1\r\nHost: {target.netloc}\r\nAuthorization: Bearer sk\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        with socket.create_connection((proxy.hostname, proxy.port)) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(f"CONNECT {target.netloc} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            sock.recv(4096)
            with context.wrap_socket(sock, server_hostname=target.hostname) as secure:
                secure.sendall(request)
                if b" 200 " not in secure.recv(65536)[:20]:
                    raise SystemExit(f"{contestant.name}: no answer")
        taken.append((time.perf_counter() - began) * 1000)
    return taken


def lunar(work: Path, name: str, upstream: str, port: int, *, enabled: bool) -> list[str]:
    config = {
        "listen": f"127.0.0.1:{port}",
        "admin": {"listen": "127.0.0.1:0"},
        "providers": {"openai": {"base_url": f"{upstream}/v1", "api_key": "sk-upstream"}},
        "intercept": {
            "enabled": enabled,
            "ca_dir": str(work / "ca"),
            "hosts": ["localhost=openai"],
        },
        "upstream_ca": str(work / "cert.pem"),
    }
    file = work / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    if enabled:
        init = [sys.executable, "-m", "lunar_proxy", "ca", "init", "--config", str(file)]
        subprocess.run(init, check=True, capture_output=True)
    return [sys.executable, "-m", "lunar_proxy", "serve", "--config", str(file)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--proxybench", type=Path, required=True)
    parser.add_argument("--mitmdump")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        measure(args, Path(folder), stack)


def measure(args: argparse.Namespace, work: Path, stack: contextlib.ExitStack) -> None:
    sys.path.insert(0, str(args.proxybench))
    import run as proxybench  # type: ignore[import-not-found]  # found by --proxybench

    mock, _ = proxybench.build_mock(work)
    cert, key = proxybench.make_cert(work)
    plain, tls = free_port(), free_port()
    ports = ["--port", str(plain), "--tls-port", str(tls), "--cert", cert, "--key", key]
    stack.enter_context(running(str(mock), *ports, log=work / "mock"))
    wait_for(tls)
    path, upstream = "/v1/chat/completions", f"https://127.0.0.1:{tls}"
    host = f"https://localhost:{tls}{path}"
    found = []
    for name, enabled in (("opened", True), ("tunnel", False)):
        port = free_port()
        command = lunar(work, name, upstream, port, enabled=enabled)
        pid = stack.enter_context(running(*command, log=work / name))
        wait_for(port)
        proxy = f"http://127.0.0.1:{port}"
        if enabled:
            found.append(Contestant("base URL", pid, proxy + path))
        found.append(Contestant(name, pid, host, proxy))
    if args.mitmdump:
        port = free_port()
        command = [args.mitmdump, "-q", "-p", str(port), "--set", f"confdir={work}/mitm"]
        command += ["--set", "connection_strategy=lazy", "--ssl-insecure"]
        command += ["-s", str(args.proxybench / "mitm_stream.py")]
        pid = stack.enter_context(running(*command, log=work / "mitmdump"))
        wait_for(port)
        found.append(Contestant("mitmproxy", pid, host, f"http://127.0.0.1:{port}"))
    report(args, found)


def report(args: argparse.Namespace, contestants: list[Contestant]) -> None:
    cpu: dict[str, list[float]] = {each.name: [] for each in contestants}
    first: dict[str, list[float]] = {each.name: [] for each in contestants}
    for each in contestants:
        load(args.proxybench, each, 0.5)
    for turn in range(args.rounds):
        shift = turn % len(contestants)
        for each in contestants[shift:] + contestants[:shift]:
            cpu[each.name].append(load(args.proxybench, each, args.seconds))
            if each.via is not None:
                first[each.name] += connect(each, 50)
    base, tunnel = min(cpu["base URL"]), sorted(first["tunnel"])
    for name in cpu:
        line = (
            f"{name:10} kept {min(cpu[name]):7.0f} us CPU, {min(cpu[name]) / base:5.2f} x base URL"
        )
        if taken := sorted(first[name]):
            quartile = len(taken) // 4
            line += f"; first {taken[0]:6.2f} ms ({taken[0] - tunnel[0]:+.2f} to a tunnel)"
            line += (
                f", quartile {taken[quartile]:6.2f} ms ({taken[quartile] - tunnel[quartile]:+.2f})"
            )
        print(line)


if __name__ == "__main__":
    main()
