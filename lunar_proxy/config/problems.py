"""What is wrong with a config, in words an operator can act on, each with its place.

A path is a tuple of keys and list indices, `("providers", "openai", "api_key")`. Nothing here ever
prints a value of the file: a secret may stand in any place, the wrong one included.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails, ValidationError

Path = tuple[str | int, ...]


class ConfigError(Exception):
    """A config that cannot be used; `str()` is one line for each thing that is wrong with it."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = tuple(lines)
        super().__init__("\n".join(self.lines))


@dataclass(frozen=True, slots=True)
class Problem:
    path: Path
    message: str
    line: int | None = None  # None: where the path is
    near: Path = ()  # where to point if the file leaves the path to its default


def show_path(path: Path) -> str:
    """`models.spread.targets[1].target`; a key that is not a plain word is quoted."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif re.fullmatch(r"[A-Za-z0-9_-]+", step):
            text += f".{step}"
        else:
            text += '["' + step.encode("unicode_escape").decode().replace('"', '\\"') + '"]'
    return text.removeprefix(".") or "config"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean X?` when something close is known, else nothing."""
    close = difflib.get_close_matches(name[:100], list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]}?" if close else ""


def from_validation(error: ValidationError, root: type[BaseModel]) -> list[Problem]:
    """Less what follows from another: a list is not too short if an entry of it is at fault."""
    found = error.errors(include_url=False, include_input=False)
    paths = [detail["loc"] for detail in found]
    return [
        _problem(detail, root)
        for detail in found
        if detail["type"] != "too_short" or not _within(detail["loc"], paths)
    ]


def _within(outer: Path, paths: Iterable[Path]) -> bool:
    return any(len(path) > len(outer) and path[: len(outer)] == outer for path in paths)


def _problem(detail: ErrorDetails, root: type[BaseModel]) -> Problem:
    path = tuple(step for step in detail["loc"] if step != "[key]")
    if detail["type"] == "extra_forbidden":
        return Problem(path, _unknown_key(path, root))
    if detail["type"] in ("value_error", "assertion_error"):
        return Problem(path, str(detail["ctx"]["error"]))
    template = _MESSAGES.get(detail["type"], "is not a value this setting can have")
    return Problem(path, template.format_map(detail.get("ctx", {})))


# pydantic's error types -> words. Only limits and choices are named, never what was given.
_MESSAGES = {
    "missing": "is required",
    "string_type": "must be text; put it in quotes",
    "string_too_short": "must not be empty",
    "string_too_long": "must be at most {max_length} characters",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "decimal_type": "must be a number",
    "decimal_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "none_required": "is not supported yet",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "model_type": "must be a mapping (lines of `key: value`)",
    "model_attributes_type": "must be a mapping (lines of `key: value`)",
    "mapping_type": "must be a mapping (lines of `key: value`)",
    "dict_type": "must be a mapping (lines of `key: value`)",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entry",
}

# Names other gateways use for ours.
_HINTS = {
    "api_base": "unknown key, did you mean base_url?",
    "num_retries": "unknown key, did you mean attempts?",
    "model_list": "unknown key, did you mean models?",
}


def _unknown_key(path: Path, root: type[BaseModel]) -> str:
    key = str(path[-1])
    known = _keys_at(path[:-1], root)
    return _HINTS.get(key) or "unknown key" + did_you_mean(key, known)


def _keys_at(path: Path, root: type[BaseModel]) -> list[str]:
    here: Any = root
    for step in path:
        here = plain_type(here)
        if is_model(here):
            field = here.model_fields.get(str(step))
            here = field.annotation if field else None
        else:
            here = element_type(here)
    here = plain_type(here)
    return list(here.model_fields) if is_model(here) else []


def is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def plain_type(kind: Any) -> Any:
    """Without `Annotated[...]` and `... | None`."""
    if get_origin(kind) is Annotated:
        return plain_type(get_args(kind)[0])
    others = [arg for arg in get_args(kind) if arg is not NoneType]
    if len(others) < len(get_args(kind)) and len(others) == 1:
        return plain_type(others[0])
    return kind


def element_type(kind: Any) -> Any:
    """Of a mapping its values', of a tuple its entries' type; None of anything else."""
    args = get_args(kind)
    if isinstance(origin := get_origin(kind), type) and issubclass(origin, Mapping):
        return args[1]
    return args[0] if origin is tuple else None
