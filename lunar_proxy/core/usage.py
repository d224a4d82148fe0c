"""What an answer says it used: the `usage` object of every OpenAI-shaped dialect -> `Usage`.

One reader serves them all, because each quantity has a handful of spellings and no spelling means
two things. Where dialects differ in what a number *includes*, the total tells them apart:

    OpenAI, DeepSeek, Groq     total = prompt + completion; cached and reasoning tokens lie within
    xAI                        reasoning tokens are not in `completion_tokens`, but are in the total
    Gemini (compatible API)    thinking tokens are in the total and nowhere else
    Anthropic's own fields     `input_tokens` leaves cached and cache-written tokens out
    Perplexity deep research   `reasoning_tokens` are neither in the completion nor in the total

Reading goes by the members an answer has, a handful, and not by the thirty names there are; and
where they are OpenAI's own, and add up, there is nothing to work out.

A provider's numbers are outside our control, so nothing here raises: what is not a count is as
good as absent, and a share larger than its whole is cut to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from .model import Usage

# No answer bills a trillion tokens; a larger number is junk that would overflow exact money.
MAX_TOKENS = 10**12

# What can be counted: places in a list. The first four are wholes, of which absent is not none.
_WHOLES, _SHARES = 4, 8
_PROMPT, _NATIVE_PROMPT, _OUTPUT, _TOTAL = range(_WHOLES)
_NATIVE_READ, _NATIVE_WRITE, _READ, _WRITE, _REASONING, _AUDIO_IN, _AUDIO_OUT, _AUDIO_READ = range(
    _WHOLES, _WHOLES + _SHARES
)
_ABSENT = -1
_NOTHING_SAID = (_ABSENT,) * _WHOLES + (0,) * _SHARES

# What a named tuple is made by is a function in Python around this.
_usage: Callable[[tuple[int, int, int, int, int, int, int, int, bool]], Usage] = partial(
    tuple.__new__, Usage
)

# A member's name -> what it counts, or what the members within it count.
_Names = Mapping[str, "int | _Names"]

_IN_DETAILS: _Names = {
    "audio_tokens": _AUDIO_IN,
    "cached_tokens": _READ,
    "cache_read_input_tokens": _READ,
    "cache_write_tokens": _WRITE,
    "cache_creation_tokens": _WRITE,
    "cache_creation_input_tokens": _WRITE,
    "cached_tokens_details": {"audio_tokens": _AUDIO_READ},
}
_OUT_DETAILS: _Names = {
    "audio_tokens": _AUDIO_OUT,
    "reasoning_tokens": _REASONING,
    "thinking_tokens": _REASONING,
}
_NAMES: _Names = {
    "prompt_tokens": _PROMPT,
    "completion_tokens": _OUTPUT,
    "total_tokens": _TOTAL,
    "prompt_tokens_details": _IN_DETAILS,
    "completion_tokens_details": _OUT_DETAILS,
    "reasoning_tokens": _REASONING,
    "thinking_tokens": _REASONING,
    # the responses API, and Anthropic's own
    "input_tokens": _NATIVE_PROMPT,
    "output_tokens": _OUTPUT,
    "input_tokens_details": _IN_DETAILS,
    "input_token_details": _IN_DETAILS,  # the audio transcription API
    "output_tokens_details": _OUT_DETAILS,
    "output_token_details": _OUT_DETAILS,
    "cache_read_input_tokens": _NATIVE_READ,
    "cache_creation_input_tokens": _NATIVE_WRITE,
    "prompt_cache_hit_tokens": _READ,  # DeepSeek
    "cached_tokens": _READ,  # Moonshot
    "num_cached_tokens": _READ,  # Mistral
}

# Members besides OpenAI's own that change how the others are read.
_TELLING = frozenset(_NAMES) - {
    *("prompt_tokens", "completion_tokens", "total_tokens"),
    *("prompt_tokens_details", "completion_tokens_details"),
} | {"citation_tokens"}


def read_usage(raw: object) -> Usage | None:
    """The tokens a provider's `usage` object reports; None when it holds no usable count.

    Takes the object of a chat, completions, responses, embeddings or transcription answer, or of
    an event of its stream. Never raises.
    """
    if not isinstance(raw, dict):
        return None
    if (plain := _plain(raw)) is not None:
        return plain
    counts = [*_NOTHING_SAID]
    _collect(counts, raw, _NAMES)
    prompt, native, output, total = counts[:_WHOLES]
    if prompt == native == output == total == _ABSENT:
        return None
    if prompt == _ABSENT and native != _ABSENT:
        prompt = native + counts[_NATIVE_READ] + counts[_NATIVE_WRITE]
    elif native > prompt:
        prompt = native
    if output == _ABSENT:
        output = 0
    if prompt == _ABSENT:  # Voyage's embeddings report a total alone
        prompt = max(total - output, 0)
    return _shared_out(counts, prompt, output, "citation_tokens" in raw)


def _plain(raw: dict[str, object]) -> Usage | None:
    """A chat's usage in OpenAI's own words whose total is its parts'; None: it takes a closer look.

    The closer look gives the same; this is most answers there are.
    """
    prompt, output = raw.get("prompt_tokens"), raw.get("completion_tokens")
    if type(prompt) is not int or type(output) is not int or prompt < 0 or output < 0:
        return None
    if raw.get("total_tokens") != prompt + output or not _TELLING.isdisjoint(raw):
        return None
    read = _only(raw.get("prompt_tokens_details"), "cached_tokens", _IN_DETAILS)
    reasoning = _only(raw.get("completion_tokens_details"), "reasoning_tokens", _OUT_DETAILS)
    if 0 <= read <= prompt <= MAX_TOKENS and 0 <= reasoning <= output <= MAX_TOKENS:
        return _usage((prompt, output, read, 0, reasoning, 0, 0, 0, False))
    return None


def _only(details: object, name: str, others: _Names) -> int:
    """The one count among the details; _ABSENT where there is another, or something odd."""
    if not details:
        return 0
    if type(details) is not dict:
        return _ABSENT
    if not any(details.values()):  # as mostly, of however many there are
        return 0
    count = 0
    for said, value in details.items():
        if said == name and type(value) is int:
            count = value
        elif value and said in others:
            return _ABSENT
    return count


def _collect(counts: list[int], raw: Mapping[str, object], names: _Names) -> None:
    """Of several names for one count the largest: some gateways send two, one of them zero."""
    for name in raw:
        if name not in names:
            continue
        what, value = names[name], raw[name]
        # `type` and not isinstance: True is no token
        if type(value) is int and type(what) is int:
            if counts[what] < value <= MAX_TOKENS:
                counts[what] = value
        elif type(value) is dict and type(what) is dict:
            _collect(counts, value, what)


def _shared_out(counts: list[int], prompt: int, output: int, cites: bool) -> Usage:
    """The shares, each cut to its whole."""
    native_read, native_write, read, write, reasoning, heard, spoken, reheard = counts[_WHOLES:]
    read, write = max(read, native_read), max(write, native_write)
    extra = counts[_TOTAL] - prompt - output  # what only the total knows of
    if extra > 0 and extra == read + write and extra != reasoning:
        prompt += extra  # a gateway that left the cached tokens out of the prompt
    elif extra > 0:
        output, reasoning = output + extra, max(reasoning, extra)
    elif reasoning > output or cites:
        output += reasoning
    read = min(read, prompt)
    write, reasoning = min(write, prompt - read), min(reasoning, output)
    if not (heard or spoken):  # most answers, so they do not pay for it
        return Usage(prompt, output, read, write, reasoning)
    heard, spoken = min(heard, prompt), min(spoken, output)
    return Usage(prompt, output, read, write, reasoning, heard, spoken, min(reheard, heard, read))
