from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.core.jsonspan import (
    Edit,
    apply,
    at_most,
    insertion,
    members,
    name_model,
    removal,
    rewrite_request,
    value_end,
)

MEMBERS: dict[str, tuple[bytes, list[tuple[str, bytes]]]] = {
    "empty": (b"{}", []),
    "spaced empty": (b" {\r\n\t } ", []),
    "one": (b'{"a":1}', [("a", b"1")]),
    "every kind": (
        b'{"a":"x","b":-1.50e+3,"c":true,"d":null,"e":[1,{"f":2}],"g":{"h":"}"}}',
        [
            ("a", b'"x"'),
            ("b", b"-1.50e+3"),
            ("c", b"true"),
            ("d", b"null"),
            ("e", b'[1,{"f":2}]'),
            ("g", b'{"h":"}"}'),
        ],
    ),
    "spaces everywhere": (
        b'\n{ "a" :\t1 ,\r\n"b"\n:\n[ 1 , 2 ]\n}\n',
        [("a", b"1"), ("b", b"[ 1 , 2 ]")],
    ),
    "duplicates": (b'{"a":1,"a":2}', [("a", b"1"), ("a", b"2")]),
    "escaped key": (b'{"mod\\u0065l":"x"}', [("model", b'"x"')]),
    "quotes in strings": (b'{"a":"\\"b\\":1","c\\"":2}', [("a", b'"\\"b\\":1"'), ('c"', b"2")]),
    "backslash before the quote": (
        b'{"a":"\\\\","b":"\\\\\\""}',
        [("a", b'"\\\\"'), ("b", b'"\\\\\\""')],
    ),
    "brackets in strings": (b'{"a":["]","}"],"b":1}', [("a", b'["]","}"]'), ("b", b"1")]),
}


@pytest.mark.parametrize(("body", "expected"), MEMBERS.values(), ids=MEMBERS.keys())
def test_finds_members(body: bytes, expected: list[tuple[str, bytes]]) -> None:
    found = members(body)
    assert [(m.name, body[m.value : m.end]) for m in found] == expected
    assert all(body[m.start : m.start + 1] == b'"' for m in found)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
KEYS = st.sampled_from(
    ["model", "provider", "fallbacks", "models", "stream_options", "mode\\l", 'a"']
)
OPTIONS = st.none() | st.dictionaries(st.sampled_from(["include_usage", "x"]), st.booleans())


@st.composite
def bodies(draw: st.DrawFn) -> tuple[list[tuple[str, Any]], bytes]:
    """A request with duplicate keys, odd spacing and odd spelling, and its members in order."""
    pairs = draw(st.lists(st.tuples(KEYS | st.text(max_size=3), JSON), max_size=6))
    pairs = [(k, draw(OPTIONS) if k == "stream_options" else v) for k, v in pairs]
    space = st.sampled_from(["", " ", "\n\t", "\r\n"])

    def spell(key: str) -> str:
        if draw(st.booleans()):
            return json.dumps(key)
        return '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else c for c in key) + '"'

    text = ",".join(
        draw(space) + spell(k) + draw(space) + ":" + draw(space)
        + json.dumps(v, indent=draw(st.sampled_from([None, 1])), ensure_ascii=draw(st.booleans()))
        + draw(space)
        for k, v in pairs
    )  # fmt: skip
    body = (draw(space) + "{" + (text or draw(space)) + "}" + draw(space)).encode()
    return pairs, body


@given(bodies())
def test_members_are_those_of_the_parser(case: tuple[list[tuple[str, Any]], bytes]) -> None:
    pairs, body = case
    orjson.loads(body)
    assert [(m.name, json.loads(body[m.value : m.end])) for m in members(body)] == pairs


@given(bodies(), st.sets(KEYS))
def test_removal_leaves_the_other_members(
    case: tuple[list[tuple[str, Any]], bytes], drop: set[str]
) -> None:
    pairs, body = case
    left = apply(body, removal(members(body), drop))
    assert json.loads(left, object_pairs_hook=list) == _as_pairs(
        [(k, v) for k, v in pairs if k not in drop]
    )


@given(bodies())
def test_insertion_adds_behind_the_rest(case: tuple[list[tuple[str, Any]], bytes]) -> None:
    pairs, body = case
    edit = insertion(body, 0, members(body), b'"new":1')
    added = apply(body, [edit])
    assert json.loads(added, object_pairs_hook=list) == _as_pairs([*pairs, ("new", 1)])
    assert added[: edit.start] + added[edit.start + len(edit.new) :] == body


