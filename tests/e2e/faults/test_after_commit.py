"""Faults after the first content: what was said stands, and the end tells that it is not all."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import orjson
import pytest

from lunar_proxy.testing import Break, Chunk, Close, End, Head, Pause, Raw, Script, Step

from .apis import CHAT, COMPLETIONS, RESPONSES, SSE, TEXT, Api, event
from .world import DOORS, KEYS, SHORT_S, Answer, Scene

SAID = ("Hello ", "wor")
ERROR = {"error": {"message": "overloaded", "type": "overloaded", "code": "x", "param": None}}


@dataclass(frozen=True)
class Fault:
    """`plays` goes on after SAID."""

    plays: Callable[[Api], tuple[Step, ...]]
    code: str = "upstream_cut"
    provider: str = "a"


def half(api: Api) -> bytes:
    """An event with a word in it, up to the middle of a character of two bytes."""
    whole = api.word("caf\N{LATIN SMALL LETTER E WITH ACUTE}")
    return whole[: whole.index(b"\xc3") + 1]


BREAKS = {
    "reset": Fault(lambda api: (Break(),)),
    "closed": Fault(lambda api: (Close(),)),
    "ended as if it were complete": Fault(lambda api: (End(),)),
    "closed within an event": Fault(lambda api: (Chunk(api.word("ld")[:-9]), Close())),
    "closed between event and blank line": Fault(lambda api: (Chunk(api.word("")[:-1]), Close())),
    "reset within a character": Fault(lambda api: (Chunk(half(api)), Break())),
    "ended within a character": Fault(lambda api: (Chunk(half(api)), End())),
    "closed within the finish event": Fault(lambda api: (Chunk(api.finish[:-9]), Close())),
    "closed within a chunk": Fault(lambda api: (Raw(b"ff\r\ndata: "), Close())),
    "a broken chunk": Fault(lambda api: (Raw(b"zz\r\n\r\n"),), "upstream_bad_answer"),
    "silent": Fault(lambda api: (), "idle_timeout", "restless"),
    "silent within an event": Fault(
        lambda api: (Chunk(api.word("ld")[:-9]),), "idle_timeout", "restless"
    ),
    "an error": Fault(lambda api: (Chunk(event(ERROR)), End()), "upstream_in_band_error"),
    "a named error": Fault(
        lambda api: (Chunk(event(ERROR, "error")), End()), "upstream_in_band_error"
    ),
    "an error in pieces": Fault(
        lambda api: (*(Chunk(event(ERROR)[n : n + 5]) for n in range(0, 90, 5)), End()),
        "upstream_in_band_error",
    ),
    "an error and silence": Fault(lambda api: (Chunk(event(ERROR)),), "upstream_in_band_error"),
}
WAYS = [
    pytest.param(api, door, id=f"{api}-{door}")
    for api, door in (
        (CHAT, "fast"),
        (CHAT, "aiohttp"),
        (COMPLETIONS, "fast"),
        (RESPONSES, "fast"),
    )
]
every_way = pytest.mark.parametrize(("api", "door"), WAYS)


def ends_in_error(answer: Answer, api: Api, code: str) -> str:
    """The text before the end that says so; fails on any other end. Also the error's message."""
    assert (answer.status, answer.whole) == (200, True)
    last = answer.docs[-1]
    if api is RESPONSES:
        assert answer.events[-1].event == b"error"
        assert (last["type"], last["code"]) == ("error", code)
        return str(last["message"])
    assert answer.ends == b"[DONE]"
    assert last["id"] == answer.docs[0]["id"]
    assert (last["model"], last["created"]) == ("theirs", 7)
    (choice,) = last["choices"]
    empty = {"text": ""} if api is COMPLETIONS else {"delta": {"content": ""}}
    assert choice == {"index": 0, "finish_reason": "error", **empty}
    assert set(last["error"]) == {"message", "type", "code"}
    assert last["error"]["code"] == code
    return str(last["error"]["message"])


@every_way
@pytest.mark.parametrize("fault", BREAKS.values(), ids=BREAKS)
def test_a_stream_that_breaks_ends_in_an_error(
    scene: Scene, fault: Fault, api: Api, door: str
) -> None:
    scene.plays(fault.provider, (*api.opening(*SAID), *fault.plays(api)))
    scene.plays("b", api.says(TEXT))
    answer = scene.ask(api, fault.provider, "b", stream=True, door=door)
    ends_in_error(answer, api, fault.code)
    assert answer.text(api).removesuffix("ld") == "".join(SAID)
    assert answer.who == (fault.provider, 1, 0)
    assert scene.asked("b") == []  # nobody else may go on
    assert answer.body.count(b"[DONE]") == (api is not RESPONSES)
    assert answer.seconds < SHORT_S + 2
    record = scene.record
    assert (record["status"], record["error"]) == (200, fault.code)
    assert record["estimated"]  # what was said until then is paid for
    assert record["output_tokens"] > 0
    assert record["disconnected"] is None


