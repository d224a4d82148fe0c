"""The encoder without a network: how it is made, what it gives, what is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lunar_proxy.scoring.distill import distill, principal, quantize, weighted
from lunar_proxy.scoring.encoder import EmbedderId, Encoder, Vector
from lunar_proxy.scoring.errors import Absent, BadFile, Mismatch
from lunar_proxy.scoring.router import DEFAULT_EMBEDDER, SHIPPED, Router
from lunar_proxy.scoring.static import TABLE, StaticEncoder, open_encoder, save_static

STATIC = SHIPPED["static"]


@pytest.fixture(scope="module")
def encoder() -> StaticEncoder:
    return StaticEncoder(STATIC.embedder)


class Teacher:
    """Tokens on a circle in three dimensions: two components hold all of it."""

    id = EmbedderId("circle", "c" * 64, 3, 128)
    vocabulary = 12

    def encode_token(self, id: int) -> Vector:
        angle = 2 * np.pi * id / self.vocabulary
        return np.array([np.cos(angle), 0.5, np.sin(angle)], dtype=np.float32)


def test_a_table_keeps_what_its_teacher_tells_apart() -> None:
    codes, scales = distill(Teacher(), 2)
    assert codes.shape == (12, 2)
    made = codes * scales[:, None]
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    # Opposite on the circle, a quarter apart, next to each other.
    assert [round(float(made[0] @ made[other]), 1) for other in (6, 3, 1)] == [-1.0, 0.0, 0.9]


def test_the_same_teacher_gives_the_same_table() -> None:
    (codes, scales), (again, scales_again) = distill(Teacher(), 2), distill(Teacher(), 2)
    assert np.array_equal(codes, again)
    assert np.array_equal(scales, scales_again)


def test_components_are_ordered_by_what_they_hold_and_have_a_sign() -> None:
    points = np.array([[-3.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    for mirrored in (points, -points):
        spread = principal(mirrored, 2)
        assert np.abs(spread).max(axis=0).tolist() == [3.0, 1.0]
    assert principal(points, 1).shape == (4, 1)


def test_frequent_tokens_weigh_less() -> None:
    weights = weighted(np.ones((30_000, 1)))[:, 0]
    assert (np.diff(weights) > 0).all()
    assert weights[0] < 0.01
    assert weights[-1] > 0.9


def test_codes_are_within_half_a_step() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 8))
    codes, scales = quantize(np.vstack([vectors, np.zeros(8)]))
    assert np.abs(codes[:50] * scales[:50, None] - vectors).max() <= scales.max() / 2 + 1e-6
    assert not codes[50].any()


def test_names_itself(encoder: StaticEncoder) -> None:
    assert encoder.id.name == "all-MiniLM-L6-v2-static"
    assert (encoder.id.dimension, encoder.id.tokens) == (256, 128)


@pytest.mark.parametrize("text", ["hi", "naïve 你好 \ud800", "word " * 5000])
def test_any_text_gives_a_unit_vector(encoder: StaticEncoder, text: str) -> None:
    vector = encoder.encode(text)
    assert vector.shape == (256,)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("text", ["", "\x00\n\t"])
def test_a_text_without_tokens_gives_nothing(encoder: StaticEncoder, text: str) -> None:
    assert not encoder.encode(text).any()


def test_texts_of_like_meaning_are_near(encoder: StaticEncoder) -> None:
    cat, kitten, loan = (
        encoder.encode(text)
        for text in ("a cat sat on the mat", "a kitten on a rug", "interest on a mortgage")
    )
    assert cat @ kitten > cat @ loan + 0.1


def test_reads_128_tokens_and_no_more(encoder: StaticEncoder) -> None:
    start = "one " * 128
    assert np.array_equal(encoder.encode(start + "zebra"), encoder.encode(start + "theorem"))


def test_needs_no_onnxruntime() -> None:
    code = (
        "import sys\n"
        "from lunar_proxy.scoring.router import SHIPPED, Router\n"
        "from lunar_proxy.scoring.static import open_encoder\n"
        "encoder = open_encoder(SHIPPED['static'].embedder)\n"
        "Router.load(SHIPPED['static'].profiles).require(encoder.id)\n"
        "encoder.encode('hello')\n"
        "print('onnxruntime' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_what_two_embedders_made_never_mixes(encoder: StaticEncoder) -> None:
    static, minilm = Router.load(STATIC.profiles), Router.load()
    static.require(encoder.id)
    with pytest.raises(Mismatch):
        minilm.require(encoder.id)
    with pytest.raises(Mismatch):
        static.require(Encoder(DEFAULT_EMBEDDER).id)
    assert static.ids == minilm.ids


def test_a_directory_says_which_kind_it_holds() -> None:
    assert isinstance(open_encoder(STATIC.embedder), StaticEncoder)
    assert isinstance(open_encoder(DEFAULT_EMBEDDER), Encoder)


def save(directory: Path, **arrays: object) -> None:
    with (directory / TABLE).open("wb") as file:
        np.savez(file, **{name: np.asarray(array) for name, array in arrays.items()})  # type: ignore[arg-type]


BAD = {
    "not a table": ({}, BadFile, "not a table"),
    "floats": ({"codes": np.ones((4, 2)), "scales": np.ones(4)}, BadFile, "codes float64"),
    "lengths": ({"codes": np.ones((4, 2), np.int8), "scales": np.ones(3)}, BadFile, r"\(3,\)"),
    "nan": ({"codes": np.ones((1, 2), np.int8), "scales": [np.nan]}, BadFile, "not finite"),
    "short": ({"codes": np.ones((1, 2), np.int8), "scales": [1.0]}, BadFile, "1 tokens"),
}


@pytest.mark.parametrize(("arrays", "error", "said"), BAD.values(), ids=BAD.keys())
def test_a_bad_table_is_refused(
    tmp_path: Path, arrays: dict[str, object], error: type[Exception], said: str
) -> None:
    save(tmp_path, **arrays)
    (tmp_path / "tokenizer.json").symlink_to(DEFAULT_EMBEDDER / "tokenizer.json")
    with pytest.raises(error, match=said):
        StaticEncoder(tmp_path)


def test_a_table_that_was_changed_is_refused(tmp_path: Path) -> None:
    codes, scales = np.ones((30_522, 2), np.int8), np.ones(30_522, np.float32)
    made = save_static(tmp_path, codes, scales, "ones", like=DEFAULT_EMBEDDER)
    assert made.id.tokens == 104
    save(tmp_path, codes=codes, scales=2 * scales)
    with pytest.raises(Mismatch, match="sha256"):
        StaticEncoder(tmp_path)


def test_what_is_not_there_can_be_told_from_what_is_bad(tmp_path: Path) -> None:
    with pytest.raises(Absent, match=r"tokenizer\.json"):
        StaticEncoder(tmp_path)
    (tmp_path / "tokenizer.json").symlink_to(DEFAULT_EMBEDDER / "tokenizer.json")
    with pytest.raises(Absent, match=r"model\.onnx"):
        open_encoder(tmp_path)
