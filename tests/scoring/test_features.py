import numpy as np
import pytest

from lunar_proxy.scoring.features import NAMES, surface

CASES = {
    "empty": ("", {"log_chars": 0.0, "log_words": 0.0, "code": 0.0}),
    "counts": ("How much is 12 + 3.5? $4", {"question_marks": 1, "dollar_signs": 1}),
    "numbers": ("12 3.5 7", {"log_numbers": np.log1p(3)}),
    "options": ("Pick.\nA. one\nB. two", {"lettered_options": 1, "newlines": 2}),
    "options in brackets": ("(A) one\n\n(B) two", {"lettered_options": 1, "newlines": 2}),
    "a letter within a line": ("so A. one or B. two", {"lettered_options": 0}),
    "half a character": ("\ud800\ud800", {"share_non_ascii": 1.0}),
    "one letter is no option": ("A. Einstein", {"lettered_options": 0}),
    "code": ("def f(x): return x", {"code": 1}),
    "shares": ("Ab1é", {"share_capitals": 0.25, "share_digits": 0.25, "share_non_ascii": 0.25}),
    "signs": ("a=b;", {"share_code_signs": 0.5}),
    "words": ("four four", {"word_length": 4.5, "log_words": np.log1p(2)}),
}


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES.keys())
def test_measures_the_form_of_a_text(text: str, expected: dict[str, float]) -> None:
    found = dict(zip(NAMES, surface(text).tolist(), strict=True))
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_reads_a_bounded_part_of_a_long_text() -> None:
    assert np.array_equal(surface("1 " * 10_000_000), surface("1 " * 10_000))
