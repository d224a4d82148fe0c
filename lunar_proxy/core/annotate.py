"""What the proxy adds to an answer: members of `usage`, and where they go (CONTRACT 5).

Nothing is re-encoded. A splice inserts bytes, or replaces the `null` of a `"usage":null`; taken out
again, it leaves the provider's bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import orjson

from .figures import INEXACT, decimal, milliseconds
from .jsonspan import Edit, Member, apply, escapes_letters, insertion, members
from .model import Cost, Usage
from .money import UNITS_PER_USD
from .sse import data_spans

_USAGE = b'"usage"'
_SPACE = b" \t\r\n"
_BACKSLASH, _COMMA = b"\\,"
# An object whose strings have no escapes and which is three deep at most, as every provider's
# usage is. Possessive, so that it takes linear time on any text.
_NO_OBJECT = rb'[^{}"]*+(?:"[^"\\]*+"[^{}"]*+)*+'
_FLAT = rb"\{%b\}" % _NO_OBJECT
_NESTED = rb"\{%b(?:%b%b)*+\}" % (_NO_OBJECT, _FLAT, _NO_OBJECT)
_USAGE_OBJECT = re.compile(rb"\{%b(?:%b%b)*+\}" % (_NO_OBJECT, _NESTED, _NO_OBJECT))


def usage_members(usage: Usage, cost: Cost | None, latency_s: float, ttft_s: float | None) -> bytes:
    """The members `usage` gains, without braces. No cost: the price is not known."""
    input_, output, cache_input, total = _UNKNOWN if cost is None else cost
    members = {  # the costs first: see below; `dollars` but for its call, as every answer pays it
        "input_cost_usd": None if input_ is None else input_ / UNITS_PER_USD,
        "output_cost_usd": None if output is None else output / UNITS_PER_USD,
        "cache_input_cost_usd": None if cache_input is None else cache_input / UNITS_PER_USD,
        "total_cost_usd": None if total is None else total / UNITS_PER_USD,
        "latency_ms": milliseconds(latency_s),
        "ttft_ms": None if ttft_s is None else milliseconds(ttft_s),
    }
    if usage.estimated:
        members["estimated"] = True
    text = orjson.dumps(members)
    # Small amounts would have an exponent, which not everyone reads who reads a decimal; and of
    # large ones a float does not have all digits.
    if cost is not None and (b"e-" in text or cost.total >= INEXACT):
        exact = [None if units is None else orjson.Fragment(decimal(units)) for units in cost]
        text = orjson.dumps(members | dict(zip(members, exact, strict=False)))
    return text[1:-1]


_UNKNOWN = (None, None, None, None)


def token_members(usage: Usage, *, responses: bool = False) -> bytes:
    """The counts, for an answer whose provider gave none, as its API spells them."""
    names = (
        ("input_tokens", "output_tokens") if responses else ("prompt_tokens", "completion_tokens")
    )
    counts = (usage.input_tokens, usage.output_tokens, usage.total_tokens)
    return ",".join(
        f'"{name}":{count}' for name, count in zip((*names, "total_tokens"), counts, strict=True)
    ).encode()


def usage_object(usage: Usage, added: bytes, *, responses: bool = False) -> bytes:
    """A whole `usage`, for an answer whose provider gave none."""
    return b"{" + token_members(usage, responses=responses) + b"," + added + b"}"


def splice_usage(
    data: bytes, added: bytes, whole: bytes | None, inside: tuple[str, ...] = ()
) -> list[Edit]:
    """The edits by which the `usage` of a JSON object gains the members `added`.

    `inside` is the path to the object that has the `usage`. Where there is none, or it is null,
    `whole` takes its place; None leaves it so.
    """
    if whole and not inside and _USAGE not in data and not escapes_letters(data):
        end = len(data[: data.rfind(b"}")].rstrip())
        if data[end - 1 : end] != b"{":
            return [Edit(end, end, b',"usage":' + whole)]
    at, found = 0, members(data)
    for name in inside:
        member = last(found, name)
        if member is None or data[member.value : member.value + 1] != b"{":
            return []
        at, found = member.value, members(data, member.value)
    usage = last(found, "usage")
    if usage is None:
        return [insertion(data, at, found, b'"usage":' + whole)] if whole else []
    if data[usage.value : usage.value + 1] == b"{":
        inner = members(data, usage.value)
        new = added if inner or not whole else whole[1:-1]
        return [insertion(data, usage.value, inner, new)] if new else []
    if data[usage.value : usage.end] == b"null" and whole:
        return [Edit(usage.value, usage.end, whole)]
    return []


def annotate_json(
    body: bytes, added: bytes, whole: bytes | None, inside: tuple[str, ...] = ()
) -> bytes:
    """A whole JSON answer (an object) with the fields in its `usage`; see splice_usage()."""
    return apply(body, splice_usage(body, added, whole, inside))


def add_to_usage(body: bytes, added: bytes) -> bytes:
    """The same for a JSON object known to have a top-level `usage` that is a non-empty object."""
    end = _usage_end(body)
    if not end:
        found = only_usage(body)
        if found is None:
            return annotate_json(body, added, None)
        end = found[1]
    return b"".join((body[: end - 1], b",", added, body[end - 1 :]))


def _usage_end(body: bytes) -> int:
    """Where the `usage` that counts ends, if plain members or none come behind it; 0: unsure.

    That it does is seen by parsing what stands from the last `"usage"` on, in two parts. One is an
    object by itself, so it is that key's value, since no object's text begins with another one's.
    The other is the rest of an object that ends with the text, so both are the outermost one's, and
    has no `usage`, so no later one counts. Most providers put it there: of a long answer nothing
    that comes before it is looked at.
    """
    key = body.rfind(_USAGE)
    if key < 0 or body[key - 1] == _BACKSLASH:  # the quote is text: the end of some longer key
        return 0
    value, last = body.find(b"{", key), body.rfind(b"}")
    end = body.rfind(b"}", value, last) + 1
    rest = body[end:last].strip(_SPACE)
    if not end or body[key + len(_USAGE) : value].strip(_SPACE) != b":":
        return 0
    try:
        orjson.loads(body[value:end])
        if rest and (rest[0] != _COMMA or "usage" in orjson.loads(b"{%b}" % rest[1:])):
            return 0
    except orjson.JSONDecodeError:
        return 0
    return end


def only_usage(data: bytes) -> tuple[int, int] | None:
    """Where the object stands that is the one `usage` of a JSON text; None: it takes a scan.

    If the quoted word occurs once, and no key is spelled with escapes, that is where it is: inside
    a string its quotes would be escaped. So the rest of the text need not be looked at.
    """
    key = data.rfind(_USAGE)
    if key < 0 or escapes_letters(data) or data.find(_USAGE) != key:
        return None
    value = data.find(b"{", key)
    known = _USAGE_OBJECT.match(data, value) if value > 0 else None
    if known is None or data[key + len(_USAGE) : value].strip(_SPACE) != b":":
        return None
    return known.span()


def summary_headers(usage: Usage, cost: Cost | None, added: bytes) -> list[tuple[str, str]]:
    """What `annotate: headers` says: the cost, left out when not known, and the usage as JSON."""
    headers = [("x-lunar-usage", usage_object(usage, added).decode())]
    if cost is not None:
        headers.insert(0, ("x-lunar-cost-usd", decimal(cost.total)))
    return headers


def event_edits(raw: bytes, edits: Sequence[Edit]) -> list[Edit]:
    """Edits of an event's data as edits of its bytes."""
    return [
        Edit(start := _raw_offset(raw, edit.start), start + edit.end - edit.start, edit.new)
        for edit in edits
    ]


def _raw_offset(raw: bytes, offset: int) -> int:
    for start, end in data_spans(raw):
        if start + offset <= end:
            return start + offset
        offset -= end - start + 1
    raise ValueError("an offset beyond the data")


def with_members(object_text: bytes, added: bytes) -> bytes:
    """A JSON object with more members, on one line whatever it was on."""
    flat = object_text.replace(b"\n", b" ")  # raw newlines stand between tokens only
    return apply(flat, [insertion(flat, 0, members(flat), added)]) if added else flat


def value_at(data: bytes, path: tuple[str, ...]) -> bytes:
    """The text of the value at `path`, which exists."""
    start, end = 0, len(data)
    for name in path:
        member = last(members(data, start), name)
        if member is None:
            raise KeyError(name)
        start, end = member.value, member.end
    return data[start:end]


def last(found: list[Member], name: str) -> Member | None:
    """The member that a parser takes, when there are several of the name."""
    return next((member for member in reversed(found) if member.name == name), None)
