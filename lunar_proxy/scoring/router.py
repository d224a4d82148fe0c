"""The router: clusters and profiles loaded together and compiled into one matrix.

Immutable: a reload is another `load`, and whoever decides keeps the one it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .clusters import FILE, Array, Clusters, load_clusters
from .decide import Candidate, Decision, Scale, rank, score
from .encoder import EmbedderId
from .errors import BadFile, ScoringError
from .features import surface
from .profiles import Profile, load_profiles

_ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True, slots=True)
class Shipped:
    """An embedder of the package, and the public profiles that were made with it."""

    embedder: Path
    profiles: Path


# By the names that `router.embedder` and `--embedder` know, besides directories.
SHIPPED: Mapping[str, Shipped] = {
    "minilm": Shipped(_ASSETS / "all-MiniLM-L6-v2-int8", _ASSETS / "public"),
    "static": Shipped(_ASSETS / "all-MiniLM-L6-v2-static", _ASSETS / "public-static"),
}
DEFAULT_EMBEDDER = SHIPPED["minilm"].embedder
DEFAULT_PROFILES = SHIPPED["minilm"].profiles

# Fewer labels than this in a cluster say nothing of it (ROUTING: coverage).
_COVERED = 5


class MissingProfiles(ScoringError):
    def __init__(self, missing: list[str], available: list[str]) -> None:
        super().__init__(f"no profile for {', '.join(missing)}")
        self.missing = missing
        self.available = available


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A text, as one router's profiles see it: 260 bytes for 31 of them."""

    errors: Array  # float32 [profiles], in the order of loading
    coverage: Array  # float32 [profiles]: share of the text in clusters where each was measured
    cluster: int


class Router:
    """`decide` is arithmetic alone: no I/O, no lock, some 50 us for 64 clusters and 50 models."""

    def __init__(self, clusters: Clusters, profiles: Iterable[Profile]) -> None:
        self.clusters = clusters
        self._profiles = {profile.id: profile for profile in profiles}
        self._names = _names(self._profiles.values())
        self._rows = {id: row for row, id in enumerate(self._profiles)}
        weights = [profile.weights(clusters) for profile in self._profiles.values()]
        self._weights: Array = np.array(weights, dtype=np.float32).reshape(-1, clusters.width)
        covered = [[n >= _COVERED for n in profile.n] for profile in self._profiles.values()]
        self._covered: Array = np.array(covered, dtype=np.float32).reshape(-1, clusters.k)

    @classmethod
    def load(cls, *directories: Path) -> Router:
        """Read directories in turn; without any, the public profiles of the package.

        A later profile replaces an earlier one of the same id. A directory with clusters of its
        own replaces all before it: profiles of other clusters mean nothing with them. Raises
        ScoringError.
        """
        clusters: Clusters | None = None
        profiles: dict[str, Profile] = {}
        for directory in directories or (DEFAULT_PROFILES,):
            if not directory.is_dir():
                raise BadFile(f"{directory}: no such directory")
            if (directory / FILE).exists():
                clusters, profiles = load_clusters(directory), {}
            if clusters is None:
                raise BadFile(f"{directory / FILE}: missing; make it with `lunar-proxy router fit`")
            found = load_profiles(directory, clusters)
            profiles.update({profile.id: profile for profile in found})
        assert clusters is not None
        return cls(clusters, profiles.values())

    @property
    def embedder(self) -> EmbedderId:
        return self.clusters.embedder

    @property
    def ids(self) -> list[str]:
        return sorted(self._profiles)

    def __iter__(self) -> Iterator[Profile]:
        return (self._profiles[id] for id in self.ids)

    def require(self, embedder: EmbedderId) -> None:
        """Refuse an embedder the files were not made with."""
        embedder.require(self.embedder, f"{FILE} ({self.clusters.sha256[:12]})")

    def find(self, model: str) -> Profile | None:
        """The profile a model name stands for: its id, an alias, either after PROVIDER/."""
        if (profile := self._profiles.get(model)) is not None:
            return profile
        name = model.lower()
        for spelling in (name, name.partition("/")[2], name.rpartition("/")[2]):
            if spelling and (id := self._names.get(spelling)) is not None:
                return self._profiles[id]
        return None

    def replace(self, profile: Profile) -> Router:
        """The same router with one profile added or changed."""
        return Router(self.clusters, {**self._profiles, profile.id: profile}.values())

    def expected_errors(self, embedding: Array, features: Array) -> Array:
        """Expected error of every profile, in the order of loading: float32 [profiles]."""
        basis = self.clusters.basis(embedding, features)
        return np.asarray(np.clip(self._weights @ basis, 0, 1), dtype=np.float32)

    def decide(
        self,
        embedding: Array,
        features: Array | str,
        candidates: Sequence[Candidate],
        cost_weight: float = 0.0,
        scale: Scale = "normalized",
    ) -> Decision:
        """Choose among `candidates` (at least one).

        `features` is `surface(text)`, or the text itself. Raises MissingProfiles.
        """
        if isinstance(features, str):
            features = surface(features)
        return self.choose(self.read(embedding, features), candidates, cost_weight, scale)

    def read(self, embedding: Array, features: Array) -> Reading:
        """What the profiles say of a text, whoever will be asked about it."""
        basis = self.clusters.basis(embedding, features)
        member = basis[: self.clusters.k]
        return Reading(
            np.asarray(np.clip(self._weights @ basis, 0, 1), dtype=np.float32),
            self._covered @ member,
            int(member.argmax()),
        )

    def choose(
        self,
        reading: Reading,
        candidates: Sequence[Candidate],
        cost_weight: float = 0.0,
        scale: Scale = "normalized",
    ) -> Decision:
        """The second half of `decide`; `reading` is this router's own."""
        rows = self._rows_of(candidates)
        errors = reading.errors[rows].tolist()
        costs = [candidate.cost for candidate in candidates]
        scores = score(errors, costs, cost_weight, scale)
        order = rank(candidates, scores)
        coverage = float(reading.coverage[rows[order[0]]])
        return _decision(candidates, order, errors, scores, reading.cluster, coverage)

    def _rows_of(self, candidates: Sequence[Candidate]) -> list[int]:
        profiles = [self.find(candidate.profile or candidate.id) for candidate in candidates]
        missing = [c.id for c, found in zip(candidates, profiles, strict=True) if found is None]
        if missing:
            raise MissingProfiles(missing, self.ids)
        return [self._rows[profile.id] for profile in profiles if profile is not None]

    def profiles(self, price: Callable[[str], float | None]) -> list[dict[str, Any]]:
        """Rows of GET /v1/router/profiles, by id. `price` gives dollars per 1,000 tokens."""
        return [
            {
                "id": profile.id,
                "clusters": len(profile.psi),
                "mean_error": round(profile.error, 4),
                "cost_per_1k_tokens": price(profile.id),
                "validation_samples": profile.n_total,
                "source": _source(profile),
                "aliases": list(profile.aliases),
                "stale": profile.stale,
                "created": profile.created,
            }
            for profile in (self._profiles[id] for id in self.ids)
        ]

    def __repr__(self) -> str:
        return f"<Router k={self.clusters.k} profiles={len(self._profiles)}>"


