"""Writes the table of settings into README.md, between its two marks."""

from __future__ import annotations

from pathlib import Path

from lunar_proxy.config.docs import markdown

README = Path(__file__).parents[1] / "README.md"
FIRST = "<!-- settings: written by `make readme` -->\n"
LAST = "<!-- end of settings -->\n"


def main() -> None:
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(FIRST)
    _, after = rest.split(LAST)
    README.write_text(before + FIRST + markdown() + LAST + after, encoding="utf-8")


if __name__ == "__main__":
    main()
