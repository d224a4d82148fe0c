from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.core.multipart import FormModel, ModelFinder, boundary


@pytest.mark.parametrize(
    ("content_type", "found"),
    [
        (b"multipart/form-data; boundary=abc", b"abc"),
        (b'Multipart/Form-Data; charset=utf-8; Boundary="a b;c"', b"a b;c"),
        (b"multipart/form-data;boundary=----X; charset=utf-8", b"----X"),
        (b"multipart/form-data", None),
        (b"multipart/form-data; xboundary=abc", None),
        (b"application/json; boundary=abc", None),
        (b"", None),
    ],
)
def test_the_boundary_is_read_from_the_content_type(
    content_type: bytes, found: bytes | None
) -> None:
    assert boundary(content_type) == found


def part(disposition: str, value: bytes, more: bytes = b"") -> bytes:
    return (
        b"--b\r\nContent-Disposition: form-data"
        + disposition.encode()
        + b"\r\n"
        + more
        + (b"\r\n" + value + b"\r\n")
    )


FILE = part('; name="file"; filename="a.wav"', b"RIFF\r\n\x00--b\r\n-b")
MODEL = part('; name="model"', b"whisper-1")
END = b"--b--\r\n"
FORMS = {
    "first": (MODEL + FILE + END, "whisper-1"),
    "behind a file": (FILE + MODEL + END, "whisper-1"),
    "behind a preamble": (b"ignore me\r\n" + MODEL + END, "whisper-1"),
    "with a type": (part('; name="model"', b"m", b"Content-Type: text/plain\r\n") + END, "m"),
    "type first": (
        b"--b\r\nContent-Type: text/plain\r\ncontent-disposition: form-data; NAME=model\r\n\r\n"
        b"m\r\n--b--",
        "m",
    ),
    "blank around": (part('; name="model"', b" m\t") + END, "m"),
    "empty": (part('; name="model"', b"") + END, ""),
    "not utf-8": (part('; name="model"', b"\xff") + END, "\ufffd"),
    "a file that is named so": (
        part('; name="file"; filename="x; name=model;"', b"bytes") + MODEL + END,
        "whisper-1",
    ),
    "a quote in a file name": (
        part('; name="file"; filename="\\"; name=model"', b"bytes") + MODEL + END,
        "whisper-1",
    ),
    "another name": (part('; name="models"', b"m") + part('; xname="model"', b"m") + END, None),
    "no parameters": (part("", b"m") + b"--b\r\n\r\nm\r\n" + END, None),
    "no head": (b"--b\r\nm\r\n" + END, None),
    "not whole yet": (
        FILE + b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwh',
        None,
    ),
    "no form": (b"anything", None),
}


def find(chunks: list[bytes]) -> FormModel | None:
    finder = ModelFinder(b"b")
    for chunk in chunks:
        if (found := finder.feed(chunk)) is not None:
            assert finder.held[found.start : found.end].strip() == (
                found.value.encode() if found.value != "\ufffd" else b"\xff"
            )
            return found
    return None


@pytest.mark.parametrize("how", ["whole", "bytewise"])
@pytest.mark.parametrize(("form", "value"), FORMS.values(), ids=FORMS.keys())
def test_the_model_is_found_by_the_name_of_its_part(
    form: bytes, value: str | None, how: str
) -> None:
    chunks = [form] if how == "whole" else [form[i : i + 1] for i in range(len(form))]
    found = find(chunks)
    assert (None if found is None else found.value) == value


def test_a_boundary_inside_a_file_without_its_line_ends_is_the_files() -> None:
    found = find([part('; name="file"', b"x--b\r\nname=model") + MODEL + END])
    assert found is not None
    assert found.value == "whisper-1"


@given(st.sets(st.integers(0, len(FILE + MODEL + END))))
def test_any_split_finds_the_same(cuts: set[int]) -> None:
    form = FILE + MODEL + END
    bounds = [0, *sorted(cuts), len(form)]
    assert find([form[a:b] for a, b in pairwise(bounds)]) == find([form])
