"""What a request asks of the router (CONTRACT 4 `auto`, 7 `POST /v1/router`).

read_ask(call)      the members of a /v1/router request, checked
chat_call(...)      the chat request that executing it means, made by edits of its bytes
with_routing(...)   the answer with the decision put in; nothing else of it changes
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from .errors import InvalidRequest
from .jsonspan import apply, insertion, members, rewrite_request
from .model import Call

ENDPOINT = "router"
AUTO = "auto"
# Below two there is nothing to choose.
MIN_MODELS = 2
# What /v1/router understands and a provider does not; `model` is for the router to say.
_OURS = frozenset({"execute", "models", "cost_weight", "model"})


@dataclass(frozen=True, slots=True)
class Ask:
    """One decision that is wanted. `models` None: of all that are available."""

    models: tuple[str, ...] | None
    cost_weight: float | None  # None: the config's
    execute: bool


def is_auto(model: str) -> bool:
    return model == AUTO or model.startswith("auto:")


def auto_name(ask: Ask) -> str:
    """What a chat client would write as `model` for the same choice."""
    return AUTO if ask.models is None else f"{AUTO}:{','.join(ask.models)}"


def auto_models(model: str) -> tuple[str, ...] | None:
    """The names behind `auto:`; None for plain `auto`. Raises InvalidRequest for none at all."""
    if model == AUTO:
        return None
    names = tuple(name.strip() for name in model.removeprefix("auto:").split(",") if name.strip())
    if not names:
        raise InvalidRequest("auto: needs names behind it, such as auto:gpt-4o,o3", param="model")
    return names


def cost_weight(doc: Mapping[str, Any]) -> float | None:
    """The `cost_weight` of a body, None when it has none. Raises InvalidRequest."""
    weight = doc.get("cost_weight")
    if weight is None:
        return None
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0:
        raise _wrong("cost_weight", "a number of at least 0")
    return float(weight)


def read_ask(call: Call) -> Ask:
    """Raises InvalidRequest for whatever a client has to change."""
    doc = call.doc or {}
    for name, (right, says) in _CHECKS.items():
        if doc.get(name) is not None and not right(doc[name]):
            raise _wrong(name, says)
    if not doc.get("messages"):
        raise _wrong("messages", "a list of at least one message")
    names = doc.get("models")
    if names is not None and len(set(names)) < MIN_MODELS:
        raise too_few(len(set(names)))
    execute = doc.get("execute")
    return Ask(
        models=tuple(dict.fromkeys(names)) if names is not None else None,
        cost_weight=cost_weight(doc),
        execute=execute is not False,
    )


def chat_call(call: Call, model: str) -> Call:
    """The same as a chat completion of `model`: members of ours gone, all others as they came."""
    body = rewrite_request(call.body, drop=_OURS)
    new = b'"model":' + orjson.dumps(model)
    body = apply(body, [insertion(body, 0, members(body), new)])
    doc = {name: value for name, value in (call.doc or {}).items() if name not in _OURS}
    return replace(
        call,
        path=b"/v1/chat/completions",
        endpoint="chat/completions",
        body=body,
        doc={**doc, "model": model},
        model=model,
    )


def with_routing(body: bytes, routing: Mapping[str, Any]) -> bytes:
    """A JSON answer with the member `routing`; one that is no object is left as it is."""
    if not body.lstrip().startswith(b"{"):
        return body
    return apply(body, [insertion(body, 0, members(body), b'"routing":' + orjson.dumps(routing))])


def decision_only(id: str, created: int, routing: Mapping[str, Any]) -> bytes:
    """The answer to `execute: false`."""
    return orjson.dumps(
        {
            "id": id,
            "object": "chat.completion",
            "created": created,
            "model": routing["selected_model"],
            "choices": [],
            "usage": None,
            "routing": routing,
        }
    )


def too_few(count: int) -> InvalidRequest:
    return InvalidRequest(
        f"the router needs at least {MIN_MODELS} models to choose from, not {count}",
        code="INSUFFICIENT_MODELS",
        param="models",
    )


def missing_profiles(missing: list[str], available: list[str]) -> InvalidRequest:
    return InvalidRequest(
        f"there is no profile for {', '.join(missing)}; GET /v1/router/profiles lists those there "
        "are, and `lunar-proxy router profile` makes others",
        code="MISSING_PROFILES",
        param="models",
        details={"missing_profiles": missing, "available_profiles": available},
    )


# --- inside --------------------------------------------------------------------------------------


def _names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _messages(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(message, dict) for message in value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _flag(value: object) -> bool:
    return isinstance(value, bool)


# What is null counts as absent, as OpenAI's clients send it.
_CHECKS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "messages": (_messages, "a list of messages"),
    "models": (_names, "a list of model names"),
    "execute": (_flag, "true or false"),
    "stream": (_flag, "true or false"),
    "stream_options": (lambda value: isinstance(value, dict), "an object"),
    "max_tokens": (_whole, "a whole number above 0"),
    "temperature": (lambda value: _number(value) and value >= 0, "a number of at least 0"),  # type: ignore[operator]
}


def _wrong(name: str, says: str) -> InvalidRequest:
    return InvalidRequest(f"{name} must be {says}", param=name)
