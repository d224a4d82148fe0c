"""stream_recovery: splice. A broken stream goes on, word for word, or it ends as under `error`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lunar_proxy.testing import (
    Break,
    Chunk,
    Close,
    End,
    Pause,
    Raw,
    Request,
    Script,
    Step,
    error_answer,
    json_answer,
)
from tests.e2e.harness import eventually

from .apis import CHAT, COMPLETIONS, RESPONSES, SSE, Api, event
from .test_after_commit import BREAKS, ERROR, Fault, ends_in_error
from .world import DOORS, Answer, Scene, World, world

SAID = ("Hello ", "wor")
TEXT = "Hello world, and good day"


@pytest.fixture(scope="module")
def splicing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(
        tmp_path_factory.mktemp("splice"),
        stream_recovery="splice",
        breaker={"failures": 3, "window_s": 30, "open_s": 30},
    ) as running:
        yield running


@pytest.fixture
def scene(splicing: World) -> Scene:
    return splicing.scene()


WAYS = [
    pytest.param(api, door, id=f"{api}-{door}")
    for api, door in ((CHAT, "fast"), (CHAT, "aiohttp"), (COMPLETIONS, "fast"))
]
every_way = pytest.mark.parametrize(("api", "door"), WAYS)


def broken(api: Api, *words: str) -> Script:
    return (*api.opening(*(words or SAID)), Close())


def another(api: Api, *words: str) -> Script:
    """The same answer under another id, another model and in other words."""
    script = (*api.opening(*words), *map(Chunk, (api.finish, *api.ending)), End())
    return tuple(
        Chunk(step.data.replace(b"cmpl-1", b"cmpl-2").replace(b"theirs", b"others"))
        if isinstance(step, Chunk)
        else step
        for step in script
    )


def goes_on(answer: Answer, api: Api, text: str = TEXT) -> None:
    """One coherent stream, from one end to the other."""
    assert (answer.status, answer.whole) == (200, True)
    assert answer.text(api) == text
    assert answer.ends == b"[DONE]"
    docs = answer.docs
    assert all(not doc.get("error") for doc in docs)
    assert len({(doc["id"], doc["model"]) for doc in docs}) == 1
    choices = [choice for doc in docs for choice in doc["choices"]]
    assert {choice["index"] for choice in choices} == {0}
    assert [c["finish_reason"] for c in choices if c["finish_reason"]] == ["stop"]
    if api is CHAT:
        assert sum("role" in choice["delta"] for choice in choices) == 1
    assert b"total_cost_usd" in answer.body


@every_way
@pytest.mark.parametrize("fault", BREAKS.values(), ids=BREAKS)
def test_a_broken_stream_goes_on_where_it_broke(
    scene: Scene, fault: Fault, api: Api, door: str
) -> None:
    said: tuple[str, ...] = ("Hello wor", "ld", ", and ", "good day")
    text = "".join(said)
    if b"\xc3" in b"".join(s.data for s in fault.plays(api) if isinstance(s, Chunk)):
        said = ("Hello wor", "caf\N{LATIN SMALL LETTER E WITH ACUTE}", ", and good day")
        text = "".join(said)
    scene.plays(fault.provider, (*api.opening(*SAID), *fault.plays(api)))
    scene.plays("b", another(api, *said))
    answer = scene.ask(api, fault.provider, "b", stream=True, door=door)
    goes_on(answer, api, text)
    assert len(scene.asked(fault.provider)) == len(scene.asked("b")) == 1
    (first,), (second,) = scene.asked(fault.provider), scene.asked("b")
    assert second.body == first.body  # no answer begun for it, which many models refuse


WORDS = {
    "the same words": ("Hello ", "wor", "ld, and good day"),
    "one word": (TEXT,),
    "letters": tuple(TEXT),
    "other words": ("Hel", "lo world, ", "and good day"),
    "a word that ends there": ("Hello wor", "ld, and good day"),
}


@every_way
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_text_is_compared_not_bytes(
    scene: Scene, words: tuple[str, ...], api: Api, door: str
) -> None:
    scene.plays("a", broken(api))
    scene.plays("b", another(api, *words))
    goes_on(scene.ask(api, "a", "b", stream=True, door=door), api)


@pytest.mark.parametrize("include_usage", [True, False])
def test_usage_is_told_as_the_client_asked(scene: Scene, include_usage: bool) -> None:
    scene.plays("a", broken(CHAT))

    def play(request: Request) -> Script:
        asked = request.doc["stream_options"]["include_usage"]
        end = CHAT.ending if asked else CHAT.ending[1:]
        return (*CHAT.opening(TEXT), *map(Chunk, (CHAT.finish, *end)), End())

    scene.plays("b", play)
    options = {"include_usage": include_usage}
    answer = scene.ask(CHAT, "a", "b", stream=True, stream_options=options)
    assert answer.text(CHAT) == TEXT
    assert answer.ends == b"[DONE]"
    told = [doc["usage"] for doc in answer.docs if doc.get("usage")]
    assert [usage["prompt_tokens"] for usage in told] == ([5] if include_usage else [])


OTHERWISE = {
    "another word": ("Hello there",),
    "another word in the middle of one": ("Hello wow",),
    "less": ("Hello w",),
    "nothing but an end": (),
}


@every_way
@pytest.mark.parametrize("words", OTHERWISE.values(), ids=OTHERWISE)
def test_another_answer_is_not_glued_on(
    scene: Scene, words: tuple[str, ...], api: Api, door: str
) -> None:
    scene.plays("a", broken(api))
    scene.plays("b", another(api, *words))
    answer = scene.ask(api, "a", "b", stream=True, door=door)
    ends_in_error(answer, api, scene.record["error"])
    assert answer.text(api) == "".join(SAID)
    assert answer.body.count(b"[DONE]") == 1


def test_nobody_left_ends_in_the_error_that_broke_it(scene: Scene) -> None:
    scene.plays("a", broken(CHAT))
    answer = scene.ask(CHAT, stream=True)
    ends_in_error(answer, CHAT, "upstream_cut")


# What the second provider may do other than go on; the third one does.
NO_HELP: dict[str, Callable[[Api], Script]] = {
    "says no": lambda api: error_answer(500),
    "refuses the request": lambda api: error_answer(400),
    "refuses our key": lambda api: error_answer(401),
    "cannot take so much": lambda api: error_answer(400, code="context_length_exceeded"),
    "is cut": lambda api: (Close(),),
    "ends after its head": lambda api: (SSE, End()),
    "closes after its head": lambda api: (SSE, Close()),
    "begins with an error": lambda api: (SSE, Chunk(event(ERROR)), End()),
    "ends before any content": lambda api: (*api.opening(), End()),
    "never begins": lambda api: (*api.opening(), Close()),
    "breaks before the place": lambda api: (*api.opening("Hel"), Close()),
    "breaks at the place": lambda api: (*api.opening(*SAID), Close()),
    "breaks behind the place": lambda api: (*api.opening("Hello world, "), Close()),
    "breaks within an event": lambda api: (
        *api.opening(*SAID),
        Chunk(api.word("ld, an")[:-9]),
        Break(),
    ),
    "has an error in its stream": lambda api: (*api.opening(*SAID), Chunk(event(ERROR)), End()),
    "is no HTTP": lambda api: (Raw(b"SSH-2.0\r\n"),),
}


@every_way
@pytest.mark.parametrize("no_help", NO_HELP.values(), ids=NO_HELP)
def test_the_third_goes_on_where_the_second_fails(
    scene: Scene, no_help: Callable[[Api], Script], api: Api, door: str
) -> None:
    scene.plays("a", broken(api))
    scene.plays("b", no_help(api))
    scene.plays("keyring", another(api, TEXT))
    answer = scene.ask(api, "a", "b", "keyring", stream=True, door=door)
    goes_on(answer, api)
    assert answer.seconds < 3


@every_way
@pytest.mark.parametrize("no_help", NO_HELP.values(), ids=NO_HELP)
def test_no_help_ends_in_an_error(
    scene: Scene, no_help: Callable[[Api], Script], api: Api, door: str
) -> None:
    scene.plays("a", broken(api))
    scene.plays("b", no_help(api))
    answer = scene.ask(api, "a", "b", stream=True, door=door)
    ends_in_error(answer, api, scene.record["error"])
    assert answer.seconds < 3
    assert TEXT.startswith(answer.text(api))
    assert answer.text(api).startswith("".join(SAID))


def test_a_refusal_to_go_on_does_not_hide_what_broke(scene: Scene) -> None:
    scene.plays("a", broken(CHAT))
    scene.plays("b", error_answer(400, "assistant prefill is not supported"))
    answer = scene.ask(CHAT, "a", "b", stream=True)
    ends_in_error(answer, CHAT, "upstream_cut")
    assert b"prefill" not in answer.body


@every_way
def test_a_document_is_no_stream_to_go_on_with(scene: Scene, api: Api, door: str) -> None:
    scene.plays("a", broken(api))
    scene.plays("b", json_answer(api.whole(TEXT, "theirs")))
    answer = scene.ask(api, "a", "b", stream=True, door=door)
    ends_in_error(answer, api, "upstream_bad_answer")
    assert answer.text(api) == "".join(SAID)


# --- where it is not tried ----------------------------------------------------------------------


def tool(arguments: str, name: str | None = None) -> bytes:
    function = {"arguments": arguments} | ({"name": name} if name else {})
    call = {"index": 0, "function": function} | ({"id": "call_1"} if name else {})
    delta = {"tool_calls": [call]}
    base: dict[str, Any] = {"id": "chatcmpl-1", "created": 7, "model": "theirs"}
    return event({**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})


TOOLS: dict[str, tuple[Step, ...]] = {
    "begun": (Chunk(tool("", "weather")),),
    "within its arguments": (Chunk(tool("", "weather")), Chunk(tool('{"city":'))),
    "after some text": (
        Chunk(CHAT.word("Let me see.")),
        Chunk(tool("", "weather")),
        Chunk(tool('{"city":')),
    ),
}


@pytest.mark.parametrize("steps", TOOLS.values(), ids=TOOLS)
def test_never_inside_a_tool_call(scene: Scene, steps: tuple[Step, ...]) -> None:
    scene.plays("a", (*CHAT.opening(), *steps, Close()))
    scene.plays("b", another(CHAT, TEXT))
    answer = scene.ask(CHAT, "a", "b", stream=True)
    ends_in_error(answer, CHAT, scene.record["error"])
    assert scene.asked("b") == []


def test_nor_inside_one_that_the_second_began(scene: Scene) -> None:
    scene.plays("a", broken(CHAT))
    scene.plays("b", (*CHAT.opening("Hello world"), Chunk(tool("", "weather")), Close()))
    scene.plays("keyring", another(CHAT, TEXT))
    answer = scene.ask(CHAT, "a", "b", "keyring", stream=True)
    ends_in_error(answer, CHAT, scene.record["error"])
    assert scene.asked("keyring") == []


def test_responses_end_as_under_error(scene: Scene) -> None:
    scene.plays("a", broken(RESPONSES))
    scene.plays("b", another(RESPONSES, TEXT))
    answer = scene.ask(RESPONSES, "a", "b", stream=True)
    ends_in_error(answer, RESPONSES, scene.record["error"])
    assert scene.asked("b") == []


def test_a_finished_answer_needs_no_other(scene: Scene) -> None:
    scene.plays("a", (*CHAT.opening(TEXT), Chunk(CHAT.finish), Close()))
    scene.plays("b", another(CHAT, TEXT))
    answer = scene.ask(CHAT, "a", "b", stream=True)
    assert answer.text(CHAT) == TEXT
    assert answer.docs[-1]["choices"][0]["finish_reason"] == "stop"
    assert scene.asked("b") == []


def test_before_the_first_content_it_is_a_fallback_like_any(scene: Scene) -> None:
    scene.plays("a", (*CHAT.opening(), Close()))
    scene.plays("b", CHAT.says(TEXT))
    answer = scene.ask(CHAT, "a", "b", stream=True)
    goes_on(answer, CHAT)
    assert answer.who == ("b", 3, 1)


def test_the_total_time_is_over_all_of_it(scene: Scene) -> None:
    scene.plays("a", (*CHAT.opening(*SAID), Pause(0.3), Close()))
    scene.plays("b", (SSE,))
    timeout = {"x-lunar-timeout-s": "0.8"}
    answer = scene.ask(CHAT, "a", "b", stream=True, headers=timeout)
    ends_in_error(answer, CHAT, "total_timeout")
    assert answer.seconds < 2


# --- accounts -----------------------------------------------------------------------------------


def test_both_attempts_are_accounted(scene: Scene) -> None:
    cost = scene.world.metric("lunar_cost_usd_total", provider="priced")
    cast = scene.world.cast
    cast.plays("priced", "priced-model", broken(CHAT))
    scene.plays("b", another(CHAT, TEXT))
    answer = scene.ask(CHAT, "priced/priced-model", "b", stream=True)
    goes_on(answer, CHAT)
    assert scene.world.metric("lunar_cost_usd_total", provider="priced") > cost
    record = scene.record
    assert [(t["provider"], t["error"]) for t in record["tried"]] == [("priced", "upstream_cut")]
    assert (record["provider"], record["status"], record["error"]) == ("b", 200, None)
    assert (record["input_tokens"], record["output_tokens"]) == (5, 7)


def test_an_open_breaker_is_passed_over(scene: Scene) -> None:
    scene.plays("b", error_answer(500))
    for _ in range(2):
        scene.ask(CHAT, "b")
    scene.plays("a", broken(CHAT))
    scene.plays("keyring", another(CHAT, TEXT))
    asked = len(scene.asked("b"))
    goes_on(scene.ask(CHAT, "a", "b", "keyring", stream=True), CHAT)
    assert len(scene.asked("b")) == asked


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("plays", [(), CHAT.opening("Hello world")], ids=["waiting", "going on"])
def test_a_client_that_hangs_up_meanwhile_ends_it(scene: Scene, plays: Script, door: str) -> None:
    scene.plays("a", broken(CHAT))
    scene.plays("b", plays)
    connection = scene.sent(CHAT, "a", "b", stream=True, door=door)
    assert connection.getresponse().read1()
    eventually(lambda: scene.asked("b"))
    connection.close()
    scene.world.cast.closed("b", scene.asked("b")[0].connection, within_s=1)
    assert scene.record["disconnected"] == "stream"
