"""What `router eval` found: a line of JSON, a table, a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .tables import rendered

if TYPE_CHECKING:
    from lunar_proxy.scoring.study import Run


def run_doc(run: Run) -> dict[str, Any]:
    found = {key: short(value) for key, value in asdict(run.figures()).items()}
    best = run.pool.best
    return {
        **found,
        "models": list(run.pool.models),
        "prompts": len(run.pool.errors),
        "labels": run.labels,
        "seed": run.seed,
        "variant": run.variants,
        "best_single": {
            "model": run.pool.models[best],
            "accuracy": short(float(run.pool.accuracy[best])),
            "usd": float(run.pool.mean_cost[best]),
        },
        "baselines": {
            method: {key: short(value) for key, value in asdict(run.figures(method)).items()}
            for method in run.expected
            if method != "router"
        },
    }


def short(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


_COLUMNS = ("apgr", "cpt50", "cpt80", "area", "d_area", "qnc", "peak", "peak_gain")


def run_table(runs: Sequence[Run]) -> str:
    """Every method's figures, the mean over the runs."""
    rows = []
    for method in runs[0].expected:
        found = [asdict(run.figures(method)) for run in runs]
        rows.append([method, *(_mean([one[column] for one in found]) for column in _COLUMNS)])
    pool = runs[0].pool
    pair = len(pool.models) == 2
    accuracy = f"{pool.accuracy[pool.best]:.4f}"
    always = ["always " + pool.models[pool.best], "-", "-", "-", "-", "-", "1.0000", accuracy]
    random = ["random", *(["0.5000", "0.5000", "0.8000"] if pair else ["-"] * 3)]
    rows += [[*random, "-", "0.0000", "1.0000", accuracy, "0.0000"], [*always, "0.0000"]]
    labels = "profiles as they are" if runs[0].labels is None else f"{runs[0].labels} labels"
    head = f"{len(pool.errors)} prompts, {len(pool.models)} models, {labels}, {len(runs)} run(s)"
    singles = [
        [model, f"{pool.accuracy[i]:.4f}", f"{pool.mean_cost[i]:.3g}"]
        for i, model in enumerate(pool.models)
    ]
    return "\n".join(
        [
            head,
            rendered(["method", *_COLUMNS], rows),
            "",
            rendered(["model", "accuracy", "usd a prompt"], singles),
        ]
    )


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.4f}" if len(known) == len(values) else "-"


def picture(run: Run) -> bytes:
    """Share of strong calls -> gap closed for two models, cost -> accuracy for more."""
    from lunar_proxy.scoring.evaluate import hull, pair_curve, sweep, zero_router
    from lunar_proxy.scoring.plot import Series, draw

    pool, series = run.pool, []
    pair = pair_curve(run.expected["router"], pool) is not None
    for method, expected in run.expected.items():
        deferred = pair_curve(expected, pool) if pair else None
        if deferred is not None:
            series.append(Series(method, list(deferred.shares), list(deferred.gaps)))
        elif not pair:
            curve = hull(sweep(expected, pool, run.model_costs))
            series.append(Series(method, list(curve.costs), list(curve.accuracy)))
    if pair:
        series += [Series("random", [0, 1], [0, 1]), Series("always best", [1], [1])]
        return draw(
            series,
            title=f"{pool.models[pool.best]} or {pool.models[1 - pool.best]}",
            x_label="share of strong calls",
            y_label="share of the accuracy gap closed",
        )
    zero, best = zero_router(run.mean_errors, pool, run.model_costs), pool.best
    series.append(Series("random (ZeroRouter)", list(zero.costs), list(zero.accuracy)))
    series.append(Series("always best", [pool.mean_cost[best]], [pool.accuracy[best]]))
    title = f"{len(pool.models)} models, {len(pool.errors)} prompts"
    return draw(series, title=title, x_label="usd a prompt", y_label="accuracy")
