"""What open models cost at a usual host, for `lunar-proxy router eval` alone.

US dollars per million tokens in and out, list prices of mid-2024 as the hosts of the time had them
(Groq, Together). The price table of the proxy, which is asked first, no longer lists these models;
`--prices FILE` overrides both.
"""

from __future__ import annotations

from collections.abc import Mapping

OPEN_MODELS: Mapping[str, tuple[float, float]] = {
    "meta-llama-3-8b-instruct": (0.05, 0.08),
    "meta-llama-3-70b-instruct": (0.59, 0.79),
    "meta-llama-3.1-8b-instruct": (0.18, 0.18),
    "meta-llama-3.1-70b-instruct": (0.88, 0.88),
    "meta-llama-3.1-405b-instruct": (3.5, 3.5),
    "mixtral-8x7b-instruct-v0.1": (0.6, 0.6),
    "gemma-2-9b-it": (0.2, 0.2),
    "gemma-2-27b-it": (0.8, 0.8),
    "qwen2-7b-instruct": (0.2, 0.2),
    "qwen2-72b-instruct": (0.9, 0.9),
    "qwen2.5-7b-instruct": (0.3, 0.3),
    "qwen2.5-72b-instruct": (1.2, 1.2),
    "deepseek-v2.5-0908": (0.14, 0.28),
    "deepseek-coder-v2-0724": (0.14, 0.28),
    "phi-3-mini-4k-instruct": (0.13, 0.52),
    "yi-1.5-34b-chat": (0.8, 0.8),
}
