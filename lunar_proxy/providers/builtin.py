"""The providers known without configuration: data only, one row each (CONTRACT 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Completions = Literal["native", "chat"]

# Dialects a config file may name. Bedrock joins when its signing does.
DIALECTS = ("openai", "azure")

# Ids with a meaning of their own before the slash, so no provider may be configured under them.
DEPLOYMENT_PREFIXES = ("lunar", "pureai")
RESERVED_IDS = (*DEPLOYMENT_PREFIXES, "demo", "auto")


@dataclass(frozen=True, slots=True)
class Builtin:
    """One provider as its maker documents it.

    `base_url` None: it is different for everybody and has to be configured. `default_path` is added
    to a base URL that has no path. `no_key`: it asks for none, so it is on only where it is named.
    `completions`: "chat" where its API reference has no legacy /completions below the base URL.
    """

    id: str
    base_url: str | None
    key_variables: tuple[str, ...]
    dialect: str = "openai"
    no_key: bool = False
    default_path: str = ""
    unsupported: str | None = None  # why it cannot be used yet
    completions: Completions = "native"


def _row(id: str, base_url: str | None, completions: Completions = "native") -> Builtin:
    return Builtin(id, base_url, (f"{id.upper()}_API_KEY",), completions=completions)


_ROWS = (
    _row("openai", "https://api.openai.com/v1"),
    # Its OpenAI-compatible endpoint lives under /v1 of the same host.
    Builtin(
        "anthropic",
        "https://api.anthropic.com",
        ("ANTHROPIC_API_KEY",),
        default_path="/v1",
        completions="chat",
    ),
    Builtin(
        "gemini",
        "https://generativelanguage.googleapis.com/v1beta/openai",
        ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        completions="chat",
    ),
    _row("mistral", "https://api.mistral.ai/v1", "chat"),  # /fim/completions is another thing
    _row("groq", "https://api.groq.com/openai/v1", "chat"),
    _row("deepseek", "https://api.deepseek.com/v1", "chat"),  # only below /beta
    _row("perplexity", "https://api.perplexity.ai", "chat"),  # no /v1, unlike the others
    _row("cerebras", "https://api.cerebras.ai/v1"),
    _row("sambanova", "https://api.sambanova.ai/v1", "chat"),
    _row("together", "https://api.together.xyz/v1"),
    _row("fireworks", "https://api.fireworks.ai/inference/v1"),
    _row("cohere", "https://api.cohere.com/compatibility/v1", "chat"),
    # It has the endpoint, marked legacy and "not supported by reasoning models": by now, all.
    _row("xai", "https://api.x.ai/v1", "chat"),
    _row("openrouter", "https://openrouter.ai/api/v1"),
    Builtin("azure", None, ("AZURE_API_KEY",), dialect="azure"),
    Builtin("bedrock", None, (), dialect="bedrock", unsupported="bedrock is not supported yet"),
    Builtin("ollama", "http://127.0.0.1:11434/v1", (), no_key=True),
)

BUILTIN = {row.id: row for row in _ROWS}

# Answers in-process; there only when asked for (`serve --demo`), so it is not a row of the table.
DEMO = Builtin("demo", "demo://in-process", (), dialect="demo", no_key=True)
