"""`router route`: explain one decision."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command import command, model_names
from .inputs import load_router, open_lens, per_1k, price_list
from .tables import print_table

if TYPE_CHECKING:
    from lunar_proxy.scoring.decide import Decision


def add(commands: Any) -> None:
    parser = command(
        commands,
        "route",
        _route,
        help="explain one decision",
        description="Decide for one text and say why. --models restricts the candidates.",
    )
    parser.add_argument("text", help='the prompt; "-" reads stdin')
    parser.add_argument("--profiles", "--dir", type=Path, metavar="DIR")
    parser.add_argument("--models", type=model_names, action="extend", default=[], metavar="A,B,C")
    parser.add_argument("--cost-weight", type=float, default=0.0, metavar="W")
    parser.add_argument("--cost-scale", choices=["normalized", "usd"], default="normalized")
    parser.add_argument("--prices", type=Path, metavar="FILE", help="JSON {model: [in, out]}")


def _route(args: argparse.Namespace) -> int:
    from lunar_proxy.scoring.decide import Candidate
    from lunar_proxy.scoring.rows import Row

    text = sys.stdin.read() if args.text == "-" else args.text
    router, lens, prices = (
        load_router(args, args.profiles),
        open_lens(args),
        price_list(args.prices),
    )
    router.require(lens.embedder)
    names = args.models or [id for id in router.ids if prices(id) is not None] or router.ids
    candidates = [Candidate(name, per_1k(prices(name))) for name in names]
    vector = lens.vectors([Row(text)])[0]
    decision = router.decide(vector, text, candidates, args.cost_weight, args.cost_scale)
    if args.json:
        print(json.dumps({**asdict(decision), "costs": {c.id: c.cost for c in candidates}}))
        return 0
    _explain(decision, {candidate.id: candidate.cost for candidate in candidates})
    return 0


def _explain(decision: Decision, costs: dict[str, float | None]) -> None:
    print(f"{decision.selected}\n  {decision.reasoning}")
    print(f"  measured: {decision.coverage:.0%} of this prompt's clusters have 5 labels or more\n")
    rows = []
    for name in decision.ranking[:20]:
        usd = "-" if costs[name] is None else f"{costs[name]:.5f}"
        error = decision.expected_errors[name]
        rows.append([name, f"{error:.4f}", usd, f"{decision.all_scores[name]:.4f}"])
    print_table(["model", "expected error", "usd per 1k", "score"], rows)
