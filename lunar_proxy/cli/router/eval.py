"""`router eval`: how good the router is on graded prompts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command import FORMAT, command, count, draws, files
from .inputs import load_router, named, open_lens, price_list, progress_bar, read_files
from .report import picture, run_doc, run_table

if TYPE_CHECKING:
    from lunar_proxy.scoring.rows import Row
    from lunar_proxy.scoring.study import Lens, Prices, Run


FIGURES = """\
Figures: apgr (two models: area under share of strong calls -> share of the accuracy gap closed,
random 0.5), cpt50 and cpt80 (least share of strong calls that closes 50 and 80 %, 0..1), area
(under cost / dearest cost -> accuracy, 0..1), d_area (that less ZeroRouter's, which mixes models
at random by the same labels, in hundredths; d_area_hindsight: less the best mix there is), qnc
(least cost that reaches the best single model's accuracy / that model's cost; null: never), peak
(highest accuracy, 0..1), peak_gain (over the best single model, in hundredths)."""


def add(commands: Any) -> None:
    parser = command(
        commands,
        "eval",
        _eval,
        help="how good the router is on graded prompts",
        description="Measure on the rows of --data that grade all of --models, against random, "
        "always-best, kNN\nand oracle. What the router may learn from is one of three:\n\n"
        "  a train and a holdout part: profiles are fitted to N rows drawn from --train, of the\n"
        "  datasets that occur in --data; the map is learned from the other models in all of\n"
        "  --train (so give every graded file there is), or taken from --profiles\n"
        "    eval --data test/*.gz --train train/*.gz --models a,b --labels 500 --seed 1 --json\n"
        "  one part, which is split: N rows of --data are for fitting, the others for measuring;\n"
        "  the map is the public one, or that of --profiles\n"
        "    eval --data rows.jsonl.gz --models a,b --labels 500 --seed 1 --json\n"
        "  profiles that exist: those that `fit` or `profile` put into DIR, or the public ones\n"
        "    eval --data test/*.gz --models a,b --profiles DIR --json\n\n"
        "--json prints a line a run; --draws 8 makes eight, with seeds S, S+1, ...\n\n"
        + FIGURES
        + "\n\n"
        + FORMAT,
    )
    files(parser, "--data", "--holdout", "--scores", help="what to measure on")
    files(parser, "--train", help="where labels are drawn")
    parser.add_argument("--profiles", "--dir", type=Path, metavar="DIR")
    parser.add_argument("--draws", type=count, default=1, help="repeat with seeds S, S+1, ...")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write eval.png, eval.txt and eval.jsonl there; without --profiles, profiles that "
        "`fit` or `profile` put there are used",
    )
    parser.add_argument(
        "--prices", type=Path, metavar="FILE", help="JSON {model: [in, out]}, USD per million"
    )
    draws(parser)


def _eval(args: argparse.Namespace) -> int:
    from lunar_proxy.scoring.errors import ScoringError

    data = read_files(args.data, "--data")
    models = named(args.models, data)
    if args.profiles is None and args.out is not None and any(args.out.glob("*.json")):
        args.profiles = args.out
    if len(models) < 2:
        raise ScoringError(f"two models or more are needed, there is {', '.join(models) or 'none'}")
    lens, prices = open_lens(args), price_list(args.prices)
    for model in models:
        if prices(model) is None:
            said = f"no price for {model}: $1 per million tokens assumed (--prices)"
            print(f"lunar-proxy router: {said}", file=sys.stderr)
    if args.train or args.labels is not None:
        runs = _runs_by_labels(args, lens, data, models, prices)
    else:
        from lunar_proxy.scoring.study import evaluate_router

        router = load_router(args, args.profiles)
        if missing := [model for model in models if router.find(model) is None]:
            raise ScoringError(
                f"no profile for {', '.join(missing)}; give --train ROWS or --labels N to fit them "
                f"here, or --profiles DIR that holds them"
            )
        router.require(lens.embedder)
        runs = [evaluate_router(lens, router, data, models, prices)]
    _say_runs(args, runs)
    return 0


def _runs_by_labels(
    args: argparse.Namespace,
    lens: Lens,
    data: list[Row],
    models: Sequence[str],
    prices: Prices,
) -> list[Run]:
    from lunar_proxy.scoring.rows import models_of, take
    from lunar_proxy.scoring.study import can_train, comparable, evaluate_labels, make_clusters

    train = read_files(args.train, "--train") if args.train else []
    others = [model for model in models_of(train) if model not in models]
    clusters = None
    if args.profiles is None and can_train(train, others):
        clusters = make_clusters(lens, train, others, seed=0, progress=progress_bar(args))
    if clusters is None:
        clusters = load_router(args, args.profiles).clusters
        lens.embedder.require(clusters.embedder, "clusters.npz")
    runs = []
    for seed in range(args.seed, args.seed + (args.draws or 1)):
        drawn, rest = (train, data) if train else take(comparable(data, models), args.labels, seed)
        runs.append(
            evaluate_labels(
                lens,
                clusters,
                drawn,
                rest,
                models,
                prices,
                labels=args.labels if train else None,
                seed=seed,
                progress=progress_bar(args),
            )
        )
    return runs


def _say_runs(args: argparse.Namespace, runs: Sequence[Run]) -> None:
    lines = [json.dumps(run_doc(run)) for run in runs]
    table = run_table(runs)
    print("\n".join(lines) if args.json else table)
    plot = args.plot
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "eval.jsonl").write_text("\n".join(lines) + "\n")
        (args.out / "eval.txt").write_text(table + "\n")
        plot = plot or args.out / "eval.png"
    if plot is not None:
        plot.write_bytes(picture(runs[0]))
