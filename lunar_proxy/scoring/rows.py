"""Graded prompts from files: one JSON object a line, plain or gzip, as many files as you like.

    {"prompt": "...", "scores": {"model-a": 1, "model-b": 0.5}, "tok": {"model-a": 79},
     "in_tok": 32, "dataset": "gsm8k", "id": "gsm8k/3"}

A score is in [0, 1], 1 for a right answer (true and false do too). Only `prompt` is needed for
clusters. A row about one model may be flat: {"prompt": ..., "score": 1, "tokens": 79}, with
"model" if the file does not say it elsewhere. `tok` is output tokens by model, `in_tok` those of
the prompt. Other keys are ignored.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .errors import BadFile
from .text import text_of

Floats = NDArray[np.float64]

_ANSWERS = ("answer", "reference", "expected", "target")


@dataclass(frozen=True, slots=True)
class Row:
    prompt: str
    scores: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, float] = field(default_factory=dict)  # of the answer, by model
    prompt_tokens: float = 0.0
    dataset: str = ""
    id: str = ""
    answer: str = ""  # the right one, for a judge


def read_rows(paths: Iterable[Path], *, model: str | None = None) -> list[Row]:
    """Every row of every file. `model` is whom flat rows without a "model" are about.

    Raises BadFile with `file:line: what is wrong`.
    """
    return [row for path in paths for row in _read(path, model)]


def _read(path: Path, model: str | None) -> Iterator[Row]:
    number = 0
    try:
        with _open(path) as lines:
            for number, line in enumerate(lines, 1):  # noqa: B007 (read again when it fails)
                if line.strip():
                    yield _row(json.loads(line), model)
    except (ValueError, TypeError) as error:
        raise BadFile(f"{path}:{max(number, 1)}: {_plain(error)}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise BadFile(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if not number:
        raise BadFile(f"{path}:1: the file is empty")


def _open(path: Path) -> IO[str]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"  # RFC 1952 2.3.1; the name may say something else
    return gzip.open(path, "rt", encoding="utf-8") if zipped else path.open(encoding="utf-8")


def _plain(error: Exception) -> str:
    return f"not JSON: {error}" if isinstance(error, json.JSONDecodeError) else str(error)


def _row(doc: Any, model: str | None) -> Row:
    if not isinstance(doc, dict):
        raise ValueError("not a JSON object")
    prompt = doc.get("prompt", doc.get("text"))
    if prompt is None:
        prompt = text_of(doc.get("messages"))
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError('"prompt" is missing or empty')
    return Row(
        prompt=prompt,
        scores=_numbers(doc, "scores", "score", model, _score),
        tokens=_numbers(doc, "tok", "tokens", model, _count),
        prompt_tokens=_count(doc.get("in_tok") or 0, "in_tok"),
        dataset=str(doc.get("dataset", "")),
        id=str(doc.get("id", "")),
        answer=str(next((doc[key] for key in _ANSWERS if doc.get(key) is not None), "")),
    )


def _numbers(
    doc: dict[str, Any],
    many: str,
    one: str,
    model: str | None,
    check: Callable[[Any, str], float],
) -> dict[str, float]:
    found = doc.get(many) or {}
    if not isinstance(found, dict):
        raise ValueError(f'"{many}" is not an object of model: number')
    numbers = {str(name): check(value, f"{many}.{name}") for name, value in found.items()}
    if doc.get(one) is not None:
        name = doc.get("model", model)
        if not isinstance(name, str):
            raise ValueError(f'"{one}" without "model": whose is it?')
        numbers[name] = check(doc[one], one)
    return numbers


def _score(value: Any, name: str) -> float:
    number = _count(value, name)
    if number > 1:
        raise ValueError(f'"{name}" is {value}, not in 0..1')
    return number


def _count(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f'"{name}" is {value!r}, not a number of 0 or more')
    return float(value)


def models_of(rows: Iterable[Row]) -> list[str]:
    return sorted({model for row in rows for model in row.scores})


def errors_of(rows: Sequence[Row], models: Sequence[str]) -> Floats:
    """1 - score, float64 [rows, models]; nan where a row does not have the model."""
    nan = float("nan")
    found = [[1 - row.scores.get(model, nan) for model in models] for row in rows]
    return np.array(found, dtype=np.float64).reshape(len(rows), len(models))


def answer_tokens(rows: Sequence[Row], models: Sequence[str]) -> Floats:
    """Output tokens, float64 [rows, models]: where a row has none, the model's mean, else 0."""
    nan = float("nan")
    found = np.array([[row.tokens.get(model, nan) for model in models] for row in rows])
    found = found.reshape(len(rows), len(models))
    known = np.isfinite(found)
    mean = np.where(known, found, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.where(known, found, mean)


def complete(rows: Sequence[Row], models: Sequence[str]) -> list[Row]:
    """The rows that have a score for every one of `models`: only they compare them fairly."""
    return [row for row in rows if all(model in row.scores for model in models)]


def draw(rows: Sequence[Row], labels: int | None, seed: int) -> list[Row]:
    """`labels` of the rows at random, in the order they came; all of them for None."""
    return take(rows, labels, seed)[0]


def take(rows: Sequence[Row], labels: int | None, seed: int) -> tuple[list[Row], list[Row]]:
    """The rows drawn, and the rest."""
    if labels is None or labels >= len(rows):
        return list(rows), []
    chosen = set(np.random.default_rng(seed).choice(len(rows), labels, replace=False).tolist())
    return (
        [row for index, row in enumerate(rows) if index in chosen],
        [row for index, row in enumerate(rows) if index not in chosen],
    )
