"""What the package ships."""

from pathlib import Path

import numpy as np
import pytest

from lunar_proxy.scoring.decide import Candidate
from lunar_proxy.scoring.encoder import Encoder
from lunar_proxy.scoring.public import ALIASES, MIN_SETS, STALE
from lunar_proxy.scoring.router import DEFAULT_EMBEDDER, DEFAULT_PROFILES, Router


@pytest.fixture(scope="module")
def router() -> Router:
    return Router.load()


def test_every_profile_tells_where_it_comes_from(router: Router) -> None:
    rows = router.profiles(lambda _model: None)
    assert len(rows) >= 30
    for row in rows:
        assert row["source"].startswith("public: ")
        assert row["clusters"] == router.clusters.k
        assert row["validation_samples"] >= 400
        assert 0 < row["mean_error"] < 1
    for id in router.ids:
        found = router.find(id)
        assert found is not None
        assert len(found.sources) >= MIN_SETS


def test_nothing_comes_from_results_without_a_licence(router: Router) -> None:
    assert "bfcl" not in router.clusters.about["datasets"]
    assert all("bfcl" not in path.read_text() for path in DEFAULT_PROFILES.glob("*.json"))


def test_aliases_and_stale_names_are_of_shipped_models(router: Router) -> None:
    assert set(ALIASES) | STALE <= set(router.ids)
    assert {id for id in router.ids if (found := router.find(id)) and found.stale} == STALE
    for id, aliases in ALIASES.items():
        for alias in aliases:
            found = router.find(alias)
            assert found is not None
            assert found.id == id


def test_the_embedder_and_the_clusters_belong_together(router: Router) -> None:
    router.require(Encoder(DEFAULT_EMBEDDER).id)


PROMPTS = {
    "hard": "Let $f$ be an entire function with $|f(z)| \\le 1 + |z|^{3/2}$. Prove that $f$ is "
    "linear, and find all such $f$ with $f(0)=0$ and $f(1)=i$.",
    "easy": "Tom has 3 apples and buys 2 more. How many apples does Tom have?",
}


def test_a_better_model_is_worth_more_on_a_harder_prompt(router: Router) -> None:
    encoder = Encoder(DEFAULT_EMBEDDER)
    pool = [Candidate("gpt-4o", 1.0), Candidate("llama-3-8b-instruct", 0.1)]
    gain = {}
    for name, text in PROMPTS.items():
        errors = router.decide(encoder.encode(text), text, pool).expected_errors
        gain[name] = errors["llama-3-8b-instruct"] - errors["gpt-4o"]
    assert gain["hard"] > gain["easy"] > 0


def test_psi_is_never_certain(router: Router) -> None:
    for id in router.ids:
        found = router.find(id)
        assert found is not None
        assert np.min(found.psi) > 0
        assert np.max(found.psi) < 1


def test_the_licence_goes_with_the_model(tmp_path: Path) -> None:
    assert "Apache License" in (DEFAULT_EMBEDDER / "LICENSE").read_text()
    assert "all-MiniLM-L6-v2" in (DEFAULT_EMBEDDER / "MODEL_CARD.md").read_text()
