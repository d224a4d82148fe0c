from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.core.errors import BadAnswer
from lunar_proxy.core.sse import SSEParser
from lunar_proxy.core.stream import CHAT, COMPLETION, OPAQUE, RESPONSES, Shape, Stream

from .streams import CASSETTES, COUNTED, FIELDS, HOW, cassette, documents, opened, relay, render

How = Callable[[bytes], Iterator[bytes]]

FAILING = {"gemini_error.sse", "openai_responses_failed.sse", "openrouter_error.sse"}
TAPES = sorted(p.name for p in CASSETTES.glob("*.sse") if p.name not in FAILING)


def shape_of(tape: str) -> Shape:
    if "responses" in tape:
        return RESPONSES
    return COMPLETION if "completions" in tape else CHAT


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    choices = [{"index": more.pop("index", 0), "delta": delta or {}, "finish_reason": finish}]
    return event({"id": "c1", "model": "m", "choices": choices, **more})


def event(doc: Any) -> bytes:
    return b"data: " + orjson.dumps(doc) + b"\n\n"


# Members that orjson cannot read and clients can.
ODD = [rb'"\ud83d"', b"NaN", b"1e400"]
ROLE = chunk({"role": "assistant", "content": ""})
HELLO = chunk({"content": "Hello"})
STOP = chunk(finish="stop")
USAGE = event({"id": "c1", "choices": [], "usage": {"prompt_tokens": 9}})
DONE = b"data: [DONE]\n\n"
ERROR = event({"error": {"message": "overloaded"}})


# --- bytes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", ODD)
def test_content_beside_a_member_that_is_hard_to_read_is_content(odd: bytes) -> None:
    stream = opened(CHAT)
    first = HELLO.replace(b'"finish_reason":null', b'"logprobs":' + odd)
    assert odd in first
    assert stream.feed(first) == first


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("tape", TAPES)
def test_without_splice_every_byte_is_relayed(tape: str, how: How) -> None:
    raw = cassette(tape)
    stream = opened(shape_of(tape), splice=False)
    assert relay(stream, how(raw)) == raw
    assert stream.complete
    assert stream.error is None


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("tape", TAPES)
def test_spliced_bytes_undone_are_the_providers(tape: str, how: How) -> None:
    raw = cassette(tape)
    stream = opened(shape_of(tape), choices=2 if "two_choices" in tape else 1)
    out = relay(stream, how(raw))
    assert out != raw
    assert without_splices(out, raw) == raw


def without_splices(out: bytes, raw: bytes) -> bytes:
    """`out` with each inserted run taken out, and each replaced null put back."""
    pairs = zip(SSEParser().feed(out), SSEParser().feed(raw), strict=True)
    return b"".join(_undo(ours.raw, theirs.raw) for ours, theirs in pairs)


def _undo(ours: bytes, theirs: bytes) -> bytes:
    if ours == theirs:
        return ours
    before = _common_prefix(ours, theirs)
    after = _common_suffix(ours[before:], theirs[before:])
    assert FIELDS in ours
    taken = theirs[before : len(theirs) - after]
    assert taken in (b"", b"null", b"{}")
    return ours[:before] + taken + ours[len(ours) - after :]


def _common_prefix(a: bytes, b: bytes) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def _common_suffix(a: bytes, b: bytes) -> int:
    return _common_prefix(a[::-1], b[::-1])


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("tape", [t for t in TAPES if "usage" in t])
def test_the_injected_event_is_dropped_and_the_last_choice_has_the_usage(
    tape: str, how: How
) -> None:
    raw = cassette(tape)
    stream = opened(shape_of(tape), injected=True, choices=2 if "two_choices" in tape else 1)
    docs = [doc for doc in documents(relay(stream, how(raw))) if doc]
    assert not [doc for doc in docs if not doc["choices"] and doc.get("usage")]
    finish = [doc for doc in docs if any(c.get("finish_reason") for c in doc["choices"])]
    assert finish[-1]["usage"]["total_cost_usd"] == 0.0001
    own = {key: value for key, value in finish[-1]["usage"].items() if "_tokens" in key}
    assert stream.usage
    assert own == {key: value for key, value in stream.usage.items() if "_tokens" in key}
    assert not any((doc.get("usage") or {}).get("total_cost_usd") for doc in finish[:-1])


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("tape", [t for t in TAPES if "usage" in t])
def test_a_client_that_asked_gets_the_fields_in_the_providers_event(tape: str, how: How) -> None:
    raw = cassette(tape)
    stream = opened(shape_of(tape), asked=True)
    out = relay(stream, how(raw))
    assert out.replace(b"," + FIELDS, b"") == raw
    with_usage = [doc for doc in documents(out) if doc and doc.get("usage")]
    assert with_usage[-1]["usage"]["total_cost_usd"] == 0.0001


