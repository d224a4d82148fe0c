"""Who is asked next: fallbacks of the request and of the config, larger windows, closed doors."""

from __future__ import annotations

from typing import Any

import pytest

from lunar_proxy.testing import error_answer

from .apis import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, TEXT, Api
from .world import DOORS, Scene

GOOD = CHAT.says(TEXT)


def listed(scene: Scene, how: str, names: list[str]) -> dict[str, Any]:
    if how == "header":
        return {"headers": {"x-lunar-fallbacks": ", ".join(names)}}
    return {how: names}


HOW = ["fallbacks", "models", "header"]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("api", [CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS], ids=repr)
@pytest.mark.parametrize("how", HOW)
def test_fallbacks_of_the_request(scene: Scene, how: str, api: Api, door: str) -> None:
    scene.plays("a", error_answer(404))
    scene.plays("b", api.says(TEXT))
    names = [scene.target("dead"), scene.target("b")]
    answer = scene.ask(api, "a", door=door, **listed(scene, how, names))
    assert answer.text(api) == TEXT
    assert answer.who == ("b", 3, 2)
    sent = scene.asked("b")[0].doc
    assert sent["model"] == scene.model
    assert not {"fallbacks", "models", "provider"} & set(sent)
    assert scene.asked("b")[0].header("x-lunar-fallbacks") is None


def test_models_without_a_model_begin_with_the_first(scene: Scene) -> None:
    scene.plays("a", error_answer(404))
    scene.plays("b", GOOD)
    answer = scene.ask(CHAT, model=None, models=[scene.target("a"), scene.target("b")])
    assert answer.who == ("b", 2, 1)


@pytest.mark.parametrize("how", HOW)
def test_duplicates_and_the_first_choice_are_asked_once(scene: Scene, how: str) -> None:
    scene.plays("a", error_answer(404))
    scene.plays("b", error_answer(404))
    names = [scene.target(name) for name in ("a", "b", "b", "a")]
    answer = scene.ask(CHAT, "a", **listed(scene, how, names))
    assert answer.status == 404
    assert answer.who == ("b", 2, 1)
    assert (len(scene.asked("a")), len(scene.asked("b"))) == (1, 1)


@pytest.mark.parametrize("count", [0, 6])
@pytest.mark.parametrize("how", HOW)
def test_too_many_or_none_are_refused(scene: Scene, how: str, count: int) -> None:
    scene.plays("a", GOOD)
    names = [f"b/model-{n}" for n in range(count)]
    answer = scene.ask(CHAT, "a", **listed(scene, how, names))
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert scene.asked("a") == []


def test_five_are_walked_to_the_last(scene: Scene) -> None:
    for name in ("a", "b", "hasty", "restless"):
        scene.plays(name, error_answer(404))
    scene.plays("keyring", GOOD)
    answer = scene.ask(CHAT, "a", "dead", "b", "hasty", "restless", "keyring")
    assert answer.who == ("keyring", 6, 5)


def test_a_fallback_nobody_knows_is_refused(scene: Scene) -> None:
    scene.plays("a", GOOD)
    answer = scene.ask(CHAT, "a", fallbacks=["no-such-model-anywhere"])
    assert (answer.status, answer.error["type"]) == (404, "model_not_found")
    assert scene.asked("a") == []


@pytest.mark.parametrize("bad", ["b/x", [1], [""], [None], {"b": 1}])
def test_a_list_that_is_none_is_refused(scene: Scene, bad: Any) -> None:
    answer = scene.ask(CHAT, "a", fallbacks=bad)
    assert (answer.status, answer.error["param"]) == (400, "fallbacks")


# --- the config's -------------------------------------------------------------------------------


def plan(
    scene: Scene, asked: str, *, a: str = "", b: str = "", **body: Any
) -> tuple[str, int, int]:
    """Who answers when `a` says no and `b` does not, asked for these models."""
    cast = scene.world.cast
    cast.plays("a", a or asked.rpartition("/")[2], error_answer(404))
    cast.plays("b", b or asked.rpartition("/")[2], GOOD)
    answer = scene.ask(CHAT, model=asked, **body)
    assert answer.text(CHAT) == TEXT
    return answer.who


def test_an_alias_is_a_plan(scene: Scene) -> None:
    assert plan(scene, "either") == ("b", 2, 1)


def test_a_list_that_leads_back_to_where_it_began_is_walked_once(scene: Scene) -> None:
    cast = scene.world.cast
    cast.plays("a", "either", error_answer(404))
    cast.plays("b", "either", error_answer(404))
    answer = scene.ask(CHAT, model="either", fallbacks=["either", "a/either", "b/either"])
    assert (answer.status, answer.who) == (404, ("b", 2, 1))


def test_fallbacks_by_name(scene: Scene) -> None:
    assert plan(scene, "a/exactly-this", b="listed") == ("b", 2, 1)


def test_fallbacks_by_glob(scene: Scene) -> None:
    assert plan(scene, "a/glob-anything", b="from-the-glob") == ("b", 2, 1)


def test_the_requests_own_fallbacks_win(scene: Scene) -> None:
    scene.plays("restless", GOOD)
    scene.world.cast.plays("a", "glob-mine", error_answer(404))
    answer = scene.ask(CHAT, model="a/glob-mine", fallbacks=[scene.target("restless")])
    assert answer.who == ("restless", 2, 1)


# --- a prompt that does not fit -----------------------------------------------------------------

TOO_LONG = {
    "by code": error_answer(400, "too long", code="context_length_exceeded"),
    "in words": error_answer(400, "This model's maximum context length is 8192 tokens."),
}
# By the price table: 8k, 128k.
SMALL, LARGE = "openai/gpt-4", "openai/gpt-4o"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("no", TOO_LONG.values(), ids=TOO_LONG)
def test_a_prompt_too_long_goes_to_a_larger_window(
    scene: Scene, no: tuple[Any, ...], stream: bool
) -> None:
    cast = scene.world.cast
    cast.plays("openai", "gpt-4", no)
    cast.plays("openai", "gpt-4o", GOOD)
    cast.plays("openai", "gpt-4-0613", no)
    answer = scene.ask(CHAT, SMALL, "openai/gpt-4-0613", LARGE, stream=stream)
    assert answer.text(CHAT) == TEXT
    assert answer.who == ("openai", 2, 2)  # the other one of 8k is not even asked
    assert answer.headers["x-lunar-model"] == "gpt-4o"


@pytest.mark.parametrize("no", TOO_LONG.values(), ids=TOO_LONG)
def test_a_prompt_too_long_is_told_where_no_window_is_larger(
    scene: Scene, no: tuple[Any, ...]
) -> None:
    cast = scene.world.cast
    cast.plays("openai", "gpt-4o", no)
    cast.plays("openai", "gpt-4", GOOD)
    answer = scene.ask(CHAT, LARGE, SMALL)
    assert answer.status == 400
    assert answer.body == no[1].data
    assert answer.who == ("openai", 1, 0)


def test_a_prompt_too_long_for_who_knows_what_is_told(scene: Scene) -> None:
    scene.plays("a", TOO_LONG["by code"])
    scene.plays("b", GOOD)
    assert scene.ask(CHAT, "a", "b").status == 400
    assert scene.asked("b") == []
