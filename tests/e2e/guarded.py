"""A proxy that asks who calls: its config, its keys, and how the tests put a key in a request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .harness import Answer, Proxy, ask

# Planted: no output of the proxy may hold any of these, nor may a provider see one that is ours.
TEAM = "pk_live_plantedTeam" + "A" * 30
MINI = "pk_test_plantedMini" + "B" * 30  # may use little
STRANGER = "pk_live_plantedNobody" + "C" * 30
OWN = "sk-planted-of-the-caller"
OURS = "sk-planted-of-the-proxy"
ADMIN = "planted-admin-token"
SECRETS = (TEAM, MINI, STRANGER, OWN, OURS, ADMIN)

FORMS: dict[str, Callable[[str], dict[str, str]]] = {
    "x-api-key": lambda key: {"x-api-key": key},
    "bearer": lambda key: {"authorization": f"Bearer {key}"},
    "BEARER": lambda key: {"Authorization": f"BEARER  {key} "},
}

USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
# 100 x 1000/10^6 + 20 x 2000/10^6
USD = 0.14


def config(upstream: str, **more: Any) -> dict[str, Any]:
    """Two providers that are the stage: one has the proxy's key, one is for the caller's own."""
    priced = {"input_per_million": 1000, "output_per_million": 2000}
    return {
        "admin": {"listen": "127.0.0.1:0", "token": ADMIN},
        "providers": {
            "openai": {"base_url": f"{upstream}/openai/v1", "api_key": OURS},
            "own": {
                "base_url": f"{upstream}/own/v1",
                "models": ["m"],
                "prices": {"m": priced},
                "api_key": "sk-own",
            },
            "together": {"base_url": f"{upstream}/together/v1"},
        },
        "models": {"smart": {"targets": ["own/m", "openai/gpt-4o"]}},
        "breaker": {"failures": 100000},
        "retries": {"attempts": 1},
        **more,
    }


KEYS = [
    {"name": "team-a", "key": TEAM},
    {"name": "mini", "key": MINI, "models": ["own/*", "smart"]},
]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def admin(
    proxy: Proxy,
    path: str,
    doc: Any = None,
    *,
    method: str | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """A request to the admin listener, with its token."""
    method = method or ("GET" if doc is None else "POST")
    return ask(proxy.admin, doc, path=path, method=method, headers=bearer(ADMIN) | (headers or {}))