CUTS = st.lists(st.integers(0, 4000), max_size=30)
MODES: list[dict[str, bool]] = [
    {"splice": True, "injected": True},
    {"splice": True, "asked": True},
    {"splice": True},
    {"splice": False},
    {"splice": False, "injected": True},
]


@given(st.sampled_from(TAPES), st.sampled_from(MODES), CUTS)
def test_any_cut_gives_the_same_bytes(tape: str, mode: dict[str, bool], cuts: list[int]) -> None:
    raw = cassette(tape)
    at = sorted({0, len(raw), *(c for c in cuts if c < len(raw))})
    pieces = [raw[a:b] for a, b in itertools.pairwise(at)]
    one, other = opened(shape_of(tape), **mode), opened(shape_of(tape), **mode)
    assert relay(one, [raw]) == relay(other, pieces)
    assert one.usage == other.usage
    assert one.text() == other.text()
    assert (one.id, one.model) == (other.id, other.model)


WORDS = st.lists(
    st.one_of(
        st.integers(0, 300).map(lambda n: chunk({"content": "word" * n})),
        st.sampled_from([b": keep-alive\n\n", ROLE, chunk({"content": '"usage":{ \\n\\n'})]),
        st.just(event({"id": "c1", "choices": [], "usage": None})),
    ),
    min_size=4,
    max_size=30,
)


@given(WORDS, st.sampled_from([[STOP, USAGE, DONE], [STOP, DONE], [ERROR], []]), CUTS)
def test_bursts_give_the_same_bytes_as_single_events(
    words: list[bytes], end: list[bytes], cuts: list[int]
) -> None:
    """Of large reads only the ends are looked at; that must not show."""
    events = [HELLO, *words, *end]
    raw = b"".join(events)
    at = sorted({0, len(raw), *(c * 7 % len(raw) for c in cuts)})
    burst = [raw[a:b] for a, b in itertools.pairwise(at)]
    one, other = opened(CHAT, injected=True), opened(CHAT, injected=True)
    assert relay(one, events) == relay(other, burst)
    assert (one.usage, one.error, one.complete) == (other.usage, other.error, other.complete)
    assert one.text() == other.text()


def test_a_plain_chunk_is_returned_as_the_same_object() -> None:
    stream = opened(CHAT, injected=True)
    stream.feed(ROLE + HELLO)
    assert stream.feed(HELLO) is HELLO


def test_half_events_go_out_at_once() -> None:
    stream = opened(CHAT, injected=True)
    stream.feed(HELLO)
    assert stream.feed(HELLO[:40]) == HELLO[:40]
    assert stream.feed(HELLO[40:]) == HELLO[40:]


def test_keep_alive_bytes_go_out_at_once() -> None:
    stream = opened(CHAT, injected=True)
    stream.feed(HELLO)
    assert [stream.feed(b) for b in (b"\n", b": ping", b"\n\n")] == [b"\n", b": ping", b"\n\n"]


def test_bytes_from_the_first_mark_on_wait_for_the_event() -> None:
    stream = opened(CHAT, injected=True)
    stream.feed(HELLO)
    at = STOP.index(b'"finish_reason"')
    assert stream.feed(STOP[:-5]) == STOP[:at]
    assert stream.feed(STOP[-5:]) == b""
    assert stream.holding


# --- before the first content -------------------------------------------------------------------

