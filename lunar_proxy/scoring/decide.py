"""The decision: expected errors and costs in, one model out. Pure arithmetic, no files.

    argmin over models of  expected error + cost term        (UniRoute, arXiv 2502.08773, eq. 7)

The cost term is 10^(4w-3) x cost / cost of the candidate with the least expected error, and 0 at
w = 0. Dividing by the dearest candidate instead would let one dear model that is never chosen
change every decision. With scale "usd" it is w x US dollars per 1,000 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Scale = Literal["normalized", "usd"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may answer. `cost` is US dollars, of the same quantity for all candidates.

    The scale "usd" takes it to be dollars per 1,000 tokens; otherwise only ratios count, and the
    expected dollars of the request are the better choice. None: the price is not known.
    `profile` is what the model was measured as, where its id does not say so.
    """

    id: str
    cost: float | None = None
    profile: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    selected: str
    expected_error: float  # of the selected model, in 0..1
    cost_adjusted_score: float  # what was minimised
    cluster_id: int
    all_scores: dict[str, float]  # by candidate; lower is better
    ranking: tuple[str, ...]  # best first: whom to ask when the selected model fails
    expected_errors: dict[str, float]
    coverage: float  # share of the prompt in clusters where the selected model was measured
    reasoning: str


def score(
    errors: Sequence[float], costs: Sequence[float | None], weight: float, scale: Scale
) -> list[float]:
    """Cost-adjusted score of each candidate, in the order given.

    A candidate without a price is taken for as dear as the dearest: unknown must not win.
    """
    if weight <= 0:
        return list(errors)
    known = [cost for cost in costs if cost is not None]
    dearest = max(known, default=0.0)
    usd = [dearest if cost is None else cost for cost in costs]
    if scale == "usd":
        return [error + weight * cost for error, cost in zip(errors, usd, strict=True)]
    best = min(range(len(errors)), key=lambda index: (errors[index], usd[index]))
    # A free best candidate: the others' cost counts against the dearest one instead.
    reference = usd[best] or dearest or 1.0
    factor = 10 ** (4 * min(weight, 10.0) - 3) / reference
    return [error + factor * cost for error, cost in zip(errors, usd, strict=True)]


def rank(candidates: Sequence[Candidate], scores: Sequence[float]) -> list[int]:
    """Indices, best first. Ties: the cheaper, then the name."""
    ordered = sorted(
        (score, math.inf if candidate.cost is None else candidate.cost, candidate.id, index)
        for index, (candidate, score) in enumerate(zip(candidates, scores, strict=True))
    )
    return [index for _, _, _, index in ordered]
