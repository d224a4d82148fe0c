"""Fitting on made-up worlds whose truth is known."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lunar_proxy.scoring.build import build_clusters
from lunar_proxy.scoring.clusters import Array, Clusters
from lunar_proxy.scoring.encoder import EmbedderId
from lunar_proxy.scoring.features import NAMES
from lunar_proxy.scoring.fit import Floats, fit_profiles, rasch_psi
from lunar_proxy.scoring.kmeans import hard, kmeans
from lunar_proxy.scoring.learn import difficulty, learn_map, soft_map

from .builders import clusters

D = 16
EMBEDDER = EmbedderId("made up", "d" * 64, D, 128)


def world(seed: int, count: int) -> tuple[Array, Array, NDArray[np.intp]]:
    """Prompts around four directions: vectors, features, and which direction each is."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(4, size=count)
    vectors = np.eye(D)[kind] + rng.normal(scale=0.15, size=(count, D))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    features = rng.normal(size=(count, len(NAMES)))
    return vectors.astype(np.float32), features.astype(np.float32), kind


# Error of two models by direction: one is better on two of them, the other on the rest.
TRUTH = np.array([[0.1, 0.6], [0.1, 0.5], [0.7, 0.2], [0.5, 0.2]])


def graded(kind: NDArray[np.intp], seed: int) -> Floats:
    return (np.random.default_rng(seed).random((len(kind), 2)) < TRUTH[kind]).astype(float)


@pytest.fixture(scope="module")
def made() -> Clusters:
    vectors, features, _ = world(0, 800)
    return build_clusters(EMBEDDER, vectors, features, None, ks=(4,))


def test_kmeans_finds_the_directions() -> None:
    vectors, _, kind = world(0, 400)
    nearest = hard(vectors, kmeans(vectors, 4, np.random.default_rng(0)))
    assert all(len(set(kind[nearest == cluster].tolist())) == 1 for cluster in range(4))


def test_kmeans_of_fewer_texts_than_clusters_gives_each_its_own() -> None:
    same = np.ones((5, D), dtype=np.float32)
    assert len(kmeans(same, 3, np.random.default_rng(0))) == 1


def test_the_same_seed_gives_the_same_clusters() -> None:
    vectors, features, _ = world(0, 200)
    one, two = (build_clusters(EMBEDDER, vectors, features, None, ks=(4,)) for _ in range(2))
    assert np.array_equal(one.theta, two.theta)


def test_a_profile_routes_as_the_truth_would(made: Clusters) -> None:
    vectors, features, kind = world(1, 400)
    fitted = fit_profiles(made, made.basis(vectors, features), graded(kind, 2))
    vectors, features, kind = world(3, 400)
    expected = fitted.predict(made.basis(vectors, features), made)
    best = TRUTH[kind].argmin(axis=1)
    assert (expected.argmin(axis=1) == best).mean() > 0.95
    assert np.abs(expected - TRUTH[kind]).mean() < 0.06
    assert expected.min() >= 0
    assert expected.max() <= 1


def test_few_labels_give_a_profile_without_a_correction(made: Clusters) -> None:
    vectors, features, kind = world(1, 20)
    fitted = fit_profiles(made, made.basis(vectors, features), graded(kind, 2))
    assert fitted.correction is None
    assert fitted.variants == ("learned",)


def test_the_held_out_loss_finds_that_the_features_tell() -> None:
    vectors, features, _ = world(1, 2000)
    made = build_clusters(EMBEDDER, vectors, features, None, ks=(4,))
    errors = np.stack([features[:, 9] > 0, features[:, 9] <= 0], axis=1).astype(float)
    fitted = fit_profiles(made, made.basis(vectors, features), errors)
    expected = fitted.predict(made.basis(vectors, features), made)
    assert (expected.argmin(axis=1) == errors.argmin(axis=1)).mean() > 0.9


@pytest.mark.parametrize(("copies", "believed"), [(1, 1.0), (2, 0.75), (5, 0.45)])
def test_the_more_models_the_less_their_differences_are_believed(
    made: Clusters, copies: int, believed: float
) -> None:
    """Copies of the same two answer alike, so what is known of them is the same."""
    vectors, features, kind = world(1, 400)
    errors = graded(kind, 2)
    basis = made.basis(vectors, features)
    pair = fit_profiles(made, basis, errors).predict(basis, made)
    many = fit_profiles(made, basis, np.tile(errors, (1, copies))).predict(basis, made)
    level = errors.mean(axis=0)
    expected = believed * (pair[:, 0] - pair[:, 1]) + (1 - believed) * (level[0] - level[1])
    within = ((many > 0) & (many < 1)).all(axis=1) & ((pair > 0) & (pair < 1)).all(axis=1)
    assert within.mean() > 0.9
    assert np.allclose((many[:, 0] - many[:, 1])[within], expected[within], atol=1e-6)


