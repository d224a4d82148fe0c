from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.core.shapes import CHAT
from lunar_proxy.core.transcript import KEPT_CHARS, Said, Transcript, parse_all

Delta = dict[str, Any]


def chunk(delta: Delta, index: int = 0, **more: Any) -> bytes:
    doc = {"id": "c", "choices": [{"index": index, "delta": delta, "finish_reason": None}], **more}
    return b"data: " + orjson.dumps(doc) + b"\n\n"


def transcript(*, keep_text: bool = False) -> Transcript:
    return Transcript(CHAT.pieces, keep_text=keep_text)


def tell(heard: Transcript, raw: bytes) -> bool:
    """As Stream does it."""
    if heard.repeats(raw):
        return True
    heard.add(raw)
    heard.learn(raw)
    return False


def test_the_same_event_with_another_word_is_known() -> None:
    heard = transcript()
    words = ["one", " two", " \u00fc\n", '"', " \\", "", " \U0001f600"]
    known = [tell(heard, chunk({"content": word})) for word in words]
    assert known == [False, True, True, True, True, True, True]
    assert heard.said() == [Said(0, content="".join(words), chars=len("".join(words)))]


@pytest.mark.parametrize("raw", [b"\0\n\n", b"\n\n", b"data: [DONE]\n\n", b""])
def test_nothing_is_known_before_a_lesson(raw: bytes) -> None:
    assert not transcript().repeats(raw)
    assert transcript().run(raw, 0) == 0


def test_padding_does_not_hide_it() -> None:
    heard = transcript()
    events = [chunk({"content": f"w{i}"}, obfuscation="x" * (i % 5)) for i in range(8)]
    assert [tell(heard, raw) for raw in events] == [False] + [True] * 7
    assert heard.said()[0].content == "w0w1w2w3w4w5w6w7"


OTHERS: dict[str, bytes] = {
    "another field": chunk({"content": "x", "refusal": None}),
    "another choice": chunk({"content": "x"}, 1),
    "reasoning": chunk({"reasoning": "x"}),
    "two events": chunk({"content": "x"}) * 2,
    "half": chunk({"content": "x"})[:-1],
    "a member slipped in": chunk({"content": 'x","finish_reason":"stop","a":"'}).replace(
        b'\\"', b'"'
    ),
    "an event slipped in": chunk({"content": "xNNdata: [DONE]NN"}).replace(b"N", b"\n"),
    "a carriage return": chunk({"content": "xR"}).replace(b"R", b"\r"),
    "an open escape": chunk({"content": "xB"}).replace(b"B", b"\\"),
    "usage": chunk({"content": "x"}, usage={"prompt_tokens": 1}),
}


@pytest.mark.parametrize("raw", OTHERS.values(), ids=OTHERS.keys())
def test_another_event_is_not_taken_for_it(raw: bytes) -> None:
    heard = transcript()
    tell(heard, chunk({"content": "hello"}))
    assert heard.repeats(chunk({"content": "there"}))
    assert not heard.repeats(raw)


ALIKE = [chunk({"content": word}) for word in ("a", ' "', "", " \u00fc\\")]
RUNS: dict[str, tuple[list[bytes], int]] = {
    "all": (ALIKE, 4),
    "one": (ALIKE[:1], 1),
    "none": ([chunk({"reasoning": "b"}), *ALIKE], 0),
    "half of one behind it": ([*ALIKE, ALIKE[0][:-1]], 4),
    **{f"{name} in it": ([*ALIKE, raw, *ALIKE], 4) for name, raw in OTHERS.items()},
}
del RUNS["two events in it"]


@pytest.mark.parametrize(("raws", "known"), RUNS.values(), ids=RUNS.keys())
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("before", [b"", b": before\n\n"])
def test_a_run_is_known_as_its_events_are(
    raws: list[bytes], known: int, padded: bool, before: bytes
) -> None:
    one_by_one, at_once = transcript(), transcript()
    noise = [b',"obfuscation":"%b"}\n' % (b"x" * i) if padded else b"}\n" for i in range(10)]
    for heard in (one_by_one, at_once):
        tell(heard, chunk({"content": "hello"}).replace(b"}\n", noise[5]))
    raws = [raw.replace(b"}\n", noise[i]) for i, raw in enumerate(raws)]
    assert [one_by_one.repeats(raw) for raw in raws[: known + 1]][:known] == [True] * known
    data = before + b"".join(raws)
    stop = len(before) + sum(map(len, raws[:known]))
    assert at_once.run(data, len(before)) == stop
    assert at_once.said() == one_by_one.said()


