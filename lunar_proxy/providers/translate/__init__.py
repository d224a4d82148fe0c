"""One API spoken to providers that only know another.

A `Translation` is a row of pure functions: the request on its way out, the answer on its way back,
whole or as events. The engine asks `translation_for` which one a call needs, mostly none; what a
translation makes looks to the rest of the engine as if the provider had answered in the client's
own API, so metering, splices and error events know nothing of it.

One file per pair of APIs, named `FROM_to_TO.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lunar_proxy.core.model import Call

from . import completions_to_chat


class EventTranslator(Protocol):
    """Translates one stream: bytes as they come, cut anywhere; `eof` gives what was held back."""

    def feed(self, data: bytes) -> bytes: ...

    def eof(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Translation:
    """How a call to one endpoint is put to another.

    endpoint, path  where the translated request goes
    request         the body and its parsed form -> the body to send; raises InvalidRequest
    answer          the body of a 200 -> the body to hand on; unchanged where it is no answer
    events          makes the translator of one event stream
    """

    endpoint: str
    path: bytes
    request: Callable[[bytes, dict[str, Any]], bytes]
    answer: Callable[[bytes], bytes]
    events: Callable[[], EventTranslator]

    def call(self, call: Call) -> Call:
        return replace(call, path=self.path, endpoint=self.endpoint)


COMPLETIONS_TO_CHAT = Translation(
    endpoint="chat/completions",
    path=b"/v1/chat/completions",
    request=completions_to_chat.request,
    answer=completions_to_chat.answer,
    events=completions_to_chat.Events,
)


def translation_for(endpoint: str, *, chat_only: bool) -> Translation | None:
    """None: the provider has the endpoint itself, or nothing else stands in for it."""
    return COMPLETIONS_TO_CHAT if chat_only and endpoint == "completions" else None


__all__ = ["COMPLETIONS_TO_CHAT", "EventTranslator", "Translation", "translation_for"]
