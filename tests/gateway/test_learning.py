"""Which call is scored, by whom and how often."""

import pytest

from lunar_proxy.config.schema import Router as Settings
from lunar_proxy.core.errors import InvalidRequest, NotFound
from lunar_proxy.gateway.decider import Decider
from lunar_proxy.gateway.learning import Answered, Learner
from lunar_proxy.testing import FakeClock


def learner(remembered: int = 10, *, on: bool = True) -> Learner:
    return Learner(Decider(Settings(feedback=on), FakeClock()), remembered)


async def test_remembers_so_many_and_forgets_the_oldest() -> None:
    some = learner(2)
    for n in range(3):
        some.remember(f"call-{n}", Answered("model", n, None))
    assert some.snapshot()["awaiting_score"] == 2
    with pytest.raises(NotFound, match="call-0"):
        await some.score("call-0", 1)


@pytest.mark.parametrize("header", [b"call=2", b"call=", b"call", b"", b"call=nan", b"call=good"])
async def test_a_header_that_cannot_be_read_is_said_so(header: bytes) -> None:
    with pytest.raises(InvalidRequest):
        learner().heed(header, None)


@pytest.mark.parametrize("header", [b"unknown=1", b"call=1"])
async def test_a_score_of_a_call_of_somebody_else_is_passed_over(header: bytes) -> None:
    some = learner()
    some.remember("call", Answered("model", 0, "key-1"))
    some.heed(header, "key-2")
    assert some.snapshot()["awaiting_score"] == 1


async def test_while_it_is_off_a_score_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"router\.feedback"):
        await learner(on=False).score("call", 1)
