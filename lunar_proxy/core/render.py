"""How an error looks to a client (CONTRACT 6): one JSON shape on every path."""

from __future__ import annotations

import math
from typing import Any

import orjson

from .errors import ProxyError


def error_doc(error: ProxyError) -> dict[str, Any]:
    doc: dict[str, Any] = {
        "error": {
            "message": error.message,
            "type": error.type,
            "code": error.code,
            "param": error.param,
            **error.details,
        },
        "detail": error.message,
    }
    if error.retry_after_s is not None:
        doc["retry_after"] = round(float(error.retry_after_s), 3)
    return doc


def error_answer(
    error: ProxyError, extra: list[tuple[bytes, bytes]]
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of an error of ours."""
    headers = [(b"content-type", b"application/json"), *extra]
    headers += [(name.encode(), value.encode()) for name, value in error.headers]
    if error.retry_after_s is not None:
        headers += retry_headers(error.retry_after_s)
    return error.status, headers, orjson.dumps(error_doc(error))


def retry_headers(seconds: float) -> list[tuple[bytes, bytes]]:
    """Whole seconds, rounded up, for everyone (RFC 9110 10.2.3); milliseconds for OpenAI's SDKs."""
    return [
        (b"retry-after", b"%d" % math.ceil(seconds)),
        (b"retry-after-ms", b"%d" % math.ceil(seconds * 1000)),
    ]


def masked(body: bytes, secret: bytes) -> bytes:
    """A provider's error as it is, except for our own key should it be echoed."""
    return body.replace(secret, b"****") if secret else body
