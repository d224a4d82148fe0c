"""From graded prompts to profiles: one procedure, which chooses by held-out loss what it trusts.

Every variant estimates a model's error as a base plus a ridge correction of what the base misses:

base    "learned", "soft": psi over the learned or the soft membership, shrunk to a Rasch prior
        (below); "mean": the model's mean error
blocks  what the correction is learned on: nothing, the surface features, with the vector, with the
        landmarks too
ridge   how strongly it is pulled to nothing

Five-fold cross-validation gives each variant a held-out loss; those within two standard errors of
the best are averaged. Few labels cannot tell the variants apart, and then the average of nearly all
is used, which routes better than any of them; many labels can, and few variants are left. All are
linear in `Clusters.basis`, so their average is again one vector of weights: psi and a correction.

The loss compares models profiled together: what makes a prompt harder for all of them alike moves
no decision, so errors are taken less their mean over the models. One model alone is measured by its
own squared error.

Whoever picks the least of many estimates picks one that is too low. So where more than two models
are profiled together, the differences between them are drawn towards those of their means, the more
the more models there are (`_doubted`); two models keep their order whatever is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from .clusters import Array, Clusters
from .learn import sigmoid

Floats = NDArray[np.float64]

# Labels a cluster's prior guess is worth. Psi of a cell with three labels must not decide.
PRIOR = 30.0
# With fewer labels there is nothing to hold out: the learned base alone.
MIN_CORRECTED = 40
FOLDS = 5
# Standard errors by which a variant must be worse to be left out. One leaves too few to average
# (mixed pool: .05 less area at 500 labels), none keeps what many labels have shown to be bad.
_ERRORS = 2.0
_BASES = ("learned", "soft", "mean")
_BLOCKS = {
    "surface": ("surface",),
    "vector": ("surface", "vector"),
    "landmarks": ("surface", "vector", "near"),
}
# Weaker pulls lost .01 of APGR at 200 labels; with 8,000 the stronger ones win by themselves.
_RIDGES = (30.0, 100.0, 300.0)


@dataclass(frozen=True, slots=True)
class Variant:
    base: str
    blocks: str | None = None  # None: the base alone
    ridge: float = 0.0

    def __str__(self) -> str:
        return f"{self.base}+{self.blocks}/{self.ridge:g}" if self.blocks else self.base


_VARIANTS = [
    Variant("learned"),
    Variant("soft"),
    *(Variant(*parts) for parts in product(_BASES, _BLOCKS, _RIDGES)),
]


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """Of the models profiled together, in their order."""

    psi: Floats  # [K, models]
    counts: Floats  # [K]: labels behind each cluster
    correction: Floats | None  # [width, models]
    variants: tuple[str, ...]
    held_out_loss: float | None

    def predict(self, basis: Array, clusters: Clusters) -> Floats:
        """Expected errors, [prompts, models], in 0..1."""
        found = basis[:, clusters.blocks["member"]] @ self.psi
        if self.correction is not None:
            found = found + basis @ self.correction
        return np.asarray(np.clip(found, 0, 1))


def fit_profiles(
    clusters: Clusters,
    basis: Array,
    errors: Floats,
    *,
    corrected: bool = True,
    seed: int = 0,
    progress: Callable[[float], None] = lambda _: None,
) -> Fitted:
    """`basis` is [prompts, width], `errors` [prompts, models] in 0..1 without gaps.

    `corrected=False` gives psi alone, which compares models that were tried on different prompts.
    """
    fitter = _Fitter(clusters)
    psi = rasch_psi(basis[:, clusters.blocks["member"]], errors, clusters.difficulty)
    counts = basis[:, clusters.blocks["member"]].sum(axis=0).astype(np.float64)
    if not corrected or len(errors) < MIN_CORRECTED:
        return Fitted(psi, counts, None, ("learned",), None)
    held_out = fitter.held_out(basis, errors, seed, progress)
    chosen, loss = _not_worse(held_out, errors)
    weights = fitter.weights(basis, errors, chosen)
    average = _doubted(np.mean([weights[variant] for variant in chosen], axis=0), errors)
    average[clusters.blocks["member"]] -= psi
    progress(1.0)
    return Fitted(psi, counts, average, tuple(str(variant) for variant in chosen), loss)


class _Fitter:
    def __init__(self, clusters: Clusters) -> None:
        self._clusters = clusters

    def held_out(
        self, basis: Array, errors: Floats, seed: int, progress: Callable[[float], None]
    ) -> dict[Variant, Floats]:
        """Each variant's predictions for prompts it was not fitted on."""
        fold = np.random.default_rng(seed).permutation(len(errors)) % FOLDS
        found = {variant: np.empty_like(errors) for variant in _VARIANTS}
        for number in range(FOLDS):
            out, rest = fold == number, fold != number
            weights = self.weights(basis[rest], errors[rest], _VARIANTS)
            for variant in _VARIANTS:
                found[variant][out] = basis[out] @ weights[variant]
            progress((number + 1) / (FOLDS + 1))
        return found

    def weights(
        self, basis: Array, errors: Floats, variants: Sequence[Variant]
    ) -> dict[Variant, Floats]:
        """Weights over the basis, [width, models], by variant."""
        bases = {name: self._base(name, basis, errors) for name in _BASES}
        missed = np.hstack([errors - basis @ bases[name] for name in _BASES])
        found = {variant: bases[variant.base] for variant in variants if not variant.blocks}
        for blocks in dict.fromkeys(variant.blocks for variant in variants if variant.blocks):
            columns = self._columns(_BLOCKS[blocks])
            solved = _ridge(basis[:, columns].astype(np.float64), missed, _RIDGES)
            for variant in (variant for variant in variants if variant.blocks == blocks):
                slopes, constant = solved[variant.ridge]
                mine = self._slice_of(variant.base, errors.shape[1])
                weights = bases[variant.base].copy()
                weights[columns] += slopes[:, mine]
                weights[-1] += constant[mine]
                found[variant] = weights
        return found

    def _base(self, name: str, basis: Array, errors: Floats) -> Floats:
        weights = np.zeros((self._clusters.width, errors.shape[1]))
        if name == "mean":
            weights[-1] = errors.mean(axis=0)
            return weights
        block = self._clusters.blocks[{"learned": "member", "soft": "soft"}[name]]
        hard = self._clusters.difficulty if name == "learned" else self._clusters.soft_difficulty
        weights[block] = rasch_psi(basis[:, block], errors, hard)
        return weights

    def _columns(self, blocks: Sequence[str]) -> NDArray[np.intp]:
        every = np.arange(self._clusters.width)
        return np.concatenate([every[self._clusters.blocks[name]] for name in blocks])

    @staticmethod
    def _slice_of(base: str, models: int) -> slice:
        at = _BASES.index(base) * models
        return slice(at, at + models)


