"""Who may ask for what."""

from __future__ import annotations

import pytest

from lunar_proxy.core.errors import Forbidden
from lunar_proxy.core.model import Identity, Target
from lunar_proxy.core.policy import AuthFailures, authorize, may_ask, permits

T0 = 1_800_000_000.0


@pytest.mark.parametrize(
    ("globs", "model", "good"),
    [
        ((), "anything", True),
        (("openai/*",), "openai/gpt-4o", True),
        (("openai/*",), "groq/gpt-4o", False),
        (("openai/*",), "gpt-4o", False),
        (("gpt-4o",), "gpt-4o", True),
        (("gpt-4o",), "openai/gpt-4o", True),
        (("gpt-4o",), "gpt-4o-mini", False),
        (("gpt-4o*",), "gpt-4o-mini", True),
        (("auto",), "auto:gpt-4o,claude", True),
        (("auto",), "automatic", False),
        (("llama3",), "llama3:8b", False),
        (("openai/*", "auto"), "auto", True),
        (("*",), "meta-llama/Llama-3", True),
    ],
)
def test_a_name_is_covered_by_a_glob(globs: tuple[str, ...], model: str, good: bool) -> None:
    assert may_ask(Identity("k", "k", globs), model) is good


def test_a_bare_name_passes_by_what_it_resolves_to() -> None:
    identity = Identity("k", "k", ("openai/*",))
    openai, azure = Target("openai", "gpt-4o"), Target("azure", "gpt-4o")
    authorize(identity, "gpt-4o", [azure, openai])
    assert [permits(identity, t) for t in (openai, azure)] == [True, False]
    with pytest.raises(Forbidden, match="gpt-4o"):
        authorize(identity, "gpt-4o", [azure])


def test_nobody_in_particular_may_ask_for_everything() -> None:
    authorize(None, "gpt-4o")


def test_failures_are_limited_per_address() -> None:
    failures = AuthFailures(per_minute=3)
    assert [failures.failed("a", T0) for _ in range(3)] == [None] * 3
    error = failures.failed("a", T0)
    assert error is not None
    assert error.retry_after_s == 20.0
    assert failures.failed("b", T0) is None
    assert failures.failed("a", T0 + 20) is None
