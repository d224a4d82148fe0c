"""Faults before the first content: the next provider answers, and the client sees nothing of it.

Every row is tried on every endpoint: with someone to fall back on, and alone.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from dataclasses import dataclass

import orjson
import pytest

from lunar_proxy.testing import (
    Break,
    Chunk,
    Close,
    End,
    Head,
    Pause,
    Raw,
    Script,
    Step,
    error_answer,
    json_answer,
)

from .apis import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, SSE, TEXT, Api, event
from .world import SHORT_S, Scene

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
JSON = {"content-type": "application/json"}
GZIP = {**JSON, "content-encoding": "gzip"}
OTHER_TEXT = "The next one answers."


@dataclass(frozen=True)
class Fault:
    """`tries`: how often it was to be asked. Alone, the client gets `status`, `type`, `code`."""

    plays: Script
    tries: int
    status: int = 502
    type: str = "upstream_error"
    code: str = "upstream_error"
    provider: str = "a"


def cut(code: str = "upstream_cut", tries: int = 2) -> Callable[..., Fault]:
    return lambda *steps: Fault(steps, tries, code=code)


no_answer, cut_answer, bad = cut("upstream_reset"), cut(), cut("upstream_bad_answer", tries=1)

NEVER_BEGINS = {
    "refused": Fault((), 1, code="upstream_connect", provider="dead"),
    "no such host": Fault((), 1, code="upstream_connect", provider="unknown"),
    "a certificate of its own": Fault((), 1, code="upstream_tls", provider="tls"),
    "reset before the head": Fault((Break(),), 2, code="upstream_reset", provider="abrupt"),
    "closed before the head": Fault((Close(),), 2, code="upstream_reset", provider="abrupt"),
    "reset inside the head": no_answer(Raw(OK + b"content-le"), Break()),
    "closed inside the head": no_answer(Raw(OK + b"content-le"), Close()),
    "closed after 103": no_answer(Raw(b"HTTP/1.1 103 Early Hints\r\nlink: <x>\r\n\r\n"), Close()),
    "not HTTP": bad(Raw(b"SSH-2.0-OpenSSH_9.6\r\n")),
    "HTTP/2 unasked": bad(Raw(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00")),
    "two lengths": bad(Raw(OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}")),
    "length and chunks": bad(
        Raw(OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
    ),
    "a length that is no number": bad(Raw(OK + b"content-length: 2, 2\r\n\r\n{}")),
    "an endless head": bad(Raw(OK), *[Raw(b"x-a: %b\r\n" % (b"a" * 8000))] * 40),
    "another protocol": bad(
        Raw(b"HTTP/1.1 101 Switching\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n")
    ),
    "a page": bad(Head(200, {"content-type": "text/html"}), Chunk(b"<html>Sign in</html>"), End()),
    "a redirect": bad(Head(307, {"location": "http://127.0.0.1:9/", "content-length": "0"}), End()),
    "a redirect with a page": bad(
        Head(302, {"location": "/login", "content-type": "text/html"}), Chunk(b"<html>"), End()
    ),
    "nothing": bad(Head(200, {**JSON, "content-length": "0"}), End()),
    "no content": bad(Head(204), End()),
    "no JSON": bad(Head(200, JSON), Chunk(b"Internal Server Error"), End()),
    "half of a JSON, by length": cut_answer(
        Head(200, {**JSON, "content-length": "100"}), Chunk(b'{"id":'), Close()
    ),
    "half of a JSON, in chunks": cut_answer(Head(200, JSON), Chunk(b'{"id":'), Break()),
    "half of a JSON, to the end": bad(
        Head(200, {**JSON, "connection": "close"}), Chunk(b'{"id":'), End()
    ),
    "damaged gzip": bad(Head(200, GZIP), Chunk(b"{not gzip}"), End()),
    "half of a gzip": bad(Head(200, GZIP), Chunk(gzip.compress(b"{}" * 99)[:20]), End()),
    "a broken chunk": bad(Head(200, JSON), Raw(b"zz\r\n{}\r\n")),
}

SAYS_NO = {
    "500": (500, "server_error", 2),
    "502": (502, "server_error", 2),
    "503": (503, "server_error", 2),
    "529": (529, "overloaded_error", 2),  # Anthropic's
    "429": (429, "rate_limit_error", 2),
    "401": (401, "authentication_error", 1),
    "402": (402, "insufficient_quota", 1),
    "403": (403, "permission_error", 1),
    "404": (404, "invalid_request_error", 1),
}

WAYS = [
    pytest.param(api, stream, door, id=f"{api}-{'stream' if stream else 'whole'}-{door}")
    for api, stream, door in (
        (CHAT, False, "fast"),
        (CHAT, False, "aiohttp"),
        (CHAT, True, "fast"),
        (CHAT, True, "aiohttp"),
        (COMPLETIONS, True, "fast"),
        (RESPONSES, False, "fast"),
        (RESPONSES, True, "fast"),
        (EMBEDDINGS, False, "fast"),
    )
]
every_way = pytest.mark.parametrize(("api", "stream", "door"), WAYS)


def moves_on(scene: Scene, fault: Fault, api: Api, stream: bool, door: str = "fast") -> None:
    scene.plays(fault.provider, fault.plays)
    scene.plays("b", api.says(OTHER_TEXT))
    answer = scene.ask(api, fault.provider, "b", stream=stream, door=door)
    assert (answer.status, answer.whole) == (200, True), answer.body
    assert answer.text(api) == OTHER_TEXT
    assert answer.who == ("b", fault.tries + 1, 1)
    assert answer.headers["x-lunar-model"] == scene.model
    assert len(scene.asked("b")) == 1
    if fault.plays:
        assert len(scene.asked(fault.provider)) == fault.tries


def is_told(scene: Scene, fault: Fault, api: Api, stream: bool, door: str = "fast") -> None:
    scene.plays(fault.provider, fault.plays)
    answer = scene.ask(api, fault.provider, stream=stream, door=door)
    assert (answer.status, answer.whole) == (fault.status, True)
    assert (answer.error["type"], answer.error["code"]) == (fault.type, fault.code)
    assert answer.who == (fault.provider, fault.tries, 0)
    assert "127.0.0.1" not in answer.body.decode()


@every_way
@pytest.mark.parametrize("fault", NEVER_BEGINS.values(), ids=NEVER_BEGINS)
def test_an_answer_that_never_begins_moves_on(
    scene: Scene, fault: Fault, api: Api, stream: bool, door: str
) -> None:
    moves_on(scene, fault, api, stream, door)


@every_way
@pytest.mark.parametrize("fault", NEVER_BEGINS.values(), ids=NEVER_BEGINS)
def test_an_answer_that_never_begins_is_told(
    scene: Scene, fault: Fault, api: Api, stream: bool, door: str
) -> None:
    is_told(scene, fault, api, stream, door)


# --- the provider says no -----------------------------------------------------------------------


@every_way
@pytest.mark.parametrize(("status", "type", "tries"), SAYS_NO.values(), ids=SAYS_NO)
def test_a_no_moves_on(
    scene: Scene, status: int, type: str, tries: int, api: Api, stream: bool, door: str
) -> None:
    moves_on(scene, Fault(error_answer(status, type=type), tries), api, stream, door)


@every_way
@pytest.mark.parametrize(("status", "type", "tries"), SAYS_NO.values(), ids=SAYS_NO)
def test_the_last_no_is_passed_on_as_it_is(
    scene: Scene, status: int, type: str, tries: int, api: Api, stream: bool, door: str
) -> None:
    scene.plays("a", error_answer(status, "no!", type=type, headers={"x-theirs": "kept"}))
    answer = scene.ask(api, "dead", "a", stream=stream, door=door)
    assert (answer.status, answer.whole) == (status, True)
    assert answer.doc == {"error": {"message": "no!", "type": type, "param": None, "code": None}}
    assert answer.headers["x-theirs"] == "kept"
    assert answer.who == ("a", tries + 1, 1)


# Never retried, never moved on: the request is at fault, or the provider's own filter.
REFUSALS = {
    "bad request": error_answer(400, "no", type="invalid_request_error"),
    "content filter": error_answer(400, "filtered", code="content_filter"),
    "unprocessable": error_answer(422, "no", type="invalid_request_error"),
    "too large": error_answer(413, "no", type="invalid_request_error"),
}


@every_way
@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_passed_on_though_others_are_open(
    scene: Scene, refusal: Script, api: Api, stream: bool, door: str
) -> None:
    head, body = refusal[0], refusal[1]
    assert isinstance(head, Head)
    assert isinstance(body, Chunk)
    scene.plays("a", refusal)
    scene.plays("b", api.says(OTHER_TEXT))
    answer = scene.ask(api, "a", "b", stream=stream, door=door)
    assert (answer.status, answer.body) == (head.status, body.data)
    assert answer.who == ("a", 1, 0)
    assert scene.asked("b") == []


def test_a_refusal_in_gzip_is_read_and_passed_on_readable(scene: Scene) -> None:
    doc = {"error": {"message": "maximum context length is 9", "code": "context_length_exceeded"}}
    body = gzip.compress(orjson.dumps(doc))
    head = Head(400, {**GZIP, "content-length": str(len(body))})
    scene.plays("a", (head, Chunk(body), End()))
    answer = scene.ask(CHAT)
    assert answer.status == 400
    assert answer.doc == doc
    assert "content-encoding" not in answer.headers


# --- a 200 that is an error ---------------------------------------------------------------------

FAULT = {"error": {"message": "overloaded", "type": "overloaded", "code": "x", "param": None}}


@every_way
def test_a_200_whose_json_is_an_error_moves_on(
    scene: Scene, api: Api, stream: bool, door: str
) -> None:
    moves_on(scene, Fault(json_answer(FAULT), 2), api, stream, door)


@every_way
def test_a_200_whose_json_is_an_error_is_no_200(
    scene: Scene, api: Api, stream: bool, door: str
) -> None:
    scene.plays("a", json_answer(FAULT))
    answer = scene.ask(api, stream=stream, door=door)
    assert answer.status == 502
    assert answer.headers["content-type"] == "application/json"
    assert answer.doc["error"]["message"] == "overloaded"
    assert answer.who == ("a", 2, 0)


STREAMS = [
    pytest.param(api, door, id=f"{api}-{door}")
    for api in (CHAT, COMPLETIONS, RESPONSES)
    for door in (("fast", "aiohttp") if api is CHAT else ("fast",))
]
every_stream = pytest.mark.parametrize(("api", "door"), STREAMS)
# What may stand before an error event that is the first to say anything.
BEFORE: dict[str, Callable[[Api], tuple[Step, ...]]] = {
    "first": lambda api: (SSE,),
    "after the preamble": lambda api: api.opening(),
    "after a comment": lambda api: (SSE, Chunk(b": OPENROUTER PROCESSING\n\n")),
}
ERROR_EVENTS = {"bare": event(FAULT), "named": event(FAULT, "error")}


@every_stream
@pytest.mark.parametrize("error", ERROR_EVENTS.values(), ids=ERROR_EVENTS)
@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_a_stream_that_begins_with_an_error_moves_on(
    scene: Scene, before: Callable[[Api], tuple[Step, ...]], error: bytes, api: Api, door: str
) -> None:
    moves_on(scene, Fault((*before(api), Chunk(error), End()), 2), api, True, door)


@every_stream
@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_a_stream_that_is_only_an_error_is_told_as_json(
    scene: Scene, before: Callable[[Api], tuple[Step, ...]], api: Api, door: str
) -> None:
    scene.plays("a", (*before(api), Chunk(ERROR_EVENTS["bare"]), End()))
    answer = scene.ask(api, stream=True, door=door)
    assert answer.status == 502
    assert answer.headers["content-type"] == "application/json"
    assert answer.doc["error"]["message"] == "overloaded"
    assert answer.who == ("a", 2, 0)


def test_a_responses_stream_that_fails_before_any_content_moves_on(scene: Scene) -> None:
    failed = event(
        {
            "type": "response.failed",
            "response": {"id": "resp_1", "error": {"code": "server_error"}},
        },
        "response.failed",
    )
    moves_on(scene, Fault((*RESPONSES.opening(), Chunk(failed), End()), 2), RESPONSES, True)


ENDS: dict[str, tuple[Step, ...]] = {"reset": (Break(),), "closed": (Close(),), "ended": (End(),)}


@every_stream
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_a_stream_that_ends_before_any_content_moves_on(
    scene: Scene,
    before: Callable[[Api], tuple[Step, ...]],
    end: tuple[Step, ...],
    api: Api,
    door: str,
) -> None:
    moves_on(scene, Fault((*before(api), *end), 2), api, True, door)


@every_stream
def test_a_stream_that_ends_before_any_content_is_told_as_json(
    scene: Scene, api: Api, door: str
) -> None:
    fault = Fault((*api.opening(), Close()), 2, code="upstream_cut")
    is_told(scene, fault, api, True, door)


# --- silence ------------------------------------------------------------------------------------

COMMENTS = [step for _ in range(100) for step in (Chunk(b": keep-alive\n\n"), Pause(0.05))]


@dataclass(frozen=True)
class Silence:
    plays: Callable[[Api], Script]
    code: str = "first_token_timeout"
    provider: str = "hasty"
    streams_only: bool = True


SILENCES = {
    "before the head": Silence(lambda api: [], streams_only=False),
    "after 103": Silence(lambda api: [Raw(b"HTTP/1.1 103 Early Hints\r\n\r\n")]),
    "inside the head": Silence(lambda api: [Raw(b"HTTP/1.1 200 OK\r\ncontent-t")]),
    "after the head": Silence(lambda api: [SSE]),
    "after the preamble": Silence(lambda api: api.opening()),
    "filled with comments": Silence(lambda api: [SSE, *COMMENTS]),
    "inside a JSON": Silence(
        lambda api: [Head(200, JSON), Chunk(b'{"id":')],
        "idle_timeout",
        "restless",
        streams_only=False,
    ),
    "inside an error": Silence(
        lambda api: [Head(500, JSON), Chunk(b'{"error":')],
        "idle_timeout",
        "restless",
        streams_only=False,
    ),
}
SILENT_WAYS = [
    pytest.param(silence, api, stream, id=f"{name}-{api}-{'stream' if stream else 'whole'}")
    for name, silence in SILENCES.items()
    for api, stream in ((CHAT, True), (RESPONSES, True), (EMBEDDINGS, False))
    if stream or not silence.streams_only
]


@pytest.mark.parametrize(("silence", "api", "stream"), SILENT_WAYS)
def test_silence_is_not_asked_twice(scene: Scene, silence: Silence, api: Api, stream: bool) -> None:
    began = time.monotonic()
    moves_on(scene, Fault(silence.plays(api), 1, provider=silence.provider), api, stream)
    assert SHORT_S <= time.monotonic() - began < SHORT_S + 2


@pytest.mark.parametrize("silence", SILENCES.values(), ids=SILENCES)
def test_silence_is_told_as_a_timeout(scene: Scene, silence: Silence) -> None:
    fault = Fault(silence.plays(CHAT), 1, 504, "upstream_timeout", silence.code, silence.provider)
    is_told(scene, fault, CHAT, True)


def test_the_silent_connection_is_closed_before_the_next_provider_is_asked(scene: Scene) -> None:
    scene.plays("hasty", CHAT.opening())
    scene.plays("b", CHAT.says(TEXT))
    scene.ask(CHAT, "hasty", "b", stream=True)
    scene.world.cast.closed("hasty", scene.asked("hasty")[0].connection, within_s=1)
