"""Small PNG pictures, of lines and dots, drawn with numpy alone.

A plotting library would be the heaviest dependency of the proxy, for two pictures.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

WIDTH, HEIGHT = 960, 640
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 30, 50, 70
# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS: tuple[Colour, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
    (86, 180, 233),
)
_INK, _GRID = (40, 40, 40), (225, 225, 225)

# A 3 x 5 font: a glyph is five octal digits, a row each, the left pixel the highest bit.
_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ.-/%+()_:,"
_GLYPHS = (
    "75557262277174771717557117471774757711227575775717"  # 0-9
    "25755656563444365556746477464434553557557222711152"  # A-J
    "55655444475775565555255526564425563656553421672222"  # K-T
    "555575555255775552555522271247"  # U-Z
    "000020070011244512450272012221422240000702020" + "00024"
)
_FONT = {letter: _GLYPHS[5 * at : 5 * at + 5] for at, letter in enumerate(_LETTERS)}


@dataclass(frozen=True, slots=True)
class Series:
    """Points joined by a line, or dots where `dots` is their radius in pixels."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dots: int = 0


def draw(series: Sequence[Series], *, title: str, x_label: str, y_label: str) -> bytes:
    """A PNG file of WIDTH x HEIGHT."""
    image = np.full((HEIGHT, WIDTH, 3), 255, dtype=np.uint8)
    frame = _Frame.around(series)
    _axes(image, frame)
    for index, one in enumerate(series):
        colour = COLOURS[index % len(COLOURS)]
        _plot(image, frame, one, colour)
        if one.name:
            _text(image, WIDTH - 330, HEIGHT - 110 - 20 * index, one.name, colour)
    _text(image, _LEFT, 18, title, _INK)
    _text(image, WIDTH // 2 - 8 * len(x_label) // 2, HEIGHT - 24, x_label, _INK)
    _text(image, 8, _TOP - 18, y_label, _INK)
    return encode(image)


@dataclass(frozen=True, slots=True)
class _Frame:
    x0: float
    x1: float
    y0: float
    y1: float

    @classmethod
    def around(cls, series: Sequence[Series]) -> _Frame:
        x0, x1 = _range([value for one in series for value in one.x])
        y0, y1 = _range([value for one in series for value in one.y])
        return cls(x0, x1, y0, y1)

    def pixel(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x0) / (self.x1 - self.x0)
        up = (y - self.y0) / (self.y1 - self.y0)
        return (
            _LEFT + across * (WIDTH - _LEFT - _RIGHT),
            HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM),
        )


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = (high - low) * 0.04 or 0.5
    return low - margin, high + margin


def _axes(image: Image, frame: _Frame) -> None:
    for step in range(6):
        x = frame.x0 + (frame.x1 - frame.x0) * step / 5
        y = frame.y0 + (frame.y1 - frame.y0) * step / 5
        _line(image, frame.pixel(x, frame.y0), frame.pixel(x, frame.y1), _GRID, 0)
        _line(image, frame.pixel(frame.x0, y), frame.pixel(frame.x1, y), _GRID, 0)
        left, bottom = frame.pixel(x, frame.y0)
        _text(image, int(left) - 16, int(bottom) + 10, f"{x:.3g}", _INK)
        left, bottom = frame.pixel(frame.x0, y)
        _text(image, 30, int(bottom) - 5, f"{y:.3g}", _INK)
    corner = frame.pixel(frame.x0, frame.y0)
    _line(image, corner, frame.pixel(frame.x1, frame.y0), _INK, 0)
    _line(image, corner, frame.pixel(frame.x0, frame.y1), _INK, 0)


def _plot(image: Image, frame: _Frame, series: Series, colour: Colour) -> None:
    points = [frame.pixel(x, y) for x, y in zip(series.x, series.y, strict=True)]
    if series.dots or len(points) == 1:
        for point in points:
            _line(image, point, point, colour, series.dots or 5)
        return
    for start, end in pairwise(points):
        _line(image, start, end, colour, 1)


def _line(
    image: Image, start: tuple[float, float], end: tuple[float, float], colour: Colour, radius: int
) -> None:
    steps = int(max(abs(end[0] - start[0]), abs(end[1] - start[1]))) + 1
    x = np.linspace(start[0], end[0], steps + 1).round().astype(int)
    y = np.linspace(start[1], end[1], steps + 1).round().astype(int)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dx * dx + dy * dy <= radius * radius + 1:
                inside_y = np.clip(y + dy, 0, HEIGHT - 1)
                image[inside_y, np.clip(x + dx, 0, WIDTH - 1)] = colour


def _text(image: Image, left: int, top: int, text: str, colour: Colour, scale: int = 2) -> None:
    for index, letter in enumerate(text.upper()):
        rows = _FONT.get(letter, "00000")
        bits = np.array([[int(row) >> shift & 1 for shift in (2, 1, 0)] for row in rows])
        dots = np.kron(bits, np.ones((scale, scale), dtype=int)).astype(bool)
        x = left + index * 4 * scale
        patch = image[top : top + dots.shape[0], x : x + dots.shape[1]]
        if patch.shape[:2] == dots.shape:
            patch[dots] = colour


def encode(image: Image) -> bytes:
    """RGB bytes -> PNG (ISO/IEC 15948): signature, IHDR, IDAT, IEND."""
    height, width, _ = image.shape
    rows = np.concatenate(
        [np.zeros((height, 1), dtype=np.uint8), image.reshape(height, width * 3)], axis=1
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(rows.tobytes(), 9)
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
