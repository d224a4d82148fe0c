"""Every setting with its type, default and meaning, read off the schema for the README's table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from .problems import element_type, is_model, plain_type
from .schema import Config
from .values import Address, InterceptHost, Secret, Store, Url


@dataclass(frozen=True, slots=True)
class Setting:
    """`path` writes NAME for a key of the user's choice and [] for an entry of a list."""

    path: str
    type: str
    default: str  # as in YAML; empty for a section, `required` where there is none
    doc: str


def settings(root: type[BaseModel] = Config, prefix: str = "") -> list[Setting]:
    """In the order of the schema, each section before what is in it."""
    return [
        setting
        for name, info in root.model_fields.items()
        for setting in _settings(f"{prefix}{name}", info)
    ]


def markdown() -> str:
    """The reference table."""
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for setting in settings():
        default = f"`{setting.default}`" if setting.default else ""
        kind = setting.type.replace("|", "\\|")
        rows.append(f"| `{setting.path}` | {kind} | {default} | {setting.doc} |")
    return "\n".join(rows) + "\n"


def _settings(path: str, info: FieldInfo) -> Iterator[Setting]:
    kind = plain_type(info.annotation)
    section, inner = _section(path, kind)
    doc = info.description or ""
    yield Setting(path, _type_name(kind), "" if is_model(kind) else _default(info), doc)
    if section is not None:
        yield from settings(section, inner)


def _section(path: str, kind: Any) -> tuple[type[BaseModel] | None, str]:
    """The model that is in this setting, itself or as an element, and the path to its fields."""
    if is_model(kind):
        return kind, f"{path}."
    element = plain_type(element_type(kind))
    step = "[]" if get_origin(kind) is tuple else ".NAME"
    return (element, f"{path}{step}.") if is_model(element) else (None, "")


def _default(info: FieldInfo) -> str:
    # No factory of the schema looks at other fields.
    value = info.default_factory() if info.default_factory else info.default  # type: ignore[call-arg]
    return "required" if value is PydanticUndefined else _yaml(value)


def _yaml(value: Any) -> str:
    match value:
        case ("*",):  # the globs that `tunnel: all` stands for; no other default is a glob
            return "all"
        case Enum():
            return str(value.value)
        case float() if value.is_integer():
            return str(int(value))
        case Address() | Store() | Path() | str():
            return str(value)
        case _:
            return json.dumps(value)


_TYPE_NAMES: dict[Any, str] = {
    type(None): "null",
    bool: "true or false",
    int: "whole number",
    float: "number",
    Decimal: "number",
    str: "text",
    Secret: "secret",
    Address: "HOST:PORT",
    Store: "store",
    Url: "URL",
    Path: "path",
    InterceptHost: "HOST or HOST=PROVIDER",
    bool | Path: "true, false or path",
}


def _type_name(kind: Any) -> str:
    kind = plain_type(kind)
    if is_model(kind):
        return "section"
    if get_origin(kind) is Literal:
        return " | ".join(str(arg) for arg in get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " | ".join(member.value for member in kind)
    if get_origin(kind) is tuple:
        return f"list of {_type_name(element_type(kind))}"
    if get_origin(kind) is Mapping:
        return f"name: {_type_name(element_type(kind))}"
    return _TYPE_NAMES[kind]