def test_words_keep_their_place_among_other_events() -> None:
    heard = transcript()
    for raw in ("one", " two", ["part"], " three"):
        tell(heard, chunk({"content": raw, "reasoning": "r" if raw == ["part"] else ""}))
    tell(heard, chunk({"content": " four", "reasoning": ""}))
    assert heard.said()[0].content == "one twopart three four"


AMBIGUOUS: dict[str, bytes] = {
    "the word is a key": chunk({"content": "content"}),
    "the word is another value": chunk({"content": "c"}),
    "escapes": chunk({"content": "h"}).replace(b'"h"', b'"\\u0068"'),
    "two pieces": chunk({"content": "x", "reasoning": "y"}),
    "no text": chunk({"content": ""}),
    "two events": chunk({"content": "x"}) + chunk({"content": "y"}),
}


@pytest.mark.parametrize("raw", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_an_ambiguous_event_teaches_nothing(raw: bytes) -> None:
    heard = transcript()
    assert not tell(heard, raw)
    assert not heard.repeats(raw)


def test_events_that_all_differ_are_not_parsed_for_ever() -> None:
    heard = transcript()
    for i in range(20):
        assert not tell(heard, chunk({"content": "x"}, created=i))
    assert not heard.repeats(chunk({"content": "x"}, created=19))


def test_a_lesson_that_paid_is_repeated() -> None:
    heard = transcript()
    for i in range(20):
        raws = [chunk({"content": f"word {j}"}, created=i) for j in range(20)]
        assert [tell(heard, raw) for raw in raws] == [False] + [True] * 19


WORDS = st.sampled_from(["a", "b ", "\n", '"', "\u00e9", "content", ""]) | st.text(max_size=4)
DELTAS = st.one_of(
    WORDS.map(lambda w: {"content": w}),
    WORDS.map(lambda w: {"reasoning_content": w}),
    WORDS.map(lambda w: {"tool_calls": [{"index": 0, "function": {"arguments": w}}]}),
    WORDS.map(lambda w: {"content": w, "role": "assistant"}),
)
HEARD = st.lists(st.tuples(DELTAS, st.integers(0, 1), st.booleans()), max_size=30)


@given(HEARD)
def test_however_it_is_heard_the_text_is_the_same(events: list[tuple[Delta, int, bool]]) -> None:
    one, other = transcript(), transcript()
    for delta, index, ask in events:
        raw = chunk(delta, index)
        tell(one, raw)
        other.add(raw)
        if ask:
            one.said()
    assert one.said() == other.said()
    expected = "".join(d.get("content", "") for d, i, _ in events if i == 0)
    assert next((s.content for s in one.said() if s.index == 0), "") == expected


def test_a_long_text_leaves_its_length() -> None:
    for keep_text in (False, True):
        heard = transcript(keep_text=keep_text)
        for _ in range(300):
            tell(heard, chunk({"content": "x" * 1000}))
        (said,) = heard.said()
        assert said.chars == 300_000
        assert (len(said.content) == 300_000) is keep_text
        assert keep_text or len(said.content) < KEPT_CHARS


def test_half_a_surrogate_pair_does_no_harm() -> None:
    heard = transcript()
    tell(heard, chunk({"content": "hello"}))
    assert heard.repeats(chunk({"content": "U"}).replace(b"U", b"\\ud83d"))
    assert heard.said()[0].content == "hello\\ud83d"


DOCUMENTS: dict[str, tuple[bytes, list[Any]]] = {
    "one line each": (b'data: {"a":1}\n\ndata: [2]\n\n', [{"a": 1}, [2]]),
    "no space": (b'data:{"a":1}\n\ndata:2\n\n', [{"a": 1}, 2]),
    "crlf": (b"data: 1\r\n\r\ndata: 2\r\n\r\n", [1, 2]),
    "several lines": (b"data: [1,\ndata: 2]\n\n", [[1, 2]]),
    "comments and names": (b": hi\n\nevent: x\ndata: 1\n\n", [1]),
    "not json": (b"data: [DONE]\n\ndata: 1\n\n", [1]),
    "unfinished": (b"data: 1\n\ndata: 2", [1, 2]),
}


@pytest.mark.parametrize(("raw", "docs"), DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_parses_runs_of_events(raw: bytes, docs: list[Any]) -> None:
    assert parse_all(raw) == docs
