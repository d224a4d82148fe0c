from __future__ import annotations

from math import inf, nan
from typing import Any

import orjson
import pytest

from lunar_proxy.core.answer import text_of
from lunar_proxy.core.jsonread import read_answer, read_request

DEEP = b"[" * 100_000 + b"]" * 100_000

WIDE = {"a": inf, "b": 7}

# name -> the text, what a request with it says, what an answer with it says; None: it is refused
TEXTS: dict[str, tuple[bytes, Any, Any]] = {
    "plain": (b'{"a":[1,"x"]}', {"a": [1, "x"]}, {"a": [1, "x"]}),
    "a number beyond a double": (b'{"a":1E400}', {"a": inf}, {"a": inf}),
    "a whole number beyond it": (b'{"a":1%b,"b":7}' % (b"0" * 400), WIDE, WIDE),
    "NaN": (b'{"a":NaN}', None, {"a": nan}),
    "minus infinity": (b'{"a":-Infinity}', None, {"a": -inf}),
    "half a surrogate pair": (rb'{"a":"\ud83d"}', None, {"a": "\ud83d"}),
    "that, and such a number": (rb'{"a":"\ud83d","b":1e400}', None, {"a": "\ud83d", "b": inf}),
    "invalid UTF-8": (b'{"a":"\xff"}', None, None),
    "a byte order mark": (b'\xef\xbb\xbf{"a":1}', None, {"a": 1}),
    "a cut document": (b'{"a":1', None, None),
    "two documents": (b"{}{}", None, None),
    "nothing": (b"", None, None),
    "100000 levels": (DEEP, None, None),
    "100000 levels, and such a number": (b"[1e400," + DEEP + b"]", None, None),
}


@pytest.mark.parametrize(("text", "request_doc", "answer_doc"), TEXTS.values(), ids=TEXTS)
def test_reads(text: bytes, request_doc: Any, answer_doc: Any) -> None:
    for read, expected in ((read_request, request_doc), (read_answer, answer_doc)):
        if expected is None:
            with pytest.raises(orjson.JSONDecodeError):
                read(text)
        else:
            assert repr(read(text)) == repr(expected)  # since NaN is equal to nothing


def test_strangers_get_no_second_look_at_a_large_body() -> None:
    with pytest.raises(orjson.JSONDecodeError):
        read_request(b'{"a":1e400,"b":"' + b"x" * 1024 * 1024 + b'"}')


def test_half_a_character_can_be_counted() -> None:
    doc = read_answer(rb'{"choices":[{"message":{"content":"a\ud83d"}}]}')
    assert text_of(doc) == "a?"