def test_the_total_time_ends_a_stream_that_never_does(scene: Scene) -> None:
    steps = [step for _ in range(100) for step in (Chunk(CHAT.word("and ")), Pause(0.05))]
    scene.plays("a", (*CHAT.opening(), *steps))
    answer = scene.ask(CHAT, stream=True, headers={"x-lunar-timeout-s": "0.5"})
    ends_in_error(answer, CHAT, "total_timeout")
    assert answer.text(CHAT).startswith("and and ")
    assert 0.5 <= answer.seconds < 2


@every_way
def test_an_error_that_echoes_our_key_does_not_tell_it(scene: Scene, api: Api, door: str) -> None:
    error = {"error": {"message": f"wrong key {KEYS['a']}", "type": "auth", "code": "x"}}
    scene.plays("a", (*api.opening(*SAID), Chunk(event(error)), End()))
    answer = scene.ask(api, stream=True, door=door)
    assert "wrong key" in ends_in_error(answer, api, "upstream_in_band_error")
    assert KEYS["a"].encode() not in answer.body
    scene.plays("a", (SSE, Chunk(event(error)), End()))
    answer = scene.ask(api, stream=True, door=door)
    assert answer.status == 502
    assert KEYS["a"].encode() not in answer.body


def test_a_responses_stream_that_fails_ends_in_an_error_that_says_why(scene: Scene) -> None:
    response = {"id": "resp_1", "error": {"code": "server_error", "message": "sorry"}}
    failed = event({"type": "response.failed", "response": response}, "response.failed")
    scene.plays("a", (*RESPONSES.opening(*SAID), Chunk(failed), End()))
    answer = scene.ask(RESPONSES, stream=True)
    assert ends_in_error(answer, RESPONSES, "upstream_in_band_error") == "sorry"


# --- complete, whatever the connection does -----------------------------------------------------

FINISH: dict[str, Callable[[Api], tuple[Step, ...]]] = {
    "closed without a blank line": lambda api: (Chunk(api.finish[:-2]), Close()),
    "ended without a blank line": lambda api: (Chunk(api.finish[:-1]), End()),
    "closed without [DONE]": lambda api: (Chunk(api.finish), Close()),
    "reset without [DONE]": lambda api: (Chunk(api.finish), Break()),
    "ended without [DONE]": lambda api: (Chunk(api.finish), End()),
    "[DONE] without usage": lambda api: (Chunk(api.finish), Chunk(event(b"[DONE]")), End()),
    "usage without [DONE]": lambda api: (Chunk(api.finish + b"".join(api.ending[:1])), End()),
    "[DONE] and the last chunk missing": lambda api: (
        Chunk(api.finish + b"".join(api.ending)),
        Close(),
    ),
    "[DONE] and a reset": lambda api: (Chunk(api.finish + b"".join(api.ending)), Break()),
    "all at once, with the words": lambda api: (
        Chunk(api.word("") + api.finish + b"".join(api.ending)),
        End(),
    ),
    "trailers": lambda api: (
        Chunk(api.finish + b"".join(api.ending)),
        Raw(b"0\r\nx-checksum: 1\r\n\r\n"),
        Close(),
    ),
}


# And then not a word more, on a connection that stays open.
FALLS_SILENT: dict[str, Callable[[Api], tuple[Step, ...]]] = {
    "finish": lambda api: (Chunk(api.finish),),
    "usage": lambda api: (Chunk(api.finish + b"".join(api.ending[:1])),),
    "[DONE]": lambda api: (Chunk(api.finish + b"".join(api.ending)),),
}


@every_way
@pytest.mark.parametrize("finish", FINISH.values(), ids=FINISH)
def test_an_answer_that_has_finished_is_complete(
    scene: Scene, finish: Callable[[Api], tuple[Step, ...]], api: Api, door: str
) -> None:
    is_complete(scene, finish(api), api, door)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("finish", FALLS_SILENT.values(), ids=FALLS_SILENT)
def test_a_second_of_silence_is_as_good_as_an_end(
    scene: Scene, finish: Callable[[Api], tuple[Step, ...]], door: str
) -> None:
    is_complete(scene, finish(CHAT), CHAT, door)
    scene.world.cast.closed("a", scene.asked("a")[0].connection, within_s=1)


def is_complete(scene: Scene, finish: tuple[Step, ...], api: Api, door: str) -> None:
    scene.plays("a", (*api.opening(*SAID), *finish))
    answer = scene.ask(api, stream=True, door=door)
    assert (answer.status, answer.whole) == (200, True)
    assert answer.text(api) == "".join(SAID)
    assert all(not doc.get("error") for doc in answer.docs)
    assert b"total_cost_usd" in answer.body
    assert answer.seconds < 3
    assert scene.record["error"] is None


@every_way
@pytest.mark.parametrize("end", [(End(),), (Close(),)], ids=["ended", "closed"])
@pytest.mark.parametrize("finished", [True, False], ids=["finished", "not finished"])
def test_a_stream_that_comes_in_one_piece_is_read_to_its_end(
    scene: Scene, finished: bool, end: tuple[Step, ...], api: Api, door: str
) -> None:
    """Head, words and end may all be there before the client is told the first of them."""
    raw = b"".join([*api.preamble, api.word("Hello"), *([api.finish] if finished else [])])
    scene.plays("a", (SSE, Chunk(raw), *end))
    for _ in range(5):
        answer = scene.ask(api, stream=True, door=door)
        assert answer.text(api) == "Hello"
        if finished:
            assert all(not doc.get("error") for doc in answer.docs)
        else:
            ends_in_error(answer, api, "upstream_cut")


