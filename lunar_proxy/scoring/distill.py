"""From a sentence encoder to a table of token vectors (`static`).

As Model2Vec does (Tulkens and van Dongen, 2024; MIT): every token of the vocabulary is encoded
alone, principal components keep most of that in fewer numbers, and the token is weighted by how
rare it is. A vocabulary lists its words by frequency, so Zipf's law gives that without a corpus:
p = 1 / rank, and SIF's weight a / (a + p) (Arora et al. 2017).

The same encoder gives the same table on the same machine; int8 kernels of other CPUs round
otherwise, in the fourth digit.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .encoder import EmbedderId, Vector

Floats = NDArray[np.float64]

DIMENSIONS = 256
_SIF = 1e-4


class Teacher(Protocol):
    """`encoder.Encoder`, as far as it is learned from; `encode_token` is called from threads."""

    id: EmbedderId

    @property
    def vocabulary(self) -> int: ...

    def encode_token(self, id: int) -> Vector: ...


def distill(
    encoder: Teacher,
    dimensions: int = DIMENSIONS,
    *,
    progress: Callable[[float], None] = lambda _: None,
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes [vocabulary, dimensions] and scales [vocabulary]. About a minute for 30,000 tokens."""
    vectors = np.empty((encoder.vocabulary, encoder.id.dimension))
    with ThreadPoolExecutor(2) as pool:
        for id, vector in enumerate(pool.map(encoder.encode_token, range(len(vectors)))):
            vectors[id] = vector
            if id % 500 == 499 or id + 1 == len(vectors):
                progress((id + 1) / len(vectors))
    return quantize(weighted(principal(vectors, dimensions)))


def principal(vectors: Floats, dimensions: int) -> Floats:
    """The first principal components of `vectors`, [n, dimensions]."""
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :dimensions]
    # An axis has no sign of its own: its largest part is made positive, on every machine alike.
    largest = np.abs(axes).argmax(axis=0)
    return np.asarray(centred @ (axes * np.sign(axes[largest, np.arange(axes.shape[1])])))


def weighted(vectors: Floats) -> Floats:
    """Each row, in the order of frequency, times how much its token tells."""
    shares = 1 / np.arange(2, len(vectors) + 2)
    shares /= shares.sum()
    return np.asarray(vectors * (_SIF / (_SIF + shares))[:, None])


def quantize(vectors: Floats) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes in -127..127 and the scale of each row."""
    scales = np.maximum(np.abs(vectors).max(axis=1) / 127, 1e-12)
    codes = np.round(vectors / scales[:, None]).astype(np.int8)
    return codes, scales.astype(np.float32)
