"""When, and how often, the same provider is asked again; and its keys in turn."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from lunar_proxy.testing import Request, Script, error_answer, json_answer

from .apis import CHAT, TEXT
from .cast import in_turn
from .world import DOORS, KEYRING, KEYS, Scene

GOOD = CHAT.says(TEXT)


def date(offset_s: float) -> str:
    return formatdate(1_800_000_000 + offset_s, usegmt=True)


# headers of the first answer -> the least, in seconds, until the next try
WAITS: dict[str, tuple[dict[str, str], float]] = {
    "nothing": ({}, 0.0),
    "seconds": ({"retry-after": "1"}, 1.0),
    "a fraction": ({"retry-after": "0.2"}, 0.2),
    "a date, by the provider's own clock": ({"date": date(0), "retry-after": date(1)}, 1.0),
    "a date that has passed": ({"date": date(60), "retry-after": date(0)}, 0.0),
    "milliseconds": ({"retry-after-ms": "200"}, 0.2),
    "Azure's milliseconds": ({"x-ms-retry-after-ms": "200"}, 0.2),
    "the most exact of several": ({"retry-after": "60", "retry-after-ms": "200"}, 0.2),
    "no number": ({"retry-after": "soon"}, 0.0),
    "a negative number": ({"retry-after": "-5"}, 0.0),
    "not a number": ({"retry-after": "nan"}, 0.0),
}


@pytest.mark.parametrize(("headers", "least_s"), WAITS.values(), ids=WAITS)
def test_the_next_try_waits_as_long_as_it_was_asked_to(
    scene: Scene, headers: dict[str, str], least_s: float
) -> None:
    status = 429 if "retry-after" in headers else 503  # they are the same
    scene.plays("a", in_turn(error_answer(status, headers=headers), GOOD))
    answer = scene.ask(CHAT)
    assert answer.text(CHAT) == TEXT
    assert answer.who == ("a", 2, 0)
    first, second = scene.asked("a")
    assert least_s <= second.at - first.at < least_s + 1


TOO_LONG = {
    "seconds": {"retry-after": "3"},
    "milliseconds": {"retry-after-ms": "2001"},
    "a date": {"date": date(0), "retry-after": date(3)},
    "for ever": {"retry-after": "99999999"},
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("headers", TOO_LONG.values(), ids=TOO_LONG)
def test_a_wait_over_the_cap_moves_on_at_once(
    scene: Scene, headers: dict[str, str], door: str
) -> None:
    scene.plays("a", error_answer(429, headers=headers))
    scene.plays("b", GOOD)
    answer = scene.ask(CHAT, "a", "b", door=door)
    assert answer.who == ("b", 2, 1)
    assert answer.seconds < 2


def test_the_wait_it_was_asked_for_is_told_when_nobody_is_left(scene: Scene) -> None:
    scene.plays("a", error_answer(429, headers={"retry-after-ms": "2500"}))
    answer = scene.ask(CHAT)
    assert answer.status == 429
    assert answer.headers["retry-after"] == "3"
    assert answer.headers["retry-after-ms"] == "2500"


def test_a_wait_beyond_the_total_time_is_not_begun(scene: Scene) -> None:
    scene.plays("a", error_answer(429, headers={"retry-after": "2"}))
    scene.plays("b", GOOD)
    answer = scene.ask(CHAT, "a", "b", headers={"x-lunar-timeout-s": "1"})
    assert answer.who == ("b", 2, 1)
    assert answer.seconds < 1


def test_the_total_time_is_over_the_whole_chain(scene: Scene) -> None:
    scene.plays("a", [])
    scene.plays("b", GOOD)
    answer = scene.ask(CHAT, "a", "b", headers={"x-lunar-timeout-s": "0.5"})
    assert answer.status == 504
    assert answer.error["code"] == "total_timeout"
    assert scene.asked("b") == []
    assert 0.5 <= answer.seconds < 1.5


def test_the_total_time_ends_a_connection_that_is_not_made(scene: Scene) -> None:
    answer = scene.ask(CHAT, "mute", headers={"x-lunar-timeout-s": "0.5"})
    assert answer.status == 504
    assert answer.error["code"] == "total_timeout"
    assert 0.5 <= answer.seconds < 1.5


def test_the_connect_timer_moves_on(scene: Scene) -> None:
    scene.plays("b", GOOD)
    assert scene.ask(CHAT, "deaf", "b").who == ("b", 2, 1)
    answer = scene.ask(CHAT, "deaf")
    assert (answer.status, answer.error["code"]) == (504, "connect_timeout")
    assert answer.error["type"] == "upstream_timeout"
    assert answer.seconds < 2


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf", "1e9"])
def test_a_timeout_that_is_none_is_refused(scene: Scene, value: str) -> None:
    answer = scene.ask(CHAT, headers={"x-lunar-timeout-s": value})
    assert (answer.status, answer.error["param"]) == (400, "x-lunar-timeout-s")


# --- what is counted ----------------------------------------------------------------------------


def test_retries_and_fallbacks_are_counted(scene: Scene) -> None:
    retries = {"provider": "a", "reason": "upstream_busy"}
    moves = {"from": "a/other", "to": "b/other", "reason": "upstream_busy"}
    metric = scene.world.metric
    before = metric("lunar_retries_total", **retries), metric("lunar_fallbacks_total", **moves)
    scene.plays("a", error_answer(500))
    scene.plays("b", GOOD)
    scene.ask(CHAT, "a", "b")
    after = metric("lunar_retries_total", **retries), metric("lunar_fallbacks_total", **moves)
    assert (after[0] - before[0], after[1] - before[1]) == (1, 1)


def test_the_attempts_are_told_to_who_asks(scene: Scene) -> None:
    scene.plays("a", error_answer(500))
    scene.plays("b", GOOD)
    answer = scene.ask(CHAT, "dead", "a", "b", headers={"x-lunar-debug": "1"})
    log = answer.headers["x-lunar-attempts-log"]
    import orjson

    rows = [(row["target"].partition("/")[0], row["error"]) for row in orjson.loads(log)]
    assert rows == [
        ("dead", "upstream_connect"),
        ("a", "upstream_busy"),
        ("a", "upstream_busy"),
        ("b", None),
    ]
    assert not any(key in log for key in KEYS.values())
    assert "x-lunar-attempts-log" not in scene.ask(CHAT, "b").headers


def test_the_record_of_a_call_names_every_attempt(scene: Scene) -> None:
    scene.plays("a", error_answer(500))
    scene.plays("b", GOOD)
    scene.ask(CHAT, "a", "b")
    record = scene.record
    assert [(t["provider"], t["status"]) for t in record["tried"]] == [("a", 500), ("a", 500)]
    assert (record["provider"], record["attempts"], record["fallback_index"]) == ("b", 3, 1)


# --- keys ---------------------------------------------------------------------------------------


def sent_keys(scene: Scene) -> list[str]:
    found = [request.header("authorization") or "" for request in scene.asked("keyring")]
    return [value.removeprefix("Bearer ") for value in found]


def refuses(*keys: str, status: int) -> Script | object:
    def play(request: Request) -> Script:
        key = (request.header("authorization") or "").removeprefix("Bearer ")
        return error_answer(status, f"not {key}") if key in keys else GOOD(request)

    return play


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("status", [401, 402, 403, 429])
def test_another_key_is_tried_where_one_is_refused(scene: Scene, status: int, stream: bool) -> None:
    scene.plays("keyring", refuses(*KEYRING[:2], status=status))  # type: ignore[arg-type]
    answer = scene.ask(CHAT, "keyring", stream=stream)
    assert answer.text(CHAT) == TEXT
    assert answer.who[0] == "keyring"
    assert sent_keys(scene)[-1] == KEYRING[2]
    assert answer.seconds < 1


@pytest.mark.parametrize("status", [401, 402, 403])
def test_every_key_refused_moves_on(scene: Scene, status: int) -> None:
    scene.plays("keyring", refuses(*KEYRING, status=status))  # type: ignore[arg-type]
    scene.plays("b", GOOD)
    answer = scene.ask(CHAT, "keyring", "b")
    assert answer.who == ("b", 4, 1)
    assert sorted(sent_keys(scene)) == sorted(KEYRING)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("status", [401, 402, 403, 429])
def test_the_next_call_begins_with_the_key_that_worked(
    scene: Scene, status: int, stream: bool
) -> None:
    scene.plays("keyring", refuses(KEYRING[0], KEYRING[2], status=status))  # type: ignore[arg-type]
    scene.ask(CHAT, "keyring", stream=stream)
    found_out = len(sent_keys(scene))
    for _ in range(2):
        assert scene.ask(CHAT, "keyring", stream=stream).text(CHAT) == TEXT
    assert sent_keys(scene)[found_out:] == [KEYRING[1]] * 2


def test_the_last_refusal_of_a_key_is_passed_on_without_it(scene: Scene) -> None:
    scene.plays("keyring", refuses(*KEYRING, status=401))  # type: ignore[arg-type]
    answer = scene.ask(CHAT, "keyring")
    assert answer.status == 401
    assert b"not " in answer.body
    assert not any(key.encode() in answer.body for key in KEYRING)


def test_a_refused_key_marks_the_provider_and_names_it_not_the_key(scene: Scene) -> None:
    world, model = scene.world, "priced-model"  # one whose name may be a label
    world.cast.plays("priced", model, error_answer(401, f"Incorrect API key: {KEYS['priced']}"))
    scene.plays("b", GOOD)
    assert scene.ask(CHAT, f"priced/{model}", "b").who == ("b", 2, 1)
    assert world.metric("lunar_target_degraded", target=f"priced/{model}") == 1
    warnings = [r["message"] for r in world.proxy.records() if r.get("level") == "warning"]
    assert any("'priced'" in warning and "key" in warning for warning in warnings)
    world.cast.plays("priced", model, GOOD)
    scene.ask(CHAT, f"priced/{model}")
    assert world.metric("lunar_target_degraded", target=f"priced/{model}") == 0


def test_no_key_was_ever_logged(scene: Scene) -> None:
    scene.plays("a", error_answer(401, f"Incorrect API key provided: {KEYS['a']}"))
    scene.ask(CHAT)
    assert scene.record["status"] == 401
    log = scene.world.proxy.stderr()
    assert not any(key in log for key in (*KEYS.values(), *KEYRING))


def test_a_caller_without_a_key_of_ours_is_told_of_its_own(scene: Scene) -> None:
    """Where the key is the caller's, its refusal is the caller's to know."""
    scene.plays("keyless", error_answer(401, "your key"))
    scene.plays("b", GOOD)
    answer = scene.ask(CHAT, "keyless", "b", headers={"authorization": "Bearer sk-theirs"})
    assert (answer.status, answer.who) == (401, ("keyless", 1, 0))
    assert scene.asked("keyless")[0].header("authorization") == "Bearer sk-theirs"


# --- usage --------------------------------------------------------------------------------------


def test_a_provider_that_refuses_the_question_for_usage_is_not_asked_again(scene: Scene) -> None:
    def play(request: Request) -> Script:
        if "stream_options" in request.doc:
            return error_answer(400, "Unknown field: stream_options", code="unknown_parameter")
        return CHAT.stream(TEXT)

    scene.plays("keyring", play)
    for _ in range(2):
        answer = scene.ask(CHAT, "keyring", stream=True)
        assert answer.text(CHAT) == TEXT
    asked = ["stream_options" in request.doc for request in scene.asked("keyring")]
    assert asked == [True, False, False]


def test_what_a_failed_attempt_reports_as_used_is_not_the_answers(scene: Scene) -> None:
    failed = {"error": {"message": "halfway"}, "usage": {"prompt_tokens": 900, "total_tokens": 900}}
    scene.plays("a", json_answer(failed))
    scene.plays("b", GOOD)
    answer = scene.ask(CHAT, "a", "b")
    assert answer.doc["usage"]["prompt_tokens"] == 5
    assert scene.record["input_tokens"] == 5


def test_backoff_does_not_hold_up_others(scene: Scene) -> None:
    scene.plays("a", in_turn(error_answer(429, headers={"retry-after": "1"}), GOOD))
    scene.plays("b", GOOD)
    waiting = scene.sent(CHAT, "a")
    began = time.monotonic()
    scene.ask(CHAT, "b")
    assert time.monotonic() - began < 0.9
    assert waiting.getresponse().status == 200
    waiting.close()
