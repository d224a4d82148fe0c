"""Thirteen numbers about the form of a text, which an embedding of its meaning does not carry.

How hard a task is shows in its length, its numbers and its layout too: these alone route the grade
school maths set better than the embedding does (APGR .66 against .56).
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

NAMES = (
    "log_words",
    "log_chars",
    "newlines",
    "share_digits",
    "share_capitals",
    "share_code_signs",
    "share_non_ascii",
    "question_marks",
    "dollar_signs",
    "log_numbers",
    "word_length",
    "code",
    "lettered_options",
)
# Beyond this length a text is "long" and the counts say nothing more; it bounds the time to 1 ms.
_MAX_CHARS = 8192
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_OPTION = re.compile(r"\(?[A-J][.)]")
_OTHER, _DIGIT, _CAPITAL, _SIGN, _NON_ASCII = range(5)
# The kind of each character: a lookup counts 8,000 of them in 0.05 ms, a pattern a kind in 0.5.
_KINDS = np.full(129, _OTHER, dtype=np.uint8)
_KINDS[[*b"0123456789"]] = _DIGIT
_KINDS[[*b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]] = _CAPITAL
_KINDS[[*b"{}[]()=<>;_\\^+*/|"]] = _SIGN
_KINDS[128] = _NON_ASCII


def surface(text: str) -> NDArray[np.float32]:
    """float32 [13], in the order of NAMES, as counted: `Clusters.standard` scales them."""
    text = text[:_MAX_CHARS]
    chars = max(len(text), 1)
    words = len(text.split())
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    kinds = np.bincount(_KINDS[np.minimum(codes, 128)], minlength=5) / chars
    found = (
        np.log1p(words),
        np.log1p(len(text)),
        text.count("\n"),
        kinds[_DIGIT],
        kinds[_CAPITAL],
        kinds[_SIGN],
        kinds[_NON_ASCII],
        text.count("?"),
        text.count("$"),
        np.log1p(len(_NUMBER.findall(text))),
        chars / max(words, 1),
        "def " in text or "function" in text,
        sum(_OPTION.match(line) is not None for line in text.split("\n") if line) > 1,
    )
    return np.array(found, dtype=np.float32)