def test_one_model_alone_can_be_profiled(made: Clusters) -> None:
    vectors, features, kind = world(1, 400)
    fitted = fit_profiles(made, made.basis(vectors, features), graded(kind, 2)[:, :1])
    expected = fitted.predict(made.basis(vectors, features), made)
    assert np.abs(expected - TRUTH[kind][:, :1]).mean() < 0.08


def test_a_cluster_without_labels_gets_a_guess_from_its_difficulty() -> None:
    member = np.eye(3, dtype=np.float32)[[0] * 60 + [1] * 60]
    errors = np.repeat([[0.0], [1.0]], 60, axis=0)
    psi = rasch_psi(member, errors, np.array([-1.0, 1.0, 3.0], dtype=np.float32))[:, 0]
    assert psi[0] < 0.2 < 0.8 < psi[1] < 0.95
    assert psi[2] > psi[1]


@pytest.mark.parametrize("errors", [0.0, 1.0])
def test_a_model_that_errs_never_or_always_stays_finite(errors: float) -> None:
    member = np.full((50, 3), 1 / 3, dtype=np.float32)
    psi = rasch_psi(member, np.full((50, 1), errors), np.zeros(3, dtype=np.float32))
    assert np.abs(psi - errors).max() < 0.05


def test_difficulty_is_not_fooled_by_who_was_asked() -> None:
    """A bad model met the easy cluster only, a good one both: its plain mean would call it hard."""
    member = np.eye(2, dtype=np.float32)[[0] * 400 + [1] * 400]
    rng = np.random.default_rng(0)
    good = np.concatenate([rng.random(400) < 0.1, rng.random(400) < 0.3]).astype(float)
    bad = np.concatenate([rng.random(400) < 0.5, np.full(400, np.nan)])
    hard_of = difficulty(member, np.stack([good, bad], axis=1))
    assert hard_of[1] > hard_of[0]


def test_a_learned_map_predicts_models_better_than_distance_does() -> None:
    vectors, _, kind = world(0, 1500)
    rng = np.random.default_rng(1)
    # Two kinds alike in what they ask of a model, whatever their words: a start that is too coarse.
    errors = (rng.random((1500, 6)) < np.where(kind % 2, 0.8, 0.2)[:, None]).astype(float)
    start = soft_map(kmeans(vectors, 2, np.random.default_rng(0)))
    found = learn_map(vectors, errors, start, np.random.default_rng(0))
    assert found.loss < found.start_loss


def test_k_is_chosen_by_held_out_loss_where_there_are_labels() -> None:
    vectors, features, kind = world(0, 1500)
    rng = np.random.default_rng(1)
    errors = (rng.random((1500, 6)) < TRUTH[kind][:, [0, 1, 0, 1, 0, 1]]).astype(float)
    made = build_clusters(EMBEDDER, vectors, features, errors, ks=(2, 8))
    assert set(made.about["held_out_loss"]) == {"2", "8"}
    losses = made.about["held_out_loss"]
    assert made.k == (2 if losses["2"] <= losses["8"] + 0.001 else 8)


def test_saved_clusters_give_the_same_basis_but_for_half_precision(
    made: Clusters, tmp_path: Path
) -> None:
    vectors, features, _ = world(5, 50)
    again = made.save(tmp_path)
    difference = again.basis(vectors, features) - made.basis(vectors, features)
    assert np.abs(difference).max() < 5e-3


def test_the_parts_of_the_basis_lie_where_blocks_says(tmp_path: Path) -> None:
    known = clusters(tmp_path)
    basis = known.basis(np.eye(8, dtype=np.float32), np.zeros((8, len(NAMES)), dtype=np.float32))
    assert basis.shape == (8, known.width)
    assert np.allclose(basis[:, known.blocks["member"]].sum(axis=1), 1)
    assert np.array_equal(basis[:, known.blocks["vector"]], np.eye(8))
    assert np.array_equal(basis[:, known.blocks["one"]], np.ones((8, 1)))
