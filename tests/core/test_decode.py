from __future__ import annotations

import gzip
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.core.decode import decoder
from lunar_proxy.core.errors import BadAnswer

TEXT = b'data: {"choices":[]}\n\n' * 20


def raw_deflate(data: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflate.compress(data) + deflate.flush()


# name -> Content-Encoding, the body, what is in it
BODIES = {
    "gzip": (b"gzip", gzip.compress(TEXT), TEXT),
    "x-gzip, spelled loosely": (b" X-GZIP ", gzip.compress(TEXT), TEXT),
    "gzip in members": (b"gzip", gzip.compress(b"a") + gzip.compress(b"b"), b"ab"),
    "gzip with padding": (b"gzip", gzip.compress(TEXT) + b"\0\0", TEXT),
    "deflate": (b"deflate", zlib.compress(TEXT), TEXT),
    "deflate without a head": (b"deflate", raw_deflate(TEXT), TEXT),
    "deflate that is gzip": (b"deflate", gzip.compress(TEXT), TEXT),
    "deflate with more behind": (b"deflate", zlib.compress(TEXT) + b"x", TEXT),
    "nothing": (b"gzip", b"", b""),
    "cut short": (b"gzip", gzip.compress(b"", mtime=0)[:8], b""),
}


@pytest.mark.parametrize("how", ["whole", "bytewise", "halves"])
@pytest.mark.parametrize(("coding", "body", "text"), BODIES.values(), ids=BODIES.keys())
def test_compression_is_undone(coding: bytes, body: bytes, text: bytes, how: str) -> None:
    middle = len(body) // 2
    cuts = {
        "whole": [body],
        "bytewise": [body[i : i + 1] for i in range(len(body))],
        "halves": [body[:middle], body[middle:]],
    }
    inflate = decoder(coding)
    assert inflate is not None
    assert b"".join([inflate.feed(part) for part in cuts[how]]) == text


@given(st.binary(), st.sets(st.integers(0, 200)))
def test_any_split_of_a_headless_deflate_is_the_same(text: bytes, cuts: set[int]) -> None:
    body = raw_deflate(text)
    inflate = decoder(b"deflate")
    assert inflate is not None
    bounds = [0, *sorted(cut for cut in cuts if cut < len(body)), len(body)]
    assert b"".join([inflate.feed(body[a:b]) for a, b in pairwise(bounds)]) == text


def test_an_event_can_be_read_before_the_next_is_there() -> None:
    deflate = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    inflate = decoder(b"gzip")
    assert inflate is not None
    for event in (b"data: 1\n\n", b"data: 2\n\n"):
        flushed = deflate.compress(event) + deflate.flush(zlib.Z_SYNC_FLUSH)
        assert inflate.feed(flushed) == event


@pytest.mark.parametrize("coding", [None, b"", b"identity", b"br", b"zstd", b"gzip, br"])
def test_what_cannot_be_undone_is_left(coding: bytes | None) -> None:
    assert decoder(coding) is None


@pytest.mark.parametrize(
    ("coding", "body"),
    [(b"gzip", b"not gzip at all"), (b"deflate", b"\xff\xff\xff\xff"), (b"gzip", TEXT)],
)
def test_damage_is_a_bad_answer(coding: bytes, body: bytes) -> None:
    inflate = decoder(coding)
    assert inflate is not None
    with pytest.raises(BadAnswer):
        inflate.feed(body)
