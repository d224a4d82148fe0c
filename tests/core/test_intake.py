from __future__ import annotations

from typing import Any

import orjson
import pytest

from lunar_proxy.core.errors import InvalidRequest
from lunar_proxy.core.intake import (
    MAX_DEPTH,
    Incoming,
    check_path,
    endpoint_of,
    fallbacks,
    parse,
    read_call,
    timeout_s,
    unread_call,
)
from lunar_proxy.core.model import Annotate, Call, Fields, Headers, Identity, Said

CHAT = {"model": "m", "messages": []}
JSON = (b"content-type", b"application/json")


def incoming(
    body: bytes | Any = b"",
    path: str = "chat/completions",
    *headers: tuple[bytes, bytes],
    method: bytes = b"POST",
    uploading: bool = False,
) -> Incoming:
    sent: Headers = headers or (JSON,)
    return Incoming(
        method=method,
        path=b"/v1/" + path.encode(),
        query=b"?a=1",
        fields=Fields(sent),
        body=body if isinstance(body, bytes) else orjson.dumps(body),
        client="127.0.0.1",
        accepted_at=5.0,
        uploading=uploading,
    )


def said(**headers: bytes | None) -> Fields:
    pairs = ((name.replace("_", "-").encode(), value) for name, value in headers.items())
    return Fields(tuple((name, value) for name, value in pairs if value is not None))


def read(*args: Any, **kwargs: Any) -> Call:
    return read_call(incoming(*args, **kwargs), id="r-1", annotate=Annotate.FULL)


def test_a_call_is_what_the_request_says() -> None:
    doc = {"model": "openai/m", "messages": [], "stream": True, "x": 1}
    asked = incoming(doc)
    who = Identity("k-1", "team")
    call = read_call(asked, id="r-1", annotate=Annotate.HEADERS, identity=who, own_key=b"sk")
    assert call == Call(
        id="r-1",
        method=b"POST",
        path=b"/v1/chat/completions",
        query=b"?a=1",
        fields=Fields((JSON,)),
        body=orjson.dumps(doc),
        doc=doc,
        endpoint="chat/completions",
        model="openai/m",
        stream=True,
        annotate=Annotate.HEADERS,
        include_usage=None,
        accepted_at=5.0,
        client="127.0.0.1",
        identity=who,
        own_key=b"sk",
        by_name=True,
    )


GUIDED: dict[str, tuple[Any, ...]] = {
    "a provider in the body": ({**CHAT, "provider": "openai"},),
    "fallbacks in the body": ({**CHAT, "fallbacks": ["m"]},),
    "models in the body": ({**CHAT, "models": ["m"]},),
    "models in a stream": ({**CHAT, "stream": True, "models": ["m"]},),
    "a provider in a header": (CHAT, "responses", JSON, (b"x-lunar-provider", b"openai")),
    "fallbacks in a header": (CHAT, "responses", JSON, (b"x-lunar-fallbacks", b"m")),
    "another endpoint": (CHAT, "images/generations"),
}


@pytest.mark.parametrize("asked", GUIDED.values(), ids=GUIDED.keys())
def test_who_may_answer_is_not_always_said_by_the_name_alone(asked: tuple[Any, ...]) -> None:
    assert not read(*asked).by_name
    assert read({**CHAT, "stream": True}, "chat/completions").by_name


def test_what_the_headers_say_is_read_once() -> None:
    asides = {
        b"x-lunar-annotate": b"off",
        b"x-lunar-timeout-s": b"soon",
        b"x-lunar-provider": b" openai ",
        b"x-lunar-fallbacks": b"a,b",
        b"x-lunar-feedback": b"req_1=0.5",
        b"x-lunar-debug": b"1",
        b"content-encoding": b"gzip",
    }
    assert Fields(tuple(asides.items())).said == Said(
        id=None,
        encoded=True,
        annotate=b"off",
        timeout_s=b"soon",
        provider="openai",
        fallbacks=b"a,b",
        feedback=b"req_1=0.5",
        debug=True,
        guides=True,
    )
    assert Fields((JSON,)).said == Said(id=None, encoded=False)


