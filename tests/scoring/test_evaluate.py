import numpy as np
import pytest

from lunar_proxy.scoring.evaluate import (
    Curve,
    Pool,
    best_mix,
    deferral,
    figures,
    hull,
    nearest_neighbours,
    pair_curve,
    sweep,
    zero_router,
)

STRONG_COSTS_TEN = np.tile([10.0, 1.0], (4, 1))
# Of four prompts the strong model gets all, the weak one the first two.
PAIR = Pool(("strong", "weak"), np.array([[0, 0], [0, 0], [0, 1], [0, 1]], float), STRONG_COSTS_TEN)
MEANS = np.array([10.0, 1.0])
ERRORS = np.array([0.0, 0.5])

DEFERRALS = {
    "knows all": ([0, 0, 1, 1], 0.75, 0.25, 0.4),
    "knows nothing": ([0, 0, 0, 0], 0.5, 0.5, 0.8),
    "all wrong": ([1, 1, 0, 0], 0.25, 0.75, 0.9),
    "one tie of two": ([0, 1, 1, 2], 0.6875, 0.25, 0.55),
}


@pytest.mark.parametrize(
    ("expected", "apgr", "cpt50", "cpt80"), DEFERRALS.values(), ids=DEFERRALS.keys()
)
def test_measures_a_deferral_curve(
    expected: list[float], apgr: float, cpt50: float, cpt80: float
) -> None:
    found = deferral(np.array(expected, float), np.array([0.0, 0, 1, 1]))
    assert found is not None
    assert (found.apgr, found.cpt(0.5), found.cpt(0.8)) == pytest.approx((apgr, cpt50, cpt80))


def test_the_order_of_tied_prompts_does_not_matter() -> None:
    gain = np.array([1.0, 0, 1, 0, 0, 1])
    tied = np.zeros(6)
    one, two = deferral(tied, gain), deferral(tied, np.sort(gain))
    assert one is not None
    assert two is not None
    assert one.apgr == two.apgr == pytest.approx(0.5)


def test_there_is_no_curve_without_a_gap() -> None:
    assert deferral(np.zeros(3), np.zeros(3)) is None
    assert pair_curve(PAIR.errors[:, :1], Pool(("a",), PAIR.errors[:, :1], MEANS[:1])) is None


def test_the_oracle_pays_only_for_what_it_gains() -> None:
    found = figures(PAIR.errors, PAIR, MEANS, ERRORS)
    assert found.qnc == pytest.approx((2 * 10 + 2 * 1) / 4 / 10)
    assert found.peak == 1
    assert found.peak_gain == 0
    assert found.apgr == pytest.approx(0.75)
    assert found.d_area > 0


def test_a_router_that_knows_nothing_is_the_random_mix() -> None:
    blind = np.tile([0.0, 0.5], (4, 1))
    found = figures(blind, PAIR, MEANS, ERRORS)
    assert found.d_area == pytest.approx(0)
    assert found.apgr == pytest.approx(0.5)
    assert found.qnc == pytest.approx(1)


def test_area_is_under_cost_up_to_the_dearest() -> None:
    # .5 up to a tenth of the cost, then straight to 1 at the dearest.
    assert best_mix(PAIR).area(PAIR) == pytest.approx(0.1 * 0.5 + 0.9 * 0.75)


def test_zero_router_is_only_as_good_as_its_labels() -> None:
    assert zero_router(ERRORS, PAIR, MEANS).area(PAIR) == best_mix(PAIR).area(PAIR)
    misled = zero_router(np.array([0.5, 0.0]), PAIR, MEANS)
    assert misled.area(PAIR) == pytest.approx(0.5)


def test_the_hull_drops_what_a_mix_beats() -> None:
    curve = Curve(np.array([1.0, 2, 3, 4]), np.array([0.2, 0.25, 0.8, 0.7]))
    assert hull(curve).costs.tolist() == [1, 3]


def test_the_sweep_goes_from_the_cheapest_to_the_best() -> None:
    curve = sweep(PAIR.errors, PAIR, MEANS)
    assert (curve.costs[0], curve.accuracy[0]) == (1, 0.5)
    assert curve.accuracy[-1] == 1


def test_a_curve_that_never_is_as_good_has_no_quality_neutral_cost() -> None:
    pool = Pool(PAIR.models, np.array([[0, 1], [0, 1], [0, 0], [1, 0.0]]), STRONG_COSTS_TEN)
    assert Curve(np.array([1.0]), np.array([0.5])).quality_neutral_cost(pool) is None


def test_what_a_mix_reaches_counts_as_reached() -> None:
    pool = Pool(PAIR.models, np.array([[0, 1], [0, 1], [1, 0], [1, 1.0]]), STRONG_COSTS_TEN)
    curve = Curve(np.array([1.0, 11]), np.array([0.25, 0.75]))  # the best model's half is half-way
    assert curve.quality_neutral_cost(pool) == pytest.approx(6 / 10)


def test_a_point_as_good_but_for_rounding_is_good_enough() -> None:
    pool = Pool(PAIR.models, np.array([[0, 1], [0, 1], [1, 0], [1, 1.0]]), STRONG_COSTS_TEN)
    curve = Curve(np.array([1.0, 4, 10]), np.array([0.25, 0.5 - 2**-53, 0.5]))
    assert curve.quality_neutral_cost(pool) == pytest.approx(4 / 10)


def test_neighbours_average_the_errors_nearby() -> None:
    labelled = np.eye(2, dtype=np.float32).repeat(3, axis=0)
    errors = np.array([[0.0]] * 3 + [[1.0]] * 3)
    found = nearest_neighbours(np.eye(2, dtype=np.float32), labelled, errors, count=3)
    assert found.tolist() == [[0.0], [1.0]]
