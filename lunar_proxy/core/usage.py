"""What an answer says it used: the `usage` object of every OpenAI-shaped dialect -> `Usage`.

One reader serves them all, because each quantity has a handful of spellings and no spelling means
two things. Where dialects differ in what a number *includes*, the total tells them apart:

    OpenAI, DeepSeek, Groq     total = prompt + completion; cached and reasoning tokens lie within
    xAI                        reasoning tokens are not in `completion_tokens`, but are in the total
    Gemini (compatible API)    thinking tokens are in the total and nowhere else
    Anthropic's own fields     `input_tokens` leaves cached and cache-written tokens out
    Perplexity deep research   `reasoning_tokens` are neither in the completion nor in the total

A provider's numbers are outside our control, so nothing here raises: what is not a count is as
good as absent, and a share larger than its whole is cut to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .model import Usage

# No answer bills a trillion tokens; a larger number is junk that would overflow exact money.
MAX_TOKENS = 10**12

# `input_token_details` is how the audio transcription API spells it.
_IN_DETAILS = ("prompt_tokens_details", "input_tokens_details", "input_token_details")
_OUT_DETAILS = ("completion_tokens_details", "output_tokens_details", "output_token_details")

_AUDIO = ("audio_tokens",)
_OUTPUT = ("completion_tokens", "output_tokens")
_REASONING = ("reasoning_tokens", "thinking_tokens")
_ANTHROPIC_READ, _ANTHROPIC_WRITE = ("cache_read_input_tokens",), ("cache_creation_input_tokens",)
_READ = (
    *_ANTHROPIC_READ,
    "prompt_cache_hit_tokens",  # DeepSeek
    "cached_tokens",  # Moonshot
    "num_cached_tokens",  # Mistral
)
_READ_DETAILS = ("cached_tokens", "cache_read_input_tokens")
_WRITE_DETAILS = ("cache_write_tokens", "cache_creation_tokens", "cache_creation_input_tokens")


def read_usage(raw: object) -> Usage | None:
    """The tokens a provider's `usage` object reports; None when it holds no usable count.

    Takes the object of a chat, completions, responses, embeddings or transcription answer, or of
    an event of its stream. Never raises.
    """
    if not isinstance(raw, dict):
        return None
    prompt, output = _whole_prompt(raw), _count((raw,), _OUTPUT)
    total = _count((raw,), ("total_tokens",))
    if prompt is None and output is None and total is None:
        return None
    if prompt is None:  # Voyage's embeddings report a total alone
        prompt = max((total or 0) - (output or 0), 0)
    return _shared_out(raw, prompt, output or 0, total or 0)


def _whole_prompt(raw: Mapping[str, object]) -> int | None:
    prompt, native = _count((raw,), ("prompt_tokens",)), _count((raw,), ("input_tokens",))
    if prompt is not None:
        return max(prompt, native or 0)
    if native is None:
        return None
    return native + _known((raw,), _ANTHROPIC_READ) + _known((raw,), _ANTHROPIC_WRITE)


def _shared_out(raw: Mapping[str, object], prompt: int, output: int, total: int) -> Usage:
    """The shares, each cut to its whole."""
    ins, outs = _details(raw, _IN_DETAILS), _details(raw, _OUT_DETAILS)
    read = max(_known((raw,), _READ), _known(ins, _READ_DETAILS))
    write = max(_known((raw,), _ANTHROPIC_WRITE), _known(ins, _WRITE_DETAILS))
    reasoning = _known((raw, *outs), _REASONING)
    extra = max(total - prompt - output, 0)  # what only the total knows of
    if extra and extra == read + write and extra != reasoning:
        prompt += extra  # a gateway that left the cached tokens out of the prompt
    elif extra:
        output, reasoning = output + extra, max(reasoning, extra)
    elif reasoning > output or "citation_tokens" in raw:
        output += reasoning
    read = min(read, prompt)
    audio = min(_known(ins, _AUDIO), prompt)
    cached = [part for one in ins for part in _details(one, ("cached_tokens_details",))]
    return Usage(
        input_tokens=prompt,
        output_tokens=output,
        cache_read_tokens=read,
        cache_write_tokens=min(write, prompt - read),
        reasoning_tokens=min(reasoning, output),
        input_audio_tokens=audio,
        output_audio_tokens=min(_known(outs, _AUDIO), output),
        cache_audio_read_tokens=min(_known(cached, _AUDIO), audio, read),
    )


def _details(raw: Mapping[str, object], names: tuple[str, ...]) -> list[Mapping[str, object]]:
    return [value for name in names if isinstance(value := raw.get(name), dict)]


def _count(places: Sequence[Mapping[str, object]], names: tuple[str, ...]) -> int | None:
    """The largest count under any of its names: some gateways send two, one of them zero."""
    best: int | None = None
    for place in places:
        for name in names:
            value = place.get(name)
            # `type` and not isinstance: True is no token
            if type(value) is int and 0 <= value <= MAX_TOKENS and (best is None or value > best):
                best = value
    return best


def _known(places: Sequence[Mapping[str, object]], names: tuple[str, ...]) -> int:
    return _count(places, names) or 0
