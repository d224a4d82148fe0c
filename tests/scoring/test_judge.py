import json
from pathlib import Path

import pytest

from lunar_proxy.scoring.errors import BadFile, ScoringError
from lunar_proxy.scoring.judge import (
    Answer,
    Ask,
    cost_of,
    estimate,
    estimate_judging,
    exact,
    grade,
    llm,
    read_graded,
    regex,
    same,
)
from lunar_proxy.scoring.rows import Row, read_rows

SAME = {
    "text": ("Paris", "paris", True),
    "markup and a full stop": ("**Paris**.", "Paris", True),
    "answer is": ("Well. The answer is: 42.\nHope this helps!", "42", True),
    "last line": ("We add them.\n12", "12", True),
    "number formats": ("So the answer is $1,234.00", "1234", True),
    "boxed": ("Thus \\boxed{7}", "7", True),
    "negative": ("It is -3", "-3", True),
    "last number": ("First 3, then 4, so 12 apples", "12", True),
    "another number": ("First 12, then 13", "12", False),
    "choice": ("The answer is (B).", "B", True),
    "choice with its text": ("The answer is B. 4 metres", "B", True),
    "another choice": ("B is wrong, so the answer is C", "B", False),
    "text within text is not it": ("I would not say Paris at all", "Paris", False),
    "nothing": ("", "4", False),
}


@pytest.mark.parametrize(("said", "right", "expected"), SAME.values(), ids=SAME.keys())
def test_compares_answers(said: str, right: str, expected: bool) -> None:
    assert same(said, right) is expected


REGEX = {
    "a pattern": (r"\bfour\b", "", "It is four.", 1),
    "not found": (r"\bfour\b", "", "It is five.", 0),
    "with the answer": (r"= {answer}$", "2.5", "x = 2.5", 1),
    "the answer is quoted": (r"= {answer}$", "2.5", "x = 2x5", 0),
    "a group is compared": (r"#### (\d+)", "12", "2\n#### 12", 1),
    "a group that differs": (r"#### (\d+)", "12", "#### 13", 0),
    "the row's own pattern": (None, "colou?r", "The Color", 1),
}


@pytest.mark.parametrize(("pattern", "answer", "said", "score"), REGEX.values(), ids=REGEX.keys())
async def test_judges_by_pattern(pattern: str | None, answer: str, said: str, score: int) -> None:
    assert await regex(pattern)(Row("p", answer=answer), said) == score


def test_a_bad_pattern_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(ScoringError, match="pattern"):
        regex("(")


def saying(*texts: str) -> tuple[Ask, list[str]]:
    asked: list[str] = []

    async def ask(prompt: str) -> Answer:
        asked.append(prompt)
        return Answer(texts[(len(asked) - 1) % len(texts)], output_tokens=10)

    return ask, asked


@pytest.mark.parametrize(("said", "score"), [("1", 1), ("Grade: 0.5", 0.5), ("7", 1), ("-1", 0)])
async def test_a_model_judges(said: str, score: float) -> None:
    ask, asked = saying(said)
    assert await llm(ask)(Row("Why?", answer="because"), "so") == score
    assert "because" in asked[0]


async def test_a_judge_that_gives_no_number_is_refused() -> None:
    with pytest.raises(ScoringError, match="not a number"):
        await llm(saying("good")[0])(Row("Why?"), "so")


ROWS = [Row(f"{n} + {n}?", answer=str(2 * n), dataset="sums") for n in range(6)]


async def test_keeps_every_answer_and_asks_only_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.jsonl"
    first, asked = saying("0")
    await grade(ROWS[:3], "m", first, exact, path)
    again, asked = saying("the answer is 6")
    found = await grade(ROWS, "m", again, exact, path)
    assert asked == [row.prompt for row in ROWS[3:]]
    assert [found[row.prompt].score for row in ROWS] == [1, 0, 0, 1, 0, 0]
    assert [row.scores for row in read_rows([path])][:2] == [{"m": 1.0}, {"m": 0.0}]


async def test_a_line_cut_by_a_crash_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    await grade(ROWS[:2], "m", saying("0")[0], exact, path)
    path.write_bytes(path.read_bytes()[:-20])
    ask, asked = saying("0")
    await grade(ROWS[:2], "m", ask, exact, path)
    assert asked == [ROWS[1].prompt]
    assert len(read_graded(path, "m")) == 2
    assert [json.loads(line)["model"] for line in path.read_text().splitlines()] == ["m", "m"]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"x": 1}\n{"y": 2}\n')
    with pytest.raises(BadFile, match=r"a:1: "):
        read_graded(tmp_path / "a", "m")


async def test_counts_what_is_spent_and_stops_in_time(tmp_path: Path) -> None:
    ask, asked = saying("0")
    spent: list[float] = []
    await grade(
        *(ROWS, "m", ask, exact, tmp_path / "a"),
        price=(0.0, 1e5),
        max_usd=2.0,
        parallel=2,
        progress=lambda _done, _all, usd: spent.append(usd),
    )
    assert len(asked) == 2
    assert spent == [pytest.approx(2.0)]


async def test_answers_that_were_paid_are_kept_when_another_fails(tmp_path: Path) -> None:
    async def ask(prompt: str) -> Answer:
        if prompt == ROWS[1].prompt:
            raise ScoringError("503 for m")
        return Answer("0")

    with pytest.raises(ScoringError, match="503 for m"):
        await grade(ROWS[:4], "m", ask, exact, tmp_path / "a")
    again, asked = saying("0")
    await grade(ROWS[:4], "m", again, exact, tmp_path / "a")
    assert asked == [ROWS[1].prompt]


async def test_what_the_judge_costs_counts_too(tmp_path: Path) -> None:
    ask, asked = saying("0")
    found = await grade(
        *(ROWS, "m", ask, exact, tmp_path / "a"),
        max_usd=1.0,
        parallel=2,
        judging_usd=lambda: 0.3 * len(asked),
    )
    assert len(found) == 4


@pytest.mark.parametrize(
    ("answer", "usd"),
    [
        (Answer("x", output_tokens=10, usd=0.5), 0.5),
        (Answer("x", output_tokens=10), 120e-6),
        (Answer("x", output_tokens=0), 100e-6),
        (Answer("x"), 700e-6),
    ],
)
def test_a_call_costs_what_its_server_says_or_the_table(answer: Answer, usd: float) -> None:
    assert cost_of(answer, 100, (1.0, 2.0)) == pytest.approx(usd)


def test_a_judge_reads_prompt_and_answer_and_says_little() -> None:
    usd = estimate_judging([Row("x" * 380)], (1.0, 1000.0))
    assert usd is not None
    assert 400e-6 < usd < 600e-6
    assert estimate_judging(ROWS, None) is None


def test_estimates_the_cost_before_it_starts() -> None:
    assert estimate([Row("x" * 38)], (100.0, 10.0)) == pytest.approx((10 * 100 + 300 * 10) / 1e6)
    assert estimate(ROWS, None) is None
