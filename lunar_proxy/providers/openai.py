"""The OpenAI dialect: most providers, and every local server, speak it as it is."""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

import orjson

from lunar_proxy.core import headers as h
from lunar_proxy.core.errors import (
    ContextTooLong,
    InBandError,
    KeyRefused,
    ProviderError,
    Refused,
    UnknownModel,
    UpstreamBusy,
)
from lunar_proxy.core.model import Call, Headers, Target

from .base import Account, UpstreamRequest

# How providers say that a prompt does not fit: OpenAI and its imitators by code (llama.cpp by
# type), the others only in words. Wording is read here and nowhere else.
_CONTEXT_CODES = frozenset(
    {
        "context_length_exceeded",
        "context_window_exceeded",
        "exceed_context_size_error",  # llama.cpp
        "string_above_max_length",
    }
)
_CONTEXT_WORDS = (
    "context length",  # OpenAI, vLLM, SGLang, DeepSeek, Mistral, OpenRouter, Ollama
    "context window",  # OpenAI's responses
    "context limit",  # Anthropic, prompt and max_tokens together
    "context size",  # llama.cpp
    "prompt is too long",  # Anthropic, Fireworks
    "input is too long",  # Bedrock, behind gateways
    "maximum prompt length",  # xAI
    "input token count",  # Gemini
    "too many tokens",  # Cohere
    "`inputs` tokens",  # TGI, Together
    "reduce the length of the messages",  # Groq, Cerebras
)
_MODEL_CODES = frozenset(
    {
        "model_not_found",
        "model_not_available",  # Together
        "model_decommissioned",  # Groq
        "invalid_model",  # Mistral, as a type
        "unknown_model",
    }
)
# Statuses that speak of the key and not of the request: unknown, without credit, not allowed.
_KEY_STATUSES = frozenset({401, 402, 403})
# Google answers a bad key with 400 and names the reason (google.rpc.ErrorInfo).
_BAD_KEY = "API_KEY_INVALID"
# What a content filter calls itself: such a refusal is about the request, whatever its status.
_FILTER_CODES = frozenset({"content_filter", "content_policy_violation", "moderation_blocked"})


class OpenAIDialect:
    """`Authorization: Bearer`, paths below the base URL, errors as `{"error": {...}}`."""

    name = "openai"

    def request(
        self, call: Call, target: Target, account: Account, key: bytes | None, body: bytes
    ) -> UpstreamRequest:
        path = account.base_path + call.path.removeprefix(b"/v1") + call.query
        credential = (b"authorization", b"Bearer " + key) if key else None
        return wire(call, account, path, credential, body, key)

    def error(
        self, status: int, headers: Headers, body: bytes, *, our_key: bool, now: float
    ) -> ProviderError:
        detail = error_detail(body)
        kind = _classify(status, detail, our_key=our_key)
        return kind(
            _message(detail) or f"the provider answered {status}",
            status=status,
            headers=headers,
            body=body,
            retry_after_s=retry_after(headers, now) if kind is UpstreamBusy else None,
        )


def wire(
    call: Call,
    account: Account,
    path: bytes,
    credential: tuple[bytes, bytes] | None,
    body: bytes,
    key: bytes | None,
) -> UpstreamRequest:
    """The request line and headers every OpenAI-shaped provider shares."""
    if account.headers:
        lines = _beside(account.headers, call, credential)
        head = b"%b %b HTTP/1.1\r\n%b%b" % (call.method, path, account.head, lines)
    else:
        relayed = call.fields.once(h.relayed)
        head = _opening(call.method, path, account.head, relayed, credential) + call.id.encode()
        head += b"\r\n"
    return UpstreamRequest(account.origin, head, body, key or b"")


@lru_cache(maxsize=1024)  # one client asks one provider the same way again and again
def _opening(
    method: bytes,
    path: bytes,
    static: bytes,
    relayed: bytes,
    credential: tuple[bytes, bytes] | None,
) -> bytes:
    """All of a request's head but the id that is its last value."""
    said = b"%b: %b\r\n" % credential if credential is not None else b""
    return b"%b %b HTTP/1.1\r\n%b%b%bx-request-id: " % (method, path, static, relayed, said)


def _beside(configured: Headers, call: Call, credential: tuple[bytes, bytes] | None) -> bytes:
    """Our lines and the client's where some are configured: those win, over a credential too."""
    fields = [*h.for_provider(call.fields.pairs), (b"x-request-id", call.id.encode())]
    if credential is not None:
        fields.append(credential)
    names = {name for name, _ in configured}
    return h.render([pair for pair in fields if pair[0] not in names])