@given(bodies(), st.sets(KEYS), st.booleans())
def test_a_rewritten_request_says_what_was_meant(
    case: tuple[list[tuple[str, Any]], bytes], drop: set[str], ask: bool
) -> None:
    pairs, body = case
    drop -= {"model", "stream_options"}
    doc = orjson.loads(body)
    new = rewrite_request(body, model="m\u00fc/1", drop=drop, ask_usage=ask)
    quick = rewrite_request(body, model="m\u00fc/1", drop=drop, ask_usage=ask, doc=doc)
    assert _sorted_pairs(quick) == _sorted_pairs(new)
    expected = [
        (k, "m\u00fc/1" if k == "model" else _asked(v) if k == "stream_options" and ask else v)
        for k, v in pairs
        if k not in drop
    ]
    if ask and not any(k == "stream_options" for k, _ in pairs):
        expected.append(("stream_options", {"include_usage": True}))
    assert json.loads(new, object_pairs_hook=list) == _as_pairs(expected)


def _sorted_pairs(body: bytes) -> list[str]:
    return sorted(map(repr, json.loads(body, object_pairs_hook=list)))


def _asked(value: dict[str, bool] | None) -> dict[str, bool]:
    return {**(value or {}), "include_usage": True}


def _as_pairs(pairs: list[tuple[str, Any]]) -> Any:
    return json.loads(
        "{" + ",".join(f"{json.dumps(k)}:{json.dumps(v)}" for k, v in pairs) + "}",
        object_pairs_hook=list,
    )


REWRITES: dict[str, tuple[bytes, bytes]] = {
    "plain": (b'{"model":"a","n":1.0}', b'{"model":"NEW","n":1.0}'),
    "spaced": (b'{ "model" : "a" }', b'{ "model" : "NEW" }'),
    "not the first": (b'{"messages":[],"model":"a"}', b'{"messages":[],"model":"NEW"}'),
    "duplicates": (b'{"model":"a","model":"b"}', b'{"model":"NEW","model":"NEW"}'),
    "escaped duplicate": (
        b'{"model":"a","mod\\u0065l":"b"}',
        b'{"model":"NEW","mod\\u0065l":"NEW"}',
    ),
    "escaped only": (b'{"\\u006Dodel":"b"}', b'{"\\u006Dodel":"NEW"}'),
    "as a value": (
        b'{"messages":[{"role":"model"}],"model":"a"}',
        b'{"messages":[{"role":"model"}],"model":"NEW"}',
    ),
    "value of itself": (b'{"model":"model"}', b'{"model":"NEW"}'),
    "nested": (
        b'{"metadata":{"model":"x"},"model":"a"}',
        b'{"metadata":{"model":"x"},"model":"NEW"}',
    ),
    "nested only": (b'{"metadata":{"model":"x"}}', b'{"metadata":{"model":"x"}}'),
    "absent stays absent": (b'{"n":1}', b'{"n":1}'),
    "in text": (
        b'{"model":"a","prompt":"\\"model\\":\\"b\\""}',
        b'{"model":"NEW","prompt":"\\"model\\":\\"b\\""}',
    ),
    "text that ends like the key": (
        b'{"prompt":"say \\"model","model":"a"}',
        b'{"prompt":"say \\"model","model":"NEW"}',
    ),
    "not a string": (b'{"model":["a"]}', b'{"model":"NEW"}'),
    "numbers keep their spelling": (
        b'{"seed":12345678901234567890,"t":1e400,"p":1.0,"model":"a"}',
        b'{"seed":12345678901234567890,"t":1e400,"p":1.0,"model":"NEW"}',
    ),
}


# How a long body is looked through depends on how many strings it has.
PADDING = {
    "short": b'""',
    "prose": b'"%b"' % (b"x " * 6000),
    "strings": b"[%b]" % b",".join([b'"x"'] * 3000),
}


@pytest.mark.parametrize("padding", PADDING.values(), ids=PADDING.keys())
@pytest.mark.parametrize("with_doc", [False, True])
@pytest.mark.parametrize(("body", "expected"), REWRITES.values(), ids=REWRITES.keys())
def test_every_model_is_replaced_and_nothing_else(
    body: bytes, expected: bytes, with_doc: bool, padding: bytes
) -> None:
    def padded(text: bytes) -> bytes:
        return b'{"head":%b,%b,"tail":%b}' % (padding, text[1:-1], padding)

    for sent, wanted in [(body, expected), (padded(body), padded(expected))]:
        doc = json.loads(sent) if with_doc else None
        assert rewrite_request(sent, model="NEW", doc=doc) == wanted


DROPS: dict[str, tuple[bytes, bytes]] = {
    "first": (b'{"provider":"a","x":1}', b'{"x":1}'),
    "last": (b'{"x":1, "provider":"a"}', b'{"x":1}'),
    "middle": (b'{"x":1,"models":["a"],"y":2}', b'{"x":1,"y":2}'),
    "all": (b'{"provider":"a","models":[]}', b"{}"),
    "twice": (b'{"provider":"a","x":1,"provider":"b"}', b'{"x":1}'),
    "neighbours": (b'{"x":1,"provider":"a","models":[],"y":2}', b'{"x":1,"y":2}'),
    "escaped": (b'{"x":1,"prov\\u0069der":"a"}', b'{"x":1}'),
    "nested stays": (b'{"x":{"provider":1}}', b'{"x":{"provider":1}}'),
}


