from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.scoring.errors import BadFile, Mismatch
from lunar_proxy.scoring.feedback import (
    LIMIT,
    MAX_SHIFT,
    Cell,
    Feedback,
    load_feedback,
    save_feedback,
)
from lunar_proxy.scoring.router import Router

from .builders import clusters, profile

scores = st.lists(st.floats(0, 1), max_size=30)


def told(values: list[float]) -> Cell:
    cell = Cell()
    for value in values:
        cell = cell.add(value)
    return cell


@given(scores, st.floats(0, 1), st.floats(0, 1000))
def test_a_posterior_is_an_error_near_the_profiles(
    values: list[float], psi: float, n: float
) -> None:
    found = told(values).posterior(psi, n)
    assert 0 <= found <= 1
    assert abs(found - psi) <= MAX_SHIFT + 1e-12


def test_good_answers_lower_the_error_and_bad_ones_raise_it() -> None:
    assert told([1, 1, 1]).posterior(0.5, 20) == pytest.approx(10 / 23)
    assert told([0, 0, 0]).posterior(0.5, 20) == pytest.approx(13 / 23)
    assert Cell().posterior(0.5, 20) == 0.5


def test_a_flood_fades_and_the_latest_count_most() -> None:
    cell = told([1.0] * 500 + [0.0] * 100)
    assert cell.wrong + cell.right <= LIMIT + 1e-9
    assert cell.wrong > 75


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_score_outside_0_to_1_is_refused(score: float) -> None:
    with pytest.raises(ValueError, match="not in"):
        Cell().add(score)


@pytest.fixture
def router(tmp_path: Path) -> Router:
    known = clusters(tmp_path)
    return Router(known, [profile(id, known, (0.5, 0.5, 0.5)) for id in ("a", "b")])


def psi(router: Router, model: str) -> tuple[float, ...]:
    found = router.find(model)
    assert found is not None
    return found.psi


def test_moves_one_model_on_one_cluster(router: Router) -> None:
    feedback = Feedback(router.clusters.sha256).add("a", 1, 1.0).add("gone", 0, 1.0)
    moved = feedback.applied(router)
    assert psi(moved, "a")[1] < 0.5
    assert (psi(moved, "a")[0], psi(moved, "b")) == (0.5, (0.5, 0.5, 0.5))


def test_can_be_taken_back(router: Router) -> None:
    feedback = Feedback(router.clusters.sha256).add("a", 1, 1.0).add("a", 2, 0.0)
    assert psi(feedback.forget("a", 1).applied(router), "a")[1] == 0.5
    assert feedback.forget("a").cells == {}


def test_comes_back_as_it_was_saved(router: Router, tmp_path: Path) -> None:
    path = tmp_path / "feedback.json"
    assert load_feedback(path, router.clusters).cells == {}
    feedback = Feedback(router.clusters.sha256).add("a", 1, 0.25)
    save_feedback(feedback, path)
    assert load_feedback(path, router.clusters) == feedback


def test_may_lie_beside_the_profiles(tmp_path: Path) -> None:
    known = clusters(tmp_path)
    save_feedback(Feedback(known.sha256), tmp_path / "feedback.json")
    assert Router.load(tmp_path).ids == []


def test_feedback_on_other_clusters_is_refused(router: Router, tmp_path: Path) -> None:
    other = Feedback("0" * 64)
    with pytest.raises(Mismatch):
        other.applied(router)
    save_feedback(other, tmp_path / "feedback.json")
    with pytest.raises(Mismatch):
        load_feedback(tmp_path / "feedback.json", router.clusters)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema":1}', ""])
def test_a_damaged_file_is_refused(router: Router, tmp_path: Path, text: str) -> None:
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(BadFile, match=r"f\.json"):
        load_feedback(tmp_path / "f.json", router.clusters)
