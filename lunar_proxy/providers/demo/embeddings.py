"""Vectors that mean nothing, of a shape that is right."""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from collections.abc import Iterator

from lunar_proxy.core.errors import InvalidRequest
from lunar_proxy.core.script import Step

from .ask import Ask
from .reply import document, split

_DIMENSIONS = 64


def embeddings(ask: Ask) -> Iterator[Step]:
    given = ask.doc.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise InvalidRequest("input must be a string or a list of strings", param="input")
    size = ask.limit("dimensions") or _DIMENSIONS
    encode = _packed if ask.doc.get("encoding_format") == "base64" else list
    data = [
        {"object": "embedding", "index": index, "embedding": encode(_vector(text, size))}
        for index, text in enumerate(texts)
    ]
    spent = sum(len(split(text)) for text in texts)
    usage = {"prompt_tokens": spent, "total_tokens": spent}
    doc = {"object": "list", "data": data, "model": ask.model, "usage": usage}
    return document(doc)


def _vector(text: str, size: int) -> tuple[float, ...]:
    """A point on the unit sphere, the same for the same text: no meaning, but a valid shape."""
    noise = hashlib.shake_128(text.encode()).digest(2 * size)
    raw = [number + 0.5 for number in struct.unpack(f"<{size}h", noise)]  # never all zero
    length = math.hypot(*raw)
    return tuple(number / length for number in raw)


def _packed(vector: tuple[float, ...]) -> str:
    """Little-endian float32, as OpenAI packs them and its SDK asks by default."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
