"""How good a router is, on graded prompts it has not seen.

Two models (RouteLLM, arXiv 2406.18665, section 4): prompts are given to the strong model in the
order of what that is expected to gain. PGR(c) is the share of the accuracy gap closed when a share
c of the calls goes to it, APGR the area under it (random: 0.5), CPT(p) the least c with PGR >= p.

Any number (UniRoute, arXiv 2502.08773, section 7): for every price of money, each prompt goes to
argmin [expected error + price x mean cost of the model]; each price gives a point (mean cost,
accuracy). Any two points can be mixed at random, so what counts is the upper hull of the points.
Area is under it on cost / cost of the dearest model. ZeroRouter is the router with one cluster: it
knows each model's mean error from the same labels, and mixes models at random. d_area is what the
router's area is more than ZeroRouter's, in hundredths; d_area_hindsight compares with the best mix
of models, which is known only when all prompts are graded. QNC is the least cost on the hull that
reaches the accuracy of the best single model, divided by that model's cost; peak the highest
accuracy of a point.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# From "money is nothing" to "money is all"; steps of 8 % are far finer than what 400 prompts show.
_PRICES = np.concatenate([[0.0], np.logspace(-5, 5, 300)])


@dataclass(frozen=True, slots=True, eq=False)
class Deferral:
    """The curve of two models: share of strong calls -> share of the gap closed."""

    shares: Floats
    gaps: Floats

    @property
    def apgr(self) -> float:
        return float(np.trapezoid(self.gaps, self.shares))

    def cpt(self, gap: float) -> float:
        """The least share of strong calls that closes `gap`, between points by a straight line."""
        index = int(np.argmax(self.gaps >= gap))
        x0, x1 = self.shares[index - 1 : index + 1]
        y0, y1 = self.gaps[index - 1 : index + 1]
        return float(x0 + (gap - y0) / (y1 - y0) * (x1 - x0))


def deferral(expected_gain: Floats, gain: Floats) -> Deferral | None:
    """`gain` is the error of the weak model less that of the strong one, [n]; None without a gap.

    Prompts of equal expected gain go together, by a straight line: their order would be that of
    the file, and a router with few distinct scores is flattered or hurt by it.
    """
    if gain.sum() <= 0:
        return None
    _, group = np.unique(-np.round(expected_gain, 9), return_inverse=True)
    shares = np.cumsum(np.bincount(group)) / len(gain)
    gaps = np.cumsum(np.bincount(group, weights=gain)) / gain.sum()
    return Deferral(np.concatenate([[0.0], shares]), np.concatenate([[0.0], gaps]))


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Graded prompts of several models: errors and dollars, each [prompts, models]."""

    models: tuple[str, ...]
    errors: Floats
    costs: Floats

    @property
    def accuracy(self) -> Floats:
        return np.asarray(1 - self.errors.mean(axis=0))

    @property
    def mean_cost(self) -> Floats:
        return np.asarray(self.costs.mean(axis=0))

    @property
    def cheapest(self) -> int:
        return int(np.lexsort((-self.accuracy, self.mean_cost))[0])

    @property
    def best(self) -> int:
        """The most accurate model; of equals the cheaper."""
        return int(np.lexsort((self.mean_cost, -self.accuracy))[0])


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Points (mean dollars a prompt, accuracy), from the cheapest on."""

    costs: Floats
    accuracy: Floats

    def area(self, pool: Pool) -> float:
        """Under the curve on cost / dearest cost, 0..1.

        Left of the cheapest model it is that model's accuracy, and right of the last point that
        point's, for every router alike: money need not be spent.
        """
        dearest = max(float(pool.mean_cost.max()), 1e-300)
        first = pool.cheapest
        x = np.concatenate([[0.0, pool.mean_cost[first]], self.costs, [dearest]]) / dearest
        start = pool.accuracy[first]
        y = np.concatenate([[start, start], self.accuracy, self.accuracy[-1:]])
        return float(np.trapezoid(y, np.maximum.accumulate(x)))

    def quality_neutral_cost(self, pool: Pool) -> float | None:
        """Of a hull; None when it never reaches the best single model."""
        wanted = float(pool.accuracy[pool.best]) - 1e-12
        reference = float(pool.mean_cost[pool.best])
        if self.peak < wanted or reference <= 0:
            return None
        return float(np.interp(wanted, self.accuracy, self.costs)) / reference

    @property
    def peak(self) -> float:
        return float(self.accuracy.max())


def sweep(expected_errors: Floats, pool: Pool, model_costs: Floats) -> Curve:
    """Route every prompt at every price of money. `model_costs` [models] is what is known of the
    costs beforehand, such as their means over the labelled prompts."""
    scaled = model_costs / max(float(model_costs.max()), 1e-300)
    order = np.lexsort((np.arange(len(scaled)), scaled))  # of equals argmin takes the cheaper
    prompts = np.arange(len(pool.errors))
    points = []
    for price in _PRICES:
        chosen = order[np.argmin(expected_errors[:, order] + price * scaled[order], axis=1)]
        points.append((pool.costs[prompts, chosen].mean(), 1 - pool.errors[prompts, chosen].mean()))
    costs, accuracy = np.array(sorted(points)).T
    return Curve(costs, accuracy)


def hull(curve: Curve) -> Curve:
    """The upper hull: each point between its corners is a random mix of two of them."""
    corners: list[tuple[float, float]] = []
    for index in np.lexsort((-curve.accuracy, curve.costs)):
        point = (float(curve.costs[index]), float(curve.accuracy[index]))
        if corners and point[1] <= corners[-1][1]:
            continue
        while len(corners) > 1 and _below(corners[-2], corners[-1], point):
            corners.pop()
        corners.append(point)
    costs, accuracy = np.array(corners).T
    return Curve(costs, accuracy)


def zero_router(mean_errors: Floats, pool: Pool, model_costs: Floats) -> Curve:
    """What can be had without looking at the prompt, by labels that gave `mean_errors` [models]."""
    expected = np.broadcast_to(mean_errors, pool.errors.shape)
    return hull(sweep(expected, pool, model_costs))


def best_mix(pool: Pool) -> Curve:
    """The same in hindsight."""
    return hull(Curve(pool.mean_cost, pool.accuracy))


def _below(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Is b on or below the line from a to c?"""
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])


