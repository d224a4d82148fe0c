import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lunar_proxy.scoring.errors import BadFile
from lunar_proxy.scoring.rows import (
    Row,
    answer_tokens,
    complete,
    draw,
    errors_of,
    models_of,
    read_rows,
    take,
)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SHAPES: dict[str, tuple[Any, Row]] = {
    "full": (
        {
            "id": "a/1",
            "dataset": "a",
            "subject": "x",
            "prompt": "p",
            "scores": {"m": 1, "n": 0.5},
            "tok": {"m": 7},
            "in_tok": 3,
        },
        Row("p", {"m": 1.0, "n": 0.5}, {"m": 7.0}, 3.0, "a", "a/1"),
    ),
    "prompt only": ({"prompt": "p"}, Row("p")),
    "flat": ({"prompt": "p", "score": True, "tokens": 9}, Row("p", {"me": 1.0}, {"me": 9.0})),
    "flat, named": ({"prompt": "p", "score": 0, "model": "m"}, Row("p", {"m": 0.0})),
    "chat": ({"messages": [{"role": "user", "content": "p"}]}, Row("p")),
    "answer": ({"prompt": "p", "answer": 42}, Row("p", answer="42")),
}


@pytest.mark.parametrize(("doc", "row"), SHAPES.values(), ids=SHAPES.keys())
def test_reads_every_shape_of_row(tmp_path: Path, doc: Any, row: Row) -> None:
    assert read_rows([write(tmp_path / "a.jsonl", doc)], model="me") == [row]


def test_reads_gzip_whatever_its_name_and_several_files(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.jsonl", {"prompt": "one"})
    zipped = tmp_path / "b.jsonl"
    zipped.write_bytes(gzip.compress(b'\n{"prompt": "two"}\n\n'))
    assert [row.prompt for row in read_rows([plain, zipped])] == ["one", "two"]


BAD = {
    "no json": ("{", "not JSON"),
    "no object": ("[1]", "not a JSON object"),
    "no prompt": ("{}", '"prompt" is missing or empty'),
    "score": ('{"prompt":"p","scores":{"m":2}}', '"scores.m" is 2, not in 0..1'),
    "score nan": ('{"prompt":"p","scores":{"m":NaN}}', "not a number"),
    "scores": ('{"prompt":"p","scores":[1]}', '"scores" is not an object'),
    "whose": ('{"prompt":"p","score":1}', "whose is it"),
    "tokens": ('{"prompt":"p","tok":{"m":"x"}}', "\"tok.m\" is 'x'"),
}


@pytest.mark.parametrize(("line", "match"), BAD.values(), ids=BAD.keys())
def test_a_bad_line_is_named_by_file_and_line(tmp_path: Path, line: str, match: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt":"fine"}\n' + line + "\n")
    with pytest.raises(BadFile, match=match) as caught:
        read_rows([path])
    assert str(caught.value).startswith(f"{path}:2: ")


def test_a_missing_an_empty_and_a_cut_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "cut").write_bytes(gzip.compress(b'{"prompt":"p"}' * 9999)[:60])
    for name in ("absent", "empty", "cut", "."):
        with pytest.raises(BadFile, match=name):
            read_rows([tmp_path / name])


ROWS = [Row("a", {"m": 1, "n": 0}, {"m": 4}), Row("b", {"m": 0}, {"m": 6}), Row("c")]


def test_makes_tables_of_models() -> None:
    assert models_of(ROWS) == ["m", "n"]
    assert complete(ROWS, ["m", "n"]) == ROWS[:1]
    errors = errors_of(ROWS, ["m", "n"])
    expected = np.array([[0, 1], [1, np.nan], [np.nan, np.nan]])
    assert np.array_equal(errors, expected, equal_nan=True)
    assert answer_tokens(ROWS, ["m", "n"]).tolist() == [[4, 0], [6, 0], [5, 0]]


def test_draws_by_seed_without_repeats_and_keeps_the_rest() -> None:
    rows = [Row(str(number)) for number in range(50)]
    drawn, rest = take(rows, 20, seed=1)
    assert len(drawn) == 20
    assert sorted(row.prompt for row in drawn + rest) == sorted(row.prompt for row in rows)
    assert drawn == draw(rows, 20, seed=1) != draw(rows, 20, seed=2)
    assert draw(rows, None, seed=1) == draw(rows, 99, seed=1) == rows
