"""`router profile`: measure a model, from its graded answers or by asking it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .ask import ask
from .command import FORMAT, command, draws, files
from .inputs import load_router, named, open_lens, progress_bar, read_files, today
from .tables import print_table

if TYPE_CHECKING:
    from lunar_proxy.scoring.clusters import Clusters
    from lunar_proxy.scoring.profiles import Profile
    from lunar_proxy.scoring.rows import Row
    from lunar_proxy.scoring.study import Lens


def add(commands: Any) -> None:
    parser = command(
        commands,
        "profile",
        _profile,
        help="measure a model: from its graded answers, or by asking it",
        description="Write the profile of a model for clusters that exist. A few hundred graded "
        "prompts\ndo, like those it will meet; nothing else is fitted again. Models named together "
        "are\nprofiled on the prompts that grade them all, which compares them best.\n\n"
        "With --run the model is asked through a running proxy (or any OpenAI-shaped server)\n"
        "and graded. Every answer is kept in --answers, and a second run asks only what is\n"
        'missing. Rows need an "answer" for exact and regex.\n\n' + FORMAT,
    )
    parser.add_argument("model", nargs="*", metavar="MODEL")
    files(parser, "--scores", "--data", "--prompts", help="graded prompts; to ask, with --run")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--clusters", type=Path, metavar="DIR", help="default: DIR of --out, else the public ones"
    )
    parser.add_argument("--source", default="own", help="what the profile says of its source")
    draws(parser)
    parser.add_argument("--run", dest="ask", action="store_true", help="ask the model")
    parser.add_argument("--judge", choices=["exact", "regex", "llm"], default="exact")
    parser.add_argument("--pattern", help="for regex; {answer} is the row's right answer")
    parser.add_argument("--judge-model", metavar="MODEL", help="who grades with --judge llm")
    parser.add_argument("--base-url", default="http://127.0.0.1:8080/v1", metavar="URL")
    parser.add_argument("--api-key", default=os.environ.get("LUNAR_API_KEY"), metavar="KEY")
    parser.add_argument("--answers", type=Path, metavar="FILE")
    parser.add_argument("--max-usd", type=float, metavar="USD", help="stop when so much is spent")
    parser.add_argument("--prices", type=Path, metavar="FILE", help="JSON {model: [in, out]}")


def _profile(args: argparse.Namespace) -> int:
    from lunar_proxy.scoring.clusters import FILE
    from lunar_proxy.scoring.errors import ScoringError
    from lunar_proxy.scoring.profiles import save_profile

    names = list(dict.fromkeys([*args.model, *args.models]))
    rows = read_files(args.scores, "--scores", model=names[0] if len(names) == 1 else None)
    models = named(names, rows)
    if not models:
        raise ScoringError("no MODEL named, and no row is graded")
    base = args.clusters or (args.out if (args.out / FILE).exists() else None)
    clusters = load_router(args, base).clusters
    if args.ask:
        rows = ask(args, models, rows)
    lens = open_lens(args)
    made = profile_together(args, lens, clusters, rows, models)
    paths = [save_profile(profile, args.out) for profile in made]
    _say_profiles(args, clusters, made, paths)
    return 0


def profile_together(
    args: argparse.Namespace,
    lens: Lens,
    clusters: Clusters,
    rows: Sequence[Row],
    models: Sequence[str],
) -> list[Profile]:
    from lunar_proxy.scoring.rows import draw
    from lunar_proxy.scoring.study import comparable, make_profiles

    drawn = draw(comparable(rows, models), args.labels, args.seed)
    return make_profiles(
        clusters,
        lens.basis(clusters, drawn),
        drawn,
        models,
        source=args.source,
        created=today(),
        seed=args.seed,
        progress=progress_bar(args),
    )


def _say_profiles(
    args: argparse.Namespace, clusters: Clusters, made: Sequence[Profile], paths: Sequence[Path]
) -> None:
    covered = [sum(n >= 5 for n in profile.n) for profile in made]
    if args.json:
        docs = [
            {
                "model": p.id,
                "file": str(path),
                "labels": p.n_total,
                "error": p.error,
                "standard_error": round(p.standard_error, 4),
                "covered_clusters": share,
                "clusters": clusters.k,
            }
            for p, path, share in zip(made, paths, covered, strict=True)
        ]
        print(json.dumps(docs[0] if len(docs) == 1 else {"profiles": docs}))
        return
    print_table(
        ["model", "labels", "error", "+-", "clusters with 5 labels", "file"],
        [
            [p.id, p.n_total, f"{p.error:.3f}", f"{p.standard_error:.3f}", f"{n}/{clusters.k}", f]
            for p, path, n, f in zip(made, paths, covered, paths, strict=True)
        ],
    )
