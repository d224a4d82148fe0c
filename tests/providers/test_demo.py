"""The demo provider answers as OpenAI would: real clients read it, and its arithmetic is plain."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterator
from typing import Any

import openai
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.core.script import Chunk, End, Head, Pause, Step
from lunar_proxy.providers.demo import DEMO_PRICES, MODELS, answer, base_model
from lunar_proxy.testing import Request, Script, serve_in_thread

HI = [{"role": "user", "content": "Hello big world"}]
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("first", "second")
]


def say(endpoint: str = "chat/completions", **doc: Any) -> list[Step]:
    return list(answer("POST", endpoint, {"model": "echo"} | doc, id="1", created=7))


def body(steps: list[Step]) -> Any:
    assert isinstance(steps[-1], End)
    return orjson.loads(b"".join(step.data for step in steps if isinstance(step, Chunk)))


def events(steps: list[Step]) -> list[Any]:
    """The JSON of each event; one event a chunk."""
    chunks = [step.data for step in steps if isinstance(step, Chunk)]
    assert all(chunk.endswith(b"\n\n") and chunk.count(b"\n\n") == 1 for chunk in chunks)
    data = [chunk.split(b"data: ", 1)[1] for chunk in chunks]
    return [orjson.loads(each) for each in data if each != b"[DONE]\n\n"]


def status(steps: list[Step]) -> int:
    assert isinstance(steps[0], Head)
    return steps[0].status


# --- chat


def test_echo_says_the_last_user_message_again() -> None:
    assert body(say(messages=HI)) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 7,
        "model": "echo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello big world", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 6,
            "completion_tokens": 3,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


def test_a_stream_is_role_tokens_finish_usage_done() -> None:
    steps = say(messages=HI, stream=True, stream_options={"include_usage": True})
    got = events(steps)
    choices = [event["choices"][0] for event in got if event["choices"]]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "Hello"},
        {"content": " big"},
        {"content": " world"},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None] * 4 + ["stop"]
    assert [event["usage"] and event["usage"]["total_tokens"] for event in got] == [None] * 5 + [9]
    assert steps[-2:] == [Chunk(b"data: [DONE]\n\n"), End()]


def test_a_stream_says_nothing_of_usage_unless_asked() -> None:
    assert all("usage" not in event for event in events(say(messages=HI, stream=True)))


def test_the_conversation_so_far_counts_as_cached() -> None:
    turns = [{"role": "system", "content": "Be brief"}, {"role": "assistant"}, *HI]
    usage = body(say(messages=turns))["usage"]
    assert usage["prompt_tokens"] == (3 + 2) + 3 + (3 + 3)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 8}


MESSAGES: dict[str, tuple[list[Any], str]] = {
    "parts": (
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}],
        "a",
    ),
    "the user's, not the tool's": ([*HI, {"role": "tool", "content": "x"}], "Hello big world"),
    "nobody asked": ([{"role": "system", "content": "x"}], ""),
    "blanks kept": ([{"role": "user", "content": "  a \n b  "}], "  a \n b  "),
}


@pytest.mark.parametrize(("messages", "said"), MESSAGES.values(), ids=MESSAGES.keys())
def test_finds_what_the_user_said(messages: list[Any], said: str) -> None:
    assert body(say(messages=messages))["choices"][0]["message"]["content"] == said


@given(text=st.text(), most=st.none() | st.integers(1, 5))
def test_a_stream_says_what_the_document_says(text: str, most: int | None) -> None:
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "max_tokens": most}
    whole = body(say(**asked))
    streamed = events(say(**asked, stream=True, stream_options={"include_usage": True}))
    choices = [event["choices"][0] for event in streamed if event["choices"]]
    said = "".join(choice["delta"].get("content") or "" for choice in choices)
    assert said == whole["choices"][0]["message"]["content"]
    assert text.startswith(said)
    assert choices[-1]["finish_reason"] == ("stop" if said == text else "length")
    assert streamed[-1]["usage"] == whole["usage"]


@pytest.mark.parametrize(
    ("asked", "tokens", "finish"),
    [
        ({}, 64, "stop"),
        ({"max_tokens": 5}, 5, "length"),
        ({"max_completion_tokens": 500}, 500, "length"),
        ({"max_tokens": 10**9}, 16_384, "length"),
    ],
)
def test_lorem_writes_as_much_as_asked(asked: dict[str, Any], tokens: int, finish: str) -> None:
    doc = body(say(model="lorem", messages=HI, **asked))
    assert doc["usage"]["completion_tokens"] == tokens
    assert doc["choices"][0]["finish_reason"] == finish
    assert doc["choices"][0]["message"]["content"].startswith("Lorem ipsum dolor sit amet")


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("choice", "said", "name", "arguments"),
    [
        ("required", '{"a": 1}', "first", '{"a": 1}'),
        ("required", "what?", "first", "{}"),
        ({"type": "function", "function": {"name": "second"}}, "[1]", "second", "{}"),
    ],
)
def test_calls_the_tool_it_is_told_to(choice: Any, said: str, name: str, arguments: str) -> None:
    asked = {"tools": TOOLS, "tool_choice": choice, "messages": user(said)}
    whole = body(say(**asked))["choices"][0]
    call = {"id": "call_1", "type": "function"}
    function = {"name": name, "arguments": arguments}
    assert whole["message"]["content"] is None
    assert whole["message"]["tool_calls"] == [call | {"function": function}]
    choices = [event["choices"][0] for event in events(say(**asked, stream=True))]
    opening, *rest = [choice["delta"]["tool_calls"][0] for choice in choices[:-1]]
    assert opening == call | {"index": 0, "function": {"name": name, "arguments": ""}}
    assert "".join(delta["function"]["arguments"] for delta in rest) == arguments
    assert whole["finish_reason"] == choices[-1]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("choice", ["auto", "none", None])
def test_calls_no_tool_of_its_own_accord(choice: str | None) -> None:
    message = body(say(messages=HI, tools=TOOLS, tool_choice=choice))["choices"][0]["message"]
    assert message["content"] == "Hello big world"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
@pytest.mark.parametrize(
    ("said", "answered"), [('{"a":[1]}', {"a": [1]}), ("no", {"echo": "no"}), ("1", {"echo": "1"})]
)
def test_answers_json_where_json_is_wanted(model: str, kind: str, said: str, answered: Any) -> None:
    doc = body(say(model=model, messages=user(said), response_format={"type": kind}))
    assert orjson.loads(doc["choices"][0]["message"]["content"]) == answered


# --- settings in the model's name


def test_tokens_come_at_the_rate_asked_for() -> None:
    steps = say(model="echo?tps=50&ttft_s=0.5", messages=HI, stream=True)
    assert [type(step) for step in steps] == [
        *(Head, Chunk),  # the role comes at once
        *(Pause, Chunk, Pause, Chunk, Pause, Chunk),
        *(Chunk, Chunk, End),
    ]
    pauses = [step.seconds for step in steps if isinstance(step, Pause)]
    assert pauses == [0.5, 0.02, 0.02]
    whole = say(model="echo?tps=50&ttft_s=0.5", messages=HI)
    assert isinstance(whole[0], Pause)
    assert whole[0].seconds == pytest.approx(0.54)
    assert body(whole)["model"] == "echo"


def test_nothing_waits_unless_asked_to() -> None:
    quick = [*say(messages=HI), *say(messages=HI, stream=True), *say(messages=user(""))]
    assert not [step for step in quick if isinstance(step, Pause)]


def test_fails_on_demand() -> None:
    steps = say(model="echo?status=503", messages=HI)
    assert (status(steps), body(steps)["error"]["type"]) == (503, "server_error")


@pytest.mark.parametrize(
    ("name", "base"), [("echo", "echo"), ("lorem?tps=5", "lorem"), ("x?y?z", "x")]
)
def test_prices_are_kept_under_the_base_model(name: str, base: str) -> None:
    assert base_model(name) == base


def test_every_model_has_a_price() -> None:
    assert set(DEMO_PRICES) == set(MODELS)


# --- what it does not answer

BAD: dict[str, tuple[str, Any, int, str, str | None]] = {
    "no body": ("chat/completions", None, 400, "invalid_request_error", "model"),
    "no model": ("chat/completions", {}, 400, "invalid_request_error", "model"),
    "unknown model": ("chat/completions", {"model": "gpt"}, 404, "model_not_found", "model"),
    "unknown endpoint": ("audio/speech", {"model": "echo"}, 404, "not_found", None),
    "no messages": (
        "chat/completions",
        {"model": "echo"},
        400,
        "invalid_request_error",
        "messages",
    ),
    "empty": (
        "chat/completions",
        {"model": "echo", "messages": []},
        400,
        "invalid_request_error",
        "messages",
    ),
    "not messages": (
        "chat/completions",
        {"model": "echo", "messages": [1]},
        400,
        "invalid_request_error",
        "messages",
    ),
    "token prompt": (
        "completions",
        {"model": "echo", "prompt": [1, 2]},
        400,
        "invalid_request_error",
        "prompt",
    ),
    "no input": ("responses", {"model": "echo"}, 400, "invalid_request_error", "input"),
    "token input": (
        "embeddings",
        {"model": "echo", "input": [1]},
        400,
        "invalid_request_error",
        "input",
    ),
}
for name, wrong in {"n": 2, "max_tokens": 0, "tool_choice": "required"}.items():
    BAD[f"bad {name}"] = (
        "chat/completions",
        {"model": "echo", "messages": HI, name: wrong},
        400,
        "invalid_request_error",
        name,
    )
for setting in ("tps=0", "tps=x", "tps=nan", "tps=inf", "tps=", "status=200", "colour=1"):
    BAD[setting] = (
        "chat/completions",
        {"model": f"echo?{setting}", "messages": HI},
        400,
        "invalid_request_error",
        "model",
    )


@pytest.mark.parametrize(("endpoint", "doc", "code", "name", "param"), BAD.values(), ids=BAD.keys())
def test_refuses_in_openais_shape(
    endpoint: str, doc: Any, code: int, name: str, param: str | None
) -> None:
    steps = list(answer("POST", endpoint, doc, id="1", created=7))
    error = body(steps)["error"]
    assert (status(steps), error["code"], error["param"]) == (code, name, param)
    assert error["type"] == "invalid_request_error"
    assert error["message"]


FIELDS = (
    "model messages role content text tools tool_choice function name type stream stream_options "
    "prompt input instructions response_format encoding_format dimensions max_tokens n"
)


@given(
    doc=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(FIELDS.split()),
                inner,
                max_size=4,
            )
        ),
    ),
    endpoint=st.sampled_from(["chat/completions", "completions", "responses", "embeddings"]),
)
def test_no_body_makes_it_raise(doc: Any, endpoint: str) -> None:
    asked = {"messages": HI, "prompt": "x", "input": "x"} | (doc if isinstance(doc, dict) else {})
    steps = list(answer("POST", endpoint, asked | {"model": "echo"}, id="1", created=7))
    assert status(steps) in (200, 400)
    assert isinstance(steps[-1], End)


# --- real clients


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    def play(request: Request) -> Script:
        endpoint = request.path.removeprefix("/v1/")
        doc = request.doc if request.body else None
        return list(answer(request.method, endpoint, doc, id="1", created=7))

    with serve_in_thread(play) as upstream:
        client = openai.OpenAI(base_url=f"{upstream.url}/v1", api_key="none", max_retries=0)
        yield client
        client.close()


def test_the_chat_client_reads_it(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="lorem", messages=[{"role": "user", "content": "x"}]
    ) as stream:
        final = stream.until_done().get_final_completion()
    assert final.choices[0].finish_reason == "stop"
    assert (final.choices[0].message.content or "").startswith("Lorem ipsum")


def test_the_completions_client_reads_it(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="echo", prompt=["Once upon"])
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("Once upon", "stop")
    events = list(client.completions.create(model="echo", prompt="Once upon", stream=True))
    assert [event.choices[0].text for event in events] == ["", "Once", " upon", ""]
    assert events[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("most", "text", "state"), [(None, "Hello you", "completed"), (1, "Hello", "incomplete")]
)
def test_the_responses_client_reads_it(
    client: openai.OpenAI, most: int | None, text: str, state: str
) -> None:
    whole = client.responses.create(
        model="echo", input="Hello you", instructions="x", max_output_tokens=most
    )
    assert (whole.output_text, whole.status) == (text, state)
    assert whole.usage is not None
    assert whole.usage.input_tokens_details.cached_tokens == 4
    stream: Any = client.responses.create(
        model="echo", input="Hello you", max_output_tokens=most, stream=True
    )
    got = list(stream)
    assert [event.sequence_number for event in got] == list(range(len(got)))
    assert "".join(e.delta for e in got if e.type == "response.output_text.delta") == text
    assert got[-1].type == f"response.{state}"
    assert got[-1].response.output_text == text


def test_the_responses_client_parses_its_events(client: openai.OpenAI) -> None:
    with client.responses.stream(model="echo", input="Hello you") as stream:
        assert stream.get_final_response().output_text == "Hello you"


def test_the_embeddings_client_reads_it(client: openai.OpenAI) -> None:
    got = client.embeddings.create(model="echo", input=["a", "b c"], dimensions=5)
    again = client.embeddings.create(model="echo", input="a", dimensions=5, encoding_format="float")
    assert got.data[0].embedding == pytest.approx(again.data[0].embedding, rel=1e-6)
    assert got.data[0].embedding != got.data[1].embedding
    assert math.hypot(*got.data[0].embedding) == pytest.approx(1)
    assert got.usage.prompt_tokens == 3


def test_embeddings_are_packed_as_little_endian_floats() -> None:
    listed = body(say("embeddings", input="a"))["data"][0]["embedding"]
    packed = body(say("embeddings", input="a", encoding_format="base64"))["data"][0]["embedding"]
    assert len(listed) == 64
    assert struct.unpack("<64f", base64.b64decode(packed)) == pytest.approx(listed, rel=1e-6)


def test_the_models_client_reads_it(client: openai.OpenAI) -> None:
    assert tuple(model.id for model in client.models.list()) == MODELS
    assert client.models.retrieve("lorem").owned_by == "demo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")
    with pytest.raises(openai.NotFoundError):
        client.get("/files", cast_to=object)
