"""Finding the `model` of a multipart form, and replacing it, without reading the files in it.

RFC 7578: parts stand between lines of `--boundary`; a part's name is in its Content-Disposition.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_BOUNDARY = re.compile(rb'boundary=(?:"([^"]{1,70})"|([^;\s"]{1,70}))', re.IGNORECASE)
_NAME = re.compile(rb'content-disposition:[^\r\n]*;\s*name="?model"?\s*(?:;|\r\n)', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FormModel:
    """The value of the part named `model`: its text, and where its bytes stand."""

    value: str
    start: int
    end: int


def boundary(content_type: bytes) -> bytes | None:
    """None when it is not multipart (RFC 2046 5.1.1)."""
    if not content_type.lower().startswith(b"multipart/"):
        return None
    match = _BOUNDARY.search(content_type)
    return (match[1] or match[2]) if match else None


def find_model(body: bytes, boundary: bytes) -> FormModel | None:
    """In as much of the body as is here; None: not there, or not whole yet."""
    delimiter = b"--" + boundary
    start = body.find(delimiter)
    while start >= 0:
        head = start + len(delimiter) + 2
        end = body.find(b"\r\n\r\n", start)
        following = body.find(b"\r\n" + delimiter, head)
        if end < 0 or following < 0:
            return None
        if end < following and _NAME.search(body[head : end + 2]):
            value = body[end + 4 : following]
            return FormModel(value.decode("utf-8", "replace").strip(), end + 4, following)
        start = following + 2
    return None
