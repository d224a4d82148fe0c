"""Small artefacts for tests: three clusters along the axes of a space of eight dimensions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lunar_proxy.scoring.clusters import Array, Clusters
from lunar_proxy.scoring.encoder import EmbedderId
from lunar_proxy.scoring.features import NAMES
from lunar_proxy.scoring.profiles import Profile, Source

DIMENSION = 8
EMBEDDER = EmbedderId("test", "e" * 64, DIMENSION, 128)


def axis(index: int) -> Array:
    return np.asarray(np.eye(DIMENSION, dtype=np.float32)[index])


def clusters(directory: Path, *, embedder: EmbedderId = EMBEDDER, k: int = 3) -> Clusters:
    centroids = np.eye(DIMENSION, dtype=np.float32)[:k]
    return Clusters(
        embedder=embedder,
        centroids=centroids,
        theta=40 * centroids,
        bias=np.zeros(k, dtype=np.float32),
        difficulty=np.zeros(k, dtype=np.float32),
        soft_difficulty=np.zeros(k, dtype=np.float32),
        landmarks=centroids[:2],
        centre=np.zeros(len(NAMES), dtype=np.float32),
        scale=np.ones(len(NAMES), dtype=np.float32),
        about={"sources": ["test"]},
    ).save(directory)


def profile(id: str, known: Clusters, psi: tuple[float, ...], **other: object) -> Profile:
    fields: dict[str, object] = {
        "n": (10.0,) * len(psi),
        "n_total": 30,
        "error": sum(psi) / len(psi),
        "source": "own",
        "created": "2026-01-02",
        "sources": (Source("synthetic", 30, 0.5),),
    }
    return Profile(id=id, clusters_sha256=known.sha256, psi=psi, **{**fields, **other})  # type: ignore[arg-type]
