"""What the tools do, without their printing: rows in, Clusters, Profiles and figures out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .build import MIN_LABELLED, MIN_MODELS, build_clusters
from .clusters import Array, Clusters
from .errors import ScoringError
from .evaluate import Figures, Floats, Pool, figures, nearest_neighbours
from .features import surface
from .fit import Fitted, fit_profiles
from .profiles import Profile, Source
from .router import Router
from .rows import Row, answer_tokens, complete, draw, errors_of, models_of
from .static import open_encoder
from .store import VectorStore

Progress = Callable[[str, float], None]
# US dollars per million tokens of prompt and of answer, by model; None where unknown.
Prices = Callable[[str], tuple[float, float] | None]


def quiet(_what: str, _share: float) -> None:
    """A Progress that shows nothing."""


class Lens:
    """Prompts as the router sees them: vectors (remembered on disk) and surface features."""

    def __init__(self, directory: Path, store: VectorStore, progress: Progress = quiet) -> None:
        self._encoder = open_encoder(directory)
        self.embedder = self._encoder.id
        self._store = store
        self._progress = progress

    def vectors(self, rows: Sequence[Row]) -> Array:
        """float32 [rows, D]. About 6 ms a prompt and core the first time."""
        texts = [row.prompt for row in rows]
        missing = list(dict.fromkeys(text for text in texts if text not in self._store))
        with ThreadPoolExecutor(2) as pool:
            for done, vector in enumerate(pool.map(self._encoder.encode, missing)):
                self._store.put(missing[done], vector)
                if done % 50 == 49 or done + 1 == len(missing):
                    self._progress("embedding", (done + 1) / len(missing))
        if missing:
            self._store.save()
        found = [self._store.get(text) for text in texts]
        return np.array(found, dtype=np.float32).reshape(len(rows), self.embedder.dimension)

    def basis(self, clusters: Clusters, rows: Sequence[Row]) -> Array:
        self.embedder.require(clusters.embedder, "clusters.npz")
        return clusters.basis(self.vectors(rows), features_of(rows))


def features_of(rows: Iterable[Row]) -> Array:
    return np.array([surface(row.prompt) for row in rows], dtype=np.float32)


def make_clusters(
    lens: Lens,
    rows: Sequence[Row],
    training: Sequence[str],
    *,
    seed: int = 0,
    ks: Sequence[int] | None = None,
    learned: bool = True,
    progress: Progress = quiet,
) -> Clusters:
    """From all prompts, and the labels of the `training` models if there are any."""
    return build_clusters(
        lens.embedder,
        lens.vectors(rows),
        features_of(rows),
        errors_of(rows, training) if training else None,
        learned=learned,
        seed=seed,
        about={"datasets": sorted({row.dataset for row in rows if row.dataset})},
        progress=progress,
        **({"ks": ks} if ks else {}),
    )


def can_train(rows: Sequence[Row], training: Sequence[str]) -> bool:
    """Do these labels suffice to learn a map from?"""
    known = np.isfinite(errors_of(rows, training))
    return bool(
        known.size
        and known.any(axis=1).sum() >= MIN_LABELLED
        and (known.sum(axis=0) >= 50).sum() >= MIN_MODELS
    )


def make_profiles(
    clusters: Clusters,
    basis: Array,
    rows: Sequence[Row],
    models: Sequence[str],
    *,
    source: str,
    created: str,
    corrected: bool = True,
    seed: int = 0,
    progress: Progress = quiet,
) -> list[Profile]:
    """Profiles of models that all answered all of `rows`, chosen together."""
    errors = errors_of(rows, models)
    fitted = fit_profiles(
        clusters,
        basis,
        errors,
        corrected=corrected,
        seed=seed,
        progress=lambda share: progress("profiling", share),
    )
    return [
        _profile(clusters, fitted, rows, models, index, source=source, created=created)
        for index in range(len(models))
    ]


def _profile(
    clusters: Clusters,
    fitted: Fitted,
    rows: Sequence[Row],
    models: Sequence[str],
    index: int,
    *,
    source: str,
    created: str,
) -> Profile:
    model = models[index]
    tokens = [row.tokens[model] for row in rows if model in row.tokens]
    correction = None if fitted.correction is None else fitted.correction[:, index]
    return Profile(
        id=model,
        clusters_sha256=clusters.sha256,
        psi=tuple(round(float(psi), 5) for psi in np.clip(fitted.psi[:, index], 0, 1)),
        n=tuple(round(float(n), 2) for n in fitted.counts),
        n_total=len(rows),
        error=round(1 - float(np.mean([row.scores[model] for row in rows])), 5),
        source=source,
        created=created,
        correction=None if correction is None else tuple(float(f"{w:.5g}") for w in correction),
        sources=_sources(rows, model),
        output_tokens=round(float(np.mean(tokens)), 1) if tokens else None,
        variant=", ".join(fitted.variants),
    )


def _sources(rows: Sequence[Row], model: str) -> tuple[Source, ...]:
    errors: dict[str, list[float]] = {}
    for row in rows:
        errors.setdefault(row.dataset or "unnamed", []).append(1 - row.scores[model])
    return tuple(
        Source(name, len(found), round(float(np.mean(found)), 5))
        for name, found in sorted(errors.items())
    )


def profile_each(
    clusters: Clusters,
    basis: Array,
    rows: Sequence[Row],
    models: Sequence[str],
    *,
    source: str,
    created: str,
    minimum: int = 1,
    corrected: bool = True,
    progress: Progress = quiet,
) -> list[Profile]:
    """Profiles of models that answered different rows: each on its own ones."""
    made = []
    for number, model in enumerate(models):
        mine = [index for index, row in enumerate(rows) if model in row.scores]
        if len(mine) >= minimum:
            own = [rows[index] for index in mine]
            made += make_profiles(
                clusters,
                basis[mine],
                own,
                [model],
                source=source,
                created=created,
                corrected=corrected,
            )
        progress("profiling", (number + 1) / len(models))
    return made


def like(rows: Sequence[Row], data: Sequence[Row]) -> list[Row]:
    """The rows of the datasets that occur in `data`; all of them when none does."""
    named = {row.dataset for row in data if row.dataset}
    return [row for row in rows if row.dataset in named] or list(rows)


def pool_of(rows: Sequence[Row], models: Sequence[str], prices: Prices) -> Pool:
    return Pool(tuple(models), errors_of(rows, models), costs_of(rows, models, prices))


def costs_of(rows: Sequence[Row], models: Sequence[str], prices: Prices) -> Floats:
    """US dollars, [rows, models]: tokens of prompt and answer times the price.

    Where no price is known, or no token was counted, a dollar per million and a token stand in,
    so that figures about shares of calls still come out.
    """
    prompt = np.array([row.prompt_tokens or len(row.prompt) / 3.8 for row in rows])[:, None]
    answer = answer_tokens(rows, models)
    listed = np.array([prices(model) or (1.0, 1.0) for model in models])
    return np.asarray(np.maximum(prompt * listed[:, 0] + answer * listed[:, 1], 1e-9) / 1e6)


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One evaluation: the router and what it is compared with, on the same prompts."""

    pool: Pool
    expected: Mapping[str, Floats]  # by method: "router", "knn", "oracle"
    model_costs: Floats
    mean_errors: Floats
    variants: str
    labels: int | None
    seed: int | None

    def figures(self, method: str = "router") -> Figures:
        return figures(self.expected[method], self.pool, self.model_costs, self.mean_errors)


