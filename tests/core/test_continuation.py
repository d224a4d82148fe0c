from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.core.stream import CHAT, COMPLETION, RESPONSES, Shape, Stream

from .streams import cassette, documents, render

LAST = ("upstream cut", "upstream_error", "upstream_cut")


def event(doc: Any) -> bytes:
    return b"data: " + orjson.dumps(doc) + b"\n\n"


def chunk(delta: dict[str, Any], finish: str | None = None, id: str = "one", **more: Any) -> bytes:
    choice = {"index": more.pop("index", 0), "delta": delta, "finish_reason": finish}
    return event({"id": id, "model": f"model-{id}", "choices": [choice], **more})


def answer(words: Sequence[str], id: str) -> bytes:
    role = chunk({"role": "assistant", "content": ""}, id=id)
    text = b"".join(chunk({"content": word}, id=id) for word in words)
    usage = event({"id": id, "choices": [], "usage": {"prompt_tokens": len(words)}})
    return role + text + chunk({}, "stop", id=id) + usage + b"data: [DONE]\n\n"


def broken(first: bytes, shape: Shape = CHAT) -> tuple[Stream, bytes]:
    stream = Stream(shape, splice=True, injected=True, render=render, keep_text=True)
    return stream, stream.feed(first) + stream.eof()


def resumed(stream: Stream, second: Iterable[bytes]) -> bytes:
    """What the engine does after the cut."""
    out = stream.resume()
    for data in second:
        out += stream.feed(data)
    out += stream.eof()
    if not stream.complete:
        out += stream.error_event(*LAST)
    return out


def contents(docs: Iterable[Any]) -> str:
    deltas = (choice["delta"] for doc in docs if doc for choice in doc["choices"])
    return "".join(delta.get("content") or "" for delta in deltas)


WORDS = st.lists(
    st.sampled_from(["a", "b", "ab", " ", "\n", '"', "\u00e9", "\U0001f600"]), max_size=12
)


