"""Memory does not grow with the calls served: what a call leaves behind is nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from lunar_proxy.testing import Request, Script, chat_answer, chat_stream, error_answer

from .conftest import config
from .guarded import USAGE
from .harness import DOORS, Proxy, Stage, ask, chat, eventually, opened, serving

BATCH = 200
# What a batch may add in the end, in KB: allocators keep a little, a leak of 1 KB a call adds this.
SLACK_KB = 200
# By then the caches are full that remember what callers ask for, 1024 names each.
BATCHES = 8
numbers = count()


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, stage: Stage) -> Iterator[Proxy]:
    changes = {"logging": {"level": "warning"}, "fallbacks": {"fails": ["groq/llama-3.1-8b"]}}
    with serving(tmp_path_factory.mktemp("soak"), config(stage.upstream.url) | changes) as running:
        yield running


def play(request: Request) -> Script:
    if str(request.model).startswith("made-up"):
        return error_answer(404, code="model_not_found")
    if request.model == "fails":
        return error_answer(500)
    if request.doc.get("stream"):
        return chat_stream("one two three", usage=USAGE)
    return chat_answer("one two three", usage=USAGE)


def whole(proxy: Proxy, door: str) -> None:
    assert ask(proxy.url, chat(), door=door).status == 200


def streamed(proxy: Proxy, door: str) -> None:
    assert ask(proxy.url, chat(stream=True), door=door).status == 200


def made_up(proxy: Proxy, door: str) -> None:
    """Another model, another id and another header each time."""
    n = next(numbers)
    headers = {"x-request-id": f"call-{n}", f"x-{n}": "y" * 100}
    doc = chat(f"openai/made-up-{n}")
    assert ask(proxy.url, doc, door=door, headers=headers).status == 404


def falls_back(proxy: Proxy, door: str) -> None:
    answer = ask(proxy.url, chat("openai/fails"), door=door)
    assert answer.headers["x-lunar-provider"] == "groq"


def refused(proxy: Proxy, door: str) -> None:
    assert ask(proxy.url, b"not JSON", door=door).status == 400


def hangs_up(proxy: Proxy, door: str) -> None:
    with opened(proxy.url, chat(stream=True), door=door) as response:
        assert response.status == 200


KINDS: dict[str, Callable[[Proxy, str], Any]] = {
    each.__name__: each for each in (whole, streamed, made_up, falls_back, refused, hangs_up)
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_memory_does_not_grow_with_calls(
    proxy: Proxy, stage: Stage, kind: Callable[[Proxy, str], Any]
) -> None:
    stage.play(play)

    def batch() -> int:
        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(kind, proxy, DOORS[n % 2]) for n in range(BATCH)]:
                done.result()
        eventually(lambda: "lunar_inflight_requests 0" in metrics(proxy))
        return resident_kb(proxy)

    sizes = [batch(), batch()]
    while sizes[-1] - sizes[-2] >= SLACK_KB:  # what leaks does so in each
        assert len(sizes) < BATCHES, sizes
        sizes.append(batch())


def metrics(proxy: Proxy) -> str:
    return ask(proxy.admin, path="/metrics", method="GET").body.decode()


def resident_kb(proxy: Proxy) -> int:
    status = Path(f"/proc/{proxy.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])
