"""The LearnedMap of UniRoute, and the difficulty of its clusters.

Membership softmax(theta e + bias) starts as soft K-means and is moved so that cluster averages
predict the errors of many training models: minimise the log loss of (err, membership . psi), with
psi computed afresh from the current map every epoch. Models that are to be routed later need not
be among them, which is what makes the map worth having.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .clusters import BETA, Array, softmax

Floats = NDArray[np.float64]

_RATE = 0.05
_BATCH = 256
_EPOCHS = 20
_PATIENCE = 2
# A pull to the start: without any the map overfits, and 1e-4 undoes what was learned.
_PULL = 1e-6
# How many labels' worth of "as hard as the average" a cluster's difficulty starts with.
_DIFFICULTY_PRIOR = 5.0


@dataclass(slots=True)
class Map:
    theta: Array
    bias: Array

    def membership(self, vectors: Array) -> Array:
        return softmax(vectors @ self.theta.T + self.bias)


def soft_map(centroids: Array) -> Map:
    bias = -BETA * (centroids * centroids).sum(axis=1) / 2
    return Map((BETA * centroids).astype(np.float32), bias.astype(np.float32))


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    map: Map
    start_loss: float  # held-out log loss of the soft map it started from
    loss: float


def learn_map(
    vectors: Array,
    errors: Floats,
    start: Map,
    rng: np.random.Generator,
    *,
    progress: Callable[[float], None] = lambda _: None,
) -> Learned:
    """`errors` is [prompts, models] in 0..1, nan where a model was not asked. An eighth of the
    prompts is held out and decides when to stop."""
    order = rng.permutation(len(vectors))
    dev, train = np.split(order, [max(1, len(order) // 8)])
    known = np.isfinite(errors).astype(np.float32)
    wrong = np.nan_to_num(errors).astype(np.float32)
    moving = Map(start.theta.copy(), start.bias.copy())
    step = _Adam(moving, start)
    best, losses, since = moving, list[float](), 0
    for epoch in range(_EPOCHS):
        psi = _psi(moving.membership(vectors[train]), wrong[train], known[train])
        losses.append(_log_loss(moving.membership(vectors[dev]) @ psi, wrong[dev], known[dev]))
        since = 0 if losses[-1] <= min(losses) else since + 1
        if since == 0:
            best = Map(moving.theta.copy(), moving.bias.copy())
        if since >= _PATIENCE:
            break
        shuffled = rng.permutation(train)
        for start_at in range(0, len(shuffled), _BATCH):
            batch = shuffled[start_at : start_at + _BATCH]
            step.descend(vectors[batch], wrong[batch], known[batch], psi)
        progress((epoch + 1) / _EPOCHS)
    progress(1.0)
    return Learned(best, losses[0], min(losses))


class _Adam:
    """Kingma and Ba, arXiv 1412.6980."""

    def __init__(self, moving: Map, start: Map) -> None:
        self._moving, self._start = moving, start
        self._first = [np.zeros_like(moving.theta), np.zeros_like(moving.bias)]
        self._second = [np.zeros_like(moving.theta), np.zeros_like(moving.bias)]
        self._steps = 0

    def descend(self, vectors: Array, wrong: Array, known: Array, psi: Array) -> None:
        member = self._moving.membership(vectors)
        expected = np.clip(member @ psi, 1e-3, 1 - 1e-3)
        slope = known * (expected - wrong) / (expected * (1 - expected)) / max(known.sum(), 1)
        by_member = slope @ psi.T
        logits = member * (by_member - (member * by_member).sum(axis=1, keepdims=True))
        theta = logits.T @ vectors + _PULL * (self._moving.theta - self._start.theta)
        bias = logits.sum(axis=0) + _PULL * (self._moving.bias - self._start.bias)
        self._steps += 1
        self._move(0, self._moving.theta, theta)
        self._move(1, self._moving.bias, bias)

    def _move(self, index: int, values: Array, gradient: Array) -> None:
        first, second = self._first[index], self._second[index]
        first += 0.1 * (gradient - first)
        second += 0.001 * (gradient * gradient - second)
        mean = first / (1 - 0.9**self._steps)
        spread = np.sqrt(second / (1 - 0.999**self._steps)) + 1e-8
        values -= _RATE * mean / spread


def _psi(member: Array, wrong: Array, known: Array, prior: float = 5.0) -> Array:
    """[K, models], shrunk to each model's mean."""
    mean = wrong.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.asarray((member.T @ wrong + prior * mean) / (member.T @ known + prior))


def _log_loss(expected: Array, wrong: Array, known: Array) -> float:
    p = np.clip(expected, 1e-3, 1 - 1e-3)
    losses = -(wrong * np.log(p) + (1 - wrong) * np.log(1 - p))
    return float((known * losses).sum() / max(known.sum(), 1))


def difficulty(member: Array, errors: Floats) -> Array:
    """Log-odds by which each cluster is harder than the average: float32 [K].

    The Rasch model, logit P(model h errs on cluster k) = a_h + d_k, by Newton's method on the
    cluster counts. Fitting both at once matters: models were tried on different sets, and plain
    means would call a cluster easy because only good models met it.
    """
    known = np.isfinite(errors).astype(np.float64)
    count = member.T.astype(np.float64) @ known
    wrong = member.T.astype(np.float64) @ np.nan_to_num(errors)
    level, hard = np.zeros(count.shape[1]), np.zeros(len(count))
    for _ in range(40):
        level -= _newton(count, wrong, level, hard, axis=0, prior=1e-3, at=0 * level)
        hard -= _newton(count, wrong, level, hard, axis=1, prior=_DIFFICULTY_PRIOR, at=hard)
    return hard.astype(np.float32)


def _newton(
    count: Floats,
    wrong: Floats,
    level: Floats,
    hard: Floats,
    *,
    axis: int,
    prior: float,
    at: Floats,
) -> Floats:
    p = sigmoid(level + hard[:, None])
    slope = (count * p - wrong).sum(axis=axis) + prior * at
    curvature = (count * p * (1 - p)).sum(axis=axis) + prior
    return np.asarray(np.clip(slope / curvature, -1, 1))


def sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)))
