from __future__ import annotations

from typing import Any

import orjson
import pytest

from lunar_proxy.core.errors import (
    ContextTooLong,
    InBandError,
    KeyRefused,
    ProviderError,
    Refused,
    UnknownModel,
    UpstreamBusy,
)
from lunar_proxy.core.model import Headers, Target
from lunar_proxy.providers import DIALECTS
from lunar_proxy.providers.base import Account, Origin, UpstreamRequest, static_head
from lunar_proxy.providers.openai import error_detail, in_band_error, retry_after
from lunar_proxy.testing import call

OPENAI = DIALECTS["openai"]
NOW = 1_000_000_000.0  # Sun, 09 Sep 2001 01:46:40 GMT


# --- the request --------------------------------------------------------------------------------


def request(
    base: bytes = b"/v1", key: bytes | None = b"sk-1", fixed: Headers = (), **changes: Any
) -> UpstreamRequest:
    origin = Origin("https", "api.example.com", 443)
    account = Account("x", OPENAI, origin, base, headers=fixed, head=static_head(origin, fixed))
    return OPENAI.request(call(**changes), Target("x", "m"), account, key, b"{}")


@pytest.mark.parametrize(
    ("base", "path", "query", "url"),
    [
        (b"/v1", b"/v1/chat/completions", b"", b"/v1/chat/completions"),
        (b"", b"/v1/chat/completions", b"", b"/chat/completions"),
        (b"/v1beta/openai", b"/v1/models", b"?limit=2", b"/v1beta/openai/models?limit=2"),
        (b"/v1", b"/v1/files/v1/x", b"", b"/v1/files/v1/x"),
    ],
)
def test_paths_stand_below_the_base_url(base: bytes, path: bytes, query: bytes, url: bytes) -> None:
    assert request(base, path=path, query=query).head.startswith(b"POST %b HTTP/1.1\r\n" % url)


def fields(made: UpstreamRequest) -> list[bytes]:
    first, *lines, last = made.head.split(b"\r\n")
    assert first.endswith(b" HTTP/1.1")
    assert last == b""
    return lines


def test_headers_are_ours_then_the_clients_the_key_and_the_id() -> None:
    sent = ((b"content-type", b"application/json"), (b"authorization", b"Bearer pk"), (b"a", b"1"))
    made = request(headers=sent, id="r-7")
    assert fields(made) == [
        b"host: api.example.com",
        b"accept-encoding: identity",
        b"content-type: application/json",
        b"a: 1",
        b"authorization: Bearer sk-1",
        b"x-request-id: r-7",
    ]
    assert made.secret == b"sk-1"


def test_configured_headers_replace_the_clients_and_the_key() -> None:
    fixed = ((b"a", b"2"), (b"authorization", b"Basic x"))
    lines = fields(request(fixed=fixed, headers=((b"a", b"1"), (b"b", b"1"))))
    assert [line for line in lines if line[:1] in b"ab" and b"accept" not in line] == [
        b"a: 2",
        b"authorization: Basic x",
        b"b: 1",
    ]


def test_without_a_key_none_is_sent() -> None:
    made = request(key=None)
    assert b"authorization" not in made.head
    assert made.secret == b""


# --- errors -------------------------------------------------------------------------------------


def error(status: int, body: Any, *, our_key: bool = True, headers: Headers = ()) -> ProviderError:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    made = OPENAI.error(status, headers, raw, our_key=our_key, now=NOW)
    assert (made.provider_status, made.provider_headers, made.provider_body) == (
        status,
        headers,
        raw,
    )
    return made


def openai(message: str, code: Any = None, type: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": type, "param": None, "code": code}}


def gemini(message: str, reason: str) -> list[dict[str, Any]]:
    """As Google's OpenAI-compatible endpoint answers (google.rpc.Status in a list)."""
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}
    details = [info | {"domain": "googleapis.com"}]
    status = {"code": 400, "message": message, "status": "INVALID_ARGUMENT", "details": details}
    return [{"error": status}]


