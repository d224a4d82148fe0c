"""Ending a JSON object that was cut off.

When half an event has been relayed and no more is coming, the half cannot be called back, and a
client's parser must not choke on it: openai-python gives every `data` to json.loads and to a strict
UTF-8 decoder, so an error event behind a broken line would never be seen. The half is therefore
turned into the error event itself: whatever is open is closed, and the members of the error come
last, where they win over members of the same name (RFC 8259 4 leaves that open; json, orjson,
JSON.parse and encoding/json all take the last).
"""

from __future__ import annotations

import re

_TOKEN = re.compile(
    rb"""(?P<space>[ \t\n\r]+)
    | (?P<string>"(?:[^"\\]++|\\.)*+")
    | (?P<open>"(?:[^"\\]++|\\.)*+\\?\Z)
    | (?P<mark>[{}\[\],:])
    | (?P<scalar>[-+.0-9A-Za-z]+)""",
    re.VERBOSE | re.DOTALL,
)
_WHOLE_PART = re.compile(rb'"(?:[^"\\]++|\\u[0-9a-fA-F]{4}|\\[^u])*+', re.DOTALL)
_HIGH_SURROGATE = re.compile(rb"(?<!\\)(?:\\\\)*\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
_LITERALS = (b"true", b"false", b"null")
_CLOSING = {b"{": b"}", b"[": b"]"}
_KEY, _VALUE = b"key", b"value"


def close_object(prefix: bytes, members: bytes) -> bytes | None:
    """What to append to `prefix` so that it becomes an object with `members` (`b'"a":1'`) last.

    None when it is no beginning of an object, or a whole one already.
    """
    stack: list[bytes] = []
    last = patch = b""
    pos = 0
    while pos < len(prefix):
        match = _TOKEN.match(prefix, pos)
        if match is None:
            return None
        pos, token, kind = match.end(), match.group(), match.lastgroup
        if kind == "space":
            continue
        if not stack and token != b"{":
            return None
        if kind == "mark":
            last = _punctuate(stack, token)
            if not stack:
                return None
        else:
            last = _KEY if stack[-1] == b"{" and last in (b"{", b",") else _VALUE
            if kind == "open":
                patch = _end_string(token)
            elif kind == "scalar" and pos == len(prefix):
                patch = _end_scalar(token)
    if not stack:
        return b"{" + members + b"}"
    return patch + _close_inner(stack, last) + members + b"}"


def _punctuate(stack: list[bytes], token: bytes) -> bytes:
    if token in _CLOSING:
        stack.append(token)
        return token
    if token in b",:":
        return token
    stack.pop()
    return _VALUE


def _close_inner(stack: list[bytes], last: bytes) -> bytes:
    if len(stack) == 1 and last in (b"{", b","):
        return b""
    missing = {_KEY: b":null", b":": b"null"}.get(last, b"")
    if last == b",":
        missing = b"null" if stack[-1] == b"[" else b'"":null'
    return missing + b"".join(_CLOSING[opened] for opened in reversed(stack[1:])) + b","


def _end_scalar(token: bytes) -> bytes:
    for literal in _LITERALS:
        if literal.startswith(token):
            return literal[len(token) :]
    return b"" if token[-1:].isdigit() else b"0"


def _end_string(token: bytes) -> bytes:
    match = _WHOLE_PART.match(token)
    whole = match.group() if match else token
    escape = token[len(whole) :]
    if _HIGH_SURROGATE.search(whole):  # half a pair is not a character: give it another half
        return (rb"\udc00"[len(escape) :] if len(escape) < 4 else b"0" * (6 - len(escape))) + b'"'
    if escape == b"\\":
        return b'\\"'
    if escape:
        padded = escape + b"0" * (6 - len(escape))
        low = rb"\udc00" if _HIGH_SURROGATE.search(padded) else b""
        return padded[len(escape) :] + low + b'"'
    return _end_character(token) + b'"'


def _end_character(token: bytes) -> bytes:
    """The bytes that make a UTF-8 character of its beginning (RFC 3629 4)."""
    for back in range(1, min(4, len(token)) + 1):
        lead = token[-back]
        if lead >= 0xC0:
            size = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            second = {0xE0: 0xA0, 0xF0: 0x90}.get(lead, 0x80) if back == 1 else 0x80
            return bytes([second, 0x80, 0x80])[: max(0, size - back)]
        if lead < 0x80:
            break
    return b""
