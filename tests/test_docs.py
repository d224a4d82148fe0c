"""The README names everything that a user may meet, and its commands do what it says."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lunar_proxy.config.docs import markdown
from lunar_proxy.metrics import FAMILIES

from .e2e.harness import serving

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SOURCES = [
    path for path in sorted((ROOT / "lunar_proxy").rglob("*.py")) if path.name != "testing.py"
]


def syntax() -> Iterator[ast.AST]:
    for path in SOURCES:
        yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def error_codes() -> set[str]:
    """Every `code = "..."` of a class, and every `code="..."` of a call."""
    found = set()
    for node in syntax():
        match node:
            case ast.keyword(arg="code", value=ast.Constant(value=str(code))):
                found.add(code)
            case ast.ClassDef():
                found |= {code for line in node.body for code in _assigned(line, "code")}
            case _:
                pass
    return found


def _assigned(line: ast.stmt, name: str) -> Iterator[str]:
    """What a class body gives `name`, on its own or in `a, b = 1, 2`."""
    match line:
        case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
            pairs = zip(names, values, strict=True)
        case ast.Assign(targets=[target], value=value):
            pairs = zip([target], [value], strict=True)
        case ast.AnnAssign(target=target, value=ast.expr() as value):
            pairs = zip([target], [value], strict=True)
        case _:
            return
    for target, value in pairs:
        match target, value:
            case ast.Name(id=found), ast.Constant(value=str(text)) if found == name:
                yield text


def headers() -> set[str]:
    """Every string that is the name of a header of ours."""
    texts = [node.value for node in syntax() if isinstance(node, ast.Constant)]
    names = [
        text.decode("latin-1") if isinstance(text, bytes) else text
        for text in texts
        if isinstance(text, bytes | str)
    ]
    return {name for name in names if re.fullmatch(r"x-(lunar|ratelimit)-[a-z-]*[a-z]", name)}


def test_the_settings_table_is_that_of_the_schema() -> None:
    assert markdown() in README, "run `make readme`"


@pytest.mark.parametrize("code", sorted(error_codes()))
def test_every_error_code_is_there(code: str) -> None:
    assert f"`{code}`" in README


@pytest.mark.parametrize("name", sorted(headers()))
def test_every_header_is_there(name: str) -> None:
    assert f"`{name}`" in README


@pytest.mark.parametrize("name", FAMILIES)
def test_every_metric_is_there_with_its_labels(name: str) -> None:
    (row,) = [line for line in README.splitlines() if line.startswith(f"| `{name}` |")]
    own = [label for label in FAMILIES[name].labels if not label.startswith("gen_ai_")]
    cell = row.split("|")[2]
    assert all(f"`{label}`" in cell or "same" in cell or "below" in cell for label in own)


def test_what_is_looked_for_is_found() -> None:
    assert {"missing_model", "upstream_cut", "rate_limit_exceeded"} <= error_codes()
    assert {"x-lunar-provider", "x-lunar-annotate", "x-lunar-cost-usd"} <= headers()


def test_the_first_curl_gets_an_answer_with_its_cost(tmp_path: Path) -> None:
    (command,) = re.findall(r"<!-- run -->\n```sh\n(.*?)```", README, re.DOTALL)
    with serving(tmp_path, None, "--demo") as proxy:
        done = subprocess.run(
            ["sh", "-c", command.replace("http://127.0.0.1:8080", proxy.url)],
            capture_output=True,
            check=True,
            timeout=20,
        )
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["message"]["content"] == "Hello"
    assert answer["usage"]["total_cost_usd"] == 0.000006


def test_every_make_target_and_command_it_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    commands = {path.stem for path in (ROOT / "lunar_proxy" / "cli").glob("*.py")}
    named = set(re.findall(r"`lunar-proxy ([a-z-]+)", README))
    assert named <= {name.replace("_", "-") for name in commands}
