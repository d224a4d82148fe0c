"""What a decision of the router costs: by length of prompt, remembered, and to the event loop.

    python tests/bench_router.py [--embedder static] [--count 200] [--rounds 5]

In this process: the encoder alone and the whole decision (form, embedding in its thread, choice)
alternate, prompt by prompt, and their ratio is the result. Beside a running proxy: a remembered
prompt to POST /v1/router with `execute: false`, against GET /health on the same kept
connection, the least an answer costs. Last, how late the event loop is while 16
decisions wait, against 16 sleeps; and the memory of the proxy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from lunar_proxy.scoring.decide import Candidate
from lunar_proxy.scoring.embedder import Embedder
from lunar_proxy.scoring.features import surface
from lunar_proxy.scoring.router import SHIPPED, Router
from lunar_proxy.scoring.static import open_encoder

WORDS = "what is the sum of all primes below one hundred and why does it matter to engineers "
LENGTHS = {"short (20 words)": 100, "128 tokens": 700, "20,000 characters": 20_000}


def text(length: int, number: int) -> str:
    """Each another one, so that nothing is remembered."""
    return f"{number}: {WORDS * (length // len(WORDS) + 1)}"[:length]


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def percentiles(taken: list[float]) -> str:
    taken = sorted(taken)
    return f"p50 {taken[len(taken) // 2]:7.3f}  p99 {taken[len(taken) * 99 // 100]:7.3f} ms"


async def decisions(place: str, count: int) -> None:
    shipped = SHIPPED[place]
    encoder, router = open_encoder(shipped.embedder), Router.load(shipped.profiles)
    embedder = Embedder(shipped.embedder)
    await embedder.start()
    pool = [Candidate(id, 1.0 + n) for n, id in enumerate(router.ids)]
    for name, length in LENGTHS.items():
        alone, whole = list[float](), list[float]()
        for number in range(count):
            prompt = text(length, number)
            await asyncio.sleep(0)  # a request has a turn of the loop of its own
            alone.append(timed(partial(encoder.encode, prompt)))
            began = time.perf_counter()
            router.decide(await embedder.embed(prompt), surface(prompt), pool)
            whole.append((time.perf_counter() - began) * 1000)
        ratio = sorted(whole)[count // 2] / sorted(alone)[count // 2]
        print(f"{name:24} encoder  {percentiles(alone)}")
        print(f"{'':24} decision {percentiles(whole)}, {ratio:.2f} x the encoder alone")
    vector, form = encoder.encode("hello"), surface("hello")
    choice = [timed(lambda: router.decide(vector, form, pool)) for _ in range(10 * count)]
    print(f"{f'choice among {len(pool)}':24} {percentiles(choice)}")
    await stalls(embedder, router, pool)
    embedder.close()


async def stalls(embedder: Embedder, router: Router, pool: list[Candidate]) -> None:
    async def idle(_number: int) -> None:
        await asyncio.sleep(0.1)

    async def ask(number: int) -> None:
        prompt = text(20_000, 10_000 + number)
        router.decide(await embedder.embed(prompt), prompt[:1000], pool)

    for what, work in (("sleeps", idle), ("decisions", ask)):
        late = list[float]()
        for turn in range(20):
            waiting = [asyncio.ensure_future(work(16 * turn + number)) for number in range(16)]
            for _ in range(100):
                began = time.perf_counter()
                await asyncio.sleep(0.001)
                late.append((time.perf_counter() - began) * 1000 - 1)
            await asyncio.gather(*waiting)
        print(f"{f'loop late, 16 {what}':24} {percentiles(late)}  max {max(late):.3f} ms")


@contextmanager
def proxy(embedder: str) -> Iterator[tuple[int, int]]:
    """Port and pid of a proxy with the router loaded."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(f"router: {{embedder: {embedder}}}\nadmin: {{listen: 127.0.0.1:0}}\n")
        file.flush()
        command = [sys.executable, "-m", "lunar_proxy", "serve", "--config", file.name]
        command += ["--listen", f"127.0.0.1:{port}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while True:
                with socket.socket() as sock:
                    if sock.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield port, process.pid
        finally:
            process.terminate()
            process.wait()


def remembered(embedder: str, count: int, rounds: int) -> None:
    ask = {"messages": [{"role": "user", "content": text(400, 0)}], "execute": False}
    body = json.dumps({**ask, "models": ["gpt-4o", "gpt-4o-mini", "claude-3-haiku"]}).encode()
    head = b"POST /v1/router HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    routed = head + b"content-length: %d\r\n\r\n" % len(body) + body
    plain = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    with proxy(embedder) as (port, pid), socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        answers = sock.makefile("rb")

        def exchange(request: bytes) -> None:
            sock.sendall(request)
            status, length = answers.readline(), 0
            while (line := answers.readline().lower()) != b"\r\n":
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            body = answers.read(length)
            if b" 200 " not in status:
                raise SystemExit(body.decode())

        medians: dict[bytes, list[float]] = {routed: [], plain: []}
        for _ in range(rounds):
            for request, found in medians.items():
                taken = sorted(timed(partial(exchange, request)) for _ in range(count))
                found.append(taken[count // 2])
        router, other = (min(found) for found in medians.values())
        ratio = router / other
        print(f"remembered prompt p50 {router:.3f} ms, GET /health {other:.3f} ms ({ratio:.2f} x)")
        resident = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        print(f"memory of the proxy {resident * os.sysconf('SC_PAGESIZE') >> 20} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--embedder", choices=sorted(SHIPPED), default="minilm")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    asyncio.run(decisions(args.embedder, args.count))
    remembered(args.embedder, args.count, args.rounds)


if __name__ == "__main__":
    main()
