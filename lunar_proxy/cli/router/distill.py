"""`router distill`: a static encoder from a sentence encoder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .command import command, count
from .inputs import embedder_at, progress_bar


def add(commands: Any) -> None:
    parser = command(
        commands,
        "distill",
        _distill,
        help="make a static encoder, which needs no onnxruntime, from a sentence encoder",
        description="Encode every token of the vocabulary alone, keep its principal components, "
        "weight it by\nhow rare it is. The result in --out is an embedder like any other: it "
        "needs clusters and\nprofiles of its own (`fit --embedder DIR`). The shipped one was "
        "made so.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--dimensions", type=count, default=256, metavar="D")
    parser.add_argument("--name", help="what it is called in files (default: the name of DIR)")


def _distill(args: argparse.Namespace) -> int:
    from lunar_proxy.scoring.distill import distill
    from lunar_proxy.scoring.encoder import Encoder
    from lunar_proxy.scoring.static import save_static

    directory, show = embedder_at(args.embedder), progress_bar(args)
    codes, scales = distill(
        Encoder(directory),
        args.dimensions,
        progress=lambda share: show("distilling", share),
    )
    made = save_static(args.out, codes, scales, args.name or args.out.name, like=directory)
    if args.json:
        print(json.dumps({"out": str(args.out), **made.id.to_json()}))
    else:
        print(f"{args.out}: {len(codes)} tokens x {made.id.dimension}, sha256 {made.id.sha256}")
    return 0
