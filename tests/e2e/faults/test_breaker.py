"""The breaker of a target: what opens it, what closes it, and what happens meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from lunar_proxy.testing import Close, Pause, Script, Until, error_answer
from tests.e2e.harness import ask, eventually

from .apis import CHAT, TEXT
from .world import Scene, World, world

FAILURES, OPEN_S = 3, 1.0
GOOD = CHAT.says(TEXT)
FAILS = error_answer(500)
CLOSED, HALF_OPEN, OPEN = 0, 1, 2


@pytest.fixture(scope="module")
def sensitive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(
        tmp_path_factory.mktemp("breaker"),
        breaker={"failures": FAILURES, "window_s": 30, "open_s": OPEN_S},
        retries={"attempts": 1},
    ) as running:
        yield running


@pytest.fixture
def scene(sensitive: World) -> Scene:
    return sensitive.scene()


def state(scene: Scene, provider: str = "a") -> str:
    path = f"/v1/providers?model={scene.target(provider)}"
    (row,) = ask(scene.world.proxy.url, path=path, method="GET").doc
    found: str = row["params"]["state"]
    assert row["enabled"] == (found != "open")
    return found


def opened(scene: Scene) -> None:
    scene.plays("a", FAILS)
    for _ in range(FAILURES):
        assert scene.ask(CHAT).status == 500
    assert state(scene) == "open"


def until_half_open(scene: Scene) -> None:
    eventually(lambda: state(scene) == "half_open")


def test_failures_open_it_and_it_is_not_asked_any_more(scene: Scene) -> None:
    opened(scene)
    scene.plays("b", GOOD)
    answer = scene.ask(CHAT, "a", "b")
    assert answer.who == ("b", 1, 1)
    assert len(scene.asked("a")) == FAILURES
    assert scene.world.metric("lunar_target_state", target="a/other") == OPEN


def test_all_open_is_said_with_when_to_come_back(scene: Scene) -> None:
    opened(scene)
    answer = scene.ask(CHAT)
    assert answer.status == 503
    assert (answer.error["type"], answer.error["code"]) == ("no_healthy_target",) * 2
    assert answer.headers["retry-after"] == "1"
    assert answer.doc["retry_after"] > 0
    assert len(scene.asked("a")) == FAILURES


def test_a_move_past_an_open_breaker_is_counted(scene: Scene) -> None:
    labels = {"from": "a/other", "to": "b/other", "reason": "breaker_open"}
    opened(scene)
    scene.plays("b", GOOD)
    before = scene.world.metric("lunar_fallbacks_total", **labels)
    scene.ask(CHAT, "a", "b")
    assert scene.world.metric("lunar_fallbacks_total", **labels) - before == 1


def test_a_probe_that_succeeds_closes_it(scene: Scene) -> None:
    opened(scene)
    until_half_open(scene)
    scene.plays("a", GOOD)
    assert scene.ask(CHAT).text(CHAT) == TEXT
    assert state(scene) == "closed"


def test_a_probe_that_fails_opens_it_again(scene: Scene) -> None:
    opened(scene)
    until_half_open(scene)
    assert scene.ask(CHAT).status == 500
    assert state(scene) == "open"
    assert scene.ask(CHAT).status == 503


def test_there_is_one_probe_at_a_time(scene: Scene) -> None:
    opened(scene)
    until_half_open(scene)
    gate = scene.world.cast.event()
    scene.plays("a", lambda request: (Until(gate), *GOOD(request)))
    scene.plays("b", GOOD)
    with ThreadPoolExecutor(5) as pool:
        calls = [pool.submit(scene.ask, CHAT, "a", "b") for _ in range(5)]
        eventually(lambda: sum(call.done() for call in calls) == 4)
        scene.world.cast.set(gate)
        who = sorted(call.result().who[0] for call in calls)
    assert who == ["a", "b", "b", "b", "b"]
    assert len(scene.asked("a")) == FAILURES + 1


# Whatever becomes of a probe, the next one must be possible.
NO_VERDICT: dict[str, Script] = {
    "a refusal": error_answer(400),
    "an unknown model": error_answer(404),
    "a refused key": error_answer(401),
    "a prompt too long": error_answer(400, code="context_length_exceeded"),
}


@pytest.mark.parametrize("script", NO_VERDICT.values(), ids=NO_VERDICT)
def test_a_probe_that_says_nothing_of_health_leaves_room_for_the_next(
    scene: Scene, script: Script
) -> None:
    opened(scene)
    until_half_open(scene)
    scene.plays("a", script)
    for _ in range(2):
        assert scene.ask(CHAT).status in (400, 401, 404)
    scene.plays("a", GOOD)
    assert scene.ask(CHAT).text(CHAT) == TEXT
    assert state(scene) == "closed"


def test_a_probe_whose_client_leaves_leaves_room_for_the_next(scene: Scene) -> None:
    opened(scene)
    until_half_open(scene)
    scene.plays("a", (Pause(30),))
    connection = scene.sent(CHAT)
    eventually(lambda: len(scene.asked("a")) == FAILURES + 1)
    connection.close()
    scene.world.cast.closed("a", scene.asked("a")[-1].connection, within_s=1)
    scene.plays("a", GOOD)
    assert scene.ask(CHAT).text(CHAT) == TEXT


NOT_BLAMED: dict[str, Script] = {
    "refusals": error_answer(400),
    "filters": error_answer(400, code="content_filter"),
    "unknown models": error_answer(404),
    "refused keys": error_answer(401),
    "prompts too long": error_answer(400, code="context_length_exceeded"),
}


@pytest.mark.parametrize("script", NOT_BLAMED.values(), ids=NOT_BLAMED)
def test_what_does_not_count_as_a_failure(scene: Scene, script: Script) -> None:
    scene.plays("a", script)
    for _ in range(FAILURES + 1):
        assert scene.ask(CHAT).status in (400, 401, 404)
    assert state(scene) == "closed"


BLAMED = {
    "cut streams": CHAT.opening("Hello"),
    "no content": CHAT.opening(),
}


@pytest.mark.parametrize("script", BLAMED.values(), ids=BLAMED)
def test_streams_that_break_count(scene: Scene, script: Script) -> None:
    scene.plays("a", (*script, Close()))
    for _ in range(FAILURES):
        scene.ask(CHAT, stream=True)
    assert state(scene) == "open"


def test_an_alias_begins_with_who_is_open_to_it(scene: Scene) -> None:
    """Strategies skip open targets: the first choice is then the next one."""
    cast = scene.world.cast
    cast.plays("a", "either", FAILS)
    cast.plays("b", "either", GOOD)
    for _ in range(FAILURES):
        assert scene.ask(CHAT, model="either").who == ("b", 2, 1)
    assert scene.ask(CHAT, model="either").who == ("b", 1, 0)
