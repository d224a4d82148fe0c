"""What a request asks of the router, and the chat request that executing it means."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.core.errors import InvalidRequest
from lunar_proxy.core.routerask import (
    Ask,
    auto_models,
    auto_name,
    chat_call,
    cost_weight,
    is_auto,
    read_ask,
    with_routing,
)
from lunar_proxy.testing import call

TEXT = {"messages": [{"role": "user", "content": "hi"}]}


def ask(doc: dict[str, Any]) -> Ask:
    return read_ask(call(doc=doc, body=orjson.dumps(doc), endpoint="router"))


ASKS: dict[str, tuple[dict[str, Any], Ask]] = {
    "the least": ({}, Ask(None, None, execute=True)),
    "nulls": ({"models": None, "cost_weight": None, "execute": None}, Ask(None, None, True)),
    "all of it": (
        {"models": ["a", "b", "a"], "cost_weight": 0, "execute": False},
        Ask(("a", "b"), 0.0, execute=False),
    ),
}


@pytest.mark.parametrize(("more", "expected"), ASKS.values(), ids=ASKS.keys())
def test_reads_what_is_asked(more: dict[str, Any], expected: Ask) -> None:
    assert ask(TEXT | more) == expected


@pytest.mark.parametrize("weight", [-1, float("nan"), True, "0.5", [1]])
def test_a_weight_is_a_number_of_at_least_0(weight: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        cost_weight({"cost_weight": weight})
    assert caught.value.param == "cost_weight"


AUTO = {
    "auto": (True, None),
    "auto:a": (True, ("a",)),
    "auto: a , x/b,": (True, ("a", "x/b")),
    "automatic": (False, None),
    "openrouter/auto": (False, None),
}


@pytest.mark.parametrize(("model", "is_one", "names"), [(k, *v) for k, v in AUTO.items()])
def test_auto_may_name_models(model: str, is_one: bool, names: tuple[str, ...] | None) -> None:
    assert is_auto(model) is is_one
    if is_one:
        assert auto_models(model) == names


def test_auto_with_an_empty_list_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        auto_models("auto: ,")


def test_a_choice_is_written_as_a_chat_client_would() -> None:
    assert auto_name(Ask(None, None, execute=True)) == "auto"
    assert auto_models(auto_name(Ask(("a", "b"), None, execute=True))) == ("a", "b")


def test_executing_is_a_chat_call_whose_other_bytes_are_the_clients() -> None:
    body = (
        b'{"execute":true, "messages":[ ],"models":["a","b"],"x": 1.0,"cost_weight":1,"seed":1e2}'
    )
    doc = orjson.loads(body)
    chat = chat_call(call(doc=doc, body=body, endpoint="router", path=b"/v1/router"), "auto:a,b")
    assert chat.body == b'{"messages":[ ],"x": 1.0,"seed":1e2,"model":"auto:a,b"}'
    assert chat.doc == orjson.loads(chat.body)
    assert (chat.endpoint, chat.path) == ("chat/completions", b"/v1/chat/completions")


_ANSWERS = st.dictionaries(st.text(max_size=5), st.booleans() | st.text(), max_size=4)


@given(_ANSWERS)
def test_an_answer_gains_one_member_and_keeps_its_bytes(answer: dict[str, Any]) -> None:
    answer.pop("routing", None)
    body = orjson.dumps(answer)
    spliced = with_routing(body, {"cluster_id": 3})
    assert orjson.loads(spliced) == answer | {"routing": {"cluster_id": 3}}
    assert spliced.startswith(body[:-1])


def test_what_is_no_object_stays_as_it_is() -> None:
    assert with_routing(b"[1]", {}) == b"[1]"