@st.composite
def two_answers(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """An answer and another; often the same text in other chunks, or one beginning of the other."""
    first = draw(WORDS)
    text = "".join(first)
    cuts = sorted({0, len(text), *draw(st.lists(st.integers(0, len(text)), max_size=5))})
    same = [text[a:b] for a, b in itertools.pairwise(cuts)]
    return first, draw(st.sampled_from([same, same[:-1], [*same, "more"], draw(WORDS)]))


@given(two_answers(), st.data())
def test_the_client_sees_one_answer_or_an_error(
    words: tuple[list[str], list[str]], data: st.DataObject
) -> None:
    first, second = answer(words[0], "one"), answer(words[1], "two")
    cut = data.draw(st.integers(0, len(first)), "cut")
    second = second[: data.draw(st.sampled_from([len(second), len(second) // 2]), "second cut")]
    split = data.draw(st.integers(0, len(second)), "split")
    stream, out = broken(first[:cut])
    if not stream.started or stream.complete:
        return
    relayed = "".join(choice.content for choice in stream.text())
    if not stream.can_resume:
        assert relayed == ""
        return
    out += resumed(stream, [second[:split], second[split:]])
    *docs, done = documents(out)
    assert done is None
    assert {(doc["id"], doc["model"]) for doc in docs} == {("one", "model-one")}
    assert sum("role" in c["delta"] for doc in docs for c in doc["choices"]) == 1
    ends = [c["finish_reason"] for doc in docs for c in doc["choices"] if c["finish_reason"]]
    text, other = contents(docs), "".join(words[1])
    if ends == ["stop"]:
        assert text == other
        assert docs[-1]["usage"]["prompt_tokens"] == len(words[1])
    else:
        assert ends == ["error"]
        assert text == relayed or (text.startswith(relayed) and other.startswith(text))
        assert stream.diverged == (not other.startswith(relayed)) or not stream.joined


HELLO = chunk({"role": "assistant", "content": "Hello, "}) + chunk({"content": "world"})


def test_nothing_is_sent_while_the_two_are_the_same() -> None:
    stream, _ = broken(HELLO)
    assert stream.can_resume
    assert stream.resume() == b""
    assert stream.feed(chunk({"role": "assistant", "content": "Hel"}, id="two")) == b""
    assert stream.feed(b": ping\n\n" + chunk({"content": "lo, wo"}, id="two")) == b""
    assert not stream.joined
    assert documents(stream.feed(chunk({"content": "rld and more"}, id="two"))) == [
        {
            "id": "one",
            "model": "model-one",
            "choices": [{"index": 0, "delta": {"content": " and more"}, "finish_reason": None}],
        }
    ]
    assert stream.joined


def test_after_joining_only_the_names_change() -> None:
    stream, _ = broken(HELLO)
    stream.resume()
    stream.feed(chunk({"content": "Hello, world"}, id="two"))
    raw = b'data: {"choices":[{"index":0, "delta":{"content":"!"}}],"id" : "two","n":1.0}\r\n\r\n'
    assert stream.feed(raw) == raw.replace(b'"two"', b'"one"')
    assert stream.feed(b": ping\n\n") == b": ping\n\n"
    assert [s.content for s in stream.text()] == ["Hello, world!"]


def test_at_the_first_difference_nothing_more_is_sent() -> None:
    stream, _ = broken(HELLO)
    stream.resume()
    assert stream.feed(chunk({"content": "Hello, World"}, id="two")) == b""
    assert stream.diverged
    assert stream.feed(chunk({"content": "Hello, world"}, id="two")) == b""
    assert not stream.complete


SHORTER = {
    "finish": chunk({"content": "Hello"}, id="two") + chunk({}, "stop", id="two"),
    "finish with the text": chunk({"content": "Hello"}, "stop", id="two"),
    "done": chunk({"content": "Hello"}, id="two") + b"data: [DONE]\n\n",
    "a tool call": chunk({"tool_calls": [{"index": 0, "function": {"name": "f"}}]}, id="two"),
    "reasoning": chunk({"reasoning": "Hm"}, id="two"),
}


@pytest.mark.parametrize("second", SHORTER.values(), ids=SHORTER.keys())
def test_an_answer_that_says_less_or_else_diverges(second: bytes) -> None:
    stream, _ = broken(HELLO)
    stream.resume()
    assert stream.feed(second) == b""
    assert stream.diverged


def test_reasoning_is_compared_too() -> None:
    first = chunk({"reasoning_content": "Let me"}) + chunk({"content": "Yes"})
    stream, _ = broken(first)
    stream.resume()
    assert stream.feed(chunk({"reasoning_content": "Let me", "content": None}, id="two")) == b""
    assert documents(stream.feed(chunk({"content": "Yes, so"}, id="two")))[0]["choices"] == [
        {"index": 0, "delta": {"content": ", so"}, "finish_reason": None}
    ]


def test_more_reasoning_than_was_heard_goes_on_in_its_own_spelling() -> None:
    for spelled in ("reasoning", "reasoning_content"):
        stream, _ = broken(chunk({"reasoning": "Let"}))
        stream.resume()
        (doc,) = documents(stream.feed(chunk({spelled: "Let me"}, id="two")))
        assert doc["choices"][0]["delta"] == {spelled: " me"}


def test_an_error_in_the_second_answer_is_one() -> None:
    stream, _ = broken(HELLO)
    stream.resume()
    assert stream.feed(event({"error": {"message": "overloaded"}})) == b""
    assert stream.error is not None
    assert not stream.diverged


def test_a_stream_can_be_taken_up_twice() -> None:
    stream, _ = broken(HELLO)
    out = stream.resume() + stream.feed(chunk({"content": "Hello, world, a"}, id="two"))
    out += stream.eof() + stream.resume()
    out += stream.feed(answer(["Hello, world, again"], "three")) + stream.eof()
    assert contents(documents(out)) == ", again"
    assert stream.complete
    assert stream.usage == {"prompt_tokens": 1}


def test_half_a_word_is_taken_back() -> None:
    stream, out = broken(HELLO[:-20])
    assert not out.endswith(b"\n")
    out += resumed(stream, [answer(["Hello, world!"], "two")])
    assert contents(documents(out)) == "Hello, world!"


CANNOT = {
    "not started": (CHAT, chunk({"role": "assistant"})),
    "no text": (CHAT, chunk({"audio": {"id": "a"}})),
    "a tool call": (CHAT, HELLO + chunk({"tool_calls": [{"function": {"name": "f"}}]})),
    "a finished choice": (CHAT, HELLO + chunk({}, "stop")),
    "responses": (RESPONSES, cassette("openai_responses.sse")[:2500]),
}


@pytest.mark.parametrize(("shape", "first"), CANNOT.values(), ids=CANNOT.keys())
def test_what_cannot_be_compared_is_not_taken_up(shape: Shape, first: bytes) -> None:
    stream, _ = broken(first, shape)
    assert not stream.can_resume


def test_legacy_completions_are_taken_up() -> None:
    def text(said: str, finish: str | None = None, id: str = "one") -> bytes:
        return event({"id": id, "choices": [{"index": 0, "text": said, "finish_reason": finish}]})

    stream, _ = broken(text("Hel"), COMPLETION)
    stream.resume()
    assert documents(stream.feed(text("Hello", id="two"))) == [
        {"id": "one", "choices": [{"index": 0, "text": "lo", "finish_reason": None}]}
    ]