@dataclass(frozen=True, slots=True)
class Figures:
    """One router on one pool. The first three are for two models only."""

    apgr: float | None
    cpt50: float | None
    cpt80: float | None
    area: float
    d_area: float  # hundredths above ZeroRouter's area
    d_area_hindsight: float
    qnc: float | None
    peak: float
    peak_gain: float  # hundredths above the best single model


def figures(
    expected_errors: Floats, pool: Pool, model_costs: Floats, mean_errors: Floats
) -> Figures:
    """`model_costs` and `mean_errors`, [models], are what the labels told of the models."""
    curve = sweep(expected_errors, pool, model_costs)
    found = pair_curve(expected_errors, pool)
    mixed = hull(curve)
    area = mixed.area(pool)
    return Figures(
        apgr=found.apgr if found else None,
        cpt50=found.cpt(0.5) if found else None,
        cpt80=found.cpt(0.8) if found else None,
        area=area,
        d_area=100 * (area - zero_router(mean_errors, pool, model_costs).area(pool)),
        d_area_hindsight=100 * (area - best_mix(pool).area(pool)),
        qnc=mixed.quality_neutral_cost(pool),
        peak=curve.peak,
        peak_gain=100 * (curve.peak - float(pool.accuracy[pool.best])),
    )


def pair_curve(expected_errors: Floats, pool: Pool) -> Deferral | None:
    """None unless there are two models, one of them better."""
    if len(pool.models) != 2:
        return None
    strong, weak = pool.best, 1 - pool.best
    return deferral(
        expected_errors[:, weak] - expected_errors[:, strong],
        pool.errors[:, weak] - pool.errors[:, strong],
    )


def nearest_neighbours(
    vectors: NDArray[np.float32], labelled: NDArray[np.float32], errors: Floats, count: int = 100
) -> Floats:
    """The kNN router: mean error of the labelled prompts next to each, [prompts, models]."""
    count = min(count, max(1, len(labelled) // 3))
    found = np.empty((len(vectors), errors.shape[1]))
    for start in range(0, len(vectors), 512):  # 512 x 20,000 similarities are 40 MB
        near = vectors[start : start + 512] @ labelled.T
        nearest = np.argpartition(-near, count - 1, axis=1)[:, :count]
        found[start : start + 512] = errors[nearest].mean(axis=1)
    return found
