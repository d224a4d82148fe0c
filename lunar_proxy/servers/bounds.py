"""What a client may take of us, in bytes and seconds, and the words for one who takes more.

The doors share these; they share nothing else.
"""

from __future__ import annotations

from http import HTTPStatus

from lunar_proxy.core.errors import BodyTooLarge, InvalidRequest, ProxyError
from lunar_proxy.core.headers import render
from lunar_proxy.core.render import error_answer

# As aiohttp's own limit on all headers; Node stops at 16 KiB, nginx at 32 KiB.
MAX_HEAD = 32 * 1024
# What may be sent ahead of an answer before the client has to wait.
MAX_AHEAD = 64 * 1024
HEAD_TIMEOUT_S = 10.0
BODY_IDLE_S = 30.0
# Longer than the idle time of the usual client pools (httpx 5 s, undici 4 s, Go 90 s).
KEEP_ALIVE_S = 95.0


class HeadTooLarge(InvalidRequest):
    status, code = 431, "head_too_large"


def head_too_large() -> HeadTooLarge:
    return HeadTooLarge(f"the request head is larger than {MAX_HEAD} bytes")


def too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body is larger than {limit / (1024 * 1024):g} MB (max_body_mb in the config)"
    )


def last_answer(error: ProxyError) -> bytes:
    """A whole answer, after which the connection is closed."""
    status, headers, body = error_answer(error, [])
    headers += [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    return b"%b%b\r\n%b" % (status_line(status), render(headers), body)


def status_line(status: int) -> bytes:
    """The phrase in it is decoration, so an unknown status has none (RFC 9112 4)."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