def test_each_choice_has_a_second_to_follow_the_other(scene: Scene) -> None:
    """The first to finish must not use up the patience that is for the last."""

    def choice(index: int, content: str = "", finish: str | None = None) -> Chunk:
        said = {"index": index, "delta": {"content": content}, "finish_reason": finish}
        return Chunk(event({"id": "c", "model": "theirs", "choices": [said]}))

    first = (choice(0, "a"), choice(1, "b"), choice(0, "", "stop"))
    last = (choice(1, "c"), choice(1, "", "stop"))
    scene.plays("a", (SSE, *first, Pause(1.5), *last))
    answer = scene.ask(CHAT, stream=True, n=2)
    assert answer.text(CHAT) == "abc"
    assert answer.seconds < 4.5
    assert scene.record["error"] is None


def test_an_error_behind_the_end_undoes_nothing(scene: Scene) -> None:
    ending = b"".join(CHAT.ending)
    scene.plays("a", (*CHAT.opening(*SAID), Chunk(CHAT.finish + ending + event(ERROR)), End()))
    answer = scene.ask(CHAT, stream=True)
    assert answer.body.count(b"[DONE]") == 1
    assert b'"finish_reason":"error"' not in answer.body
    assert scene.record["error"] is None


# --- compressed though nobody asked -------------------------------------------------------------


def gzipped(*pieces: bytes) -> tuple[Chunk, ...]:
    """Each piece flushed, as servers do it that compress streams."""
    squeeze = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    flushed = [squeeze.compress(p) + squeeze.flush(zlib.Z_SYNC_FLUSH) for p in pieces]
    return (*map(Chunk, flushed), Chunk(squeeze.flush()))


GZIP_SSE = Head(200, {"content-type": "text/event-stream", "content-encoding": "gzip"})


@pytest.mark.parametrize("door", DOORS)
def test_gzip_on_a_stream_is_undone(scene: Scene, door: str) -> None:
    words = [*CHAT.preamble, *map(CHAT.word, SAID), CHAT.finish, *CHAT.ending]
    scene.plays("a", (GZIP_SSE, *gzipped(*words), End()))
    answer = scene.ask(CHAT, stream=True, door=door)
    assert "content-encoding" not in answer.headers
    assert answer.text(CHAT) == "".join(SAID)
    assert answer.ends == b"[DONE]"


def test_gzip_of_several_members_is_undone(scene: Scene) -> None:
    words = [*CHAT.preamble, *map(CHAT.word, SAID), CHAT.finish, *CHAT.ending]
    scene.plays("a", (GZIP_SSE, *(Chunk(gzip.compress(word)) for word in words), End()))
    answer = scene.ask(CHAT, stream=True)
    assert answer.text(CHAT) == "".join(SAID)
    assert answer.ends == b"[DONE]"


def test_gzip_that_breaks_off_ends_in_an_error(scene: Scene) -> None:
    words = gzipped(*CHAT.preamble, *map(CHAT.word, SAID))
    scene.plays("a", (GZIP_SSE, *words[:-1], Close()))
    answer = scene.ask(CHAT, stream=True)
    ends_in_error(answer, CHAT, "upstream_cut")
    assert answer.text(CHAT) == "".join(SAID)


def test_gzip_that_turns_into_noise_ends_in_an_error(scene: Scene) -> None:
    words = gzipped(*CHAT.preamble, *map(CHAT.word, SAID))
    scene.plays("a", (GZIP_SSE, *words[:-1], Pause(0.2), Chunk(b"\xff" * 100), End()))
    answer = scene.ask(CHAT, stream=True)
    ends_in_error(answer, CHAT, "upstream_bad_answer")


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compression_of_a_document_is_undone(scene: Scene, coding: str, door: str) -> None:
    plain = orjson.dumps(CHAT.whole(TEXT, scene.model))
    body = gzip.compress(plain) if coding == "gzip" else zlib.compress(plain)
    head = {"content-type": "application/json", "content-encoding": coding}
    scene.plays("a", (Head(200, {**head, "content-length": str(len(body))}), Chunk(body), End()))
    answer = scene.ask(CHAT, door=door)
    assert answer.text(CHAT) == TEXT
    assert "content-encoding" not in answer.headers


# --- bytes -------------------------------------------------------------------------------------


@every_way
def test_an_event_a_byte_at_a_time_is_the_same_event(scene: Scene, api: Api, door: str) -> None:
    raw = b"".join([*api.preamble, api.word("Hello"), api.finish, *api.ending])
    script: Script = (SSE, *(Chunk(raw[n : n + 1]) for n in range(len(raw))), End())
    scene.plays("a", script)
    answer = scene.ask(api, stream=True, door=door, headers={"x-lunar-annotate": "off"})
    assert answer.body == raw
