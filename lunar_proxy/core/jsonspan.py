"""Edits in JSON text that touch only the bytes they mean to.

A request or an answer is parsed to be understood, but what is sent on is the text that came: key
order, spacing, number spelling (`1.0`, `1e400`, 20-digit ids), escapes and duplicate keys survive,
because nothing is encoded again. Every function here takes text that a JSON parser has accepted;
on other input the result is undefined, though it ends.

    members(body)        where each member of an object stands
    edits                Edit(start, end, new): replace body[start:end]; apply() does them together
    removal, insertion   the edits that take members out, commas included, or put some in
    rewrite_request      the only edits that a request gets (CONTRACT 4 and 5)
    name_model           the one more where `models` stood in for the model
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

_ASK_USAGE = b'"stream_options":{"include_usage":true}'


class Member(NamedTuple):
    """One `"key": value` of an object, as byte offsets; `name` has its escapes decoded."""

    name: str
    start: int  # the key's opening quote
    value: int
    end: int  # just behind the value


class Edit(NamedTuple):
    start: int
    end: int
    new: bytes


_SPACE = re.compile(rb"[ \t\n\r]*")
_STRUCTURE = re.compile(rb'["{}\[\]]')
_SCALAR_END = re.compile(rb"[ \t\n\r,}\]]|\Z")
_STRING_REST = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_MAX_HOPS = 32
# A long text of few strings, as prose in a prompt, takes longer to look through for a word than to
# hop through from quote to quote.
_LONG, _FEW_QUOTES = 8 * 1024, 100
_SHORT, _HANDFUL = 1024, 8
_OPENING = b"{["
_QUOTE, _BACKSLASH, _BRACE, _CLOSING_BRACE = b'"\\{}'

_MODEL = re.compile(rb'"model"[ \t\n\r]*:[ \t\n\r]*("[^"\\]*")')

# An escape that can spell an ASCII letter: a key may be written with it ("mod\u0065l").
_ASCII_ESCAPE = re.compile(rb"\\u00[2-7]")


def members(body: bytes, at: int = 0) -> list[Member]:
    """The members of the object at or after offset `at`, duplicates included, in order."""
    found: list[Member] = []
    pos = _skip_space(body, _object_start(body, at) + 1)
    while body[pos] != _CLOSING_BRACE:
        key_end = _string_end(body, pos)
        value = _skip_space(body, _skip_space(body, key_end) + 1)
        end = value_end(body, value)
        found.append(Member(_decode_key(body[pos:key_end]), pos, value, end))
        pos = _skip_space(body, end)
        if body[pos] != _CLOSING_BRACE:
            pos = _skip_space(body, pos + 1)
    return found


def at_most(body: bytes, byte: bytes, limit: int) -> bool:
    """Whether `byte` stands in `body` so many times or fewer.

    `bytes.count` looks at every byte, which is the least to do in a short text. In others it hops
    from one to the next at memchr speed, which is ten times faster where there are a handful; of
    more, those in a text of middling length are counted after all.
    """
    if len(body) < _SHORT:
        return body.count(byte) <= limit
    pos = -1
    for hop in range(limit + 1):
        if hop == _HANDFUL and len(body) < _LONG:
            return body.count(byte) <= limit
        pos = body.find(byte, pos + 1)
        if pos < 0:
            return True
    return False


def escapes_letters(text: bytes) -> bool:
    """Whether a key may be spelled with escapes ("mod\\u0065l"). One byte is found ten times faster
    than four, and most short texts have no backslash."""
    return b"\\" in text and b"\\u00" in text and _ASCII_ESCAPE.search(text) is not None


def value_end(body: bytes, start: int) -> int:
    """The offset just behind the value that starts at `start`."""
    first = body[start]
    if first == _QUOTE:
        return _string_end(body, start)
    if first in _OPENING:
        return _container_end(body, start)
    return _match_start(_SCALAR_END, body, start)


def apply(body: bytes, edits: Sequence[Edit]) -> bytes:
    """`body` with all edits done; they must not overlap. An insertion goes before a removal."""
    if len(edits) == 1:
        start, end, new = edits[0]
        return b"".join((body[:start], new, body[end:]))
    parts: list[bytes] = []
    pos = 0
    for start, end, new in sorted(edits):
        parts += (body[pos:start], new)
        pos = end
    parts.append(body[pos:])
    return b"".join(parts)


def removal(found: Sequence[Member], drop: Collection[str]) -> list[Edit]:
    """Take every member named in `drop` out, with the one comma that goes with it."""
    edits, kept = [], False
    for i, member in enumerate(found):
        if member.name not in drop:
            kept = True
        elif kept:
            edits.append(Edit(found[i - 1].end, member.end, b""))
        else:
            behind = found[i + 1].start if i + 1 < len(found) else member.end
            edits.append(Edit(member.start, behind, b""))
    return edits


def insertion(body: bytes, at: int, found: Sequence[Member], new: bytes) -> Edit:
    """Put the members `new` (`b'"a":1,"b":2'`) behind the last of `found`.

    `found` are the members that stay in the object at or after `at`; none means it is, or becomes,
    empty.
    """
    if found:
        return Edit(found[-1].end, found[-1].end, b"," + new)
    start = _object_start(body, at) + 1
    return Edit(start, start, new)


def rewrite_request(
    body: bytes,
    *,
    model: str | None = None,
    drop: Collection[str] = (),
    ask_usage: bool = False,
    doc: Mapping[str, Any] | None = None,
) -> bytes:
    """The body to send upstream: the client's own, but for what CONTRACT 4 and 5 name.

    `model` replaces every top-level `model` value: were a duplicate key left as it was, a provider
    that reads the other one than we do would serve a model nobody authorized. `drop` members are
    removed. `ask_usage` sets `stream_options.include_usage`. `doc` is the parsed body; with it the
    common body, where only a model changes and nothing is dropped, is edited without a scan.
    """
    if doc is not None and doc.keys().isdisjoint(drop):
        quick = _rewrite_quickly(body, model, ask_usage, doc)
        if quick is not None:
            return quick
    found = members(body)
    kept = [member for member in found if member.name not in drop]
    edits = removal(found, drop)
    if model is not None:
        new = orjson.dumps(model)
        named = [m for m in kept if m.name == "model"]
        edits += [Edit(m.value, m.end, new) for m in named if body[m.value : m.end] != new]
    if ask_usage:
        edits += _ask_usage(body, kept)
    return apply(body, edits)


def name_model(body: bytes, model: str) -> bytes:
    """A request that listed `models` and named none, with the one it goes to."""
    return apply(body, [insertion(body, 0, members(body), b'"model":' + orjson.dumps(model))])


def _rewrite_quickly(
    body: bytes, model: str | None, ask_usage: bool, doc: Mapping[str, Any]
) -> bytes | None:
    """None when it takes a scan to know where things stand."""
    edits = []
    if ask_usage:
        if "stream_options" in doc:
            return None
        start = _object_start(body, 0) + 1
        edits.append(Edit(start, start, _ASK_USAGE + b"," if doc else _ASK_USAGE))
    if model is not None and "model" in doc:
        key = _only_model(body)
        if key < 0:
            return None
        if doc["model"] != model:
            found = _MODEL.match(body, key)
            if found is None:  # the value has an escape
                return None
            edits.append(Edit(*found.span(1), orjson.dumps(model)))
    return apply(body, edits) if edits else body


def _only_model(body: bytes) -> int:
    """Where the key `model` is, in a document that is known to have one at its top; -1: unsure.

    If no key can be spelled with escapes and the quoted word occurs once, then that is it: text
    inside strings has its quotes escaped.
    """
    key = body.find(b'"model"')
    if key < 0 or _is_there(b'"model"', body, key + 1) or escapes_letters(body):
        return -1
    return key


def _is_there(quoted: bytes, body: bytes, pos: int) -> bool:
    """Whether the quoted word stands at or behind `pos`."""
    if len(body) > _LONG:
        for _ in range(_FEW_QUOTES):
            pos = body.find(b'"', pos)
            if pos < 0:
                return False
            if body.startswith(quoted, pos):
                return True
            pos += 1
    return body.find(quoted, pos) >= 0


def _ask_usage(body: bytes, kept: Sequence[Member]) -> list[Edit]:
    options = [member for member in kept if member.name == "stream_options"]
    if not options:
        return [insertion(body, 0, kept, _ASK_USAGE)]
    return [edit for member in options for edit in _ask_in(body, member)]


def _ask_in(body: bytes, options: Member) -> list[Edit]:
    if body[options.value] == _BRACE:
        inner = members(body, options.value)
        said = [Edit(m.value, m.end, b"true") for m in inner if m.name == "include_usage"]
        return said or [insertion(body, options.value, inner, b'"include_usage":true')]
    if body[options.value : options.end] == b"null":
        return [Edit(options.value, options.end, b'{"include_usage":true}')]
    return []  # not an object: the provider's to refuse


def _object_start(body: bytes, at: int) -> int:
    return body.index(b"{", at)


def _skip_space(body: bytes, pos: int) -> int:
    return pos if body[pos] > 0x20 else _match_end(_SPACE, body, pos)


def _match_end(pattern: re.Pattern[bytes], body: bytes, pos: int) -> int:
    match = pattern.match(body, pos)
    return match.end() if match else pos


def _match_start(pattern: re.Pattern[bytes], body: bytes, pos: int) -> int:
    match = pattern.search(body, pos)
    return match.start() if match else len(body)


def _string_end(body: bytes, start: int) -> int:
    # Hops from quote to quote at memchr speed: a prompt of 64 KB without quotes is one hop. Text
    # full of them (code, JSON in JSON) is cheaper by the pattern, at some 10 ns a byte.
    end = start
    for _ in range(_MAX_HOPS):
        end = body.index(b'"', end + 1)
        if body[end - 1] != _BACKSLASH or not _is_escaped(body, end):
            return end + 1
    return _match_end(_STRING_REST, body, end + 1)


def _is_escaped(body: bytes, quote: int) -> bool:
    first = quote
    while body[first - 1] == _BACKSLASH:
        first -= 1
    return (quote - first) % 2 == 1


def _container_end(body: bytes, start: int) -> int:
    depth, pos = 0, start
    while True:
        pos = _match_start(_STRUCTURE, body, pos)
        if body[pos] == _QUOTE:
            pos = _string_end(body, pos)
            continue
        depth += 1 if body[pos] in _OPENING else -1
        pos += 1
        if depth == 0:
            return pos


def _decode_key(raw: bytes) -> str:
    if b"\\" not in raw:
        return raw[1:-1].decode()
    name: str = orjson.loads(raw)
    return name
