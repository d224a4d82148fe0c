"""The only reader of the config file and of the environment: both in, one frozen `Config` out.

    text -> document (YAML, ${NAME}, lines) -> schema (types, bounds) -> checks (references)

Every stage goes as far as it can, so that one run names everything there is to mend. Nothing is
kept between calls: a reload calls `load` again and swaps the result in, or keeps the old one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from . import problems
from .checks import check
from .document import Document, parse
from .problems import ConfigError, Problem, show_path
from .schema import Config

MAX_FILE_BYTES = 4 * 1024 * 1024  # far above any config; far below what would hurt to parse


def load(
    path: Path | None,
    environ: Mapping[str, str],
    *,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """Read and check a config; without a path it is the defaults.

    `overrides` are settings of the command line by their path, `{"admin.listen": "127.0.0.1:0"}`;
    None among them is not set. Raises ConfigError with a line for each problem.
    """
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    document = Document(environ) if path is None else parse(_text(path), environ)
    value = {} if document.value is None else document.value
    found = list(document.problems)
    if not isinstance(value, dict):
        found.append(Problem((), "must be a mapping (lines of `key: value`)"))
        value = {}
    config = _build(_merged(value, given), environ, found)
    if found:
        raise ConfigError(_lines(found, path, document, given))
    return config


def resolved(config: Config) -> dict[str, Any]:
    """Every setting as it is in force, in the order of the schema, secrets masked."""
    return config.model_dump(mode="json")


def _text(path: Path) -> str:
    raw = _bytes(path)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: file: is not UTF-8 text"]) from None


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not a path"
        raise ConfigError([f"{path}:1: file: cannot be read: {why}"]) from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError([f"{path}:1: file: is larger than {MAX_FILE_BYTES} bytes"])
    return raw


def _merged(value: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    for key, setting in overrides.items():
        head, _, rest = key.partition(".")
        section = value.get(head)
        if not rest:
            value = {**value, head: setting}
        elif section is None or isinstance(section, dict):
            value = {**value, head: _merged(section or {}, {rest: setting})}
    return value


def _build(value: dict[str, Any], environ: Mapping[str, str], found: list[Problem]) -> Config:
    """The config, and into `found` what is wrong with it. With problems it is good for nothing."""
    context = {"home": environ.get("HOME", "")}
    told = [problem.path for problem in found]
    try:
        config = Config.model_validate(value, context=context)
    except ValidationError as error:
        new = problems.from_validation(error, Config)
        # A value the document could not make is null here; that is no second problem.
        found += [problem for problem in new if problem.path not in told]
        config = None
    broken = {str(problem.path[0]) for problem in found if problem.path}
    if () in (problem.path for problem in found):
        return config or Config()
    if config is None:
        sound = {key: entry for key, entry in value.items() if key not in broken}
        config = Config.model_validate(sound, context=context)
    found += check(config, broken)
    return config


def _lines(
    found: Iterable[Problem],
    path: Path | None,
    document: Document,
    overrides: Mapping[str, Any],
) -> list[str]:
    """In the order of the file, each once."""
    placed = [(document.line(problem), problem) for problem in found]
    placed.sort(key=lambda pair: pair[0])
    lines = []
    for line, problem in placed:
        shown = show_path(problem.path)
        where = "command line" if shown in overrides else f"{path}:{line}" if path else "defaults"
        lines.append(f"{where}: {shown}: {problem.message}")
    return list(dict.fromkeys(lines))
