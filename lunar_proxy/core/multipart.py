"""Finding the `model` of a multipart form while it arrives, without reading the files in it.

RFC 7578: parts stand between lines of `--boundary`; a part's name is in its Content-Disposition.
curl users put the file first, so the form may be long before it names its model: every byte is
looked at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_BOUNDARY = re.compile(rb';\s*boundary=(?:"([^"]{1,70})"|([^;\s"]{1,70}))', re.IGNORECASE)
_DISPOSITION = re.compile(rb"^content-disposition:([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
# RFC 9110 5.6.6. Quoted values are matched whole, so a file may be named `x; name=model`.
_PARAMETER = re.compile(rb';\s*([^\s=;"]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))')


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


class ModelFinder:
    """feed() the form until it gives the model; `held` is what was fed."""

    __slots__ = ("_delimiter", "_part", "_scanned", "held")

    def __init__(self, boundary: bytes) -> None:
        self.held = bytearray()
        self._delimiter = b"--" + boundary
        self._part: int | None = None  # where the part under way has its delimiter
        self._scanned = 0  # up to here there is no other delimiter

    def feed(self, chunk: bytes) -> FormModel | None:
        """The first part named `model`, once it is whole."""
        self.held += chunk
        while (following := self._next_delimiter()) is not None:
            found = None if self._part is None else self._read(self._part, following - 2)
            self._part = following
            self._scanned = following + len(self._delimiter)
            if found is not None:
                return found
        return None

    def _next_delimiter(self) -> int | None:
        """The first may open the body; the others stand behind a line end."""
        wanted = self._delimiter if self._part is None else b"\r\n" + self._delimiter
        at = self.held.find(wanted, self._scanned)
        if at < 0:
            self._scanned = max(self._scanned, len(self.held) - len(wanted) + 1)
            return None
        return at + len(wanted) - len(self._delimiter)

    def _read(self, start: int, end: int) -> FormModel | None:
        head_end = self.held.find(b"\r\n\r\n", start, end)
        if head_end < 0 or _name(bytes(self.held[start:head_end])) != b"model":
            return None
        value = bytes(self.held[head_end + 4 : end])
        return FormModel(value.decode("utf-8", "replace").strip(), head_end + 4, end)


def _name(head: bytes) -> bytes | None:
    line = _DISPOSITION.search(head)
    for name, quoted, bare in _PARAMETER.findall(line[1]) if line else ():
        if name.lower() == b"name":
            return bytes(quoted or bare)
    return None