def rasch_psi(member: Array, errors: Floats, difficulty: Array) -> Floats:
    """Share of wrong answers by cluster, [K, models], shrunk to what the Rasch model guesses.

    The guess is sigmoid(a_h + d_k), with a_h such that it agrees with the labels on the whole. A
    cluster without labels gets the guess alone, instead of nothing.
    """
    member64, hard = member.astype(np.float64), difficulty.astype(np.float64)
    levels = _levels(member64 @ hard, errors)
    guess = sigmoid(levels + hard[:, None])
    return np.asarray(
        (member64.T @ errors + PRIOR * guess) / (member64.sum(axis=0)[:, None] + PRIOR)
    )


def _levels(hard: Floats, errors: Floats) -> Floats:
    """a_h of each model: sum over prompts of sigmoid(a_h + d) = its wrong answers. [models]

    One imagined prompt, half right, keeps it finite for a model that has erred never or always.
    """
    level = np.zeros(errors.shape[1])
    for _ in range(50):
        p = sigmoid(level + hard[:, None])
        slope = (p - errors).sum(axis=0) + sigmoid(level) - 0.5
        step = slope / ((p * (1 - p)).sum(axis=0) + sigmoid(level) * (1 - sigmoid(level)))
        level -= np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    return level


def _ridge(x: Floats, y: Floats, ridges: Sequence[float]) -> dict[float, tuple[Floats, Floats]]:
    """Slopes [columns, outputs] and constants [outputs] by ridge; the constant is not pulled."""
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    centred, target = x - x_mean, y - y_mean
    wide = x.shape[1] > x.shape[0]
    gram = centred @ centred.T if wide else centred.T @ centred
    right = target if wide else centred.T @ target
    found = {}
    for ridge in ridges:
        solved = np.linalg.solve(gram + ridge * np.eye(len(gram)), right)
        slopes = centred.T @ solved if wide else solved
        found[ridge] = (slopes, y_mean - x_mean @ slopes)
    return found


def _doubted(weights: Floats, errors: Floats) -> Floats:
    """The same weights with the differences between models drawn towards those of their means.

    A quarter of a difference is believed, and more the fewer models there are to err about: the
    whole of it up to two. On a pool of eleven alike models that makes .04 of area over ZeroRouter
    .44 with 500 labels, and the best single model's accuracy is missed in a fifth of the trials
    instead of half; a pool of four unlike ones loses .02.
    """
    models = errors.shape[1]
    if models < 3:
        return weights
    believed = 0.25 + 2 / models
    common = weights.mean(axis=1, keepdims=True)
    apart = believed * (weights - common)
    level = errors.mean(axis=0)
    apart[-1] += (1 - believed) * (level - level.mean())
    return np.asarray(common + apart)


def _not_worse(held_out: dict[Variant, Floats], errors: Floats) -> tuple[list[Variant], float]:
    """The variants not shown to be worse than the best, and the best's loss."""
    target = _compared(errors)
    losses = {
        variant: ((_compared(found) - target) ** 2).mean(axis=1)
        for variant, found in held_out.items()
    }
    best = min(losses.values(), key=lambda loss: float(loss.mean()))
    chosen = []
    for variant, loss in losses.items():
        worse = loss - best
        if worse.mean() <= _ERRORS * worse.std() / np.sqrt(len(worse)):
            chosen.append(variant)
    return chosen, float(best.mean())


def _compared(errors: Floats) -> Floats:
    if errors.shape[1] == 1:
        return errors
    return np.asarray(errors - errors.mean(axis=1, keepdims=True))