HELD = {
    "role": ROLE,
    "role and nulls": chunk({"role": "assistant", "content": None, "tool_calls": []}),
    "comment": b": OPENROUTER PROCESSING\n\n",
    "azure": event({"id": "", "choices": [], "prompt_filter_results": [{}]}),
    "empty delta": chunk(),
    "empty reasoning": chunk({"reasoning_content": ""}),
    "ping": b"event: ping\ndata: {}\n\n",
    "half": HELLO[:-1],
    "not json": b"data: <html>\n\n",
}  # fmt: skip


@pytest.mark.parametrize("held", HELD.values(), ids=HELD.keys())
def test_nothing_goes_out_before_content(held: bytes) -> None:
    stream = opened(CHAT)
    assert stream.feed(held) == b""
    assert not stream.started
    assert stream.error is None


STARTS = {
    "content": HELLO,
    "refusal": chunk({"refusal": "No"}),
    "reasoning_content": chunk({"reasoning_content": "Hm"}),
    "reasoning": chunk({"reasoning": "Hm"}),
    "tool call": chunk({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}),
    "function call": chunk({"function_call": {"name": "f", "arguments": ""}}),
    "audio": chunk({"audio": {"id": "a"}}),
    "something new": chunk({"hologram": "x"}),
    "done": DONE,
}


@pytest.mark.parametrize("first", STARTS.values(), ids=STARTS.keys())
def test_the_first_content_takes_what_was_held_along(first: bytes) -> None:
    stream = opened(CHAT, splice=False)
    assert stream.feed(ROLE) == b""
    assert stream.feed(b": ping\n\n") == b""
    assert stream.feed(first) == ROLE + b": ping\n\n" + first
    assert stream.started


def test_an_answer_without_content_starts_with_its_end() -> None:
    stream = opened(CHAT)
    assert stream.feed(ROLE + STOP) == ROLE
    assert stream.started
    assert stream.holding


def test_responses_preamble_is_held() -> None:
    raw = cassette("openai_responses.sse")
    first_delta = raw.index(b"event: response.output_text.delta")
    stream = opened(RESPONSES)
    assert stream.feed(raw[:first_delta]) == b""
    assert not stream.started
    assert stream.feed(raw[first_delta : first_delta + 400]).startswith(raw[:first_delta])
    assert stream.id == "resp_67c9fdcecf488190bdd9a0409de3a1ec07b8b0ad4e5eb654"
    assert stream.model == "gpt-4.1-2025-04-14"


FIRST_ERRORS: dict[str, tuple[Shape, bytes]] = {
    "openai": (CHAT, ERROR),
    "named": (CHAT, b'event: error\ndata: {"message":"x"}\n\n'),
    "named, no json": (CHAT, b"event: error\ndata: overloaded\n\n"),
    "gemini": (CHAT, cassette("gemini_error.sse")),
    "finish reason": (CHAT, chunk(finish="error")),
    "after a preamble": (CHAT, ROLE + b": ping\n\n" + ERROR),
    "text": (CHAT, b'data: {"error":"model not loaded"}\n\n'),
    "completion": (COMPLETION, ERROR),
    "responses": (RESPONSES, b'event: error\ndata: {"type":"error","message":"x"}\n\n'),
    "responses failed": (RESPONSES, cassette("openai_responses_failed.sse")),
    "responses unnamed": (RESPONSES, ERROR),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("shape", "raw"), FIRST_ERRORS.values(), ids=FIRST_ERRORS.keys())
def test_a_first_event_that_is_an_error_is_no_start(shape: Shape, raw: bytes, how: How) -> None:
    stream = opened(shape)
    assert relay(stream, how(raw)) == b""
    assert stream.error is not None
    assert not stream.started
    assert not stream.complete


def test_a_null_error_is_none() -> None:
    stream = opened(CHAT)
    first = event({"error": None, "choices": [{"delta": {"content": "x"}}]})
    assert stream.feed(first) == first


def test_an_endless_preamble_is_refused() -> None:
    stream = opened(CHAT)
    comment = b":" + b"x" * (1 << 20) + b"\n\n"
    with pytest.raises(BadAnswer):
        stream.feed(comment * 17)


