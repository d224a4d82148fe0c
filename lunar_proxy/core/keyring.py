"""Which of a provider's keys to ask with: those that worked before those just turned away.

A key that was refused, or has spent its quota, rests for a while. Resting only changes the order:
when all of a provider's keys rest, they are asked all the same, the one soonest back first.
"""

from __future__ import annotations

from collections.abc import Sequence

from .errors import KeyRefused, ProxyError, UpstreamBusy

ONE_PLACE = (0,)


def is_about_the_key(error: ProxyError) -> bool:
    """Whether another key of the same provider may get another answer."""
    if isinstance(error, UpstreamBusy):
        return error.provider_status == 429
    return isinstance(error, KeyRefused)


class Keyring:
    """The keys at rest, of all providers.

    It outlives configs, so a key is known by itself and not by its place. Times are seconds on
    the caller's clock.
    """

    def __init__(self) -> None:
        self._back_at: dict[tuple[str, bytes], float] = {}

    def in_turn(self, provider: str, keys: Sequence[bytes], now: float) -> Sequence[int]:
        """The places of `keys` in the order in which to try them; of no key at all, one place."""
        if len(keys) < 2:
            return ONE_PLACE
        if not self._back_at:
            return range(len(keys))
        waits = [max(0.0, self._back_at.get((provider, key), now) - now) for key in keys]
        return sorted(range(len(keys)), key=waits.__getitem__)

    def failed(
        self, provider: str, key: bytes, error: ProxyError, now: float, usual_s: float
    ) -> None:
        """Let it rest if the failure is about it: as long as the provider says, or `usual_s`."""
        if is_about_the_key(error):
            asked_s = error.retry_after_s
            self._back_at[provider, key] = now + (usual_s if asked_s is None else asked_s)

    def succeeded(self, provider: str, key: bytes) -> None:
        self._back_at.pop((provider, key), None)
