"""YAML and `${NAME}` -> plain values, and the line of every path.

PyYAML's parser is used up to its node tree, which knows lines; values are made here, for reasons of
our own: `off` is the word off (YAML 1.2), a key that stands twice is an error, an alias that
multiplies itself is refused, and `${NAME}` is expanded in values only after YAML has been parsed,
so nothing in the environment can add structure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from .problems import Path, Problem

# A large config has some thousand values; aliases of aliases reach billions in ten lines.
MAX_VALUES = 50_000
MAX_DEPTH = 50

_IMPLICIT = "lunar:implicit"
_TAG = "tag:yaml.org,2002:"
_QUOTED_TAGS = (_TAG + "str", "!")


class Document:
    """A parsed file: `value`, what was wrong, and `line(path)`."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.value: Any = None
        self.problems: list[Problem] = []
        self._environ = environ
        self._lines: dict[Path, int] = {(): 1}
        self._made = 0
        self._open: list[Node] = []  # from the root to here, to notice an alias within itself

    def line(self, problem: Problem) -> int:
        """Of its path, else of the nearest thing around it that the file has, else near it."""
        if problem.line is not None:
            return problem.line
        path = problem.path if problem.path[:1] in self._lines else problem.near
        while path not in self._lines:
            path = path[:-1]
        return self._lines[path]

    def read(self, node: Node) -> None:
        try:
            self.value = self._make(node, ())
        except _TooMuch as error:
            self.problems = [error.problem]

    def _make(self, node: Node, path: Path) -> Any:
        self._made += 1
        self._check_size(node, path)
        self._open.append(node)
        try:
            match node:
                case MappingNode():
                    return self._mapping(node, path)
                case SequenceNode():
                    return self._sequence(node, path)
                case ScalarNode():
                    return self._whole(self._scalar(node, path), path, node)
                case _:  # PyYAML makes no other
                    return None
        finally:
            self._open.pop()

    def _check_size(self, node: Node, path: Path) -> None:
        if any(node is outer for outer in self._open):
            raise _TooMuch(Problem((), "an alias stands inside what it is an alias of", _at(node)))
        if len(path) > MAX_DEPTH or len(self._open) > MAX_DEPTH:
            raise _TooMuch(Problem((), "is nested too deeply", _at(node)))
        if self._made > MAX_VALUES:
            raise _TooMuch(Problem((), f"has more than {MAX_VALUES} values", _at(node)))

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        """Merged keys first, so that the mapping's own replace them, and their lines too."""
        made: dict[str, Any] = {}
        own: set[str] = set()
        for key, value in node.value:
            if _is_merge(key):
                self._merge(made, value, path)
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                self._wrong(path, "has a key that is not plain text", key)
            elif key.value in own:
                self._wrong((*path, key.value), "stands twice in the same mapping", key)
            elif self._whole(key.value, path, key) is not None and not _is_merge(key):
                own.add(key.value)
                self._lines[(*path, key.value)] = _at(key)
                made[key.value] = self._make(value, (*path, key.value))
        return made

    def _merge(self, made: dict[str, Any], node: Node, path: Path) -> None:
        """`<<: *base` or `<<: [*first, *second]`, where the first wins (yaml.org/type/merge)."""
        sources = node.value if isinstance(node, SequenceNode) else [node]
        for source in reversed(sources):
            if isinstance(source, MappingNode):
                made.update(self._make(source, path))
            else:
                self._wrong(path, "has a << that does not merge a mapping", source)

    def _sequence(self, node: SequenceNode, path: Path) -> list[Any]:
        values = []
        for index, item in enumerate(node.value):
            self._lines[(*path, index)] = _at(item)
            values.append(self._make(item, (*path, index)))
        return values

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        text = node.value
        if "${" in text:
            return self._expand(text, path, node)
        if node.tag == _IMPLICIT:
            return _plain(text)
        if node.tag in _QUOTED_TAGS:
            return text
        if node.tag.startswith(_TAG) and node.tag.removeprefix(_TAG) in _CORE_TAGS:
            return _plain(text)
        return self._wrong(path, "has a YAML tag that is not supported", node)

    def _whole(self, value: Any, path: Path, node: Node) -> Any:
        """Text that cannot be encoded, from `"\\ud800"` or a variable, is no use to anybody."""
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            self._wrong(path, "holds a character that is not Unicode text", node)
            return None
        return value

    def _expand(self, text: str, path: Path, node: ScalarNode) -> str | None:
        """Always text: pydantic turns it into the number or the truth its setting wants."""

        def value(match: re.Match[str]) -> str:
            if match["escaped"]:
                return "${"
            if match["name"] is None:
                self._wrong(path, "has a ${ that is not ${NAME} or ${NAME:-default}", node)
                return ""
            found = self._environ.get(match["name"])
            if match["default"] is not None:
                return found or match["default"]
            if found is None:
                self._wrong(path, f"environment variable {match['name']} is not set", node)
            return found or ""

        before = len(self.problems)
        expanded = _VARIABLE.sub(value, text)
        return expanded if len(self.problems) == before else None

    def _wrong(self, path: Path, message: str, node: Node) -> None:
        self.problems.append(Problem(path, message, _at(node)))


