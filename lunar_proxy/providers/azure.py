"""Azure OpenAI: the OpenAI dialect under another URL, with `api-key` in place of a bearer token.

https://learn.microsoft.com/azure/ai-services/openai/reference: the deployment stands in the path,
and `api-version` in the query. A base URL that ends in /openai/v1 is Azure's newer surface, which
takes plain OpenAI paths.
"""

from __future__ import annotations

from urllib.parse import quote

from lunar_proxy.core.model import Call, Target

from .base import Account, UpstreamRequest
from .openai import OpenAIDialect, wire

# These name no deployment: they belong to the resource.
_RESOURCE_PATHS = (b"/models", b"/files", b"/batches", b"/responses", b"/fine_tuning", b"/uploads")


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
        base = account.base_path.removesuffix(b"/openai") + b"/openai"
        if not tail.startswith(_RESOURCE_PATHS):
            base += b"/deployments/" + quote(target.model, safe="").encode()
        version = f"api-version={account.api_version}".encode()
        query = call.query + b"&" + version if call.query else b"?" + version
        return base + tail + query
