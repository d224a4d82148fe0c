from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.core.errors import BadAnswer, InvalidRequest
from lunar_proxy.core.sse import MAX_EVENT_BYTES
from lunar_proxy.providers.translate import COMPLETIONS_TO_CHAT, translation_for
from lunar_proxy.providers.translate.completions_to_chat import Events, answer, request

ASKED = [{"role": "user", "content": "Say hi"}]


def asked(**members: Any) -> Any:
    """The chat request that a legacy one for "Say hi" becomes."""
    doc = {"model": "m", "prompt": "Say hi", **members}
    return orjson.loads(request(orjson.dumps(doc), doc))


@pytest.mark.parametrize(
    ("endpoint", "chat_only", "translated"),
    [
        ("completions", True, True),
        ("completions", False, False),
        ("chat/completions", True, False),
        ("embeddings", True, False),
    ],
)
def test_only_a_legacy_call_to_a_chat_provider_is_translated(
    endpoint: str, chat_only: bool, translated: bool
) -> None:
    expected = COMPLETIONS_TO_CHAT if translated else None
    assert translation_for(endpoint, chat_only=chat_only) is expected


# --- the request --------------------------------------------------------------------------------

KEPT = {
    "max_tokens": 5,
    "temperature": 0.0,
    "top_p": 0.5,
    "stop": ["\n", "END"],
    "n": 2,
    "stream": True,
    "stream_options": {"include_usage": True},
    "user": "u-1",
    "seed": 7,
    "presence_penalty": -1,
    "logit_bias": {"50256": -100},
    "not_known_here": {"a": [1]},
}


@pytest.mark.parametrize("name", KEPT)
def test_what_both_apis_know_and_what_neither_does_passes(name: str) -> None:
    assert asked(**{name: KEPT[name]}) == {"model": "m", "messages": ASKED, name: KEPT[name]}


