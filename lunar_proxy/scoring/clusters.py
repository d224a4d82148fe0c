"""The map from a prompt to the clusters the models were measured on, and the file it is kept in.

Clusters is shared by all models and changes seldom; a model's profile belongs to one Clusters by
its sha256. It holds

centroids   float32 [K, D], K-means over unlabelled prompts, for people and for a fresh start
theta, bias float32 [K, D], [K]: membership is softmax(theta e + bias). Untrained, theta is
            beta x centroids (soft K-means); trained, it is UniRoute's LearnedMap (arXiv
            2502.08773, section 5.2), fitted to the labels of many other models
difficulty, soft_difficulty
            float32 [K], by either membership: log-odds of a wrong answer against the average, the
            Rasch model's item difficulty; the guess for a model not yet tried on that cluster
landmarks   float32 [L, D], unit vectors; how near a prompt is to each is what a correction may
            be learned on where labels are many
centre, scale  float32 [13], of the surface features
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .encoder import EmbedderId
from .errors import BadFile, Mismatch
from .features import NAMES

Array = NDArray[np.float32]

SCHEMA = 1
FILE = "clusters.npz"
# Temperature of the soft K-means (UniRoute uses a hard one); 20 to 80 are alike.
BETA = 40.0
# Width of the landmarks' bell in Euclidean distance between unit vectors: a third of the usual
# distance to the next landmark, by held-out error on MMLU.
LANDMARK_WIDTH = 0.28
_ARRAYS = (
    "centroids",
    "theta",
    "bias",
    "difficulty",
    "soft_difficulty",
    "landmarks",
    "centre",
    "scale",
)


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    embedder: EmbedderId
    centroids: Array
    theta: Array
    bias: Array
    difficulty: Array
    soft_difficulty: Array
    landmarks: Array
    centre: Array
    scale: Array
    about: dict[str, Any] = field(default_factory=dict)  # sources, date, prompts, held-out loss
    sha256: str = ""  # of the file it was loaded from or saved to
    _stacked: Array = field(init=False, repr=False)
    _offset: Array = field(init=False, repr=False)
    width: int = field(init=False)  # of `basis`

    def __post_init__(self) -> None:
        narrow = np.float32(1 / LANDMARK_WIDTH**2)
        norms = (self.centroids * self.centroids).sum(axis=1) / 2
        stacked = (self.theta, BETA * self.centroids, narrow * self.landmarks)
        offsets = (self.bias, -BETA * norms, np.full(len(self.landmarks), -narrow))
        object.__setattr__(self, "_stacked", np.concatenate(stacked).astype(np.float32))
        object.__setattr__(self, "_offset", np.concatenate(offsets).astype(np.float32))
        object.__setattr__(self, "width", int(self.blocks["one"].stop))

    @property
    def k(self) -> int:
        return len(self.bias)

    @property
    def blocks(self) -> dict[str, slice]:
        """Where the parts of `basis` lie."""
        sizes = {
            "member": self.k,
            "soft": self.k,
            "vector": self.embedder.dimension,
            "surface": len(self.centre),
            "near": len(self.landmarks),
            "one": 1,
        }
        ends = list(accumulate(sizes.values()))
        places = zip(sizes.items(), ends, strict=True)
        return {name: slice(end - size, end) for (name, size), end in places}

    def membership(self, vectors: Array) -> Array:
        """[..., D] -> [..., K], each row sums to 1."""
        return softmax(vectors @ self.theta.T + self.bias)

    def standard(self, features: Array) -> Array:
        """Surface features as counted -> clipped at 4 standard deviations, of norm 1."""
        scaled = np.clip((features - self.centre) / self.scale, -4, 4)
        return np.asarray(scaled / np.maximum(_norm(scaled), 1e-6), dtype=np.float32)

    def basis(self, vectors: Array, features: Array) -> Array:
        """What every model's error is a linear function of: [..., width].

        Both memberships, the vector, the surface features, the landmarks, and a constant 1.
        """
        # One product for all three maps: here a call of numpy costs as much as its arithmetic.
        logits = vectors @ self._stacked.T + self._offset
        k, shape = self.k, (*vectors.shape[:-1], self.width)
        bells = np.exp(logits[..., 2 * k :])
        basis = np.empty(shape, dtype=np.float32)
        basis[..., :k] = softmax(logits[..., :k])
        basis[..., k : 2 * k] = softmax(logits[..., k : 2 * k])
        at = 2 * k + self.embedder.dimension
        basis[..., 2 * k : at] = vectors
        basis[..., at : at + len(self.centre)] = self.standard(features)
        basis[..., at + len(self.centre) : -1] = bells / np.maximum(_norm(bells), 1e-12)
        basis[..., -1] = 1
        return basis

    def save(self, directory: Path) -> Clusters:
        """Write `clusters.npz`; gives the same Clusters with the file's sha256."""
        meta = {"schema": SCHEMA, "embedder": self.embedder.to_json(), "about": self.about}
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        # float16 halves the file; a membership moves by less than 1e-3.
        halves = {"centroids", "theta", "landmarks"}
        stored = {
            name: array.astype(np.float16 if name in halves else np.float32)
            for name, array in arrays.items()
        }
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / FILE
        write_atomically(path, lambda file: _savez(file, json.dumps(meta), stored))
        return load_clusters(directory)


def _norm(values: Array) -> Array:
    return np.asarray(np.sqrt((values * values).sum(axis=-1, keepdims=True)))


def softmax(logits: Array) -> Array:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=np.float32)


def _savez(file: IO[bytes], meta: str, arrays: dict[str, Any]) -> None:
    np.savez_compressed(file, meta=np.array(meta), **arrays)


def load_clusters(directory: Path) -> Clusters:
    """Raises BadFile or Mismatch; nothing in the file is ever executed (no pickle)."""
    path = directory / FILE
    try:
        data = path.read_bytes()
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            meta = json.loads(str(stored["meta"]))
            arrays = {name: stored[name].astype(np.float32) for name in _ARRAYS}
        if meta["schema"] != SCHEMA:
            raise Mismatch(f"{path}: schema {meta['schema']}, this version reads {SCHEMA}: refit")
        embedder = EmbedderId.from_json(meta["embedder"])
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise BadFile(f"{path}: not a clusters file: {error}") from error
    _check_shapes(path, embedder.dimension, arrays)
    return Clusters(embedder, **arrays, about=meta["about"], sha256=_sha256(data))


def _check_shapes(path: Path, d: int, arrays: dict[str, Array]) -> None:
    k, f = arrays["bias"].size, len(NAMES)
    expected = {
        "centroids": (k, d),
        "theta": (k, d),
        "difficulty": (k,),
        "soft_difficulty": (k,),
        "bias": (k,),
        "landmarks": (arrays["landmarks"].size // d, d),
        "centre": (f,),
        "scale": (f,),
    }
    for name, shape in expected.items():
        array = arrays[name]
        if array.shape != shape:
            raise BadFile(f"{path}: {name} is {array.shape}, expected {shape}")
        if not np.isfinite(array).all():
            raise BadFile(f"{path}: {name} holds numbers that are not finite")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """A reader sees the old file or the new one, never half of it; so does a crash."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp makes it 0600, but the proxy may run as another user
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
