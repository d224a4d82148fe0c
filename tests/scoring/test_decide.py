import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.scoring.decide import Candidate, rank, score

SCORES = {
    "weight 0 is the error": ([0.2, 0.5], [9.0, 1.0], 0.0, "normalized", [0.2, 0.5]),
    "relative to the least error": ([0.2, 0.5], [4.0, 1.0], 0.5, "normalized", [0.3, 0.525]),
    "weight 1": ([0.2, 0.5], [4.0, 1.0], 1.0, "normalized", [10.2, 3.0]),
    "usd": ([0.2, 0.5], [0.01, 0.001], 2.0, "usd", [0.22, 0.502]),
    "unknown is as dear as the dearest": ([0.2, 0.2], [None, 3.0], 1.0, "usd", [3.2, 3.2]),
    "a free best candidate": ([0.1, 0.3], [0.0, 2.0], 0.75, "normalized", [0.1, 1.3]),
    "all free": ([0.1, 0.3], [0.0, 0.0], 0.75, "normalized", [0.1, 0.3]),
    "no price at all": ([0.1, 0.3], [None, None], 0.75, "normalized", [0.1, 0.3]),
    "of equal errors the cheaper is the reference": (
        [0.2, 0.2],
        [2.0, 1.0],
        0.75,
        "normalized",
        [2.2, 1.2],
    ),
}


@pytest.mark.parametrize(
    ("errors", "costs", "weight", "scale", "expected"), SCORES.values(), ids=SCORES.keys()
)
def test_adds_the_cost_term(errors, costs, weight, scale, expected) -> None:  # type: ignore[no-untyped-def]
    assert score(errors, costs, weight, scale) == pytest.approx(expected)


errors = st.floats(0, 1, allow_nan=False, width=32)
costs = st.floats(1e-6, 1e3, allow_nan=False)
pools = st.lists(st.tuples(errors, costs), min_size=2, max_size=12)


def best(errors: list[float], costs: list[float | None], weight: float) -> str:
    candidates = [Candidate(f"m{index}", cost) for index, cost in enumerate(costs)]
    return candidates[rank(candidates, score(errors, costs, weight, "normalized"))[0]].id


@given(pools, st.floats(0, 1))
def test_a_dear_model_that_errs_more_changes_nothing(
    pool: list[tuple[float, float]], weight: float
) -> None:
    found, known = [error for error, _ in pool], [cost for _, cost in pool]
    worst, dearest = max(found), max(known)
    assert best(found, [*known], weight) == best([*found, worst], [*known, dearest * 50], weight)


@given(pools, st.randoms())
def test_prices_do_not_count_at_weight_0(pool: list[tuple[float, float]], random: object) -> None:
    found = [error + index * 1e-3 for index, (error, _) in enumerate(pool)]
    if len(set(found)) == len(found):
        known: list[float | None] = [cost for _, cost in pool]
        assert best(found, known, 0.0) == best(found, known[::-1], 0.0)


@given(st.lists(errors, min_size=2, max_size=12))
def test_weight_1_takes_the_cheapest_of_clearly_different_prices(found: list[float]) -> None:
    known: list[float | None] = [1.2 ** (len(found) - index) for index in range(len(found))]
    reference = known[found.index(min(found))]
    assert reference is not None
    # Ten times the step between prices must outweigh any error: they differ by a fifth or more.
    spread = [cost * 50 for cost in known if cost is not None]
    cheapest = f"m{len(found) - 1}"
    gap = 10 * (spread[-2] - spread[-1]) / (reference * 50)
    if gap > 1:
        assert best(found, [*spread], 1.0) == cheapest


@given(pools)
def test_the_order_of_candidates_does_not_matter(pool: list[tuple[float, float]]) -> None:
    candidates = [Candidate(f"m{index}", cost) for index, (_, cost) in enumerate(pool)]
    scores = [error for error, _ in pool]
    forward = [candidates[index].id for index in rank(candidates, scores)]
    backward = [candidates[::-1][index].id for index in rank(candidates[::-1], scores[::-1])]
    assert forward == backward


def test_ties_go_to_the_cheaper_then_to_the_name() -> None:
    candidates = [Candidate("c", 1.0), Candidate("b", 1.0), Candidate("d", 0.5), Candidate("a")]
    assert [candidates[index].id for index in rank(candidates, [0.5] * 4)] == ["d", "b", "c", "a"]
