from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.core.annotate import (
    add_to_usage,
    annotate_json,
    splice_usage,
    summary_headers,
    token_members,
    usage_members,
    usage_object,
    value_at,
    with_members,
)
from lunar_proxy.core.jsonspan import apply
from lunar_proxy.core.model import Cost, Usage
from lunar_proxy.core.money import usd

from .streams import CASSETTES, COUNTED, FIELDS, cassette

USAGE = Usage(input_tokens=7, output_tokens=3)
COST = Cost(12_500_000, 10**10, 0, 10**10 + 12_500_000)
SMALL = Cost(1000, 1, 0, 1001)
LARGE = Cost(10**15 + 1, 10**16 + 1, 0, 11 * 10**15 + 2)

WHOLE = b"{" + COUNTED + b"}"


def test_the_fields_of_a_priced_answer() -> None:
    assert usage_members(USAGE, COST, 1.23456, 0.5) == (
        b'"input_cost_usd":0.00125,"output_cost_usd":1.0,"cache_input_cost_usd":0.0,'
        b'"total_cost_usd":1.00125,"latency_ms":1234.56,"ttft_ms":500.0'
    )


def test_small_amounts_have_no_exponent_and_large_ones_all_digits() -> None:
    assert usage_members(USAGE, SMALL, 1, None) == (
        b'"input_cost_usd":0.0000001,"output_cost_usd":0.0000000001,"cache_input_cost_usd":0.0,'
        b'"total_cost_usd":0.0000001001,"latency_ms":1000.0,"ttft_ms":null'
    )
    assert usage_members(USAGE, LARGE, 1, None).startswith(
        b'"input_cost_usd":100000.0000000001,"output_cost_usd":1000000.0000000001,'
    )


@given(st.lists(st.integers(0, 10**17), min_size=3, max_size=3))
def test_costs_are_exact_and_plain(parts: list[int]) -> None:
    added = usage_members(USAGE, Cost(parts[0], parts[1], parts[2], sum(parts)), 1, 1)
    told = json.loads(b"{%b}" % added, parse_float=Decimal)
    names = ("input_cost_usd", "output_cost_usd", "cache_input_cost_usd", "total_cost_usd")
    assert [told[name] for name in names] == [usd(part) for part in (*parts, sum(parts))]
    assert b"e-" not in added


def test_an_unknown_price_is_null_and_never_nothing() -> None:
    fields = json.loads(b"{" + usage_members(USAGE, None, 1, None) + b"}")
    assert fields == {
        "input_cost_usd": None,
        "output_cost_usd": None,
        "cache_input_cost_usd": None,
        "total_cost_usd": None,
        "latency_ms": 1000.0,
        "ttft_ms": None,
    }


def test_by_the_hour_only_the_total_is_known() -> None:
    hourly = Cost(None, None, None, 24_000_000)
    fields = json.loads(b"{" + usage_members(USAGE, hourly, 1, 1) + b"}")
    assert fields["total_cost_usd"] == 0.0024
    assert fields["input_cost_usd"] is None


def test_a_count_of_ours_is_marked() -> None:
    counted = Usage(input_tokens=1, estimated=True)
    assert json.loads(b"{" + usage_members(counted, None, 1, 1) + b"}")["estimated"] is True
    assert b"estimated" not in usage_members(USAGE, None, 1, 1)


def test_token_names_are_those_of_the_api() -> None:
    assert token_members(USAGE) == b'"prompt_tokens":7,"completion_tokens":3,"total_tokens":10'
    assert token_members(USAGE, responses=True) == (
        b'"input_tokens":7,"output_tokens":3,"total_tokens":10'
    )
    assert json.loads(usage_object(USAGE, b'"a":1')) == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "a": 1,
    }


def test_headers_say_cost_and_usage() -> None:
    assert summary_headers(USAGE, COST, b'"a":1') == [
        ("x-lunar-cost-usd", "1.00125"),
        (
            "x-lunar-usage",
            '{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10,"a":1}',
        ),
    ]
    assert [name for name, _ in summary_headers(USAGE, None, b'"a":1')] == ["x-lunar-usage"]