GEMINI_KEY = gemini("API key not valid. Please pass a valid API key.", "API_KEY_INVALID")


# who -> status, body, what it is. Wordings are the providers' own.
ERRORS: dict[str, tuple[int, Any, type[ProviderError]]] = {
    # context length
    "openai context": (400, openai("too long", "context_length_exceeded"), ContextTooLong),
    "openai responses context": (
        400,
        openai("Your input exceeds the context window of this model."),
        ContextTooLong,
    ),
    "azure context": (
        400,
        openai("This model's maximum context length is 8192 tokens.", "context_length_exceeded"),
        ContextTooLong,
    ),
    "anthropic context": (
        400,
        openai("prompt is too long: 210000 tokens > 200000 maximum", "invalid_request_error"),
        ContextTooLong,
    ),
    "anthropic context with max_tokens": (
        400,
        openai("input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000"),
        ContextTooLong,
    ),
    "gemini context": (
        400,
        [
            {
                "error": {
                    "code": 400,
                    "message": "The input token count (1200000) exceeds the maximum number of "
                    "tokens allowed (1048576).",
                    "status": "INVALID_ARGUMENT",
                }
            }
        ],
        ContextTooLong,
    ),
    "mistral context": (
        400,
        {
            "object": "error",
            "message": "Prompt contains 40000 tokens and 0 draft tokens, too large for model with "
            "32768 maximum context length",
            "type": "invalid_request_prompt",
            "code": "3051",
        },
        ContextTooLong,
    ),
    "groq context": (
        400,
        openai("Please reduce the length of the messages or completion."),
        ContextTooLong,
    ),
    "deepseek context": (
        400,
        openai("This model's maximum context length is 65536 tokens. However, you requested 70000"),
        ContextTooLong,
    ),
    "together context": (
        422,
        openai("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193."),
        ContextTooLong,
    ),
    "vllm context, bare": (
        400,
        {
            "object": "error",
            "message": "This model's maximum context length is 4096 tokens.",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
        ContextTooLong,
    ),
    "llama.cpp context": (
        400,
        {"error": {"code": 400, "message": "no", "type": "exceed_context_size_error"}},
        ContextTooLong,
    ),
    "openrouter context": (
        400,
        {
            "error": {
                "code": 400,
                "message": "This endpoint's maximum context length is 163840 tokens. However, you "
                "requested about 270231 tokens",
                "metadata": {"provider_name": None},
            }
        },
        ContextTooLong,
    ),
    "xai context": (
        400,
        {
            "code": "Client specified an invalid argument",
            "error": "This model's maximum prompt length is 131072 but the request contains 537812",
        },
        ContextTooLong,
    ),
    "cohere context": (
        400,
        {"id": "x", "message": "too many tokens: size limit exceeded by 8 tokens."},
        ContextTooLong,
    ),
    "the words, but as a field's error": (
        422,
        {"detail": [{"loc": ["body"], "msg": "prompt is too long"}]},
        ContextTooLong,
    ),
    "the words at another status": (409, openai("maximum context length"), Refused),
    # unknown model
    "openai model": (404, openai("The model `x` does not exist", "model_not_found"), UnknownModel),
    "azure model": (404, openai("No deployment", "DeploymentNotFound"), UnknownModel),
    "anthropic model": (
        404,
        {"type": "error", "error": {"type": "not_found_error", "message": "model: x"}},
        UnknownModel,
    ),
    "ollama model": (404, {"error": "model 'x' not found"}, UnknownModel),
    "vllm model": (
        404,
        {"object": "error", "message": "The model `x` does not exist.", "code": 404},
        UnknownModel,
    ),
    "mistral model": (
        400,
        {"object": "error", "message": "Invalid model: x", "type": "invalid_model", "code": "1500"},
        UnknownModel,
    ),
    "groq model": (400, openai("decommissioned", "model_decommissioned"), UnknownModel),
    "together model": (400, openai("no", "model_not_available"), UnknownModel),
    "no body at all": (404, b"", UnknownModel),
    # our key
    "openai key": (401, openai("Incorrect API key", "invalid_api_key"), KeyRefused),
    "openai region": (403, openai("Country not supported", "unsupported_country"), KeyRefused),
    "mistral key": (401, {"detail": "Unauthorized"}, KeyRefused),
    "deepseek balance": (402, openai("Insufficient Balance"), KeyRefused),
    "openrouter credits": (402, {"error": {"code": 402, "message": "no credits"}}, KeyRefused),
    "gemini key": (400, GEMINI_KEY, KeyRefused),
    "gemini key, not in a list": (400, GEMINI_KEY[0], KeyRefused),
    # busy
    "openai quota": (429, openai("quota", "insufficient_quota"), UpstreamBusy),
    "gemini quota": (
        429,
        [{"error": {"code": 429, "message": "Resource has been exhausted"}}],
        UpstreamBusy,
    ),
    "anthropic overloaded": (529, openai("Overloaded", None, "overloaded_error"), UpstreamBusy),
    "groq capacity": (498, openai("Flex tier capacity exceeded"), Refused),
    "a proxy's page": (502, b"<html>Bad Gateway</html>", UpstreamBusy),
    "words about context in a 500": (500, openai("maximum context length"), UpstreamBusy),
    # the request's own fault: passed on
    "openai parameter": (400, openai("temperature", "invalid_value"), Refused),
    "azure filter": (
        400,
        {
            "error": {
                "message": "The response was filtered",
                "code": "content_filter",
                "status": 400,
                "innererror": {"code": "ResponsibleAIPolicyViolation"},
            }
        },
        Refused,
    ),
    "openai images filter": (400, openai("blocked", "moderation_blocked"), Refused),
    "openrouter moderation": (
        403,
        {
            "error": {
                "code": 403,
                "message": "Your input was flagged",
                "metadata": {"reasons": ["violence"], "flagged_input": "..."},
            }
        },
        Refused,
    ),
    "openrouter timeout": (408, {"error": {"code": 408, "message": "timed out"}}, Refused),
    "groq size": (413, openai("Request too large: tokens per minute", "rate_limit"), Refused),
    "mistral fields": (422, {"detail": [{"loc": ["body", "n"], "msg": "not a number"}]}, Refused),
    "together fields": (422, openai("n must be a number"), Refused),
    "not json": (400, b"Bad Request", Refused),
    "not an object": (400, b'"no"', Refused),
    "an empty list": (400, b"[]", Refused),
    "gemini argument": (400, gemini("Invalid value", "FIELD_INVALID"), Refused),
    "details of another kind": (400, {"error": {"message": "no", "details": "x"}}, Refused),
    "details that are texts": (400, {"error": {"message": "no", "details": ["x"]}}, Refused),
}


@pytest.mark.parametrize(("status", "body", "kind"), ERRORS.values(), ids=ERRORS.keys())
def test_a_providers_no_is_classified(status: int, body: Any, kind: type[ProviderError]) -> None:
    assert type(error(status, body)) is kind


@pytest.mark.parametrize(
    ("status", "body"),
    [(401, openai("no")), (402, openai("no")), (403, openai("no")), (400, GEMINI_KEY)],
    ids=["unknown", "without credit", "not allowed", "gemini"],
)
def test_a_callers_own_key_is_the_callers_business(status: int, body: Any) -> None:
    assert type(error(status, body, our_key=False)) is Refused


MESSAGES = {
    "openai": (openai("said"), "said"),
    "gemini": ([{"error": {"message": "said"}}], "said"),
    "text": ({"error": "said"}, "said"),
    "bare": ({"object": "error", "message": "said"}, "said"),
    "text, with a code beside": ({"code": "x", "error": "said"}, "said"),
    "fastapi": ({"detail": "said"}, "said"),
    "fields": ({"detail": [{"msg": "a"}, {"msg": "b"}, "odd", {"x": 1}]}, "a; b; {'x': 1}"),
    "fields in a message": ({"message": {"detail": [{"msg": "a"}]}}, "a"),
    "an object": ({"message": {"x": 1}}, "{'x': 1}"),
    "null": ({"error": None}, "the provider answered 400"),
    "empty": ({"error": {}}, "the provider answered 400"),
    "nothing": (b"", "the provider answered 400"),
}


@pytest.mark.parametrize(("body", "message"), MESSAGES.values(), ids=MESSAGES.keys())
def test_the_message_is_found_in_every_shape(body: Any, message: str) -> None:
    assert error(400, body).message == message


def test_an_error_keeps_its_code_where_its_text_stands_beside_it() -> None:
    assert error_detail(b'{"code":"c","error":"e"}') == {"code": "c", "error": "e", "message": "e"}


@pytest.mark.parametrize(
    ("doc", "message"),
    [
        ({"error": {"message": "over"}}, "over"),
        ({"error": "over"}, "over"),
        ({"error": {}}, "the provider answered 200 with an error"),
    ],
)
def test_an_error_with_status_200_is_a_bad_gateway(doc: dict[str, Any], message: str) -> None:
    made = in_band_error(doc, (), b"{}")
    assert isinstance(made, InBandError)
    assert (made.message, made.provider_status, made.provider_body) == (message, 502, b"{}")


# --- waits --------------------------------------------------------------------------------------

DATE = b"Sun, 09 Sep 2001 01:47:10 GMT"  # NOW + 30
WAITS: dict[str, tuple[Headers, float | None]] = {
    "none": ((), None),
    "seconds": (((b"retry-after", b"12"),), 12.0),
    "a fraction": (((b"retry-after", b"0.5"),), 0.5),
    "none to wait": (((b"retry-after", b"0"),), 0.0),
    "milliseconds first": (((b"retry-after", b"12"), (b"retry-after-ms", b"250")), 0.25),
    "azure's milliseconds": (((b"x-ms-retry-after-ms", b"1500"),), 1.5),
    "milliseconds that are none": (((b"retry-after-ms", b"x"), (b"retry-after", b"3")), 3.0),
    "a date": (((b"retry-after", DATE),), 30.0),
    "a date against the answer's own": (
        ((b"retry-after", DATE), (b"date", b"Sun, 09 Sep 2001 01:47:00 GMT")),
        10.0,
    ),
    "a date, the answer's unreadable": (((b"retry-after", DATE), (b"date", b"now")), 30.0),
    "a date gone by": (((b"retry-after", b"Sun, 09 Sep 2001 01:00:00 GMT"),), 0.0),
    "asctime, which is GMT": (((b"retry-after", b"Sun Sep  9 01:47:10 2001"),), 30.0),
    "rfc 850": (((b"retry-after", b"Sunday, 09-Sep-01 01:47:10 GMT"),), 30.0),
    "a date of no zone": (((b"retry-after", b"Sun, 09 Sep 2001 01:47:10 -0000"),), 30.0),
    "negative": (((b"retry-after", b"-1"),), None),
    "not a number": (((b"retry-after", b"nan"),), None),
    "endless": (((b"retry-after", b"inf"),), None),
    "absurd": (((b"retry-after", b"1e12"),), None),
    "words": (((b"retry-after", b"soon"),), None),
    "empty": (((b"retry-after", b""),), None),
    "bytes": (((b"retry-after", b"\xff"),), None),
}


@pytest.mark.parametrize(("headers", "seconds"), WAITS.values(), ids=WAITS.keys())
def test_a_wait_is_read_in_every_form(headers: Headers, seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds


@pytest.mark.parametrize(("status", "seconds"), [(429, 7.0), (503, 7.0), (400, None), (404, None)])
def test_only_the_busy_are_waited_for(status: int, seconds: float | None) -> None:
    assert error(status, b"", headers=((b"retry-after", b"7"),)).retry_after_s == seconds
