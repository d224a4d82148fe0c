"""From many prompts, some of them graded for many models, to Clusters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .clusters import Array, Clusters
from .encoder import EmbedderId
from .fit import Floats
from .kmeans import kmeans
from .learn import Learned, Map, difficulty, learn_map, soft_map

KS = (16, 32, 64)
# Labels are needed to learn a map; below this the soft one is kept.
MIN_LABELLED, MIN_MODELS = 400, 4
_LANDMARKS = 384
# A larger K must be better by more than the noise of an eighth held out.
_WORTH = 0.001

Progress = Callable[[str, float], None]


def build_clusters(
    embedder: EmbedderId,
    vectors: Array,
    features: Array,
    errors: Floats | None,
    *,
    ks: Sequence[int] = KS,
    learned: bool = True,
    seed: int = 0,
    about: dict[str, Any] | None = None,
    progress: Progress = lambda _what, _share: None,
) -> Clusters:
    """`vectors` [n, D] and `features` [n, 13] of all prompts; `errors` [n, models], nan where a
    model was not asked.

    K is the least of `ks` whose map predicts held-out errors within .001 of the best; without
    enough labels, the largest that leaves 50 prompts a cluster.
    """
    rng = np.random.default_rng(seed)
    labelled = _labelled(errors)
    if errors is None or not labelled.any():
        learned = False
    fitting = [k for k in sorted(ks) if k * 50 <= len(vectors)] or [min(ks)]
    if not learned or len(fitting) == 1:
        fitting = fitting[-1:]
    found: dict[int, tuple[Array, Learned | None]] = {}
    for k in fitting:
        centroids = kmeans(vectors, k, rng)
        trained = None
        if learned and errors is not None:

            def report(share: float, k: int = k) -> None:
                progress(f"map of {k}", share)

            trained = learn_map(
                vectors[labelled],
                errors[labelled],
                soft_map(centroids),
                np.random.default_rng(seed),
                progress=report,
            )
        found[k] = (centroids, trained)
    centroids, trained = found[_least(found)]
    final = trained.map if trained else soft_map(centroids)
    landmarks = kmeans(vectors[:: max(1, len(vectors) // 6000)], _LANDMARKS, rng)
    progress("landmarks", 1.0)
    losses = {str(k): round(t.loss, 4) for k, (_, t) in found.items() if t}
    return Clusters(
        embedder=embedder,
        centroids=centroids,
        theta=final.theta,
        bias=final.bias,
        difficulty=_difficulty(final, vectors, errors, labelled),
        soft_difficulty=_difficulty(soft_map(centroids), vectors, errors, labelled),
        landmarks=landmarks / np.linalg.norm(landmarks, axis=1, keepdims=True),
        centre=features.mean(axis=0),
        scale=features.std(axis=0) + np.float32(1e-6),
        about={**(about or {}), "prompts": len(vectors), "held_out_loss": losses},
    )


def _labelled(errors: Floats | None) -> NDArray[np.bool_]:
    if errors is None:
        return np.zeros(0, dtype=bool)
    known = np.isfinite(errors)
    rows = known.any(axis=1)
    enough = rows.sum() >= MIN_LABELLED and (known.sum(axis=0) >= 50).sum() >= MIN_MODELS
    return np.asarray(rows & bool(enough))


def _least(found: dict[int, tuple[Array, Learned | None]]) -> int:
    losses = {k: trained.loss for k, (_, trained) in found.items() if trained is not None}
    if not losses:
        return max(found)
    return min(k for k, loss in losses.items() if loss <= min(losses.values()) + _WORTH)


def _difficulty(
    membership: Map,
    vectors: Array,
    errors: Floats | None,
    labelled: NDArray[np.bool_],
) -> Array:
    if errors is None or not labelled.any():
        return np.zeros(len(membership.bias), dtype=np.float32)
    return difficulty(membership.membership(vectors[labelled]), errors[labelled])