def test_an_opaque_stream_starts_with_its_first_byte() -> None:
    stream = opened(OPAQUE)
    assert stream.feed(b"even") == b"even"
    assert stream.started
    rest = b't: error\ndata: {"error":1,"usage":{"total_tokens":3}}\n\n'
    assert stream.feed(rest) == rest
    assert stream.usage == {"total_tokens": 3}
    assert stream.eof() == b""
    assert stream.complete


# --- the finish event and its usage -------------------------------------------------------------


def test_the_finish_event_waits_for_the_usage_and_nothing_else_does() -> None:
    stream = opened(CHAT, injected=True)
    assert stream.feed(HELLO) == HELLO
    assert stream.feed(STOP) == b""
    assert stream.holding
    assert stream.finish_seen
    out = stream.feed(USAGE)
    assert documents(out)[0]["usage"] == {
        "prompt_tokens": 9,
        "total_cost_usd": 0.0001,
        "latency_ms": 12.0,
    }
    assert not stream.holding
    assert stream.feed(DONE) == DONE
    assert stream.finished


def test_render_is_called_when_the_fields_are_written() -> None:
    calls: list[dict[str, Any] | None] = []

    def note(usage: dict[str, Any] | None) -> bytes:
        calls.append(usage)
        return FIELDS

    stream = Stream(CHAT, splice=True, injected=True, render=note)
    stream.feed(HELLO + STOP)
    assert calls == []
    stream.feed(USAGE)
    assert calls == [{"prompt_tokens": 9}]


def test_the_text_of_the_finish_event_counts_too() -> None:
    heard: list[str] = []

    def count(_usage: dict[str, Any] | None) -> bytes:
        heard.extend(said.content for said in stream.text())
        return FIELDS

    stream = Stream(CHAT, splice=True, injected=False, render=count)
    stream.feed(HELLO + chunk({"content": ", world"}, "stop"))
    stream.eof()
    assert heard == ["Hello, world"]


def test_a_released_event_has_the_count_and_a_late_usage_is_still_known() -> None:
    stream = opened(CHAT, injected=True)
    stream.feed(HELLO + STOP)
    out = stream.release()
    assert documents(out)[0]["usage"]["completion_tokens"] == 2
    assert not stream.holding
    assert stream.release() == b""
    assert stream.feed(USAGE[:30]) == b""
    assert stream.feed(USAGE[30:] + DONE) == DONE
    assert stream.usage == {"prompt_tokens": 9}


def test_what_queues_behind_the_finish_event_keeps_its_order() -> None:
    stream = opened(CHAT, injected=True)
    late = event({"choices": [], "prompt_annotations": []})
    stream.feed(HELLO)
    assert stream.feed(STOP + b": ping\n\n" + late) == b""
    out = stream.feed(USAGE)
    assert out.endswith(b"}}\n\n: ping\n\n" + late)


def test_usage_behind_done_is_found() -> None:
    stream = opened(CHAT, injected=True)
    assert stream.feed(HELLO + STOP + DONE) == HELLO
    assert not stream.finished
    out = stream.feed(USAGE)
    assert out.endswith(DONE)
    assert documents(out)[0]["usage"]["prompt_tokens"] == 9
    assert stream.finished


def test_usage_before_the_finish_is_used() -> None:
    stream = opened(CHAT, injected=True)
    assert stream.feed(HELLO + USAGE) == HELLO
    assert documents(stream.feed(STOP))[0]["usage"]["prompt_tokens"] == 9


def test_the_end_of_the_stream_releases() -> None:
    stream = opened(CHAT)
    stream.feed(HELLO + STOP)
    assert documents(stream.eof())[0]["usage"]["prompt_tokens"] == 1
    assert stream.complete


def test_a_null_usage_is_replaced_and_an_empty_one_filled() -> None:
    for given_usage, undone in ((None, b"null"), ({}, b"{}")):
        stream = opened(CHAT)
        finish = chunk(finish="stop", usage=given_usage)
        stream.feed(HELLO + finish)
        assert stream.eof() == finish.replace(undone + b"}\n", b"{" + COUNTED + b"}}\n")


def test_no_fields_to_add_leaves_the_bytes() -> None:
    stream = Stream(CHAT, splice=True, injected=False, render=lambda _usage: b"")
    assert relay(stream, [HELLO + STOP + DONE]) == HELLO + STOP + DONE


