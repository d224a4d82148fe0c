"""Everything that can go wrong, as one flat tree.

A class states what follows from it, so nobody reads a message to decide:

status     the HTTP status the client sees
type       the family, one of CONTRACT 6; clients may branch on it
code       the exact reason, for people and dashboards
blame      whose fault it is; only UPSTREAM counts against a target
retryable  another try on the same target may help
moves_on   another target may help

Messages are written for the client: no key, no internal address, no traceback.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, ClassVar

from .model import Headers


class Blame(Enum):
    CLIENT = "client"
    UPSTREAM = "upstream"
    US = "us"


class ProxyError(Exception):
    """Base of the tree; raise one of its leaves."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal_error"
    code: str = "internal_error"
    blame: ClassVar[Blame] = Blame.US
    retryable: ClassVar[bool] = False
    moves_on: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers = headers  # extra answer headers, such as x-ratelimit-*
        self.details = details or {}  # further members of the `error` object


# --- the client's request ---------------------------------------------------------------------


class InvalidRequest(ProxyError):
    status, type, code, blame = 400, "invalid_request_error", "invalid_request_error", Blame.CLIENT


class RequestTimeout(ProxyError):
    """The client was too slow in sending its request (RFC 9110 15.5.9)."""

    status, type, code, blame = 408, "invalid_request_error", "request_timeout", Blame.CLIENT


class BodyTooLarge(ProxyError):
    status, type, code, blame = 413, "invalid_request_error", "body_too_large", Blame.CLIENT


class Unauthorized(ProxyError):
    status, type, code, blame = 401, "authentication_error", "authentication_error", Blame.CLIENT


class ProxyAuthRequired(Unauthorized):
    """A proxy asks for credentials with a status and a header of its own (RFC 9110 15.5.8)."""

    status, code = 407, "proxy_authentication_required"

    def __init__(self, message: str) -> None:
        challenge = 'Basic realm="lunar-proxy", charset="UTF-8"'
        super().__init__(message, headers=(("proxy-authenticate", challenge),))


class Forbidden(ProxyError):
    status, type, code, blame = 403, "permission_error", "permission_error", Blame.CLIENT


class ModelNotFound(ProxyError):
    status, type, code, blame = 404, "model_not_found", "model_not_found", Blame.CLIENT


class NotFound(ProxyError):
    status, type, code, blame = 404, "not_found", "not_found", Blame.CLIENT


class MethodNotAllowed(ProxyError):
    status, type, code, blame = 405, "invalid_request_error", "method_not_allowed", Blame.CLIENT


class LimitExceeded(ProxyError):
    """`limit` names it in metrics."""

    status, type, code, blame = 429, "rate_limit_exceeded", "rate_limit_exceeded", Blame.CLIENT
    limit: str = ""


class BudgetExceeded(LimitExceeded):
    status, type, code, blame = 429, "budget_exceeded", "budget_exceeded", Blame.CLIENT
    limit = "budget"


class NotCovered(ProxyError):
    """A host is to be opened (HTTPS_PROXY) that our CA was not made for."""

    status, code = 502, "ca_name_constraint"


# --- no answer from a provider ----------------------------------------------------------------


class UpstreamError(ProxyError):
    """A provider failed us in a way another target may not."""

    status, type, code = 502, "upstream_error", "upstream_error"
    blame, moves_on = Blame.UPSTREAM, True


class ConnectFailed(UpstreamError):
    """Nothing was sent, so another target is always safe."""

    code = "upstream_connect"


class TlsFailed(ConnectFailed):
    code = "upstream_tls"


class NoAnswer(UpstreamError):
    """The connection was lost after sending, before an answer: it may have been billed."""

    code, retryable = "upstream_reset", True


class BadAnswer(UpstreamError):
    """An answer that is not HTTP, or not of the shape its dialect promises."""

    code = "upstream_bad_answer"


class StreamBroken(UpstreamError):
    """The stream ended before it was complete."""

    code, retryable = "upstream_cut", True


class UpstreamTimeout(UpstreamError):
    """Silence is never retried on the target that is silent (LESSONS 13)."""

    status, type, code = 504, "upstream_timeout", "upstream_timeout"


class ConnectTimeout(ConnectFailed, UpstreamTimeout):
    status, type, code = 504, "upstream_timeout", "connect_timeout"


class FirstTokenTimeout(UpstreamTimeout):
    code = "first_token_timeout"


class IdleTimeout(UpstreamTimeout):
    code = "idle_timeout"


class TotalTimeout(UpstreamTimeout):
    """The whole chain is out of time, so no other target is tried either."""

    code, moves_on = "total_timeout", False


class NoHealthyTarget(ProxyError):
    status, type, code, blame = 503, "no_healthy_target", "no_healthy_target", Blame.UPSTREAM


class RouterNotReady(ProxyError):
    status, type, code, blame = 503, "router_not_ready", "router_not_ready", Blame.US


class StoreUnavailable(ProxyError):
    """Keys or limits cannot be read, and there is no local state to decide from."""

    status, type, code, blame = 503, "store_unavailable", "store_unavailable", Blame.US


class ShuttingDown(ProxyError):
    status, type, code, blame = 503, "shutting_down", "shutting_down", Blame.US


# --- an answer from a provider that says no -----------------------------------------------------


class ProviderError(UpstreamError):
    """A provider's own error, kept whole so that it can be passed on as it is."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        headers: Headers = (),
        body: bytes = b"",
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, code=code, retry_after_s=retry_after_s)
        self.provider_status = status
        self.provider_headers = headers
        self.provider_body = body


class UpstreamBusy(ProviderError):
    """429 or 5xx: the same target may answer a moment later."""

    code, retryable = "upstream_busy", True


class InBandError(ProviderError):
    """A 200 whose JSON, or whose first event, is an error (LESSONS 3)."""

    code, retryable = "upstream_in_band_error", True


class KeyRefused(ProviderError):
    """Our key is unknown, without credit or not allowed: degraded until someone mends it."""

    code = "upstream_key_refused"


class UnknownModel(ProviderError):
    """404: this provider does not serve the model."""

    code = "upstream_model_not_found"


class ContextTooLong(ProviderError):
    """Only a target with a larger window can help."""

    code = "context_length_exceeded"


class Refused(ProviderError):
    """Every other 4xx, content-filter refusals included: the request itself is at fault."""

    code, blame, moves_on = "upstream_refused", Blame.CLIENT, False
