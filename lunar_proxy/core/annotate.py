"""What the proxy adds to an answer: members of `usage`, and where they go (CONTRACT 5).

Nothing is re-encoded. A splice inserts bytes, or replaces the `null` of a `"usage":null`; taken out
again, it leaves the provider's bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from .jsonspan import Edit, Member, apply, insertion, members, value_end
from .model import Cost, Usage
from .sse import data_spans

_USAGE = b'"usage"'
_TEN_DECIMALS = Decimal("1e-10")
_COST_FIELDS = ("input_cost_usd", "output_cost_usd", "cache_input_cost_usd", "total_cost_usd")


def usage_members(usage: Usage, cost: Cost | None, latency_s: float, ttft_s: float | None) -> bytes:
    """The members `usage` gains, without braces. No cost: the price is not known."""
    parts = (cost.input, cost.output, cost.cache_input, cost.total) if cost else (None,) * 4
    fields = [f'"{name}":{money(part)}' for name, part in zip(_COST_FIELDS, parts, strict=True)]
    fields += (f'"latency_ms":{_ms(latency_s)}', f'"ttft_ms":{_ms(ttft_s)}')
    if usage.estimated:
        fields.append('"estimated":true')
    return ",".join(fields).encode()


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


def money(amount: Decimal | None) -> str:
    """A JSON number with up to ten decimals, never an exponent; null when it is not known."""
    if amount is None:
        return "null"
    digits = f"{amount.quantize(_TEN_DECIMALS):f}".rstrip("0")
    return digits + "0" if digits.endswith(".") else digits


def _ms(seconds: float | None) -> str:
    return "null" if seconds is None else f"{seconds * 1000:.3f}"


def splice_usage(
    data: bytes, added: bytes, whole: bytes | None, inside: tuple[str, ...] = ()
) -> list[Edit]:
    """The edits by which the `usage` of a JSON object gains the members `added`.

    `inside` is the path to the object that has the `usage`. Where there is none, or it is null,
    `whole` takes its place; None leaves it so.
    """
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
    """The same for an answer known to have a top-level `usage` that is a non-empty object.

    If the quoted word occurs once, and no key is spelled with escapes, that is where it stands:
    inside a string its quotes would be escaped. So the rest of the answer need not be scanned.
    """
    key = body.rfind(_USAGE)
    if body.find(_USAGE, 0, key) >= 0 or b"\\u00" in body:
        return annotate_json(body, added, None)
    value = body.index(b"{", key)
    end = value_end(body, value) - 1
    return b"%b,%b%b" % (body[:end], added, body[end:])


def summary_headers(usage: Usage, cost: Cost | None, added: bytes) -> list[tuple[str, str]]:
    """What `annotate: headers` says: the cost, left out when not known, and the usage as JSON."""
    headers = [("x-lunar-usage", usage_object(usage, added).decode())]
    if cost is not None:
        headers.insert(0, ("x-lunar-cost-usd", money(cost.total)))
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
