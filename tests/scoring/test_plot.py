import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from lunar_proxy.scoring.plot import HEIGHT, WIDTH, Series, draw, encode


def decoded(png: bytes) -> NDArray[np.uint8]:
    """Read back the one kind of PNG we write, checking every chunk's CRC."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at, found = 8, {}
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack(">I", png[at + 8 + length : at + 12 + length])[0] == zlib.crc32(
            kind + data
        )
        found[kind] = data
        at += 12 + length
    width, height = struct.unpack(">II", found[b"IHDR"][:8])
    rows = np.frombuffer(zlib.decompress(found[b"IDAT"]), np.uint8).reshape(height, width * 3 + 1)
    assert list(found) == [b"IHDR", b"IDAT", b"IEND"]
    return rows[:, 1:].reshape(height, width, 3)


def test_what_is_encoded_can_be_decoded() -> None:
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    assert np.array_equal(decoded(encode(image)), image)


def test_draws_each_series_in_its_colour() -> None:
    line = Series("line", [0, 1], [0, 1])
    dots = Series("dots", [0, 0.5, 1], [1, 0.5, 0], dots=4)
    image = decoded(draw([line, dots], title="Title", x_label="x", y_label="y"))
    assert image.shape == (HEIGHT, WIDTH, 3)
    colours = {tuple(colour) for colour in image.reshape(-1, 3).tolist()}
    assert {(0, 114, 178), (230, 159, 0), (40, 40, 40)} <= colours


def test_draws_a_single_point_and_nothing_at_all() -> None:
    for series in ([Series("one", [0.3], [0.3])], []):
        assert decoded(draw(series, title="", x_label="", y_label="")).shape == (HEIGHT, WIDTH, 3)
