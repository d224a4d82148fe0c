"""`router inspect`: what the clusters hold and who errs where."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command import FORMAT, command, count, files
from .inputs import load_router, open_lens, read_files

if TYPE_CHECKING:
    from lunar_proxy.scoring.clusters import Clusters
    from lunar_proxy.scoring.router import Router
    from lunar_proxy.scoring.rows import Row


def add(commands: Any) -> None:
    parser = command(
        commands,
        "inspect",
        _inspect,
        help="what the clusters hold and who errs where",
        description="List clusters and profiles. With --prompts: the typical prompts of each "
        "cluster.\nWith --plot: a picture of clusters (and prompts) in the plane of their first "
        "two\nprincipal components.\n\n" + FORMAT,
    )
    parser.add_argument("--profiles", "--dir", type=Path, metavar="DIR")
    parser.add_argument("directory", nargs="?", type=Path, metavar="DIR")
    files(parser, "--prompts", "--data", help="to show typical ones of")
    parser.add_argument("--typical", type=count, default=3, metavar="N")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")


def _inspect(args: argparse.Namespace) -> int:
    router = load_router(args, args.directory or args.profiles)
    rows = read_files(args.prompts, "--prompts") if args.prompts else []
    vectors = None
    if rows:
        lens = open_lens(args)
        router.require(lens.embedder)
        vectors = lens.vectors(rows)
    clusters = _described(router, rows, vectors, args.typical or 3)
    if args.plot is not None:
        args.plot.write_bytes(_map_picture(router.clusters, vectors))
    if args.json:
        about = {"k": router.clusters.k, "about": router.clusters.about, "profiles": router.ids}
        print(json.dumps({**about, "clusters": clusters}))
        return 0
    print(repr(router), json.dumps(router.clusters.about))
    for one in clusters:
        best = ", ".join(f"{name} {error:.3f}" for name, error in one["least_error"].items())
        print(f"\ncluster {one['id']}: difficulty {one['difficulty']:+.2f}; {best}")
        for prompt in one["typical"]:
            print(f"  - {prompt}")
    return 0


def _described(
    router: Router, rows: Sequence[Row], vectors: Any, typical: int
) -> list[dict[str, Any]]:
    import numpy as np

    profiles = [p for p in (router.find(id) for id in router.ids) if p is not None]
    member = None if vectors is None else router.clusters.membership(vectors)
    described = []
    for cluster in range(router.clusters.k):
        least = sorted(profiles, key=lambda p: (p.psi[cluster], p.id))[:3]
        near: list[int] = []
        if member is not None:
            near = np.argsort(-member[:, cluster], kind="stable")[:typical].tolist()
        described.append(
            {
                "id": cluster,
                "difficulty": round(float(router.clusters.difficulty[cluster]), 3),
                "share": None if member is None else round(float(member[:, cluster].mean()), 4),
                "least_error": {profile.id: profile.psi[cluster] for profile in least},
                "typical": [" ".join(rows[index].prompt.split())[:140] for index in near],
            }
        )
    return described


def _map_picture(clusters: Clusters, vectors: Any) -> bytes:
    import numpy as np

    from lunar_proxy.scoring.plot import Series, draw

    points = clusters.centroids if vectors is None else vectors[:5000]
    centre = points.mean(axis=0)
    _, _, axes = np.linalg.svd(points[:2000] - centre, full_matrices=False)
    series = []
    if vectors is not None:
        flat = (points - centre) @ axes[:2].T
        series.append(Series("prompts", flat[:, 0].tolist(), flat[:, 1].tolist(), dots=1))
    flat = (clusters.centroids - centre) @ axes[:2].T
    series.append(Series("clusters", flat[:, 0].tolist(), flat[:, 1].tolist(), dots=6))
    return draw(series, title=f"{clusters.k} clusters", x_label="first axis", y_label="second")
