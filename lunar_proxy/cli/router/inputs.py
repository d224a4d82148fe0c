"""What the subcommands read: rows, vectors, profiles, prices; and the bar that shows it."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lunar_proxy.scoring.router import Router
    from lunar_proxy.scoring.rows import Row
    from lunar_proxy.scoring.study import Lens, Prices


def progress_bar(args: argparse.Namespace) -> Callable[[str, float], None]:
    """A bar on stderr, or nothing where nobody looks."""
    if args.quiet or not sys.stderr.isatty():
        return lambda _what, _share: None

    def show(what: str, share: float) -> None:
        filled = "#" * round(share * 30)
        end = "\n" if share >= 1 else ""
        print(f"\r{what:<12} [{filled:<30}] {share:4.0%}", end=end, file=sys.stderr, flush=True)

    return show


def open_lens(args: argparse.Namespace) -> Lens:
    from lunar_proxy.scoring.store import VectorStore
    from lunar_proxy.scoring.study import Lens

    directory = embedder_at(args.embedder)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lunar-proxy"
    path = None if args.no_cache else (args.cache or home) / f"embeddings-{_stamp(directory)}.npz"
    return Lens(directory, VectorStore(path), progress_bar(args))


def _stamp(directory: Path) -> str:
    """Another encoder, another cache: vectors of two are never mixed."""
    manifest = directory / "embedder.json"
    told = manifest.read_bytes() if manifest.exists() else str(directory.resolve()).encode()
    sizes = [
        p.stat().st_size for p in (directory / "model.onnx", directory / "table.npz") if p.exists()
    ]
    return hashlib.sha256(told + repr(sizes).encode()).hexdigest()[:16]


def embedder_at(name: str | None) -> Path:
    from lunar_proxy.scoring.router import DEFAULT_EMBEDDER, SHIPPED

    if name is None:
        return DEFAULT_EMBEDDER
    return SHIPPED[name].embedder if name in SHIPPED else Path(name)


def read_files(paths: Sequence[Path], flag: str, *, model: str | None = None) -> list[Row]:
    from lunar_proxy.scoring.errors import ScoringError
    from lunar_proxy.scoring.rows import read_rows

    if not paths:
        raise ScoringError(f"{flag} is needed: a file of rows (see --help)")
    return read_rows([Path("/dev/stdin") if str(p) == "-" else p for p in paths], model=model)


def load_router(args: argparse.Namespace, directory: Path | None) -> Router:
    """The profiles of a directory, on the public ones of the embedder if it has no clusters."""
    from lunar_proxy.scoring.clusters import FILE
    from lunar_proxy.scoring.router import SHIPPED, Router

    public = SHIPPED.get(args.embedder or "", SHIPPED["minilm"]).profiles
    if directory is None:
        return Router.load(public)
    if directory.is_dir() and not (directory / FILE).exists():
        return Router.load(public, directory)
    return Router.load(directory)


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def price_list(path: Path | None) -> Prices:
    """USD per million tokens in and out: the file's, else the price table's, else the list of open
    models that the figures in the docs were made with."""
    own = _read_prices(path) if path else {}
    from lunar_proxy.scoring.prices import OPEN_MODELS

    listed: list[Callable[[str], tuple[float, float] | None]] = []

    def price(model: str) -> tuple[float, float] | None:
        if model in own:
            return own[model]
        if not listed:
            listed.append(_table())
        return listed[0](model) or OPEN_MODELS.get(model.rpartition("/")[2])

    return price


def _read_prices(path: Path) -> dict[str, tuple[float, float]]:
    from lunar_proxy.scoring.errors import BadFile

    try:
        doc = json.loads(path.read_text())
        return {model: (float(pair[0]), float(pair[1])) for model, pair in doc.items()}
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise BadFile(
            f"{path}:1: prices: not a JSON object of model: [in, out]: {error}"
        ) from error


def _table() -> Callable[[str], tuple[float, float] | None]:
    from lunar_proxy.core.pricing import Price
    from lunar_proxy.pricing import PriceTable, load

    table = PriceTable(load(), now=lambda: datetime.now(UTC))

    def price(model: str) -> tuple[float, float] | None:
        for provider, spelled in table.providers_of(model):
            found = table.price(provider, spelled)
            if isinstance(found, Price) and found.input is not None and found.output is not None:
                return float(found.input), float(found.output)
        return None

    return price


def per_1k(price: tuple[float, float] | None) -> float | None:
    """USD per 1,000 tokens, three of the prompt to one of the answer."""
    return None if price is None else (3 * price[0] + price[1]) / 4 / 1000


def named(asked: Sequence[str], rows: Iterable[Row]) -> list[str]:
    """The models asked for, each once; all of the rows' without any."""
    from lunar_proxy.scoring.rows import models_of

    return list(dict.fromkeys(asked)) or models_of(rows)
