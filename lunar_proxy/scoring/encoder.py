"""A sentence encoder in a directory: text -> unit vector, on the calling thread.

The directory holds `tokenizer.json`, and `model.onnx` (Encoder) or `table.npz` (`static`), and
optionally `embedder.json`, the manifest:

name       for people; default: the directory's name
tokens     how much of a text is read; default 128
output     name of the model's output; default: its first
pooling    "none" (the output is already [batch, dim]), "mean" or "cls" (it is [batch, token, dim])
sha256     of model.onnx or table.npz; refused when the file has another

`output` and `pooling` are about model.onnx alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import Absent, BadFile, Mismatch
from .text import crop

if TYPE_CHECKING:
    import onnxruntime  # type: ignore[import-untyped]
    import tokenizers

Vector = NDArray[np.float32]

# 128 tokens route as well as 256 and 512 (APGR within .01 on MMLU and GSM8K, area within .1 on a
# pool of four) at 45 % and 17 % of the time; 64 lose .02. The shipped encoder reads 104 (`text`).
DEFAULT_TOKENS = 128


@dataclass(frozen=True, slots=True)
class EmbedderId:
    """What a state file says about the encoder it was made with."""

    name: str
    sha256: str
    dimension: int
    tokens: int

    def to_json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_json(cls, doc: dict[str, Any]) -> EmbedderId:
        return cls(**{field.name: doc[field.name] for field in fields(cls)})

    def require(self, other: EmbedderId, what: str) -> None:
        """Refuse `other` unless vectors of both may be mixed; the name is for people only."""
        for key in ("sha256", "dimension", "tokens"):
            mine, theirs = getattr(self, key), getattr(other, key)
            if mine != theirs:
                raise Mismatch(
                    f"{what} was made with embedder {other.name} ({key} {theirs}), but "
                    f"{self.name} ({key} {mine}) is loaded; refit it or configure that embedder"
                )


@dataclass(frozen=True, slots=True)
class Manifest:
    name: str
    tokens: int = DEFAULT_TOKENS
    output: str | None = None
    pooling: str = "none"
    sha256: str | None = None


class Encodes(Protocol):
    """What turns a text into a vector; `encode` may be called from several threads at once."""

    id: EmbedderId
    quick: bool  # a fraction of a millisecond: sooner done than handed to a thread

    def encode(self, text: str) -> Vector: ...


class Encoder:
    """Loads in about 0.1 s and 50 MB. `encode` may be called from several threads at once."""

    quick = False

    def __init__(self, directory: Path) -> None:
        self._manifest = read_manifest(directory)
        self._tokenizer = load_tokenizer(directory, self._manifest.tokens)
        self._session, sha256 = _load_session(directory / "model.onnx", self._manifest.sha256)
        self._inputs = {node.name for node in self._session.get_inputs()}
        dimension = len(self.encode("dimension"))
        self.id = EmbedderId(self._manifest.name, sha256, dimension, self._manifest.tokens)

    def encode(self, text: str) -> Vector:
        """float32 [dimension], norm 1. Only the first `tokens` tokens are read."""
        return self._vector(self._tokenizer.encode(crop(text)).ids)

    @property
    def vocabulary(self) -> int:
        """How many tokens the tokenizer knows: their ids are 0 to this less 1."""
        return self._tokenizer.get_vocab_size()

    def encode_token(self, id: int) -> Vector:
        """The vector of a text of one token, between what the tokenizer puts around a text."""
        around = self._tokenizer.encode("a")
        inside = [at for at, special in enumerate(around.special_tokens_mask) if not special]
        return self._vector([*around.ids[: inside[0]], id, *around.ids[inside[-1] + 1 :]])

    def _vector(self, tokens: list[int]) -> Vector:
        ids = np.array([tokens], dtype=np.int64)
        mask = np.ones_like(ids)
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        outputs = [self._manifest.output] if self._manifest.output else None
        (found, *_) = self._session.run(
            outputs, {name: feeds[name] for name in feeds.keys() & self._inputs}
        )
        return unit(_POOLING[self._manifest.pooling](found[0]))


def unit(vector: NDArray[Any]) -> Vector:
    """Of norm 1; nothing stays nothing."""
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9), dtype=np.float32)


_POOLING = {
    "none": lambda found: found,
    "mean": lambda found: found.mean(axis=0),  # one text at a time: there is no padding to mask
    "cls": lambda found: found[0],
}


def read_manifest(directory: Path) -> Manifest:
    path = directory / "embedder.json"
    if not directory.is_dir():
        raise Absent(f"{directory}: no such directory with an embedder")
    try:
        doc = json.loads(path.read_text()) if path.exists() else {}
        manifest = Manifest(**{"name": directory.name, **doc})
    except (OSError, ValueError, TypeError) as error:
        raise BadFile(f"{path}: {error}") from error
    if manifest.pooling not in _POOLING:
        raise BadFile(f"{path}: pooling: {manifest.pooling!r} is not one of {', '.join(_POOLING)}")
    if type(manifest.tokens) is not int or manifest.tokens < 2:
        raise BadFile(f"{path}: tokens: must be a whole number above 1")
    return manifest


def load_tokenizer(directory: Path, tokens: int) -> tokenizers.Tokenizer:
    import tokenizers  # 20 MB and 60 ms, for nobody but the router

    path = directory / "tokenizer.json"
    if not path.is_file():
        raise Absent(f"{path}: missing")
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    # As published, many tokenizer files also pad: every prompt would cost the full length.
    tokenizer.no_padding()
    tokenizer.enable_truncation(tokens)
    return tokenizer


def read_weights(path: Path, expected: str | None) -> tuple[bytes, str]:
    """The bytes of a file and their sha256. Raises Absent, or Mismatch when another is expected."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Absent(f"{path}: {error.strerror}") from error
    sha256 = hashlib.sha256(data).hexdigest()
    if expected not in (None, sha256):
        raise Mismatch(f"{path}: sha256 is {sha256}, embedder.json says {expected}")
    return data, sha256


def _load_session(path: Path, expected: str | None) -> tuple[onnxruntime.InferenceSession, str]:
    try:
        import onnxruntime  # 30 MB and 100 ms, for nobody but the router
    except ImportError as error:  # there are no wheels for some platforms
        raise Absent(f"{path}: onnxruntime is not installed ({error})") from error
    _, sha256 = read_weights(path, expected)
    options = onnxruntime.SessionOptions()
    # One thread a call: two give 1.5 x the speed for 1.2 x the CPU, and calls already run in
    # parallel. Spinning would burn a core between calls.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        str(path),
        options,
        providers=["CPUExecutionProvider"],
        # On a CPU the fused kernel is scalar code: 3.3 ms of 128 tokens instead of 0.7.
        disabled_optimizers=["SkipLayerNormFusion"],
    )
    return session, sha256
