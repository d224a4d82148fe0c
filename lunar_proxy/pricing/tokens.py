"""Counting tokens where a provider did not: an estimate, and marked as one wherever it is shown.

Latin script is counted with the WordPiece vocabulary of all-MiniLM-L6-v2, which the package carries
anyway for routing; no provider uses it. It has no good answer for other scripts (a Russian word
becomes a string of letters, a Thai sentence one unknown token), so those are counted by the
character, at rates near those of o200k_base, the vocabulary of GPT-4o. Against o200k_base:

    English prose, licence text, Markdown       0.9 to 1.15 of the true count
    source code, JSON, German                   1.2 to 1.4 (no merged punctuation, few compounds)
    Chinese, Japanese, Korean, emoji            0.95 to 1
    Arabic, Hebrew, Greek, Hindi, Thai          0.8 to 0.95
    Russian                                     1.6

The Latin figures are of texts of 0.15 to 35 kB. The others are of one sentence each, by which the
rates were also chosen, so expect worse of other text. Older vocabularies (cl100k_base) took up to
three times as many tokens for those sentences.
"""

from __future__ import annotations

import importlib.resources
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

_log = logging.getLogger(__name__)

TOKENIZER = "scoring/assets/all-MiniLM-L6-v2-int8/tokenizer.json"

# Text beyond this many characters is taken to be like what came before: 16k characters take some
# 7 ms to count, and a prompt may have 400k while other calls wait.
COUNTED_CHARS = 16_384

BYTES_PER_TOKEN = 4  # OpenAI's rule of thumb, for when there is no tokenizer

# OpenAI cookbook, "How to count tokens with tiktoken": what a chat is wrapped in.
TOKENS_PER_MESSAGE = 3
TOKENS_PER_REPLY = 3
# OpenAI, "Images and vision": a picture at low detail. At high detail it is 85 and 170 a tile, but
# the number of tiles is in the pixels, and those are not looked at.
TOKENS_PER_IMAGE = 85

# Characters which are not Latin, and how many make a token of o200k_base.
_SCRIPTS: tuple[tuple[re.Pattern[str], float], ...] = (
    (re.compile("[\u0250-\u1fff]"), 3.0),  # alphabets and syllabaries, Greek to Khmer
    (re.compile("[\u2000-\u2dff]"), 1.0),  # punctuation, arrows, box drawing
    (re.compile("[\u2e80-\uffff]"), 1.4),  # Chinese, Japanese, Korean
    (re.compile("[\U00010000-\U0010ffff]"), 0.6),  # emoji
)
_NOT_LATIN = re.compile("[\u0250-\U0010ffff]+")

# WordPiece takes a word of more than 100 letters for one unknown token.
_LONG_WORD = re.compile(r"(\w{64})(?=\w)")

_FIELDS: Mapping[str, tuple[str, ...]] = {
    "chat/completions": ("messages", "tools", "functions", "response_format"),
    "completions": ("prompt", "suffix"),
    "responses": ("instructions", "input", "tools", "text"),
    "embeddings": ("input",),
    "messages": ("system", "messages", "tools"),
    "router": ("messages",),
}
_ANY_FIELD = tuple(dict.fromkeys(name for names in _FIELDS.values() for name in names))
_MESSAGES = ("messages", "input")  # lists of things that are wrapped one by one
_SCHEMAS = ("tools", "functions", "response_format", "text")  # read by the model as JSON

_IMAGES = ("image_url", "input_image", "image")
_MEDIA = ("input_audio", "input_file", "file", "document")  # not counted: their size says nothing
_UNREAD = frozenset(  # strings of a message that are not text
    {
        "type",
        "id",
        "call_id",
        "tool_call_id",
        "tool_use_id",
        "cache_control",
        "signature",
        "status",
        "encrypted_content",
    }
)

Count = Callable[[str], int]


class TokenCounter:
    """Counts tokens of texts and of requests. Loads its vocabulary when first asked; thread-safe.

    Without the tokenizers package, or its vocabulary, four bytes are a token.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count_latin: Count | None = None

    def count(self, text: str) -> int:
        """The tokens of a text, estimated; work is bounded whatever its length."""
        if not text:
            return 0
        head = text[:COUNTED_CHARS]
        counted = self._latin(head) + self._other(head)
        return max(1, round(counted * len(text) / len(head)))

    def count_request(self, doc: Mapping[str, Any], endpoint: str) -> int:
        """The prompt tokens of a request body, estimated: messages, prompts, inputs and tools.

        Pictures count as one at low detail; audio and files are not counted. Token ids (arrays of
        numbers as prompt or input) are counted exactly. Bodies of any shape are taken.
        """
        texts: list[str] = []
        tokens = 0
        for name in _FIELDS.get(endpoint, _ANY_FIELD):
            value = doc.get(name)
            if name in _SCHEMAS:
                texts += [] if value is None else [_json(value)]
                continue
            tokens += _wrapping(value) if name in _MESSAGES else 0
            for part in _parts(value):
                if isinstance(part, str):
                    texts.append(part)
                else:
                    tokens += part
        return tokens + self.count("\n".join(texts))

    def _latin(self, text: str) -> int:
        if not text.isascii():
            text = _NOT_LATIN.sub(" ", text)
        count = self._count_latin or self._load()
        return count(_LONG_WORD.sub(r"\1 ", text))

    def _other(self, text: str) -> int:
        if text.isascii():
            return 0
        return round(sum(len(script.findall(text)) / rate for script, rate in _SCRIPTS))

    def _load(self) -> Count:
        with self._lock:
            if self._count_latin is None:
                self._count_latin = _wordpiece() or _by_bytes
            return self._count_latin


def _wordpiece() -> Count | None:
    try:
        # 16 MB and 50 ms, for a process that may never need to estimate anything.
        from tokenizers import Tokenizer

        path = importlib.resources.files("lunar_proxy") / TOKENIZER
        tokenizer = Tokenizer.from_str(path.read_text("utf-8"))
    except (ImportError, OSError) as error:
        _log.warning("tokens are estimated by bytes: %s", error)
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def _by_bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN


def _wrapping(value: object) -> int:
    """What a chat is wrapped in; texts and token ids are not wrapped."""
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return 0
    return TOKENS_PER_REPLY + TOKENS_PER_MESSAGE * len(value)


def _parts(value: object) -> Iterator[str | int]:
    """Every text below `value`, and the tokens of what is not text. Deep bodies do not recurse."""
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, list):
            yield sum(type(item) is int for item in part)
            pending += reversed(part)
        elif isinstance(part, dict):
            if part.get("type") in _IMAGES:
                yield TOKENS_PER_IMAGE
            elif part.get("type") not in _MEDIA:
                pending += [part[name] for name in reversed(part) if name not in _UNREAD]


def _json(value: object) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # too deep, or an integer beyond 64 bits
        return str(value)[:COUNTED_CHARS]
