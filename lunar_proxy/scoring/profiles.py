"""What is known of one model: how often it errs on each cluster, and where that comes from.

One JSON file a model, readable, named after the model. It belongs to one `clusters.npz`, by
sha256; with another it would be silently wrong, so it is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .clusters import Clusters, write_atomically
from .errors import BadFile, Mismatch

SCHEMA = 1
# Other files that may lie beside the profiles.
_OTHERS = frozenset({"feedback.json"})


@dataclass(frozen=True, slots=True)
class Source:
    """Where some of the labels come from."""

    dataset: str
    n: int
    error: float


@dataclass(frozen=True, slots=True)
class Profile:
    """One model's error: psi by cluster plus, where labels allow, a linear correction."""

    id: str
    clusters_sha256: str
    psi: tuple[float, ...]  # share of wrong answers, by cluster
    n: tuple[float, ...]  # labels behind each, fractional where membership is soft
    n_total: int
    error: float  # over all labels
    source: str  # "public", "own", or what the user says
    created: str  # ISO date
    correction: tuple[float, ...] | None = None  # over Clusters.basis, added to psi's share
    sources: tuple[Source, ...] = ()
    output_tokens: float | None = None  # mean of an answer
    aliases: tuple[str, ...] = ()
    stale: bool = False  # the vendor has retired the model
    variant: str = ""  # what the held-out loss chose

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.error * (1 - self.error) / max(self.n_total, 1))

    def weights(self, clusters: Clusters) -> NDArray[np.float32]:
        """float32 [clusters.width]: the expected error is its product with the basis."""
        weights = np.array(self.correction or (0.0,) * clusters.width, dtype=np.float32)
        weights[clusters.blocks["member"]] += np.array(self.psi, dtype=np.float32)
        return weights

    def require(self, clusters: Clusters, path: Path) -> None:
        if self.clusters_sha256 != clusters.sha256:
            raise Mismatch(
                f"{path}: made with clusters {self.clusters_sha256[:12]}, but clusters "
                f"{clusters.sha256[:12]} are loaded; profile the model again"
            )
        if len(self.psi) != clusters.k or len(self.n) != clusters.k:
            raise Mismatch(f"{path}: {len(self.psi)} clusters, expected {clusters.k}")
        if self.correction is not None and len(self.correction) != clusters.width:
            raise Mismatch(f"{path}: correction has {len(self.correction)} numbers")


def file_name(model: str) -> str:
    """A name may hold slashes and colons (meta-llama/Llama-3); the id inside is what counts."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in model).lstrip(".") + ".json"


def save_profile(profile: Profile, directory: Path) -> Path:
    path = directory / file_name(profile.id)
    text = json.dumps({"schema": SCHEMA, **asdict(profile)}, separators=(",", ":"))
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: _write(file, text))
    return path


def _write(file: Any, text: str) -> None:
    file.write(text.encode() + b"\n")


def load_profile(path: Path) -> Profile:
    try:
        doc = json.loads(path.read_text())
        if doc.pop("schema") != SCHEMA:
            raise Mismatch(f"{path}: another schema; profile the model again")
        return _profile(doc)
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFile(f"{path}: not a model profile: {error}") from error


def _profile(doc: dict[str, Any]) -> Profile:
    unknown = doc.keys() - {field.name for field in fields(Profile)}
    if unknown:
        raise ValueError(f"unknown key {sorted(unknown)[0]!r}")
    correction = doc.get("correction")
    profile = Profile(
        **{
            **doc,
            "psi": _floats(doc["psi"]),
            "n": _floats(doc["n"]),
            "correction": None if correction is None else _floats(correction),
            "sources": tuple(Source(**source) for source in doc.get("sources", ())),
            "aliases": tuple(str(alias) for alias in doc.get("aliases", ())),
        }
    )
    if not all(0 <= psi <= 1 for psi in profile.psi):
        raise ValueError("psi: not every number is in 0..1")
    return profile


def _floats(values: Iterable[Any]) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("a number is not finite")
    return numbers


def load_profiles(directory: Path, clusters: Clusters) -> list[Profile]:
    """Every `*.json` of the directory, by name; each checked against `clusters`."""
    found = []
    for path in sorted(path for path in directory.glob("*.json") if path.name not in _OTHERS):
        profile = load_profile(path)
        profile.require(clusters, path)
        found.append(profile)
    return found