@pytest.mark.parametrize(
    ("sent", "added"),
    [
        ({"prompt": ["Say hi"]}, {}),
        ({"echo": False, "suffix": None, "best_of": 1}, {}),
        ({"suffix": ""}, {}),
        ({"best_of": 3, "n": 3}, {"n": 3}),
        ({"messages": [{"role": "system", "content": "another"}]}, {}),
        ({"logprobs": None}, {"logprobs": None}),
        ({"logprobs": True, "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"logprobs": 0}, {"logprobs": True}),
        ({"logprobs": 0, "top_logprobs": 4}, {"logprobs": True}),
        ({"logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"logprobs": "x"}, {"logprobs": "x"}),
    ],
)
def test_what_chat_says_in_another_way_is_said_so(
    sent: dict[str, Any], added: dict[str, Any]
) -> None:
    assert asked(**sent) == {"model": "m", "messages": ASKED, **added}


def test_every_other_byte_of_the_request_is_the_clients() -> None:
    body = b'{ "temperature" : 1.0,\n"prompt":"a\\u00e9", "seed":12345678901234567890123 }'
    doc = {"temperature": 1.0, "prompt": "a\u00e9"}
    translated = request(body, doc)
    assert translated == (
        b'{ "temperature" : 1.0,\n"messages":[{"role":"user","content":"a\xc3\xa9"}], '
        b'"seed":12345678901234567890123 }'
    )


def test_a_prompt_given_twice_is_the_same_message_twice() -> None:
    body = b'{"prompt":[1,2],"prompt":"Say hi"}'
    message = orjson.dumps(ASKED)
    expected = b'{"messages":' + message + b',"messages":' + message + b"}"
    assert request(body, orjson.loads(body)) == expected


@pytest.mark.parametrize(
    ("sent", "param", "advice"),
    [
        ({"prompt": None}, "prompt", "missing"),
        ({"prompt": []}, "prompt", "missing"),
        ({"prompt": ["a", "b"]}, "prompt", "one request for each"),
        ({"prompt": [1, 2]}, "prompt", "token ids"),
        ({"prompt": [17]}, "prompt", "token ids"),
        ({"prompt": [[1, 2]]}, "prompt", "token ids"),
        ({"prompt": [[1], [2]]}, "prompt", "token ids"),
        ({"prompt": {"text": "a"}}, "prompt", "must be a string"),
        ({"echo": True}, "echo", "leave it out"),
        ({"suffix": "the end"}, "suffix", "leave it out"),
        ({"best_of": 2}, "best_of", "equal to n"),
        ({"best_of": 3, "n": 2}, "best_of", "equal to n"),
    ],
)
def test_what_chat_cannot_do_is_refused_with_what_to_change(
    sent: dict[str, Any], param: str, advice: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        asked(**sent)
    assert refused.value.param == param
    assert advice in refused.value.message


# --- the whole answer ---------------------------------------------------------------------------

USAGE = b'"usage":{"prompt_tokens":3,"total_cost":1.50,"x":12345678901234567890}'


def choice(message: Any, **members: Any) -> dict[str, Any]:
    return {"index": 0, "message": message, "finish_reason": "stop", **members}


def texts(*choices: Any) -> list[Any]:
    doc = {"id": "chatcmpl-1", "object": "chat.completion", "choices": choices}
    made: list[Any] = orjson.loads(answer(orjson.dumps(doc)))["choices"]
    return made


def test_a_whole_answer_is_a_text_completion_and_its_usage_the_providers_bytes() -> None:
    body = (
        b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":['
        b'{"index":0,"message":{"role":"assistant","content":"hi"},"logprobs":null,'
        b'"finish_reason":"length"}],' + USAGE + b"}"
    )
    assert answer(body) == (
        b'{"id":"chatcmpl-1","object":"text_completion","created":1,"model":"m","choices":['
        b'{"text":"hi","index":0,"finish_reason":"length","logprobs":null}],' + USAGE + b"}"
    )


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "hi"}, "hi"),
        ({"content": None}, ""),
        ({"content": None, "refusal": "I will not"}, "I will not"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab"),
        ({"content": [{"type": "thinking", "thinking": [{"text": "hm"}]}, "stray"]}, ""),
        ({}, ""),
        (None, ""),
    ],
)
def test_the_text_is_what_the_message_says(message: Any, text: str) -> None:
    assert [made["text"] for made in texts(choice(message))] == [text]


def test_choices_keep_their_order_and_a_providers_own_members() -> None:
    first = choice({"content": "b"}, index=1, content_filter_results={"hate": {}})
    second = choice({"content": "a", "reasoning_content": "hm", "reasoning": ""})
    assert texts(first, second, "odd") == [
        {
            "text": "b",
            "index": 1,
            "finish_reason": "stop",
            "content_filter_results": {"hate": {}},
            "logprobs": None,
        },
        {
            "text": "a",
            "index": 0,
            "finish_reason": "stop",
            "reasoning_content": "hm",
            "logprobs": None,
        },
        "odd",
    ]


def test_an_answer_that_does_not_say_what_it_is_says_so_afterwards() -> None:
    assert orjson.loads(answer(b'{"choices":[]}')) == {"choices": [], "object": "text_completion"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b'{"error":{"message":"no"}}',
        b'{"choices":null}',
        b'{"error":"x","choices":[]}',
    ],
)
def test_what_is_no_answer_stays_as_it_is(body: bytes) -> None:
    assert answer(body) == body


def token(text: str, logprob: float, **others: float) -> dict[str, Any]:
    top = [{"token": t, "logprob": lp, "bytes": None} for t, lp in others.items()]
    return {"token": text, "logprob": logprob, "bytes": [1], "top_logprobs": top}


@pytest.mark.parametrize(
    ("chat", "legacy"),
    [
        (None, None),
        ({"content": None}, None),
        ({"content": []}, None),
        (
            {"content": [token("He", -0.5, He=-0.5, Ho=-2.0), token("y\u00e9", -1.0, y=-1.5)]},
            {
                "tokens": ["He", "y\u00e9"],
                "token_logprobs": [-0.5, -1.0],
                "top_logprobs": [{"He": -0.5, "Ho": -2.0}, {"y": -1.5}],
                "text_offset": [0, 2],
            },
        ),
        (
            {"content": [token("Hi", -0.5)]},
            {
                "tokens": ["Hi"],
                "token_logprobs": [-0.5],
                "top_logprobs": None,
                "text_offset": [0],
            },
        ),
    ],
)
def test_logprobs_take_the_legacy_shape(chat: Any, legacy: Any) -> None:
    assert texts(choice({"content": "x"}, logprobs=chat))[0]["logprobs"] == legacy


# --- the stream ---------------------------------------------------------------------------------


def chunk(delta: Any, finish: str | None = None, **members: Any) -> bytes:
    return event([{"index": 0, "delta": delta, "finish_reason": finish, **members}])


def event(choices: list[Any], **members: Any) -> bytes:
    doc = {"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": choices}
    return b"data: " + orjson.dumps(doc | members) + b"\n\n"


def legacy(text: str, finish: str | None = None, **members: Any) -> bytes:
    made = {"text": text, "index": 0, "finish_reason": finish, "logprobs": None} | members
    doc = {"id": "c1", "object": "text_completion", "model": "m", "choices": [made]}
    return b"data: " + orjson.dumps(doc) + b"\n\n"


ROLE = chunk({"role": "assistant", "content": ""})
HI = chunk({"content": "Hi \u00e9"})
FINISH = chunk({}, "stop")
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"message":"over","code":529}}\n\n'
# name -> what the provider sends, what the client gets
STREAMS = {
    "answer": (
        ROLE + HI + FINISH + DONE,
        legacy("") + legacy("Hi \u00e9") + legacy("", "stop") + DONE,
    ),
    "usage event without choices": (
        event([], usage={"prompt_tokens": 1}),
        b'data: {"id":"c1","object":"text_completion","model":"m","choices":[],'
        b'"usage":{"prompt_tokens":1}}\n\n',
    ),
    "error": (HI + ERROR, legacy("Hi \u00e9") + ERROR),
    "named error": (b"event: error" + b"\n" + ERROR, b"event: error\n" + ERROR),
    "error with choices": (
        event([{"delta": {}, "finish_reason": "error"}], error={"message": "no"}),
        event([{"delta": {}, "finish_reason": "error"}], error={"message": "no"}),
    ),
    "comments": (b": keep-alive\n\n" + HI, b": keep-alive\n\n" + legacy("Hi \u00e9")),
    "thinking": (
        chunk({"reasoning_content": "hm"}),
        legacy("").replace(b'"logprobs"', b'"reasoning_content":"hm","logprobs"'),
    ),
    "crlf and a name": (
        b"event: chunk\r\n" + HI[:-2] + b"\r\n\r\n",
        b"event: chunk\n" + legacy("Hi \u00e9"),
    ),
    "several data lines": (
        b'data: {"object":"x",\ndata: "choices":[]}\n\n',
        b'data: {"object":"text_completion", "choices":[]}\n\n',
    ),
    "not json": (b"data: {oops\n\n", b"data: {oops\n\n"),
    "no blank line at the end": (HI + DONE[:-1], legacy("Hi \u00e9") + DONE[:-1]),
    "cut inside an event": (HI + HI[:40], legacy("Hi \u00e9") + HI[:40]),
}


