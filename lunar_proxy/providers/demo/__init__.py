"""The built-in provider `demo`: OpenAI's shapes without a key, a network or a model behind them.

    answer("POST", "chat/completions", {"model": "echo", "messages": [...]}, id="1", created=0)

yields the steps of the answer. `echo` says the last user message again; `lorem` writes filler, as
many tokens as `max_tokens` asks for. Everything is deterministic. A model name may carry settings,
as in `lorem?tps=50&ttft_s=0.3`:

tps      tokens per second; as fast as the reader reads when not said
ttft_s   seconds before the first token
status   answer with this error status instead, to see a fallback at work

A token is up to six letters with the blanks before them. As with a provider's prefix cache, every
message but the last counts as cached.

`ask` reads a request; `reply` decides what to say and plays it as steps; `chat`, `responses` and
`embeddings` give it the shape of their endpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

from lunar_proxy.core.errors import ModelNotFound, NotFound, ProxyError
from lunar_proxy.core.script import Step

from .ask import MODELS, Ask
from .chat import chat, completion
from .embeddings import embeddings
from .reply import document
from .responses import responses

__all__ = ["DEMO_PRICES", "MODELS", "answer", "base_model"]

# Invented, and round, so that a reader can check the proxy's arithmetic in the head.
DEMO_PRICES = {
    model: {
        "input_per_million": Decimal("1"),
        "output_per_million": Decimal("2"),
        "cache_input_per_million": Decimal("0.1"),
    }
    for model in MODELS
}


def base_model(name: str) -> str:
    """The model without its settings: what prices and metrics are kept under."""
    return name.partition("?")[0]


def answer(
    method: str, endpoint: str, doc: dict[str, Any] | None, *, id: str, created: int
) -> Iterator[Step]:
    """What the demo says to a request; `endpoint` is the path below /v1/, `doc` the JSON body.

    `id` ends the answer's own id, `created` is its time stamp in seconds. A bad request yields an
    error answer in OpenAI's shape; nothing is raised.
    """
    try:
        if method == "GET":
            return document(_models(endpoint, created))
        ask = Ask.of(doc, id, created)
        if ask.status is not None:
            return document(_error("scripted by ?status=", "server_error", None, None), ask.status)
        return _endpoint(endpoint)(ask)
    except ProxyError as error:
        refused = _error(error.message, "invalid_request_error", error.param, error.code)
        return document(refused, error.status)


def _endpoint(endpoint: str) -> Callable[[Ask], Iterator[Step]]:
    table = {
        "chat/completions": chat,
        "completions": completion,
        "responses": responses,
        "embeddings": embeddings,
    }
    if endpoint not in table:
        raise NotFound(f"demo has no endpoint /v1/{endpoint}")
    return table[endpoint]


def _models(endpoint: str, created: int) -> dict[str, Any]:
    cards = {
        model: {"id": model, "object": "model", "created": created, "owned_by": "demo"}
        for model in MODELS
    }
    family, _, name = endpoint.partition("/")
    if family != "models":
        raise NotFound(f"demo has no endpoint /v1/{endpoint}")
    if not name:
        return {"object": "list", "data": list(cards.values())}
    if name not in cards:
        raise ModelNotFound(f"the model {name!r} does not exist", param="model")
    return cards[name]


def _error(message: str, type: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type, "param": param, "code": code}}