def test_of_two_choices_only_the_last_finish_has_the_usage() -> None:
    stream = opened(CHAT, injected=True, choices=2)
    second = chunk({"content": "B"}, index=1)
    assert stream.feed(HELLO + STOP) == HELLO
    assert stream.release() == STOP  # a second passed: the other choice is still to come
    assert stream.feed(second) == second
    assert not stream.finish_seen
    assert stream.feed(chunk(finish="stop", index=1)) == b""
    assert stream.finish_seen
    assert documents(stream.feed(USAGE))[0]["usage"]["prompt_tokens"] == 9


def test_an_event_that_is_half_out_stays_whole() -> None:
    stream = opened(CHAT, injected=True, splice=False)
    stream.feed(HELLO)
    assert stream.feed(USAGE[:20]) + stream.feed(USAGE[20:]) == USAGE


def test_what_is_out_already_is_not_spliced() -> None:
    finish = STOP.replace(b'{"id"', b'{"usag\\u0065":null,"id"')
    stream = opened(CHAT)
    out = stream.feed(HELLO + finish[:40]) + stream.feed(finish[40:]) + stream.eof()
    assert out == HELLO + finish


def test_what_is_not_the_injected_event_stays() -> None:
    annotations = event({"choices": [], "content_filter_offsets": {}})
    stream = opened(CHAT, injected=True)
    assert stream.feed(HELLO + annotations) == HELLO + annotations


# --- failures -----------------------------------------------------------------------------------


def test_a_cut_is_not_complete() -> None:
    for raw in (b"", ROLE, ROLE + HELLO, ROLE + HELLO + STOP[:60]):
        stream = opened(CHAT)
        relay(stream, [raw])
        assert not stream.complete
        assert not stream.finished


def test_one_finished_choice_of_two_is_a_cut() -> None:
    stream = opened(CHAT)
    relay(stream, [HELLO + chunk({"content": "B"}, index=1) + STOP])
    assert not stream.complete


@pytest.mark.parametrize("end", [DONE, DONE[:-1], DONE[:-2], b"data:[DONE]", b""])
def test_done_or_the_finish_reason_completes(end: bytes) -> None:
    stream = opened(CHAT, splice=False)
    assert relay(stream, [HELLO + STOP + end]) == HELLO + STOP + end
    assert stream.complete
    assert stream.finished == (end != b"")


def test_an_error_after_commit_is_kept_from_the_client() -> None:
    stream = opened(CHAT)
    assert stream.feed(ROLE + HELLO + ERROR + DONE) == ROLE + HELLO
    assert stream.error is not None
    assert stream.error.doc == {"error": {"message": "overloaded"}}
    assert stream.feed(HELLO) == b""
    assert stream.eof() == b""
    assert not stream.complete


@pytest.mark.parametrize("cut", range(1, len(ERROR)))
def test_no_part_of_an_error_event_goes_out(cut: int) -> None:
    stream = opened(CHAT)
    stream.feed(HELLO)
    assert stream.feed(ERROR[:cut]) == b""
    assert stream.feed(ERROR[cut:]) == b""
    assert stream.error is not None


def test_an_error_behind_the_finish_event_takes_its_place() -> None:
    stream = opened(CHAT)
    stream.feed(HELLO + STOP)
    assert stream.feed(ERROR) == b""
    assert not stream.holding
    assert stream.eof() == b""
    assert not stream.complete


LAST = ("upstream cut", "upstream_error", "upstream_cut")


@pytest.mark.parametrize("tape", ["openai_chat.sse", "openai_tools_usage.sse", "azure_chat.sse",
    "mistral_thinking.sse", "openai_completions_usage.sse", "server_spaced_crlf_usage.sse",
    "server_multiline_usage.sse", "deepseek_reasoning.sse"])  # fmt: skip
def test_wherever_it_is_cut_the_client_sees_the_error_event(tape: str) -> None:
    raw = cassette(tape)
    for cut in range(len(raw)):
        stream = opened(shape_of(tape))
        out = stream.feed(raw[:cut]) + stream.eof()
        if not stream.started or stream.complete:
            continue
        assert raw.startswith(out)
        *before, last, done = documents(out + stream.error_event(*LAST))
        assert done is None
        assert last["error"] == {"message": LAST[0], "type": LAST[1], "code": LAST[2]}
        assert (last["id"], last["model"]) == (stream.id, stream.model)
        assert [c["finish_reason"] for c in last["choices"]] == ["error"]
        whole = documents(raw)
        assert before == whole[: len(before)]