def translated(parts: list[bytes]) -> bytes:
    events = Events()
    return b"".join([events.feed(part) for part in parts]) + events.eof()


@pytest.mark.parametrize("how", ["whole", "bytewise", "halves"])
@pytest.mark.parametrize(("sent", "got"), STREAMS.values(), ids=STREAMS.keys())
def test_chat_events_become_completion_events(sent: bytes, got: bytes, how: str) -> None:
    cuts = {
        "whole": [sent],
        "bytewise": [sent[i : i + 1] for i in range(len(sent))],
        "halves": [sent[: len(sent) // 2], sent[len(sent) // 2 :]],
    }
    assert translated(cuts[how]) == got


@given(st.sets(st.integers(0, len(STREAMS["answer"][0]))))
def test_any_split_gives_the_same_events(cuts: set[int]) -> None:
    sent, got = STREAMS["answer"]
    bounds = [0, *sorted(cuts), len(sent)]
    assert translated([sent[a:b] for a, b in pairwise(bounds)]) == got


def test_offsets_of_logprobs_go_on_from_event_to_event_in_each_choice() -> None:
    def said(index: int, text: str) -> bytes:
        logprobs = {"content": [token(text, -1.0)]}
        return chunk({"content": text}, logprobs=logprobs, index=index)

    stream = translated([said(0, "abc"), said(1, "x"), said(0, "d"), said(1, "y")])
    docs = [orjson.loads(line[6:]) for line in stream.split(b"\n\n") if line]
    offsets = [doc["choices"][0]["logprobs"]["text_offset"] for doc in docs]
    assert offsets == [[0], [0], [3], [1]]


def test_an_event_without_end_is_a_bad_answer() -> None:
    with pytest.raises(BadAnswer):
        Events().feed(b"data: " + b"x" * (MAX_EVENT_BYTES + 1))
