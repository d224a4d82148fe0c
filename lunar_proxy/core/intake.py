"""From a request's bytes to a `Call`, or to an error that says what to change."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson

from .attachment import Attachment
from .errors import InvalidRequest
from .jsonread import read_request
from .jsonspan import at_most
from .model import Annotate, Call, Fields, Identity, noun

# Endpoints whose body must be a JSON object that names a model.
MODEL_ENDPOINTS = frozenset({"chat/completions", "completions", "responses", "embeddings"})
# Those, and the one whose body names no model, because it asks for one.
JSON_ENDPOINTS = MODEL_ENDPOINTS | {"router"}
# Deeper than any schema seen in tools or response_format; parsers further on may be recursive.
MAX_DEPTH = 128
MAX_FALLBACKS = 5
# Members that say who may answer; and with them those that say how.
_GUIDING = frozenset({"provider", "fallbacks", "models"})
_TELLING = _GUIDING | {"stream", "stream_options"}


@noun
class Incoming:
    """One HTTP request as a door read it. `body` is empty while an upload is still arriving."""

    method: bytes
    path: bytes
    query: bytes
    fields: Fields
    body: bytes
    client: str
    accepted_at: float
    via: Attachment | None = None  # it was sent to a provider's host, not to ours
    uploading: bool = False


_ENDPOINTS = {f"/v1/{name}".encode(): name for name in MODEL_ENDPOINTS}


def read_call(
    incoming: Incoming,
    id: str,
    annotate: Annotate,
    identity: Identity | None = None,
    own_key: bytes | None = None,
    *,
    form_model: str = "",
    path_model: str = "",
    via: str | None = None,
) -> Call:
    """The call that `incoming` makes, under the id it was given. Raises InvalidRequest.

    `identity` and `own_key` are who it comes from; `form_model` is the model of a multipart form,
    `path_model` one that the path named, which goes before any other. `via`: see `Call`.
    """
    said = incoming.fields.said
    endpoint = endpoint_of(incoming.path)
    posted = incoming.method == b"POST"
    names_model = posted and endpoint in MODEL_ENDPOINTS
    doc = _document(incoming, required=posted and endpoint in JSON_ENDPOINTS)
    members = doc or _NO_MEMBERS
    plain = _TELLING.isdisjoint(members)
    if names_model:
        checked = {**members, "model": path_model} if path_model else members
        _check_types(checked, endpoint, plain=plain)
    model = path_model or members.get("model")
    return Call(
        id,
        incoming.method,
        incoming.path,
        incoming.query,
        incoming.fields,
        incoming.body,
        doc,
        endpoint,
        model if isinstance(model, str) else form_model,
        not plain and members.get("stream") is True,
        annotate if said.annotate is None else _annotate(said.annotate),
        None if plain else _include_usage(members),
        incoming.accepted_at,
        incoming.client,
        identity,
        own_key,
        via,
        names_model and via is None and not said.guides and (plain or _GUIDING.isdisjoint(members)),
    )


_NO_MEMBERS: dict[str, Any] = {}


def unread_call(incoming: Incoming, *, id: str) -> Call:
    """What is known of a request before its body is: enough for an error and a log line."""
    return Call(
        id=id,
        method=incoming.method,
        path=incoming.path,
        query=incoming.query,
        fields=incoming.fields,
        body=b"",
        doc=None,
        endpoint=endpoint_of(incoming.path),
        model="",
        stream=False,
        annotate=Annotate.OFF,
        include_usage=None,
        accepted_at=incoming.accepted_at,
        client=incoming.client,
    )


def endpoint_of(path: bytes) -> str:
    """ "/v1/audio/speech" -> "audio/speech"; ids in paths are left to the caller to bound.

    Spellings that a provider's server may take for the same path (`//`, `%63hat`, a slash behind)
    are the same endpoint: what it is decides what is checked and metered.
    """
    if (known := _ENDPOINTS.get(path)) is not None:
        return known
    if b"%" in path or b"//" in path or path.endswith(b"/"):
        path = re.sub(rb"/+", b"/", unquote_to_bytes(path)).rstrip(b"/")
    return path.removeprefix(b"/v1/").decode("latin-1")


def check_path(path: bytes) -> None:
    """Refuse what a provider's server may read as another path than we did."""
    lowered = path.lower()
    parts = lowered.replace(b"%2e", b".").replace(b"%2f", b"/").replace(b"\\", b"/").split(b"/")
    if b".." in parts or b"." in parts or b"%00" in lowered or b"%5c" in lowered:
        raise InvalidRequest("the path must not contain '.' or '..' segments", code="invalid_path")


