"""What a caller may ask for, and how often one may fail to say who one is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from fnmatch import fnmatchcase

from .errors import Forbidden, LimitExceeded
from .limits import NOTHING, Limits, State, take
from .model import Identity, Target


def permits(identity: Identity | None, target: Target) -> bool:
    """Whether a target may answer this caller: by its full name or by the bare model id."""
    if identity is None or not identity.models:
        return True
    return _matches(identity.models, (str(target), target.model))


def may_ask(identity: Identity | None, name: str) -> bool:
    """Whether the caller may ask for `name`, in whatever form `model` takes (CONTRACT 4).

    `auto:a,b` is `auto` with fewer candidates. `openai/gpt-4o` is covered by the glob `gpt-4o`;
    a bare `gpt-4o` is covered by `openai/*` only through its targets (`permits`).
    """
    if identity is None or not identity.models:
        return True
    if name.startswith("auto:"):
        name = "auto"
    return _matches(identity.models, (name, name.partition("/")[2] or name))


def authorize(identity: Identity | None, model: str, targets: Iterable[Target] = ()) -> None:
    """Raise Forbidden unless the caller may ask for `model`, or for one of what it resolved to.

    Where only the targets make it pass, the plan must be narrowed to those that `permits` allows.
    """
    if may_ask(identity, model) or any(permits(identity, target) for target in targets):
        return
    raise Forbidden(f"this key may not use the model {model!r}", param="model")


def _matches(globs: tuple[str, ...], names: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs for name in names)


# A person with a wrong key in a config retries a few times a second; sixty a minute lets them read
# the reason, and keeps a prober from making us hash and log as fast as it can send.
FAILURES_PER_MINUTE = 60
MAX_ADDRESSES = 10_000


class AuthFailures:
    """Failed authentication per client address. A caller who succeeds is never held up by it,
    so nobody behind the same address can lock others out.
    """

    def __init__(self, per_minute: int = FAILURES_PER_MINUTE) -> None:
        self._limits = Limits(requests_per_minute=per_minute)
        self._states: OrderedDict[str, State] = OrderedDict()

    def failed(self, address: str, now: float) -> LimitExceeded | None:
        """Count one failure; the error to answer with instead, once there are too many."""
        state, verdict = take(self._states.pop(address, State()), self._limits, NOTHING, now)
        self._states[address] = state
        if len(self._states) > MAX_ADDRESSES:
            self._states.popitem(last=False)
        if verdict.blocked is None:
            return None
        error = LimitExceeded(
            "too many failed authentications from this address",
            retry_after_s=verdict.blocked.retry_after_s,
        )
        error.limit = "authentication"
        return error