ANSWERS: dict[str, tuple[bytes, bytes]] = {
    "object": (b'{"usage":{"p":1},"x":1}', b'{"usage":{"p":1,' + FIELDS + b'},"x":1}'),
    "spaced": (b'{"usage" : { "p" : 1 } }', b'{"usage" : { "p" : 1,' + FIELDS + b" } }"),
    "null": (b'{"usage": null}', b'{"usage": ' + WHOLE + b"}"),
    "empty": (b'{"usage":{}}', b'{"usage":' + WHOLE + b"}"),
    "absent": (b'{"x":1}', b'{"x":1,"usage":' + WHOLE + b"}"),
    "nothing at all": (b"{}", b'{"usage":' + WHOLE + b"}"),
    "nested only": (b'{"x":{"usage":{}}}', b'{"x":{"usage":{}},"usage":' + WHOLE + b"}"),
    "the last of two counts": (
        b'{"usage":{"p":1},"usage":{"p":2}}',
        b'{"usage":{"p":1},"usage":{"p":2,' + FIELDS + b"}}",
    ),
    "nonsense": (b'{"usage":7}', b'{"usage":7}'),
}


@pytest.mark.parametrize(("body", "expected"), ANSWERS.values(), ids=ANSWERS.keys())
def test_annotates_a_json_answer(body: bytes, expected: bytes) -> None:
    assert annotate_json(body, FIELDS, WHOLE) == expected


@pytest.mark.parametrize("tape", sorted(p.name for p in CASSETTES.glob("*.json")))
def test_everything_else_is_as_the_provider_sent_it(tape: str) -> None:
    body = cassette(tape)
    out = annotate_json(body, FIELDS, WHOLE)
    before, after = json.loads(body), json.loads(out)
    assert after["usage"]["total_cost_usd"] == 0.0001
    out = out.replace(b',"usage":' + WHOLE, b"").replace(WHOLE, b"null")
    assert out.replace(b"," + FIELDS, b"") == body
    assert {k: v for k, v in after.items() if k != "usage"} == {
        k: v for k, v in before.items() if k != "usage"
    }


VALUES = st.none() | st.integers() | st.text() | st.dictionaries(st.text(), st.integers())
DOCS = st.dictionaries(st.sampled_from(["usage", "a", "b"]), VALUES)


@given(DOCS, st.sampled_from([None, 2]))
def test_a_splice_undone_gives_the_same_bytes(doc: dict[str, Any], indent: int | None) -> None:
    body = json.dumps(doc, indent=indent).encode()
    edits = splice_usage(body, FIELDS, WHOLE)
    out = apply(body, edits)
    json.loads(out)
    for start, end, new in edits:
        assert body[start:end] in (b"", b"null")
        assert out[:start] + body[start:end] + out[start + len(new) :] == body


# Strings that look like structure, escapes, and objects deeper than any provider nests them.
ODD_TEXT = st.text(st.sampled_from('{}[]"\\,:a\u00e9\u0001'))
ODD_USAGE = st.recursive(
    st.none() | st.integers() | ODD_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD_TEXT, inner, max_size=3),
)


BEHIND = st.dictionaries(ODD_TEXT, ODD_USAGE, max_size=2).map(
    lambda members: {name + "_": value for name, value in members.items()}
)


@given(
    st.dictionaries(ODD_TEXT, ODD_USAGE, min_size=1), ODD_TEXT, BEHIND, st.sampled_from([None, 2])
)
def test_a_usage_known_to_be_there_is_found_without_a_scan(
    usage: dict[str, Any], text: str, behind: dict[str, Any], indent: int | None
) -> None:
    doc = {"a": text, "usage": usage, **behind}
    body = json.dumps(doc, indent=indent, ensure_ascii=False).encode()
    out = add_to_usage(body, FIELDS)
    added = json.loads(b"{" + FIELDS + b"}")
    assert json.loads(out) == doc | {"usage": usage | added}
    assert out.replace(b"," + FIELDS, b"", 1) == body


