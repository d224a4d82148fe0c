from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.core.jsonclose import close_object

from .test_jsonspan import JSON

OBJECTS = st.dictionaries(st.text(), JSON, min_size=1, max_size=4)


@given(OBJECTS, st.data(), st.booleans(), st.sampled_from([None, 1]))
def test_any_beginning_of_an_object_becomes_one(
    doc: dict[str, object], data: st.DataObject, ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(doc, ensure_ascii=ascii_only, indent=indent).encode()
    cut = data.draw(st.integers(0, len(text) - 1))
    suffix = close_object(text[:cut], b'"end":{"x":1}')
    assert suffix is not None
    assert orjson.loads(text[:cut] + suffix)["end"] == {"x": 1}


EVERY_TOKEN = (
    r'{"a":"\ud83d\ude00\n\\\"/","b\u0041":[-1.5e+10,0,true,false,null,{},[],{"c":[{}]}],'
    '"\u00e9\u20ac\U0001f600\u0800\U00010000":"\ud7ff\U0010ffff" , "d" : { "e" : "f" } }'
).encode()


@pytest.mark.parametrize("cut", range(len(EVERY_TOKEN)))
def test_every_cut_of_every_token(cut: int) -> None:
    suffix = close_object(EVERY_TOKEN[:cut], b'"a":"last"')
    assert suffix is not None
    assert orjson.loads(EVERY_TOKEN[:cut] + suffix)["a"] == "last"


NOT_BEGINNINGS = [b"{}", b'{"a":1}', b'{"a":1} ', b"[", b"12", b'"a', b"<html>", b"[DO", b"{'"]


@pytest.mark.parametrize("text", NOT_BEGINNINGS)
def test_what_is_whole_or_no_object_cannot_be_closed(text: bytes) -> None:
    assert close_object(text, b'"a":1') is None
