"""Hedging: a target slower than it may be is raced by the next one; the first content answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lunar_proxy.testing import Pause, Script, error_answer
from tests.e2e.harness import ask, eventually

from .apis import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, TEXT, Api
from .world import DOORS, Scene, World, world

AFTER_S = 0.2
GOOD = CHAT.says(TEXT)
SLOW = "the slower one"
WAYS = [
    pytest.param(api, stream, door, id=f"{api}-{'stream' if stream else 'whole'}-{door}")
    for api in (CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS)
    for stream in (False, True)
    for door in DOORS
    if api.finish or not stream
]


@pytest.fixture(scope="module")
def hedging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(
        tmp_path_factory.mktemp("hedging"),
        hedge={"enabled": True, "after_s": AFTER_S},
        retries={"attempts": 1},
    ) as running:
        yield running


@pytest.fixture
def scene(hedging: World) -> Scene:
    return hedging.scene()


def tried(scene: Scene) -> list[tuple[str, str | None]]:
    return [(row["provider"], row["error"]) for row in scene.record["tried"]]


@pytest.mark.parametrize(("api", "stream", "door"), WAYS)
def test_a_slow_target_is_raced_and_let_go(scene: Scene, api: Api, stream: bool, door: str) -> None:
    scene.plays("a", api.opening() if stream else ())
    scene.plays("b", api.says(TEXT))
    answer = scene.ask(api, "a", "b", stream=stream, door=door)
    assert answer.text(api) == TEXT
    assert answer.who == ("b", 2, 1)
    assert AFTER_S <= answer.seconds < AFTER_S + 2
    scene.world.cast.closed("a", scene.asked("a")[0].connection, within_s=1)
    assert tried(scene) == [("a", "hedge_lost")]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_target_that_is_quick_enough_is_not_raced(scene: Scene, stream: bool) -> None:
    scene.plays("a", GOOD)
    scene.plays("b", GOOD)
    for _ in range(3):
        assert scene.ask(CHAT, "a", "b", stream=stream).who == ("a", 1, 0)
    assert scene.asked("b") == []
    assert tried(scene) == []


def test_the_first_to_have_content_wins_though_it_was_asked_first(scene: Scene) -> None:
    scene.plays("a", lambda request: (Pause(AFTER_S * 3), *CHAT.says(SLOW)(request)))
    scene.plays("b", lambda request: (Pause(30),))
    answer = scene.ask(CHAT, "a", "b", stream=True)
    assert answer.text(CHAT) == SLOW
    assert answer.who == ("a", 2, 0)
    scene.world.cast.closed("b", scene.asked("b")[0].connection, within_s=1)
    assert tried(scene) == [("b", "hedge_lost")]


def test_the_loser_is_accounted_apart(scene: Scene) -> None:
    cost = scene.world.metric("lunar_cost_usd_total", provider="priced")
    cast = scene.world.cast
    cast.plays("priced", "priced-model", CHAT.opening())
    scene.plays("b", GOOD)
    answer = scene.ask(CHAT, "priced/priced-model", "b", stream=True)
    assert answer.who[0] == "b"
    assert scene.record["input_tokens"] == 5  # the winner's own
    assert scene.world.metric("lunar_cost_usd_total", provider="priced") > cost


def test_the_loser_is_not_blamed(scene: Scene) -> None:
    scene.plays("a", ())
    scene.plays("b", GOOD)
    scene.ask(CHAT, "a", "b")
    (row,) = ask(
        scene.world.proxy.url, path=f"/v1/providers?model={scene.target('a')}", method="GET"
    ).doc
    assert row["enabled"]
    assert not row["params"]["error_rate"]


def error_rate(scene: Scene, provider: str) -> float | None:
    path = f"/v1/providers?model={scene.target(provider)}"
    (row,) = ask(scene.world.proxy.url, path=path, method="GET").doc
    found: float | None = row["params"]["error_rate"]
    return found


NO = error_answer(500)
LATE_NO: Script = (Pause(AFTER_S * 3), *error_answer(503))


@pytest.mark.parametrize(("late", "soon"), [("a", "b"), ("b", "a")])
def test_when_both_fail_the_next_one_is_asked(scene: Scene, late: str, soon: str) -> None:
    scene.plays(late, LATE_NO)
    scene.plays(soon, (Pause(AFTER_S * 1.5), *NO))
    scene.plays("keyring", GOOD)
    answer = scene.ask(CHAT, "a", "b", "keyring")
    assert answer.who == ("keyring", 3, 2)
    assert sorted(tried(scene)) == [("a", "upstream_busy"), ("b", "upstream_busy")]
    assert error_rate(scene, "a") == error_rate(scene, "b") == 1.0


def test_when_both_fail_and_nobody_is_left_the_last_no_is_told(scene: Scene) -> None:
    scene.plays("a", LATE_NO)
    scene.plays("b", NO)
    answer = scene.ask(CHAT, "a", "b")
    assert (answer.status, answer.who) == (503, ("a", 2, 0))


def test_the_first_failing_leaves_the_second_running(scene: Scene) -> None:
    scene.plays("a", (Pause(AFTER_S * 2), *NO))
    scene.plays("b", lambda request: (Pause(AFTER_S * 3), *GOOD(request)))
    answer = scene.ask(CHAT, "a", "b")
    assert answer.text(CHAT) == TEXT
    assert answer.who == ("b", 2, 1)
    assert error_rate(scene, "a") == 1.0
    assert not error_rate(scene, "b")


def test_a_quick_failure_falls_back_as_ever(scene: Scene) -> None:
    scene.plays("a", NO)
    scene.plays("b", GOOD)
    answer = scene.ask(CHAT, "a", "b")
    assert answer.who == ("b", 2, 1)
    assert answer.seconds < AFTER_S * 5
    assert tried(scene) == [("a", "upstream_busy")]


def test_alone_there_is_nobody_to_race(scene: Scene) -> None:
    scene.plays("a", lambda request: (Pause(AFTER_S * 2), *GOOD(request)))
    assert scene.ask(CHAT).who == ("a", 1, 0)


@pytest.mark.parametrize("door", DOORS)
def test_a_client_that_hangs_up_ends_both(scene: Scene, door: str) -> None:
    scene.plays("a", ())
    scene.plays("b", ())
    connection = scene.sent(CHAT, "a", "b", stream=True, door=door)
    eventually(lambda: scene.asked("b"))
    connection.close()
    for name in ("a", "b"):
        scene.world.cast.closed(name, scene.asked(name)[0].connection, within_s=1)
    record = scene.record
    assert record["disconnected"] == "headers"
    assert record["attempts"] == 2
    assert not error_rate(scene, "a")
    assert not error_rate(scene, "b")


def test_a_client_that_hangs_up_before_the_race_leaves_one_attempt(scene: Scene) -> None:
    scene.plays("a", ())
    connection = scene.sent(CHAT)
    eventually(lambda: scene.asked("a"))
    connection.close()
    assert scene.record["attempts"] == 1


def test_errors_of_the_request_are_passed_on_at_once(scene: Scene) -> None:
    scene.plays("a", error_answer(400, "no", type="invalid_request_error"))
    scene.plays("b", GOOD)
    assert scene.ask(CHAT, "a", "b").status == 400
    assert scene.asked("b") == []
