import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lunar_proxy.scoring.clusters import Array
from lunar_proxy.scoring.decide import Candidate
from lunar_proxy.scoring.encoder import EmbedderId
from lunar_proxy.scoring.errors import BadFile, Mismatch
from lunar_proxy.scoring.features import surface
from lunar_proxy.scoring.profiles import save_profile
from lunar_proxy.scoring.router import MissingProfiles, Router

from .builders import DIMENSION, axis, clusters, profile


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Router:
    directory = tmp_path_factory.mktemp("router")
    known = clusters(directory)
    small = profile("small", known, (0.1, 0.6, 0.5), aliases=("small-latest",))
    save_profile(small, directory)
    save_profile(profile("large", known, (0.1, 0.2, 0.1), n=(10, 0, 10)), directory)
    return Router.load(directory)


POOL = [Candidate("small", 1.0), Candidate("large", 10.0)]


def test_takes_the_model_with_the_least_error_on_the_prompts_cluster(router: Router) -> None:
    decision = router.decide(axis(1), "two", POOL)
    assert decision.selected == "large"
    assert decision.cluster_id == 1
    assert decision.expected_error == pytest.approx(0.2, abs=1e-3)
    assert decision.ranking == ("large", "small")
    assert decision.all_scores == pytest.approx({"small": 0.6, "large": 0.2}, abs=1e-3)
    assert decision.reasoning == (
        "large: expected error 0.200, cost term 0.000, cluster 1; next small by 0.400"
    )


def test_of_equals_the_cheaper(router: Router) -> None:
    assert router.decide(axis(0), "one", POOL).selected == "small"


def test_a_price_change_moves_the_decision(router: Router) -> None:
    dear = router.decide(axis(1), "two", POOL, cost_weight=0.75)
    cheap = router.decide(axis(1), "two", [POOL[0], Candidate("large", 1.0)], cost_weight=0.75)
    assert (dear.selected, cheap.selected) == ("small", "large")


def test_says_how_much_of_the_prompt_was_measured(router: Router) -> None:
    assert router.decide(axis(1), "two", POOL).coverage == pytest.approx(0, abs=1e-3)
    assert router.decide(axis(2), "three", POOL).coverage == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", ["small", "SMALL", "small-latest", "openai/small", "a/b/small"])
def test_finds_a_profile_by_name_alias_or_behind_a_provider(router: Router, name: str) -> None:
    found = router.find(name)
    assert found is not None
    assert found.id == "small"


def test_answers_under_the_name_it_was_asked_for(router: Router) -> None:
    decision = router.decide(axis(1), "x", [Candidate("openai/large", 1.0), POOL[0]])
    assert decision.selected == "openai/large"


def test_names_the_models_without_a_profile(router: Router) -> None:
    with pytest.raises(MissingProfiles) as caught:
        router.decide(axis(0), "x", [Candidate("nobody"), *POOL])
    assert (caught.value.missing, caught.value.available) == (["nobody"], ["large", "small"])


def test_lists_its_profiles(router: Router) -> None:
    rows = router.profiles({"small": 0.5}.get)
    assert [row["id"] for row in rows] == ["large", "small"]
    assert rows[1] == {
        "id": "small",
        "clusters": 3,
        "mean_error": 0.4,
        "cost_per_1k_tokens": 0.5,
        "validation_samples": 30,
        "source": "own: synthetic 30; 2026-01-02",
        "aliases": ["small-latest"],
        "stale": False,
        "created": "2026-01-02",
    }


def test_the_correction_moves_an_error_but_not_out_of_0_to_1(
    router: Router, tmp_path: Path
) -> None:
    width = router.clusters.width
    corrected = profile("large", router.clusters, (0.1, 0.2, 0.1), correction=(-5.0,) * width)
    decision = router.replace(corrected).decide(axis(0), "one two", POOL)
    assert decision.expected_error == 0


vectors = st.lists(st.floats(-1, 1, width=32), min_size=DIMENSION, max_size=DIMENSION).map(
    lambda values: np.array(values, dtype=np.float32)
)


@given(vector=vectors, text=st.text(max_size=200), weight=st.floats(0, 1))
@settings(max_examples=50)
def test_errors_stay_between_0_and_1(
    router: Router, vector: Array, text: str, weight: float
) -> None:
    decision = router.decide(vector, text, POOL, weight)
    assert all(0 <= error <= 1 for error in decision.expected_errors.values())
    assert decision == router.decide(vector, text, POOL, weight)


def test_later_directories_replace_profiles_by_id(tmp_path: Path) -> None:
    known = clusters(tmp_path / "base")
    save_profile(profile("m", known, (0.9, 0.9, 0.9)), tmp_path / "base")
    save_profile(profile("m", known, (0.2, 0.2, 0.2)), tmp_path / "own")
    found = Router.load(tmp_path / "base", tmp_path / "own").find("m")
    assert found is not None
    assert found.psi == (0.2, 0.2, 0.2)


def test_a_directory_with_clusters_replaces_all_before_it(tmp_path: Path) -> None:
    first = clusters(tmp_path / "base")
    save_profile(profile("old", first, (0.9, 0.9, 0.9)), tmp_path / "base")
    second = clusters(tmp_path / "own", k=2)
    save_profile(profile("new", second, (0.2, 0.2)), tmp_path / "own")
    assert Router.load(tmp_path / "base", tmp_path / "own").ids == ["new"]


@pytest.mark.parametrize("name", ["absent", "."])
def test_a_directory_without_clusters_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadFile, match=str(tmp_path)):
        Router.load(tmp_path / name)


def test_the_wrong_embedder_is_refused(router: Router) -> None:
    with pytest.raises(Mismatch, match=r"clusters\.npz"):
        router.require(EmbedderId("other", "0" * 64, 384, 128))


def test_a_decision_takes_a_fraction_of_a_millisecond(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    known = clusters(tmp_path, embedder=EmbedderId("wide", "a" * 64, DIMENSION, 128))
    many = [profile(f"m{i:02}", known, tuple(rng.random(3).tolist())) for i in range(50)]
    router = Router(known, many)
    pool = [Candidate(f"m{i:02}", 1.0 + i) for i in range(50)]
    features = surface("How many apples?")
    took = []
    for _ in range(200):
        before = time.perf_counter()
        router.decide(axis(0), features, pool, 0.5)
        took.append(time.perf_counter() - before)
    assert sorted(took)[100] < 2e-3  # a tenth of that where nothing else runs


def test_a_candidate_may_go_by_another_name_than_its_profile(router: Router) -> None:
    pool = [Candidate("lunar/bot", 1.0, profile="large"), Candidate("small", 1.0)]
    assert router.decide(axis(1), "two", pool).selected == "lunar/bot"


def test_lists_its_profiles_by_name(router: Router) -> None:
    assert [profile.id for profile in router] == ["large", "small"]
