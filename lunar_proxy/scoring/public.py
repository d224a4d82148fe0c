"""The profiles the package ships: how they are made, and whom they may stand for.

From the public results described in the README (RouteLLM, MMLU-Pro, ZeroEval): derived numbers
alone, no prompt. The function calling results of BFCL are left out of it all, since their
repository states no licence. Only models with results in three sets or more are shipped: one known
from a single set looks good or bad everywhere.

Models were tried on different sets, so these profiles have no correction: it would be learned on
other prompts for each, and their differences would show it. Psi by the Rasch model compares them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from .clusters import Clusters
from .profiles import Profile
from .rows import Row, models_of
from .study import Lens, Progress, make_clusters, profile_each, quiet

MIN_SETS = 3
_LEFT_OUT = frozenset({"bfcl"})
# Two models on 9,000 prompts would turn the map towards what those two find hard.
_PROMPTS_ONLY = frozenset({"mmlu", "gsm8k"})

# Names a client may use -> the dated model that was measured. An undated name is listed only where
# the vendor itself points (or pointed, when it was retired) that name at this date.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "gpt-4o-2024-08-06": ("gpt-4o",),
    "gpt-4o-mini-2024-07-18": ("gpt-4o-mini",),
    "gpt-3.5-turbo-0125": ("gpt-3.5-turbo",),
    "o1-mini-2024-09-12": ("o1-mini",),
    "claude-3-5-sonnet-20241022": (
        "claude-3-5-sonnet-latest",
        "claude-3-5-sonnet",
        "claude-3.5-sonnet",
    ),
    "claude-3-5-haiku-20241022": (
        "claude-3-5-haiku-latest",
        "claude-3-5-haiku",
        "claude-3.5-haiku",
    ),
    "claude-3-opus-20240229": ("claude-3-opus-latest", "claude-3-opus"),
    "claude-3-haiku-20240307": ("claude-3-haiku",),
    "meta-llama-3-8b-instruct": ("llama-3-8b-instruct", "llama3-8b-8192"),
    "meta-llama-3-70b-instruct": ("llama-3-70b-instruct", "llama3-70b-8192"),
    "meta-llama-3.1-8b-instruct": ("llama-3.1-8b-instruct", "llama-3.1-8b-instant"),
    "meta-llama-3.1-70b-instruct": ("llama-3.1-70b-instruct", "llama-3.1-70b-versatile"),
    "meta-llama-3.1-405b-instruct": ("llama-3.1-405b-instruct",),
    "mixtral-8x7b-instruct-v0.1": ("mixtral-8x7b-instruct", "mixtral-8x7b-32768"),
}

# Retired by their vendors, or with a date set for it, by the end of 2025.
STALE = frozenset(
    {
        "claude-3-5-haiku-20241022",
        "claude-3-5-sonnet-20240620",
        "claude-3-5-sonnet-20241022",
        "claude-3-opus-20240229",
        "deepseek-v2.5-0908",
        "gemini-1.5-flash",
        "gemini-1.5-pro",
        "mistral-large-2407",
        "o1-mini-2024-09-12",
        "reka-core-20240501",
    }
)


def public_clusters(lens: Lens, rows: Sequence[Row], progress: Progress = quiet) -> Clusters:
    kept = [
        replace(row, scores={}) if row.dataset in _PROMPTS_ONLY else row for row in usable(rows)
    ]
    return make_clusters(lens, kept, models_of(kept), progress=progress)


def public_profiles(
    lens: Lens, clusters: Clusters, rows: Sequence[Row], date: str, progress: Progress = quiet
) -> list[Profile]:
    kept = usable(rows)
    sets: dict[str, set[str]] = {}
    for row in kept:
        for model in row.scores:
            sets.setdefault(model, set()).add(row.dataset)
    models = sorted(model for model, found in sets.items() if len(found) >= MIN_SETS)
    made = profile_each(
        clusters,
        lens.basis(clusters, kept),
        kept,
        models,
        source="public",
        created=date,
        corrected=False,
        progress=progress,
    )
    return [
        replace(profile, aliases=ALIASES.get(profile.id, ()), stale=profile.id in STALE)
        for profile in made
    ]


def usable(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.dataset not in _LEFT_OUT]