@pytest.mark.parametrize(("body", "expected"), DROPS.values(), ids=DROPS.keys())
def test_dropped_members_go_with_their_comma(body: bytes, expected: bytes) -> None:
    assert rewrite_request(body, drop={"provider", "models"}) == expected


ASKS: dict[str, tuple[bytes, bytes]] = {
    "absent": (b'{"x":1}', b'{"x":1,"stream_options":{"include_usage":true}}'),
    "empty body": (b"{}", b'{"stream_options":{"include_usage":true}}'),
    "behind what is dropped": (
        b'{"x":1,"models":[]}',
        b'{"x":1,"stream_options":{"include_usage":true}}',
    ),
    "all dropped": (b'{"models":[]}', b'{"stream_options":{"include_usage":true}}'),
    "null": (b'{"stream_options":null}', b'{"stream_options":{"include_usage":true}}'),
    "empty": (b'{"stream_options":{ }}', b'{"stream_options":{"include_usage":true }}'),
    "others in it": (
        b'{"stream_options":{"include_obfuscation":false}}',
        b'{"stream_options":{"include_obfuscation":false,"include_usage":true}}',
    ),
    "null in it": (
        b'{"stream_options":{"include_usage":null}}',
        b'{"stream_options":{"include_usage":true}}',
    ),
    "nonsense is the provider's to refuse": (b'{"stream_options":7}', b'{"stream_options":7}'),
}


@pytest.mark.parametrize(("body", "expected"), ASKS.values(), ids=ASKS.keys())
def test_asks_for_usage(body: bytes, expected: bytes) -> None:
    assert rewrite_request(body, drop={"models"}, ask_usage=True) == expected


def test_a_request_that_needs_nothing_is_the_same_object() -> None:
    body = b'{"x":1}'
    assert rewrite_request(body, drop={"models"}, doc={"x": 1}) is body


def test_an_insertion_at_the_edge_of_a_removal_stays() -> None:
    assert apply(b"abc", [Edit(1, 3, b""), Edit(1, 1, b"X")]) == b"aX"


@pytest.mark.parametrize("value", [b"1", b'"a"', b"[[]]", b"{}", b"null"])
def test_a_value_may_end_the_text(value: bytes) -> None:
    assert value_end(value, 0) == len(value)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", b'{"stream_options":{"include_usage":true}}'),
        (b' {"a":1}', b' {"stream_options":{"include_usage":true},"a":1}'),
        (b'{"stream_options":{}}', b'{"stream_options":{"include_usage":true}}'),
    ],
)
def test_asks_for_usage_without_a_scan(body: bytes, expected: bytes) -> None:
    assert rewrite_request(body, ask_usage=True, doc=orjson.loads(body)) == expected


@pytest.mark.parametrize("escaped", ["\\" * 3, '"' * 100, '\\"' * 100, '"' * 31, '"' * 32 + "\\"])
def test_a_text_full_of_escapes_has_one_end(escaped: str) -> None:
    body = json.dumps({"prompt": escaped, "model": "a"}).encode()
    assert json.loads(rewrite_request(body, model="b")) == {"prompt": escaped, "model": "b"}


@pytest.mark.parametrize(
    ("body", "named"),
    [(b'{ "x":1 }', b'{ "x":1,"model":"b" }'), (b"{}", b'{"model":"b"}')],
)
def test_a_request_without_a_model_is_given_one(body: bytes, named: bytes) -> None:
    assert name_model(body, "b") == named


LONG = {
    "prose": "The quick brown fox jumps over the lazy dog. " * 1000,
    "lines": "The quick brown fox\n" * 2000,
    "code": 'print("model", {"a": [1, 2]})\n' * 1000,
    "escapes": "\x01\x02" * 5000,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
@pytest.mark.parametrize("asks", [False, True])
def test_a_long_prompt_keeps_every_byte(text: str, asks: bool) -> None:
    doc = {"messages": [{"role": "user", "content": text}], "model": "a", "n": 1}
    body = json.dumps(doc).encode()
    out = rewrite_request(body, model="b", ask_usage=asks, doc=doc)
    added = {"stream_options": {"include_usage": True}} if asks else {}
    assert json.loads(out) == {**doc, "model": "b", **added}
    there = b'"stream_options":{"include_usage":true},'
    assert out.replace(there, b"").replace(b"," + there[:-1], b"") == body.replace(
        b'"model": "a"', b'"model": "b"'
    )
    same = rewrite_request(body, model="a", doc=doc)
    assert same is body


@pytest.mark.parametrize("size", [30, 4_000, 100_000])
@pytest.mark.parametrize("limit", [0, 6, 20])
@pytest.mark.parametrize("count", [0, 1, 5, 6, 7, 10, 20, 21, 30])
def test_counts_no_further_than_it_needs(size: int, limit: int, count: int) -> None:
    body = b"{" * count + b"x" * (size - count)
    assert at_most(body, b"{", limit) is (count <= limit)
    assert at_most(body[::-1], b"{", limit) is (count <= limit)
