"""Clusters and profiles on disk: what is read back, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lunar_proxy.scoring.clusters import FILE, load_clusters
from lunar_proxy.scoring.encoder import EmbedderId
from lunar_proxy.scoring.errors import BadFile, Mismatch
from lunar_proxy.scoring.profiles import file_name, load_profile, load_profiles, save_profile

from .builders import EMBEDDER, clusters, profile


def test_clusters_come_back_as_they_were_saved(tmp_path: Path) -> None:
    saved = clusters(tmp_path)
    again = load_clusters(tmp_path)
    assert again.sha256 == saved.sha256
    assert again.embedder == EMBEDDER
    assert again.about == {"sources": ["test"]}
    assert np.array_equal(again.theta, saved.theta)


def test_a_profile_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    known = clusters(tmp_path)
    saved = profile("meta-llama/Llama-3:free", known, (0.1, 0.2, 0.3), aliases=("llama",))
    assert load_profile(save_profile(saved, tmp_path)) == saved
    assert load_profiles(tmp_path, known) == [saved]


def test_no_partial_file_is_left_behind(tmp_path: Path) -> None:
    save_profile(profile("a", clusters(tmp_path), (0.1, 0.2, 0.3)), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", FILE]


@pytest.mark.parametrize(
    ("model", "name"),
    [("gpt-4o", "gpt-4o.json"), ("a/b:c", "a_b_c.json"), ("../x", "_x.json"), ("..", "json")],
)
def test_a_file_name_stays_in_its_directory(model: str, name: str) -> None:
    assert file_name(model).lstrip(".") == name


@pytest.mark.parametrize(
    ("other", "key"),
    [
        (EmbedderId("other", "f" * 64, 8, 128), "sha256"),
        (EmbedderId("other", "e" * 64, 4, 128), "dimension"),
        (EmbedderId("other", "e" * 64, 8, 256), "tokens"),
    ],
)
def test_another_embedder_is_refused(other: EmbedderId, key: str) -> None:
    with pytest.raises(Mismatch, match=rf"^clusters was made with embedder test \({key} "):
        other.require(EMBEDDER, "clusters")


def test_a_renamed_embedder_is_not(tmp_path: Path) -> None:
    EMBEDDER.require(replace(EMBEDDER, name="renamed"), "clusters")


def test_a_profile_of_other_clusters_is_refused(tmp_path: Path) -> None:
    first, second = clusters(tmp_path / "a"), clusters(tmp_path / "b", k=2)
    path = save_profile(profile("m", first, (0.1, 0.2, 0.3)), tmp_path / "b")
    with pytest.raises(Mismatch, match="profile the model again") as caught:
        load_profiles(tmp_path / "b", second)
    assert str(caught.value).startswith(str(path))


def test_clusters_of_another_schema_are_refused(tmp_path: Path) -> None:
    clusters(tmp_path)
    with np.load(tmp_path / FILE) as stored:
        arrays = dict(stored)
    meta = json.loads(str(arrays.pop("meta")))
    np.savez(tmp_path / FILE, meta=np.array(json.dumps({**meta, "schema": 99})), **arrays)
    with pytest.raises(Mismatch, match="schema 99"):
        load_clusters(tmp_path)


def test_arrays_of_another_shape_are_refused(tmp_path: Path) -> None:
    clusters(tmp_path)
    with np.load(tmp_path / FILE) as stored:
        arrays = {**stored, "difficulty": np.zeros(7)}
    np.savez(tmp_path / FILE, **arrays)
    with pytest.raises(BadFile, match="difficulty"):
        load_clusters(tmp_path)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    clusters(tmp_path)
    with np.load(tmp_path / FILE) as stored:
        arrays = {**stored, "theta": np.array([{"a": 1}], dtype=object)}
    np.savez(tmp_path / FILE, **arrays)
    with pytest.raises(BadFile, match="not a clusters file"):
        load_clusters(tmp_path)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(BadFile, match=FILE):
        load_clusters(tmp_path)


BAD_PROFILES = {
    "not json": ("{", "not a model profile"),
    "not an object": ("[]", "not a model profile"),
    "no psi": ('{"schema":1,"id":"m"}', "psi"),
    "schema": ('{"schema":2,"id":"m"}', "another schema"),
    "psi above 1": ('{"schema":1,"psi":[2]}', "not a model profile"),
    "nan": ('{"schema":1,"psi":[NaN]}', "not finite"),
    "unknown key": ('{"schema":1,"psy":[]}', "unknown key 'psy'"),
}


@pytest.mark.parametrize(("text", "match"), BAD_PROFILES.values(), ids=BAD_PROFILES.keys())
def test_a_bad_profile_is_refused_by_name(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "m.json"
    path.write_text(text)
    with pytest.raises((BadFile, Mismatch), match=match) as caught:
        load_profile(path)
    assert str(caught.value).startswith(str(path))