def fallbacks(doc: dict[str, Any], fields: Fields) -> list[str] | None:
    """The request's own fallback list: body, header, or OpenRouter's `models`; None: none given."""
    if (listed := doc.get("fallbacks")) is not None:
        return _names(listed, "fallbacks")
    if (raw := fields.said.fallbacks) is not None:
        names = [name.strip() for name in raw.decode("latin-1").split(",") if name.strip()]
        return _names(names, "x-lunar-fallbacks")
    if (listed := doc.get("models")) is not None:
        return _names(listed, "models")
    return None


def timeout_s(raw: bytes) -> float:
    """`x-lunar-timeout-s`: the time this one call may take in all."""
    try:
        value = float(raw)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86_400:
        raise InvalidRequest(
            "x-lunar-timeout-s must be a number of seconds above 0 and at most 86400",
            param="x-lunar-timeout-s",
        )
    return value


def _names(listed: object, param: str) -> list[str]:
    if not isinstance(listed, list) or not all(isinstance(n, str) and n for n in listed):
        raise InvalidRequest(f"{param} must be a list of model names", param=param)
    if not 1 <= len(listed) <= MAX_FALLBACKS:
        raise InvalidRequest(
            f"{param} must name 1 to {MAX_FALLBACKS} models, not {len(listed)}", param=param
        )
    return listed


def _document(incoming: Incoming, *, required: bool) -> dict[str, Any] | None:
    if incoming.uploading or not (required or (_says_json(incoming.fields) and incoming.body)):
        return None
    if incoming.fields.said.encoded:
        raise InvalidRequest(
            "send the body uncompressed: Content-Encoding is not supported on requests",
            code="unsupported_content_encoding",
        )
    doc = parse(incoming.body)
    if not isinstance(doc, dict):
        if required:
            raise InvalidRequest("the body must be a JSON object", code="invalid_json")
        return None
    return doc


def _says_json(fields: Fields) -> bool:
    """application/json or a `+json` of any kind (RFC 6839 3.1); lines of JSON are not JSON."""
    media_type = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return media_type.endswith((b"/json", b"+json"))


def parse(body: bytes) -> Any:
    """The JSON in `body`. Raises InvalidRequest with the place where it stops being JSON."""
    try:
        doc = read_request(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"the body is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})",
            code="invalid_json",
        ) from None
    few = MAX_DEPTH // 2
    shallow = at_most(body, b"{", few) and at_most(body, b"[", few)
    if not shallow and _deeper_than(doc, MAX_DEPTH):
        raise InvalidRequest(
            f"the body is nested more than {MAX_DEPTH} levels deep", code="too_deeply_nested"
        )
    return doc


def _deeper_than(doc: object, limit: int) -> bool:
    level: list[Any] = [doc]
    for _ in range(limit):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _check_types(doc: dict[str, Any], endpoint: str, *, plain: bool) -> None:
    """`plain`: none of `_TELLING` is among the members."""
    model = doc.get("model")
    if not isinstance(model, str) or not model.strip():
        _check_nameless(doc)
    if not plain:
        if not isinstance(doc.get("stream"), bool | None):
            raise InvalidRequest("stream must be true or false", param="stream")
        if not isinstance(doc.get("stream_options"), dict | None):
            raise InvalidRequest("stream_options must be an object", param="stream_options")
    if endpoint == "chat/completions" and not isinstance(doc.get("messages"), list):
        raise InvalidRequest("messages must be a list of messages", param="messages")


def _check_nameless(doc: dict[str, Any]) -> None:
    """A body whose model is no name is fine if it lists `models`."""
    if doc.get("model") is not None:
        raise InvalidRequest("model must be a non-empty string", param="model")
    if not (isinstance(doc.get("models"), list) and doc["models"]):
        raise InvalidRequest(
            "model is missing: name one, for example 'openai/gpt-4o-mini'",
            code="missing_model",
            param="model",
        )


def _annotate(raw: bytes) -> Annotate:
    try:
        return Annotate(raw.decode("latin-1").strip().lower())
    except ValueError:
        raise InvalidRequest(
            "x-lunar-annotate must be full, headers or off", param="x-lunar-annotate"
        ) from None


def _include_usage(doc: dict[str, Any]) -> bool | None:
    options = doc.get("stream_options")
    value = options.get("include_usage") if isinstance(options, dict) else None
    return value if isinstance(value, bool) else None
