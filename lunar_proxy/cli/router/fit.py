"""`router fit`: clusters from prompts, and profiles of the models graded on them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command import FORMAT, command, draws, files
from .inputs import open_lens, progress_bar, read_files, today
from .profile import profile_together
from .tables import print_table

if TYPE_CHECKING:
    from lunar_proxy.scoring.clusters import Clusters
    from lunar_proxy.scoring.profiles import Profile
    from lunar_proxy.scoring.rows import Row
    from lunar_proxy.scoring.study import Lens


def add(commands: Any) -> None:
    parser = command(
        commands,
        "fit",
        _fit,
        help="make clusters from prompts, and profiles of the models graded on them",
        description="Make clusters.npz from prompts. Where they are graded for enough models (4 "
        "with 50\nlabels), the map is learned from the labels and K is the one with the least\n"
        "held-out loss; otherwise it is soft K-means. Profiles of graded models are written\n"
        "beside it. Models named with --models are profiled from --labels drawn labels and\n"
        "have no part in learning the map, as if they had come later.\n\n" + FORMAT,
    )
    files(parser, "--prompts", "--data", "--train", help="prompts, graded or not")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--k", type=_sizes, metavar="K,K", help="numbers of clusters to try")
    parser.add_argument("--map", choices=["learned", "soft"], default="learned")
    parser.add_argument("--no-profiles", action="store_true", help="write clusters only")
    parser.add_argument("--source", default="own", help="what the profiles say of their source")
    parser.add_argument(
        "--public", action="store_true", help="as the shipped ones were made: see scoring/public.py"
    )
    draws(parser)


def _sizes(text: str) -> list[int]:
    sizes = [int(part) for part in text.split(",")]
    if min(sizes) < 2:
        raise argparse.ArgumentTypeError("needs 2 clusters or more")
    return sizes


def _fit(args: argparse.Namespace) -> int:
    from lunar_proxy.scoring.profiles import save_profile
    from lunar_proxy.scoring.public import public_clusters
    from lunar_proxy.scoring.rows import models_of
    from lunar_proxy.scoring.study import make_clusters

    rows = read_files(args.prompts, "--prompts")
    lens, progress = open_lens(args), progress_bar(args)
    training = [model for model in models_of(rows) if model not in args.models]
    if args.public:
        clusters = public_clusters(lens, rows, progress)
    else:
        clusters = make_clusters(
            lens,
            rows,
            training,
            seed=args.seed,
            ks=args.k,
            learned=args.map == "learned",
            progress=progress,
        )
    clusters.about["date"] = today()
    clusters = clusters.save(args.out)
    made = [] if args.no_profiles else _profiles_of(args, lens, clusters, rows)
    for profile in made:
        save_profile(profile, args.out)
    _say_fit(args, clusters, made)
    return 0


def _profiles_of(
    args: argparse.Namespace, lens: Lens, clusters: Clusters, rows: list[Row]
) -> list[Profile]:
    from lunar_proxy.scoring.fit import MIN_CORRECTED
    from lunar_proxy.scoring.public import public_profiles
    from lunar_proxy.scoring.rows import models_of
    from lunar_proxy.scoring.study import profile_each

    if args.public:
        return public_profiles(lens, clusters, rows, today(), progress_bar(args))
    if args.models:
        return profile_together(args, lens, clusters, rows, args.models)
    graded = [row for row in rows if row.scores]
    models = models_of(graded)
    if not graded:
        return []
    if all(row.scores.keys() >= set(models) for row in graded):
        return profile_together(args, lens, clusters, graded, models)
    return profile_each(
        clusters,
        lens.basis(clusters, graded),
        graded,
        models,
        source=args.source,
        created=today(),
        minimum=MIN_CORRECTED,
        corrected=False,
        progress=progress_bar(args),
    )


def _say_fit(args: argparse.Namespace, clusters: Clusters, made: Sequence[Profile]) -> None:
    if args.json:
        doc = {
            "out": str(args.out),
            "k": clusters.k,
            "prompts": clusters.about["prompts"],
            "held_out_loss": clusters.about["held_out_loss"],
            "profiles": [profile.id for profile in made],
            "clusters_sha256": clusters.sha256,
        }
        print(json.dumps(doc))
        return
    losses = clusters.about["held_out_loss"]
    how = f"held-out loss {losses}" if losses else "soft K-means: too few labels to learn from"
    print(f"{args.out}: {clusters.k} clusters from {clusters.about['prompts']} prompts ({how})")
    print_table(
        ["model", "labels", "error", "variants"],
        [[p.id, p.n_total, f"{p.error:.3f}", len(p.variant.split(", "))] for p in made],
    )