def error_detail(body: bytes) -> dict[str, Any]:
    """The `error` object of an answer in any of the shapes in use, or an empty one.

    It is an object in `error` (OpenAI), the answer itself (Mistral, Cohere, older vLLM), a text in
    `error` (Ollama, xAI) or in `detail` (FastAPI).
    """
    try:
        doc = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if isinstance(doc, list) and doc:  # Gemini wraps its errors in a list
        doc = doc[0]
    if not isinstance(doc, dict):
        return {}
    error = doc.get("error")
    if isinstance(error, dict):
        return error
    return doc | {"message": error} if error else doc


def _message(detail: dict[str, Any]) -> str:
    """For people; a list of what is wrong with which field (FastAPI, Mistral) becomes a line."""
    said = detail.get("message") or detail.get("detail")
    if isinstance(said, dict):
        said = said.get("detail") or said
    if isinstance(said, list):
        said = "; ".join(str(item.get("msg", item)) for item in said if isinstance(item, dict))
    return str(said) if said else ""


def in_band_error(doc: dict[str, Any], headers: Headers, body: bytes) -> InBandError:
    """A 200 that is an error all the same (LESSONS 3)."""
    error = doc.get("error")
    detail = error if isinstance(error, dict) else {"message": str(error)}
    message = _message(detail) or "the provider answered 200 with an error"
    return InBandError(message, status=502, headers=headers, body=body)


def in_band_event(data: bytes, headers: Headers) -> InBandError:
    """The same for an event of a stream: of it, the `error` object is what can be passed on."""
    detail = error_detail(data)
    if isinstance(response := detail.get("response"), dict):  # `response.failed` has it one deeper
        detail = response.get("error") or {}
    fields = tuple(pair for pair in headers if pair[0] != b"content-type")
    return InBandError(
        str(detail.get("message") or "the provider reported an error in its stream"),
        status=502 if detail else 200,
        headers=((b"content-type", b"application/json"), *fields),
        body=orjson.dumps({"error": detail}),
    )


def retry_after(headers: Headers, now: float) -> float | None:
    """Seconds to wait as the provider asks, from the most to the least exact of three headers.

    `retry-after-ms` and `x-ms-retry-after-ms` are OpenAI's and Azure's; `Retry-After` is RFC 9110
    10.2.3. Its date form counts from the answer's own `Date`, so that skewed clocks do not matter,
    and from `now` (seconds since the epoch) where the provider sent none.
    """
    for name in (b"retry-after-ms", b"x-ms-retry-after-ms"):
        if (value := _number(h.get(headers, name))) is not None:
            return value / 1000
    raw = h.get(headers, b"retry-after")
    if raw is None:
        return None
    if (value := _number(raw)) is not None:
        return value
    then = _epoch(raw)
    sent = _epoch(h.get(headers, b"date"))
    return None if then is None else max(0.0, then - (now if sent is None else sent))


def _number(raw: bytes | None) -> float | None:
    try:
        value = float(raw) if raw is not None else None
    except ValueError:
        return None
    return value if value is not None and 0 <= value < 1e9 else None


def _epoch(raw: bytes | None) -> float | None:
    """Seconds since 1970; a date that names no zone is GMT (RFC 9110 5.6.7: they all are)."""
    try:
        date = parsedate_to_datetime(raw.decode("latin-1")) if raw else None
    except ValueError:
        return None
    if date is None:
        return None
    return (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()


def _classify(status: int, detail: dict[str, Any], *, our_key: bool) -> type[ProviderError]:
    """Statuses decide, and of a 400 its code, its type or its words."""
    names = {str(detail.get("code")), str(detail.get("type"))}
    if _FILTER_CODES & names or _is_flagged(detail):
        return Refused
    if status in _KEY_STATUSES or _BAD_KEY in _reasons(detail):
        return KeyRefused if our_key else Refused
    if status == 429 or status >= 500:
        return UpstreamBusy
    if status == 404 or _MODEL_CODES & names:
        return UnknownModel
    words = _message(detail).lower()
    if status in (400, 413, 422) and (
        _CONTEXT_CODES & names or any(phrase in words for phrase in _CONTEXT_WORDS)
    ):
        return ContextTooLong
    return Refused


def _is_flagged(detail: dict[str, Any]) -> bool:
    """OpenRouter's moderation answers 403, as a refused key does; it says what it flagged."""
    metadata = detail.get("metadata")
    return isinstance(metadata, dict) and "flagged_input" in metadata


def _reasons(detail: dict[str, Any]) -> set[str]:
    """Of a Google API's error, what its details name (AIP-193)."""
    details = detail.get("details")
    if not isinstance(details, list):
        return set()
    return {str(each.get("reason")) for each in details if isinstance(each, dict)}
