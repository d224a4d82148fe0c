from __future__ import annotations

from lunar_proxy.core.script import Head


def test_header_fields_may_be_written_briefly_and_are_kept_as_pairs() -> None:
    assert Head(429, {"Retry-After": "1"}) == Head(429, ((b"retry-after", b"1"),))
    assert (Head().status, Head().headers) == (200, ())