def evaluate_router(
    lens: Lens, router: Router, data: Sequence[Row], models: Sequence[str], prices: Prices
) -> Run:
    """The profiles as they are, on graded prompts."""
    rows = comparable(data, models)
    profiles = [router.find(model) for model in models]
    weights = np.array([p.weights(router.clusters) for p in profiles if p is not None])
    expected = np.clip(lens.basis(router.clusters, rows) @ weights.T, 0, 1).astype(np.float64)
    pool = pool_of(rows, models, prices)
    counted = [replace(row, tokens={}) for row in rows]
    known = {m: p.output_tokens for m, p in zip(models, profiles, strict=True) if p}
    guessed = [
        replace(row, tokens={m: t for m, t in known.items() if t is not None}) for row in counted
    ]
    model_costs = costs_of(guessed, models, prices).mean(axis=0)
    variants = "; ".join(dict.fromkeys(p.variant for p in profiles if p is not None))
    mean_errors = np.array([p.error for p in profiles if p is not None])
    methods = {"router": expected, "oracle": pool.errors}
    return Run(pool, methods, model_costs, mean_errors, variants, None, None)


def evaluate_labels(
    lens: Lens,
    clusters: Clusters,
    train: Sequence[Row],
    data: Sequence[Row],
    models: Sequence[str],
    prices: Prices,
    *,
    labels: int | None,
    seed: int,
    progress: Progress = quiet,
) -> Run:
    """Profiles fitted to `labels` rows drawn from `train`, on graded prompts of `data`."""
    rows = comparable(data, models)
    drawn = draw(comparable(like(train, rows), models), labels, seed)
    basis = lens.basis(clusters, drawn)
    errors = errors_of(drawn, models)
    fitted = fit_profiles(
        clusters, basis, errors, seed=seed, progress=lambda share: progress("profiling", share)
    )
    pool = pool_of(rows, models, prices)
    test = lens.basis(clusters, rows)
    vector = clusters.blocks["vector"]
    expected = {
        "router": fitted.predict(test, clusters),
        "knn": nearest_neighbours(test[:, vector], basis[:, vector], errors),
        "oracle": pool.errors,
    }
    model_costs = costs_of(drawn, models, prices).mean(axis=0)
    variants = ", ".join(fitted.variants)
    return Run(pool, expected, model_costs, errors.mean(axis=0), variants, len(drawn), seed)


def comparable(rows: Sequence[Row], models: Sequence[str]) -> list[Row]:
    """The rows that score every one of `models`. Raises ScoringError when there are none."""
    found = complete(rows, models)
    if not found:
        known = models_of(rows)
        absent = [model for model in models if model not in known]
        said = f"no row scores {', '.join(absent)}" if absent else "no row scores all the models"
        raise ScoringError(f"{said}; there are scores of {', '.join(known) or 'no model'}")
    return found