def _names(profiles: Iterable[Profile]) -> dict[str, str]:
    """Lower-cased name -> id. An id always beats another profile's alias."""
    known = list(profiles)
    aliases = {alias.lower(): profile.id for profile in known for alias in profile.aliases}
    return {**aliases, **{profile.id.lower(): profile.id for profile in known}}


def _source(profile: Profile) -> str:
    sets = ", ".join(f"{source.dataset} {source.n}" for source in profile.sources)
    return f"{profile.source}: {sets}; {profile.created}" if sets else profile.source


def _decision(
    candidates: Sequence[Candidate],
    order: list[int],
    errors: list[float],
    scores: list[float],
    cluster: int,
    coverage: float,
) -> Decision:
    ids = [candidate.id for candidate in candidates]
    first = order[0]
    return Decision(
        selected=ids[first],
        expected_error=errors[first],
        cost_adjusted_score=scores[first],
        cluster_id=cluster,
        all_scores=dict(zip(ids, scores, strict=True)),
        ranking=tuple(ids[index] for index in order),
        expected_errors=dict(zip(ids, errors, strict=True)),
        coverage=coverage,
        reasoning=_reasoning(ids, order, errors, scores, cluster),
    )


def _reasoning(
    ids: list[str], order: list[int], errors: list[float], scores: list[float], cluster: int
) -> str:
    first, *rest = order
    said = (
        f"{ids[first]}: expected error {errors[first]:.3f}, "
        f"cost term {scores[first] - errors[first]:.3f}, cluster {cluster}"
    )
    if not rest:
        return said
    return f"{said}; next {ids[rest[0]]} by {scores[rest[0]] - scores[first]:.3f}"