def test_an_unread_call_knows_where_it_was_going() -> None:
    call = unread_call(incoming(b"{oops"), id="r-1")
    assert (call.id, call.endpoint, call.doc, call.body) == ("r-1", "chat/completions", None, b"")


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        (b"/v1/chat/completions", "chat/completions"),
        (b"/v1/files/f-1/content", "files/f-1/content"),
        (b"/v1//chat/completions", "chat/completions"),
        (b"//v1/chat//completions/", "chat/completions"),
        (b"/v1/%63hat%2Fcompletions", "chat/completions"),
        (b"/v1/models/meta-llama%2FLlama-3", "models/meta-llama/Llama-3"),
        (b"/v1/", "/v1"),
    ],
)
def test_an_endpoint_has_one_name_however_it_is_spelled(path: bytes, endpoint: str) -> None:
    assert endpoint_of(path) == endpoint


# --- what is refused ----------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, Any, str, str | None]] = {
    "not json": ("chat/completions", b"{oops", "line 1, column 2", None),
    "empty": ("chat/completions", b"", "not valid JSON", None),
    "no object": ("chat/completions", b"[]", "must be a JSON object", None),
    "nan": ("chat/completions", b'{"model":NaN}', "not valid JSON", None),
    "no model": ("chat/completions", {"messages": []}, "name one", "model"),
    "null model": ("completions", {"model": None}, "name one", "model"),
    "empty models": ("completions", {"models": []}, "name one", "model"),
    "number": ("completions", {"model": 4}, "non-empty string", "model"),
    "blank": ("completions", {"model": " "}, "non-empty string", "model"),
    "stream": ("completions", {"model": "m", "stream": "yes"}, "true or false", "stream"),
    "options": ("completions", {"model": "m", "stream_options": 1}, "object", "stream_options"),
    "messages": ("chat/completions", {"model": "m", "messages": "hi"}, "list", "messages"),
    "no messages": ("chat/completions", {"model": "m"}, "list", "messages"),
}


@pytest.mark.parametrize(("path", "body", "says", "param"), REFUSED.values(), ids=REFUSED.keys())
def test_a_body_that_means_nothing_is_refused_with_what_to_change(
    path: str, body: Any, says: str, param: str | None
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(body, path)
    assert says in refused.value.message
    assert refused.value.param == param


@pytest.mark.parametrize("path", ["responses", "embeddings", "completions"])
def test_only_chat_needs_messages(path: str) -> None:
    assert read({"model": "m", "stream": None, "stream_options": None}, path).model == "m"


def test_a_list_of_models_is_a_model() -> None:
    assert read({"models": ["a", "b"], "messages": []}).model == ""


def test_a_form_names_its_model_outside_of_the_body() -> None:
    asked = incoming(b"", "audio/transcriptions", uploading=True)
    call = read_call(asked, id="r-1", annotate=Annotate.OFF, form_model="whisper-1")
    assert (call.model, call.doc) == ("whisper-1", None)


@pytest.mark.parametrize("coding", [b"gzip", b"zstd"])
def test_a_compressed_body_is_refused(coding: bytes) -> None:
    with pytest.raises(InvalidRequest, match="uncompressed"):
        read(CHAT, "chat/completions", JSON, (b"content-encoding", coding))
    identity = (b"content-encoding", b"identity")
    assert read(CHAT, "chat/completions", JSON, identity).model == "m"


@pytest.mark.parametrize(
    ("content_type", "is_read"),
    [
        (b"application/json", True),
        (b"Application/JSON; charset=utf-8", True),
        (b"application/vnd.api+json", True),
        (b"application/jsonl", False),
        (b"application/x-ndjson", False),
        (b"text/plain", False),
    ],
)
def test_elsewhere_a_body_is_read_where_it_says_it_is_json(
    content_type: bytes, is_read: bool
) -> None:
    call = read({"model": "m"}, "batches", (b"content-type", content_type))
    assert (call.doc is not None) is is_read
    assert call.model == ("m" if is_read else "")


def test_elsewhere_json_need_not_be_an_object_nor_be_there() -> None:
    assert read([1], "batches").doc is None
    assert read(b"", "batches").doc is None
    assert read(b"", "chat/completions", method=b"GET").doc is None
    assert read({"model": 1}, "batches").model == ""


def nested(depth: int) -> bytes:
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def test_nesting_is_bounded_to_the_level() -> None:
    assert parse(nested(MAX_DEPTH)) != {}
    for depth in (MAX_DEPTH + 1, 2000):
        with pytest.raises(InvalidRequest) as refused:
            parse(nested(depth))
        assert refused.value.code in ("too_deeply_nested", "invalid_json")


def test_brackets_side_by_side_are_not_nested() -> None:
    assert len(parse(b"[" + b",".join([b"[{}]"] * 500) + b"]")) == 500


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (None, None),
        ({}, None),
        ({"include_usage": None}, None),
        ({"include_usage": True}, True),
        ({"include_usage": False}, False),
        ({"include_usage": "yes"}, None),
    ],
)
def test_what_is_said_of_usage(options: Any, said: bool | None) -> None:
    assert read(CHAT | {"stream_options": options}).include_usage is said


