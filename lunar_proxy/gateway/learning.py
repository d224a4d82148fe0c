"""Feedback on answers: which call was answered by what, and what was said of it.

A decision is remembered for a while under its request id, without its prompt. A score for it is
one more label of the model that answered, in the prompt's cluster (`scoring.feedback`). Each call
is scored once, by whoever made it or by an operator; all of it can be read and taken back.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any, NamedTuple

from lunar_proxy.core.errors import InvalidRequest, NotFound, RouterNotReady
from lunar_proxy.tasks import spawn

from .decider import Decider

logger = logging.getLogger(__name__)

# Some 300 bytes each. People judge an answer within minutes, and a proxy at a hundred routed calls
# a second forgets one after two.
REMEMBERED = 16_384


class Answered(NamedTuple):
    profile: str
    cluster: int
    caller: str | None  # an Identity's id


class Learner:
    def __init__(self, decider: Decider, remembered: int = REMEMBERED) -> None:
        self._decider = decider
        self._most = remembered
        self._answered: OrderedDict[str, Answered] = OrderedDict()

    @property
    def on(self) -> bool:
        return self._decider.settings.feedback is not False

    def remember(self, id: str, answered: Answered) -> None:
        self._answered[id] = answered
        self._answered.move_to_end(id)
        while len(self._answered) > self._most:
            self._answered.popitem(last=False)

    async def score(self, id: str, score: object) -> Answered:
        """Count a score in [0, 1], 1 for a good answer. Raises InvalidRequest, NotFound."""
        value = _score(score)
        if not self.on:
            raise InvalidRequest("feedback is off; router.feedback turns it on")
        answered = self._answered.pop(id, None)
        if answered is None:
            raise NotFound(
                f"no routed call {id[:128]!r} waits for a score: it was not routed, or is scored "
                "already, or forgotten"
            )
        await self._learn(answered, value)
        return answered

    def heed(self, header: bytes, caller: str | None) -> None:
        """`x-lunar-feedback: ID=SCORE`, about an earlier call of the same caller.

        An id that is not known is passed over, since the call it came with is about something
        else. Raises InvalidRequest when it cannot be read at all.
        """
        id, _, text = header.decode("latin-1").rpartition("=")
        try:
            value = _score(float(text))
        except ValueError:
            raise _wrong() from None
        answered = self._answered.get(id.strip())
        if not self.on or answered is None or answered.caller != caller:
            return
        del self._answered[id.strip()]
        _ = spawn(self._beside(answered, value), name="feedback")

    async def forget(self, model: str | None, cluster: int | None) -> None:
        """Take back what was said of a model, on one cluster or all; of all models without one."""
        await self._decider.learn(
            lambda feedback: (
                type(feedback)(feedback.clusters_sha256)
                if model is None
                else feedback.forget(model, cluster)
            )
        )

    def snapshot(self) -> dict[str, Any]:
        loaded = self._decider.loaded
        feedback = loaded.feedback if loaded is not None else None
        return {
            "enabled": self.on,
            "awaiting_score": len(self._answered),
            "cells": feedback.snapshot() if feedback is not None else [],
        }

    async def _learn(self, answered: Answered, score: float) -> None:
        await self._decider.learn(
            lambda feedback: feedback.add(answered.profile, answered.cluster, score)
        )

    async def _beside(self, answered: Answered, score: float) -> None:
        try:
            await self._learn(answered, score)
        except (RouterNotReady, OSError) as error:
            logger.error("a score could not be kept: %s", error)


def _score(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise _wrong()
    return float(value)


def _wrong() -> InvalidRequest:
    return InvalidRequest("a score is a number from 0 to 1, 1 for a good answer", param="score")
