"""Reading the JSON that orjson refuses: it holds numbers in doubles and text in UTF-8, and says no
where they do not fit.

    read_request   `1e400` is a number like any other (RFC 8259 6) and is passed on as it is spelt.
                   NaN and half a surrogate pair are refused here, as providers would
    read_answer    whatever Python's parser takes, NaN in a logprob or half an emoji included: the
                   answer is paid for, and most of its clients would have read it

Both raise orjson's error, with the place where it stopped.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import orjson

# The second look is slow, and strangers decide how often it is taken.
_MAX_SECOND_LOOK = 1024 * 1024


def read_request(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as refused:
        if len(body) > _MAX_SECOND_LOOK:
            raise
        try:
            doc = json.loads(body.decode(), parse_int=_whole, parse_constant=_no_json)
            json.dumps(doc, ensure_ascii=False).encode()  # fails on half a surrogate pair
        except (ValueError, RecursionError):
            raise refused from None
        return doc


def read_answer(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as refused:
        try:
            return json.loads(body.decode("utf-8-sig"), parse_int=_whole)
        except (ValueError, RecursionError):
            raise refused from None


def _whole(digits: str) -> int | float:
    """As orjson does it, so that no sum can meet a whole number that no float can be."""
    return int(digits) if len(digits) < 19 else float(digits)


def _no_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