LAST = {
    "as mostly": b'{"a":{},"usage":{"p":{"q":1}%s}}',
    "before it one that does not count": b'{"usage":{"p":1},"usage":{"p":2%s}}',
    "before it one with an escape": b'{"us\\u0061ge":{"p":1},"usage":{"p":2%s}}',
    "another object is last": b'{"usage":{"p":1%s},"a":{"b":{}}}',
    "one within it": b'{"usage":{"usage":{"p":1}%s}}',
    "one within the last": b'{"usage":{"p":1%s},"a":{"usage":{"p":1}}}',
    "its end is that of another key": b'{"usage":{"p":1%s},"a\\"usage":{"p":1}}',
    "its word is a text": b'{"usage":{"p":1%s},"a":["usage",{"b":{}}]}',
    "braces in it are text": b'{"usage":{"p":"}}{"%s}}',
    "a text behind it": b'{"usage":{"p":{"q":1}%s},"a":"b"}',
    "a brace in a text behind it": b'{"usage":{"p":{"q":1}%s},"a":"}"}',
    "an object behind it": b'{"usage":{"p":1%s},"a":{"b":1},"c":1}',
    "one with an escape behind it": b'{"usage":{"p":1},"us\\u0061ge":{"p":2%s}}',
    "one that is a number behind it": b'{"a":{"usage":{"p":1}},"usage":{"p":1%s}, "b":1 }',
    "one within a list before a number": b'{"usage":{"p":1%s},"a":[{"usage":{"p":1}}],"b":1}',
    "a newline at the end": b'{"usage":{"p":1%s}\n}\n',
}


@pytest.mark.parametrize("body", LAST.values(), ids=LAST.keys())
def test_a_usage_gains_members_wherever_it_is(body: bytes) -> None:
    assert add_to_usage(body % b"", FIELDS) == body % (b"," + FIELDS)
    assert annotate_json(body % b"", FIELDS, None) == body % (b"," + FIELDS)


@given(st.dictionaries(ODD_TEXT, ODD_USAGE, min_size=1), ODD_TEXT)
def test_a_usage_at_the_end_is_where_a_scan_finds_it(usage: dict[str, Any], text: str) -> None:
    body = json.dumps({text: text, "usage": usage}, separators=(",", ":")).encode()
    assert add_to_usage(body, FIELDS) == annotate_json(body, FIELDS, None)


@pytest.mark.parametrize("depth", range(6))
def test_a_usage_may_be_nested_to_any_depth(depth: int) -> None:
    inner = b'{"b":' * depth + b'"}"' + b"}" * depth
    body = b'{"usage":{"a":%b,"c":1},"d":{}}' % inner
    assert add_to_usage(body, FIELDS) == b'{"usage":{"a":%b,"c":1,%b},"d":{}}' % (inner, FIELDS)


def test_a_splice_finds_its_object() -> None:
    body = b'{"type":"x","response":{"usage":null,"a":1}}'
    assert apply(body, splice_usage(body, FIELDS, WHOLE, ("response",))) == (
        b'{"type":"x","response":{"usage":' + WHOLE + b',"a":1}}'
    )
    assert splice_usage(b'{"usage":null}', FIELDS, WHOLE, ("response",)) == []
    assert splice_usage(b'{"response":null}', FIELDS, WHOLE, ("response",)) == []


def test_nothing_takes_the_place_of_nothing() -> None:
    assert splice_usage(b'{"usage":null}', FIELDS, None) == []
    assert splice_usage(b"{}", FIELDS, None) == []


def test_value_at_is_the_text_of_the_last_of_its_name() -> None:
    assert value_at(b'{"a":{"b": 1.0 ,"b":[ 2 ]}}', ("a", "b")) == b"[ 2 ]"


def test_members_are_added_on_one_line() -> None:
    assert with_members(b'{\n "a": 1\n}', b'"b":2') == b'{  "a": 1,"b":2 }'
    assert with_members(b"{}", b"") == b"{}"
