"""Azure OpenAI: the OpenAI dialect under another URL, with `api-key` in place of a bearer token.

https://learn.microsoft.com/azure/ai-services/openai/reference: the deployment stands in the path,
and `api-version` in the query. A base URL that ends in /openai/v1 is Azure's newer surface, which
takes plain OpenAI paths.
"""

from __future__ import annotations

from urllib.parse import parse_qs, quote

from lunar_proxy.core.errors import InvalidRequest
from lunar_proxy.core.model import Call, Target

from .base import Account, UpstreamRequest
from .openai import OpenAIDialect, wire

# What belongs to the resource, by the first segment of its path: no deployment stands before it.
_OF_RESOURCE = frozenset(
    b"assistants batches containers conversations evals files fine_tuning models responses threads "
    b"uploads vector_stores".split()
)


class AzureDialect(OpenAIDialect):
    name = "azure"

    def request(
        self, call: Call, target: Target, account: Account, key: bytes | None, body: bytes
    ) -> UpstreamRequest:
        credential = (b"api-key", key) if key else None
        return wire(call, account, self._path(call, target, account), credential, body, key)

    def _path(self, call: Call, target: Target, account: Account) -> bytes:
        tail = call.path.removeprefix(b"/v1")
        if account.base_path.endswith(b"/openai/v1"):
            return account.base_path + tail + call.query
        return _base(account.base_path, tail, target) + tail + _query(call.query, account)


def _base(base: bytes, tail: bytes, target: Target) -> bytes:
    if b"/openai/deployments/" in base:  # copied from the portal with its deployment
        return base
    base = base.removesuffix(b"/openai") + b"/openai"
    if not target.model or tail.split(b"/", 2)[1] in _OF_RESOURCE:
        return base
    if target.model in (".", ".."):  # encoded or not, servers take them for another path
        raise InvalidRequest(f"'{target.model}' is no deployment's name", param="model")
    return base + b"/deployments/" + quote(target.model, safe="").encode()


def _query(query: bytes, account: Account) -> bytes:
    """The client's query, with our api-version unless it has one of its own."""
    if account.api_version is None or b"api-version" in parse_qs(query[1:]):
        return query
    version = b"api-version=" + quote(account.api_version, safe="").encode()
    return query + b"&" + version if query else b"?" + version
