"""What was asked: the request, checked, and the settings its model name carries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from lunar_proxy.core.errors import InvalidRequest, ModelNotFound

MODELS = ("echo", "lorem")

_MOST_TOKENS = 16_384  # that one answer may have: the output limit of common models

Turn = tuple[str, str]  # role, text


@dataclass(frozen=True, slots=True)
class Ask:
    doc: dict[str, Any]
    model: str
    tps: float | None
    ttft_s: float
    status: int | None
    id: str
    created: int

    @classmethod
    def of(cls, doc: dict[str, Any] | None, id: str, created: int) -> Ask:
        name = (doc or {}).get("model")
        if doc is None or not isinstance(name, str):
            raise InvalidRequest("you must provide a model parameter", param="model")
        model, _, query = name.removeprefix("demo/").partition("?")
        if model not in MODELS:
            raise ModelNotFound(f"the model {model!r} does not exist", param="model")
        given = dict(parse_qsl(query, keep_blank_values=True))
        settings = {key: _number(key, value) for key, value in given.items()}
        if unknown := settings.keys() - {"tps", "ttft_s", "status"}:
            raise InvalidRequest(f"no such setting: {', '.join(sorted(unknown))}", param="model")
        status = settings.get("status")
        if status is not None and not 400 <= status <= 599:
            raise InvalidRequest("status is an error status, 400 to 599", param="model")
        return cls(
            doc=doc,
            model=model,
            tps=settings.get("tps"),
            ttft_s=settings.get("ttft_s", 0.0),
            status=None if status is None else int(status),
            id=id,
            created=created,
        )

    @property
    def stream(self) -> bool:
        return self.doc.get("stream") is True

    @property
    def include_usage(self) -> bool:
        options = self.doc.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True

    def limit(self, *names: str) -> int | None:
        for name in names:
            most = self.doc.get(name)
            if most is None:
                continue
            if not isinstance(most, int) or isinstance(most, bool) or most < 1:
                raise InvalidRequest(f"{name} must be a whole number, 1 or more", param=name)
            return min(most, _MOST_TOKENS)
        return None


def _number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise InvalidRequest(f"{name} must be a number above 0", param="model")
    return number


def read_turns(value: Any, param: str) -> list[Turn]:
    """(role, text) of each message; a string is one user message."""
    if isinstance(value, str):
        return [("user", value)]
    if not isinstance(value, list) or not value or not all(isinstance(m, dict) for m in value):
        raise InvalidRequest(f"{param} must be a list of at least one message", param=param)
    return [(str(message.get("role", "user")), _text(message.get("content"))) for message in value]


def _text(content: Any) -> str:
    """The text of a message, of whatever parts it is made."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return "".join(text for text in texts if isinstance(text, str))
