"""A sentence encoder without a network: a text is the mean of its tokens' vectors.

Made once from a real encoder (`distill`), it needs no onnxruntime, 8 MB and a tenth of a
millisecond. What it loses is word order and context. `table.npz` holds

codes   int8 [vocabulary, D]
scales  float32 [vocabulary]; the vector of a token is its code times its scale, which also carries
        the token's weight: what is in every text tells nothing of any
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .clusters import write_atomically
from .encoder import (
    EmbedderId,
    Encoder,
    Encodes,
    Vector,
    load_tokenizer,
    read_manifest,
    read_weights,
    unit,
)
from .errors import BadFile
from .text import crop

TABLE = "table.npz"


class StaticEncoder:
    quick = True

    def __init__(self, directory: Path) -> None:
        manifest = read_manifest(directory)
        self._tokenizer = load_tokenizer(directory, manifest.tokens)
        self._codes, self._scales, sha256 = _load_table(directory / TABLE, manifest.sha256)
        if (known := self._tokenizer.get_vocab_size()) > len(self._codes):
            raise BadFile(f"{directory / TABLE}: {len(self._codes)} tokens, tokenizer has {known}")
        self.id = EmbedderId(manifest.name, sha256, self._codes.shape[1], manifest.tokens)

    def encode(self, text: str) -> Vector:
        """float32 [dimension], norm 1; zeros for a text without tokens."""
        ids = self._tokenizer.encode(crop(text), add_special_tokens=False).ids
        return unit(self._scales[ids] @ self._codes[ids].astype(np.float32))


def open_encoder(directory: Path) -> Encodes:
    """Whichever kind of encoder the directory holds. Raises ScoringError."""
    return StaticEncoder(directory) if (directory / TABLE).exists() else Encoder(directory)


def _load_table(
    path: Path, expected: str | None
) -> tuple[NDArray[np.int8], NDArray[np.float32], str]:
    data, sha256 = read_weights(path, expected)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            codes, scales = stored["codes"], stored["scales"]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BadFile(f"{path}: not a table of token vectors: {error}") from error
    if codes.dtype != np.int8 or codes.ndim != 2 or scales.shape != codes.shape[:1]:
        raise BadFile(f"{path}: codes {codes.dtype} {codes.shape}, scales {scales.shape}")
    if not np.isfinite(scales).all():
        raise BadFile(f"{path}: scales holds numbers that are not finite")
    return codes, scales.astype(np.float32), sha256


def save_static(
    directory: Path, codes: NDArray[np.int8], scales: NDArray[np.float32], name: str, like: Path
) -> StaticEncoder:
    """Write an encoder that reads as much of a text, by the same tokenizer, as that of `like`."""
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / TABLE, lambda file: np.savez(file, codes=codes, scales=scales))
    shutil.copyfile(like / "tokenizer.json", directory / "tokenizer.json")
    _, sha256 = read_weights(directory / TABLE, None)
    manifest = {"name": name, "tokens": read_manifest(like).tokens, "sha256": sha256}
    write_atomically(directory / "embedder.json", lambda file: _write(file, manifest))
    return StaticEncoder(directory)


def _write(file: Any, doc: dict[str, Any]) -> None:
    file.write(json.dumps(doc, indent=2).encode() + b"\n")