@pytest.mark.parametrize(
    ("raw", "expected"),
    [(b"full", Annotate.FULL), (b" Headers ", Annotate.HEADERS), (b"off", Annotate.OFF)],
)
def test_a_header_says_how_much_is_annotated(raw: bytes, expected: Annotate) -> None:
    header = (b"x-lunar-annotate", raw)
    assert read(CHAT, "chat/completions", JSON, header).annotate is expected


def test_another_annotation_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="full, headers or off"):
        read(CHAT, "chat/completions", JSON, (b"x-lunar-annotate", b"some"))


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        (b"req_1-a.b:c/d+e=@f", True),
        (b"x" * 128, True),
        (b"x" * 129, False),
        (b"", False),
        (b"two words", False),
        (b"tab\t", False),
        (b"caf\xe9", False),
    ],
)
def test_a_clients_id_is_kept_where_it_is_harmless(raw: bytes, kept: bool) -> None:
    assert said(x_request_id=raw).said.id == (raw.decode("latin-1") if kept else None)
    assert said().said.id is None


@pytest.mark.parametrize(
    ("doc", "header", "listed"),
    [
        ({}, None, None),
        ({"fallbacks": ["a"]}, b"b", ["a"]),
        ({"models": ["c"]}, b"a , b,", ["a", "b"]),
        ({"models": ["c"]}, None, ["c"]),
        ({"fallbacks": None, "models": ["c", "d"]}, None, ["c", "d"]),
        ({"fallbacks": list("abcde")}, None, list("abcde")),
    ],
)
def test_fallbacks_come_from_the_body_then_the_header_then_models(
    doc: dict[str, Any], header: bytes | None, listed: list[str] | None
) -> None:
    assert fallbacks(doc, said(x_lunar_fallbacks=header)) == listed


@pytest.mark.parametrize(
    ("doc", "header", "param"),
    [
        ({"fallbacks": list("abcdef")}, None, "fallbacks"),
        ({"fallbacks": []}, None, "fallbacks"),
        ({"fallbacks": "a"}, None, "fallbacks"),
        ({"fallbacks": ["a", 1]}, None, "fallbacks"),
        ({"fallbacks": [""]}, None, "fallbacks"),
        ({"models": list("abcdef")}, None, "models"),
        ({}, b"a,b,c,d,e,f", "x-lunar-fallbacks"),
        ({}, b" , ", "x-lunar-fallbacks"),
    ],
)
def test_fallbacks_are_one_to_five_names(
    doc: dict[str, Any], header: bytes | None, param: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        fallbacks(doc, said(x_lunar_fallbacks=header))
    assert refused.value.param == param


@pytest.mark.parametrize(("raw", "seconds"), [(b"0.5", 0.5), (b"86400", 86400.0)])
def test_a_header_limits_the_time_in_all(raw: bytes, seconds: float) -> None:
    assert timeout_s(raw) == seconds


@pytest.mark.parametrize("raw", [b"0", b"-1", b"86401", b"nan", b"inf", b"soon", b""])
def test_a_time_that_is_none_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="number of seconds"):
        timeout_s(raw)


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/../admin",
        b"/v1/files/..",
        b"/v1/./chat",
        b"/v1/%2e%2E/admin",
        b"/v1/files%2f..%2fx",
        b"/v1/files/..\\x",
        b"/v1/x%5cy",
        b"/v1/x%00",
    ],
)
def test_a_path_that_climbs_is_refused(path: bytes) -> None:
    with pytest.raises(InvalidRequest, match="segments"):
        check_path(path)


@pytest.mark.parametrize(
    "path", [b"/v1/chat/completions", b"/v1/models/a..b", b"/v1/models/x%2Fy", b"/v1/.hidden"]
)
def test_a_path_that_does_not_climb_passes(path: bytes) -> None:
    check_path(path)
