"""Learning from use: what users said of answers, as a Beta posterior for each model and cluster.

The profile is the prior, worth at most PRIOR labels; each piece of feedback is one more label of
the cluster its prompt lies in. It is kept in a file of its own, so that it can be read, limited and
taken back: without the file, every decision is as it was before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .clusters import Clusters, write_atomically
from .errors import BadFile, Mismatch
from .profiles import Profile
from .router import Router

SCHEMA = 1
# However many labels a profile has: use must be able to correct a benchmark.
PRIOR = 20.0
# The most feedback a cell remembers; what is older fades, so a model that changes is noticed and
# nobody can bury a profile under a flood.
LIMIT = 200.0
# Feedback says which models people liked better, on prompts chosen by the router; it may move an
# expected error by so much and no more.
MAX_SHIFT = 0.2


@dataclass(frozen=True, slots=True)
class Cell:
    """Feedback on one model in one cluster: weight of wrong and of right answers."""

    wrong: float = 0.0
    right: float = 0.0

    def add(self, score: float) -> Cell:
        """`score` in [0, 1], 1 for a good answer. Beyond LIMIT the old ones fade."""
        if not 0 <= score <= 1:  # nan too
            raise ValueError(f"score is {score}, not in 0..1")
        keep = min(1.0, (LIMIT - 1) / max(self.wrong + self.right, 1e-9))
        return Cell(self.wrong * keep + 1 - score, self.right * keep + score)

    def posterior(self, psi: float, n: float) -> float:
        """Mean of Beta(prior wrong + wrong, prior right + right), within MAX_SHIFT of psi."""
        prior = min(max(n, 2.0), PRIOR)
        seen = self.wrong + self.right
        mean = (prior * psi + self.wrong) / (prior + seen)
        return min(max(mean, psi - MAX_SHIFT, 0.0), psi + MAX_SHIFT, 1.0)


@dataclass(frozen=True, slots=True)
class Feedback:
    """All feedback: immutable, `add` gives another."""

    clusters_sha256: str
    cells: Mapping[tuple[str, int], Cell] = field(default_factory=dict)  # by profile id, cluster

    def add(self, model: str, cluster: int, score: float) -> Feedback:
        """Raises ValueError for a score outside 0..1."""
        key = (model, cluster)
        return replace(self, cells={**self.cells, key: self.cells.get(key, Cell()).add(score)})

    def forget(self, model: str, cluster: int | None = None) -> Feedback:
        """Without what was said of a model, on one cluster or all."""
        kept = {
            key: cell
            for key, cell in self.cells.items()
            if key[0] != model or cluster not in (None, key[1])
        }
        return replace(self, cells=kept)

    def applied(self, router: Router) -> Router:
        """The router with the profiles feedback was given on moved by it."""
        if self.clusters_sha256 != router.clusters.sha256:
            raise Mismatch("the feedback was given on other clusters; it does not apply to these")
        for model in sorted({model for model, _ in self.cells}):
            profile = router.find(model)
            if profile is not None:
                router = router.replace(self._moved(profile))
        return router

    def _moved(self, profile: Profile) -> Profile:
        psi = list(profile.psi)
        for (model, cluster), cell in self.cells.items():
            if model == profile.id and cluster < len(psi):
                psi[cluster] = cell.posterior(psi[cluster], profile.n[cluster])
        return replace(profile, psi=tuple(psi))

    def snapshot(self) -> list[dict[str, Any]]:
        return [
            {"model": model, "cluster": cluster, "wrong": cell.wrong, "right": cell.right}
            for (model, cluster), cell in sorted(self.cells.items())
        ]


def save_feedback(feedback: Feedback, path: Path) -> None:
    doc = {
        "schema": SCHEMA,
        "clusters_sha256": feedback.clusters_sha256,
        "cells": feedback.snapshot(),
    }
    text = json.dumps(doc, indent=1).encode()
    write_atomically(path, lambda file: _write(file, text))


def _write(file: Any, text: bytes) -> None:
    file.write(text)


def load_feedback(path: Path, clusters: Clusters) -> Feedback:
    """Empty when there is no such file. Raises BadFile or Mismatch."""
    try:
        doc = json.loads(path.read_text())
        if doc["schema"] != SCHEMA or doc["clusters_sha256"] != clusters.sha256:
            raise Mismatch(f"{path}: feedback on other clusters; move it away to begin anew")
        cells = {
            (str(cell["model"]), int(cell["cluster"])): Cell(
                _weight(cell["wrong"]), _weight(cell["right"])
            )
            for cell in doc["cells"]
        }
    except FileNotFoundError:
        return Feedback(clusters.sha256)
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadFile(f"{path}: not a feedback file: {error}") from error
    return Feedback(clusters.sha256, cells)


def _weight(value: Any) -> float:
    weight = float(value)
    if not 0 <= weight <= LIMIT or math.isnan(weight):
        raise ValueError(f"weight {value} is not in 0..{LIMIT:g}")
    return weight
