"""The router's life with an embedder that a test directs: loaded when, late when, learning what."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import numpy as np
import pytest

from lunar_proxy.config.schema import Router as Settings
from lunar_proxy.core.errors import RouterNotReady
from lunar_proxy.gateway.decider import RETRY_S, Decider, Readings, Verdict
from lunar_proxy.scoring.decide import Candidate
from lunar_proxy.scoring.encoder import EmbedderId, Vector
from lunar_proxy.scoring.errors import Absent, BadFile
from lunar_proxy.scoring.profiles import save_profile
from lunar_proxy.scoring.router import DEFAULT_EMBEDDER, DEFAULT_PROFILES, SHIPPED, Router
from lunar_proxy.testing import FakeClock

POOL = [Candidate("gpt-4o", 10.0), Candidate("gpt-4o-mini", 1.0)]


class Embedder:
    """A vector for any text, as soon as the test lets it."""

    def __init__(self, id: EmbedderId, *, broken: bool = False, absent: bool = False) -> None:
        self.id = id
        self.broken = broken
        self.absent = absent
        self.starts = 0
        self.free = asyncio.Event()
        self.free.set()
        self.known: dict[str, Vector] = {}

    def cached(self, text: str) -> Vector | None:
        return self.known.get(text)

    async def start(self) -> EmbedderId:
        self.starts += 1
        if self.absent:
            raise Absent("model.onnx: onnxruntime is not installed")
        if self.broken:
            raise BadFile("model.onnx: missing")
        return self.id

    async def embed(self, text: str) -> Vector:
        await self.free.wait()
        vector = np.zeros(self.id.dimension, dtype=np.float32)
        vector[len(text) % self.id.dimension] = 1
        self.known[text] = vector
        return vector

    def close(self) -> None:
        self.free.set()


@pytest.fixture(scope="module")
def id() -> EmbedderId:
    return Router.load(DEFAULT_PROFILES).embedder


@pytest.fixture
def embedder(id: EmbedderId) -> Embedder:
    return Embedder(id)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def decider(embedder: Embedder, clock: FakeClock) -> Decider:
    return Decider(Settings(), clock, lambda _directory: embedder)


async def decide(decider: Decider, text: str = "text", **more: float) -> Verdict:
    verdict = await decider.decide(text, POOL, 0.0, **more)
    assert verdict is not None
    return verdict


async def test_loads_at_the_first_need_and_once(decider: Decider, embedder: Embedder) -> None:
    assert decider.loaded is None
    verdicts = await asyncio.gather(*(decide(decider, f"text {n}") for n in range(16)))
    assert embedder.starts == 1
    assert {verdict.decision.selected for verdict in verdicts} <= {"gpt-4o", "gpt-4o-mini"}


async def test_what_takes_longer_than_it_may_is_no_decision(
    decider: Decider, embedder: Embedder
) -> None:
    await decider.load()
    embedder.free.clear()
    assert await decider.decide("text", POOL, 0.0, within_s=0.001) is None
    embedder.free.set()
    assert not (await decide(decider)).cached
    assert (await decide(decider, within_s=0.001)).cached


async def test_files_that_are_no_good_are_not_read_by_every_call(
    decider: Decider, embedder: Embedder, clock: FakeClock
) -> None:
    embedder.broken = True
    for _ in range(3):
        with pytest.raises(RouterNotReady, match=r"model\.onnx: missing"):
            await decide(decider)
    assert embedder.starts == 1
    embedder.broken = False
    clock.advance(RETRY_S)
    assert (await decide(decider)).decision.selected


async def test_profiles_of_another_embedder_are_refused(id: EmbedderId, clock: FakeClock) -> None:
    other = EmbedderId("other", "f" * 64, id.dimension, id.tokens)
    decider = Decider(Settings(), clock, lambda _directory: Embedder(other))
    with pytest.raises(RouterNotReady, match="made with embedder"):
        await decider.load()


class Encoders:
    """minilm cannot be loaded here, until it can."""

    def __init__(self, id: EmbedderId) -> None:
        self.minilm = Embedder(id, absent=True)
        self.static = Embedder(Router.load(SHIPPED["static"].profiles).embedder)

    def __call__(self, directory: Path) -> Embedder:
        return self.minilm if directory == DEFAULT_EMBEDDER else self.static


async def test_static_stands_in_for_an_embedder_that_is_not_there(
    id: EmbedderId, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    encoders = Encoders(id)
    decider = Decider(Settings(), clock, encoders)
    with caplog.at_level(logging.WARNING):
        assert (await decide(decider)).decision.selected
    assert "onnxruntime is not installed; embedder 'static' stands in" in caplog.text
    standing_in = await decider.load()
    assert standing_in.router.embedder == encoders.static.id

    # A reload tries again what the config asks for, and keeps what stands in while it must.
    decider.use(Settings(), await decider.prepare(Settings()))
    assert (await decider.load()).embedder is standing_in.embedder
    encoders.minilm.absent = False
    decider.use(Settings(), await decider.prepare(Settings()))
    assert (await decider.load()).router.embedder == id


async def test_static_is_no_help_to_profiles_that_were_made_with_another(
    id: EmbedderId, clock: FakeClock, tmp_path: Path
) -> None:
    save_profile(next(iter(Router.load())), tmp_path)
    decider = Decider(Settings(profiles=tmp_path), clock, Encoders(id))
    with pytest.raises(RouterNotReady, match=r"not installed; static cannot stand in: .*made with"):
        await decider.load()


@pytest.mark.parametrize("place", ["static", "/nowhere"])
async def test_nothing_stands_in_for_what_was_asked_for_by_name(
    id: EmbedderId, clock: FakeClock, place: str
) -> None:
    embedder = Embedder(id, absent=True)
    decider = Decider(Settings(embedder=place), clock, lambda _directory: embedder)
    with pytest.raises(RouterNotReady, match=r"onnxruntime is not installed$"):
        await decider.load()


async def test_a_reload_that_fails_changes_nothing(decider: Decider, tmp_path: Path) -> None:
    before = await decider.load()
    with pytest.raises(RouterNotReady, match="no such directory"):
        await decider.prepare(Settings(profiles=tmp_path / "nowhere"))
    assert decider.loaded is before


async def test_a_reload_keeps_the_embedder_that_stays(decider: Decider, embedder: Embedder) -> None:
    before = await decider.load()
    await decide(decider)
    settings = Settings(cost_scale="usd")
    decider.use(settings, await decider.prepare(settings))
    after = await decider.load()
    assert after is not before
    assert after.embedder is before.embedder is embedder
    assert (await decide(decider)).cached


async def test_feedback_outlives_a_reload_and_can_be_forgotten(
    embedder: Embedder, clock: FakeClock
) -> None:
    settings = Settings(feedback=True)
    decider = Decider(settings, clock, lambda _directory: embedder)
    before = (await decide(decider)).decision
    profile = "gpt-4o-2024-08-06"

    for _ in range(30):
        await decider.learn(lambda feedback: feedback.add(profile, before.cluster_id, 0.0))
    moved = (await decide(decider)).decision
    assert moved.expected_errors["gpt-4o"] > before.expected_errors["gpt-4o"]
    assert moved.expected_errors["gpt-4o-mini"] == before.expected_errors["gpt-4o-mini"]

    decider.use(settings, await decider.prepare(settings))
    assert (await decide(decider)).decision == moved
    await decider.learn(lambda feedback: feedback.forget(profile))
    assert (await decide(decider)).decision == before


async def test_feedback_that_is_off_is_not_learned(decider: Decider) -> None:
    before = await decider.load()
    await decider.learn(lambda feedback: feedback.add("gpt-4o-2024-08-06", 0, 0.0))
    assert decider.loaded is before


async def test_a_text_is_decided_alike_however_it_is_remembered(decider: Decider) -> None:
    for text in ("What is 2 + 2?", "What is 2 + 2? " * 200):
        first = await decide(decider, text)
        again = await decide(decider, text)
        assert (first.cached, again.cached) == (False, True)
        assert again.decision == first.decision
        vector = (await decider.load()).embedder.cached(text)
        assert vector is not None
        router = (await decider.load()).router
        assert first.decision == router.decide(vector, text, POOL)


def test_remembers_a_bounded_number_of_texts_as_one_router_read_them() -> None:
    readings, router = Readings(2), Router.load()
    reading = router.read(np.eye(384, dtype=np.float32)[0], np.zeros(13, dtype=np.float32))
    for text in "abc":
        readings.put(text, router, reading)
    assert [readings.get(text, router) is reading for text in "abc"] == [False, True, True]
    assert readings.get("b", Router.load()) is None