# `:-` is the shell's: the default also stands in for a variable that is set to nothing.
_VARIABLE = re.compile(
    r"(?P<escaped>\$\$\{)|\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\})?"
)


def _is_merge(key: Node) -> bool:
    return isinstance(key, ScalarNode) and key.value == "<<" and key.tag == _IMPLICIT


_CORE_TAGS = ("int", "float", "bool", "null")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
# Digits are bounded: no setting needs more, and Python refuses to parse very long ones.
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,18}|[0-9]{1,18}(\.[0-9]{0,18})?)([eE][-+]?[0-9]{1,3})?")


def _plain(text: str) -> Any:
    """YAML 1.2 core schema, less octal, hexadecimal and infinities, which no setting takes."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


class _TooMuch(Exception):
    def __init__(self, problem: Problem) -> None:
        self.problem = problem


class _Nodes(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML up to the node tree; an untagged plain scalar keeps its text and gets our tag."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is ScalarNode:
            return _IMPLICIT if implicit[0] else _TAG + "str"
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]


def parse(text: str, environ: Mapping[str, str]) -> Document:
    """Never raises: what is wrong is in `problems`. An empty file is a null document."""
    document = Document(environ)
    try:
        node = _Nodes(text).get_single_node()
    except RecursionError:
        document.problems.append(Problem((), "is nested too deeply", 1))
    except (ValueError, OverflowError):  # from chr(), for "\U00110000"
        document.problems.append(Problem((), "is not valid YAML: a \\U escape out of range", 1))
    except yaml.YAMLError as error:
        document.problems.append(_syntax(error, text))
    else:
        if node is not None:
            document.read(node)
    return document


def _at(node: Node) -> int:
    return int(node.start_mark.line) + 1


# The beginning of PyYAML's own words -> ours. The rest of its words may quote the file.
_SYNTAX = {
    "found character '\\t'": "a tab; YAML is indented with spaces",
    "found duplicate anchor": "an anchor of this name stands above",
    "found undefined alias": "an alias (*name) without its anchor (&name); quote text with a *",
    "mapping values are not allowed": "a `: ` inside a value; put the value in quotes",
    "could not find expected ':'": "a key without its `:`",
    "but found another document": "a second document; a config is one",
    "expected <block end>": "indentation that does not fit the lines above",
    "expected ',' or": "a missing `,` or bracket; inside {...} and [...] put ${NAME} in quotes",
    "found unexpected end of stream": "a quote or bracket that is never closed",
    "found character": "a character that must be in quotes here",
    "found unknown escape character": "a \\ escape that YAML does not know; use single quotes",
}


def _syntax(error: yaml.YAMLError, text: str) -> Problem:
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return Problem((), "a control character, which YAML does not allow", line)
    mark = getattr(error, "problem_mark", None)
    said = f"{getattr(error, 'problem', '')}"
    meaning = next((ours for theirs, ours in _SYNTAX.items() if said.startswith(theirs)), None)
    message = "is not valid YAML" + (f": {meaning}" if meaning else "")
    return Problem((), message, mark.line + 1 if mark else 1)
