"""The shipped encoder, for real: what it gives, and that the event loop does not wait for it."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lunar_proxy.scoring.embedder import NICER, Embedder, give_way
from lunar_proxy.scoring.encoder import Encoder
from lunar_proxy.scoring.errors import BadFile, Mismatch
from lunar_proxy.scoring.router import DEFAULT_EMBEDDER, SHIPPED


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(DEFAULT_EMBEDDER)


@pytest.fixture
async def embedder() -> AsyncIterator[Embedder]:
    made = Embedder(DEFAULT_EMBEDDER, threads=2, cache_entries=3)
    yield made
    made.close()


def test_names_itself(encoder: Encoder) -> None:
    assert encoder.id.name == "all-MiniLM-L6-v2-int8"
    assert (encoder.id.dimension, encoder.id.tokens) == (384, 104)
    assert encoder.id.sha256.startswith("a62e3dfb")


@pytest.mark.parametrize("text", ["", "hi", "naïve 你好 \ud800", "word " * 5000, "\x00\n\t"])
def test_any_text_gives_a_unit_vector(encoder: Encoder, text: str) -> None:
    vector = encoder.encode(text)
    assert vector.shape == (384,)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)


def test_texts_of_like_meaning_are_near(encoder: Encoder) -> None:
    cat, kitten, loan = (
        encoder.encode(text)
        for text in ("a cat sat on the mat", "a kitten on a rug", "interest on a mortgage")
    )
    assert cat @ kitten > cat @ loan + 0.2


def test_reads_104_tokens_and_no_more(encoder: Encoder) -> None:
    start = "one " * 102
    assert np.array_equal(encoder.encode(start + "zebra"), encoder.encode(start + "theorem"))


async def test_a_table_is_read_on_the_loop_and_remembered_too() -> None:
    embedder = Embedder(SHIPPED["static"].embedder, cache_entries=1)
    await embedder.start()
    asking = embedder.embed("hello")
    with pytest.raises(StopIteration) as done:  # no await: nothing was handed to a thread
        asking.send(None)
    assert embedder.cached("hello") is done.value.value
    # One a turn of the loop: the others go to the thread, so that the loop is not held up.
    await asyncio.gather(embedder.embed("another"), embedder.embed("more"))
    assert embedder.cached("hello") is None
    embedder.close()


async def test_the_same_text_is_computed_once(embedder: Embedder) -> None:
    one, two = await asyncio.gather(embedder.embed("hello"), embedder.embed("hello"))
    assert one is two
    assert await embedder.embed("hello") is one
    assert embedder.cached("hello") is one


async def test_remembers_a_bounded_number_and_forgets_the_oldest(embedder: Embedder) -> None:
    for text in ("a", "b", "c"):
        await embedder.embed(text)
    embedder.cached("a")
    await embedder.embed("d")
    assert [embedder.cached(text) is not None for text in "abcd"] == [True, False, True, True]


async def test_a_caller_that_gives_up_does_not_disturb_the_others(embedder: Embedder) -> None:
    await embedder.start()
    first = asyncio.ensure_future(embedder.embed("shared"))
    second = asyncio.ensure_future(embedder.embed("shared"))
    await asyncio.sleep(0)
    first.cancel()
    assert np.linalg.norm(await second) == pytest.approx(1, abs=1e-4)


async def test_loads_on_the_first_need(embedder: Embedder) -> None:
    assert embedder.id is None
    await embedder.embed("now")
    assert embedder.id == await embedder.start()


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has no priority of its own there")
def test_its_threads_give_way_to_the_loop() -> None:
    def nice() -> int:
        return os.getpriority(os.PRIO_PROCESS, 0)

    before = nice()
    with ThreadPoolExecutor(1, initializer=give_way) as pool:
        assert pool.submit(nice).result() == min(19, before + NICER)
    assert nice() == before


async def test_a_failed_load_is_told_to_every_caller(tmp_path: Path) -> None:
    embedder = Embedder(tmp_path / "absent")
    for _ in range(2):
        with pytest.raises(BadFile, match="absent"):
            await embedder.embed("x")
    embedder.close()


BAD_MANIFESTS = {
    "unknown key": ({"token": 3}, BadFile),
    "pooling": ({"pooling": "max"}, BadFile),
    "tokens": ({"tokens": "many"}, BadFile),
    "sha256": ({"sha256": "0" * 64}, Mismatch),
}


@pytest.mark.parametrize(("change", "error"), BAD_MANIFESTS.values(), ids=BAD_MANIFESTS.keys())
def test_a_bad_manifest_is_refused(
    tmp_path: Path, change: dict[str, object], error: type[Exception]
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(DEFAULT_EMBEDDER, directory)
    (directory / "embedder.json").write_text(json.dumps(change))
    with pytest.raises(error, match=str(directory)):
        Encoder(directory)


def test_importing_the_router_loads_no_model_runtime() -> None:
    code = (
        "import sys, lunar_proxy.scoring.router, lunar_proxy.scoring.embedder;"
        "print(sorted({'onnxruntime', 'tokenizers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
