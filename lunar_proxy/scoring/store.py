"""Vectors on disk, by a hash of their text, so that a second run of a tool takes seconds."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np

from .clusters import write_atomically
from .encoder import Vector
from .text import crop


class VectorStore:
    """One file for one embedder; without a path it only remembers. A damaged file is begun anew."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._found = {} if path is None else _read(path)

    def __contains__(self, text: str) -> bool:
        return _key(text) in self._found

    def __len__(self) -> int:
        return len(self._found)

    def get(self, text: str) -> Vector:
        return self._found[_key(text)]

    def put(self, text: str, vector: Vector) -> None:
        self._found[_key(text)] = vector

    def save(self) -> None:
        if self._path is None or not self._found:
            return
        keys = np.array([np.frombuffer(key, dtype=np.uint8) for key in self._found])
        vectors = np.array(list(self._found.values()), dtype=np.float32)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, lambda file: np.savez(file, keys=keys, vectors=vectors))


def _read(path: Path) -> dict[bytes, Vector]:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            keys, vectors = stored["keys"], stored["vectors"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    return {key.tobytes(): vector for key, vector in zip(keys, vectors, strict=True)}


def _key(text: str) -> bytes:
    return hashlib.blake2b(crop(text).encode(), digest_size=16).digest()