def test_a_half_event_with_a_name_loses_it() -> None:
    raw = cassette("openai_chat.sse").replace(b"data: {", b"event: chunk\ndata: {")
    for cut in range(raw.index(b"Hello"), raw.index(b'"stop"')):
        stream = opened(CHAT)
        out = stream.feed(raw[:cut]) + stream.eof()
        if not stream.started:
            continue
        last = SSEParser().feed(out + stream.error_event(*LAST))[-2]
        assert last.event == b""
        assert orjson.loads(last.data)["error"]["code"] == LAST[2]


def test_wherever_a_responses_stream_is_cut_its_error_is_last() -> None:
    raw = cassette("openai_responses.sse")
    for cut in range(raw.index(b"Hi"), raw.index(b"event: response.completed"), 7):
        stream = opened(RESPONSES)
        out = stream.feed(raw[:cut]) + stream.eof()
        if not stream.started:
            continue
        *before, last = documents(out + stream.error_event(*LAST))
        assert (last["type"], last["code"], last["message"]) == ("error", LAST[2], LAST[0])
        assert last["sequence_number"] == before[-1]["sequence_number"] + 1
        assert SSEParser().feed(out + stream.error_event(*LAST))[-1].event == b"error"


def test_the_error_event_without_an_open_event() -> None:
    stream = opened(CHAT)
    stream.feed(ROLE + HELLO)
    assert stream.error_event(*LAST) == (
        b'data: {"id":"c1","object":"chat.completion.chunk","created":0,"model":"m","choices":'
        b'[{"index":0,"delta":{"content":""},"finish_reason":"error"}],"error":{"message":'
        b'"upstream cut","type":"upstream_error","code":"upstream_cut"}}\n\ndata: [DONE]\n\n'
    )


# --- what was said ------------------------------------------------------------------------------

TEXTS = {
    "openai_chat.sse": [("Hello! How can I \"help\"? h\u00e9 \U0001f600\n", "", "")],
    "openai_refusal.sse": [("I'm sorry, I can't.", "", "")],
    "openai_tools_usage.sse": [("", "", 'get_weather{"location":"Paris"}')],
    "openai_two_choices_usage.sse": [("One", "", ""), ("Two more", "", "")],
    "openai_completions_usage.sse": [("This is a test", "", "")],
    "openai_responses.sse": [('Hi there! Say "usage":null.', "", "")],
    "deepseek_reasoning.sse": [("9.8", "Let me think.", "")],
    "mistral_thinking.sse": [("Hm.Yes.", "", "")],
}  # fmt: skip


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("tape", "texts"), TEXTS.items(), ids=TEXTS.keys())
def test_text_is_what_was_relayed(tape: str, texts: list[tuple[str, str, str]], how: How) -> None:
    stream = opened(shape_of(tape))
    relay(stream, how(cassette(tape)))
    assert [(s.content, s.reasoning, s.arguments) for s in stream.text()] == texts
    assert [s.chars for s in stream.text()] == [len(s.text) for s in stream.text()]


def test_a_tool_call_is_open_until_its_choice_finishes() -> None:
    call = chunk({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{"}}]})
    stream = opened(CHAT)
    stream.feed(HELLO)
    assert not stream.tool_call_open
    stream.feed(call)
    assert stream.tool_call_open
    stream.feed(chunk(finish="tool_calls"))
    assert not stream.tool_call_open


def test_a_long_text_is_counted_and_not_kept() -> None:
    long = chunk({"content": "x" * 1000})
    for keep, kept in ((False, 0), (True, 400_000)):
        stream = Stream(CHAT, splice=True, injected=True, render=render, keep_text=keep)
        for _ in range(400):
            stream.feed(long)
        (said,) = stream.text()
        assert said.chars == 400_000
        assert len(said.content) >= kept
        assert keep or len(said.content) < 260_000
