"""`lunar-proxy router`: make, measure and look into what the router decides by.

The work is done in `lunar_proxy.scoring`, imported only when a command runs: it needs numpy and the
sentence encoder, which no other command does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lunar_proxy.scoring.clusters import Clusters
    from lunar_proxy.scoring.decide import Decision
    from lunar_proxy.scoring.judge import Answer, Graded, Judge
    from lunar_proxy.scoring.profiles import Profile
    from lunar_proxy.scoring.router import Router
    from lunar_proxy.scoring.rows import Row
    from lunar_proxy.scoring.study import Lens, Prices, Run

FORMAT = """\
A data file holds one JSON object a line, plain or .gz; several files and "-" (stdin) may be given:
  {"prompt": "...", "scores": {"MODEL": 0..1}, "tok": {"MODEL": output tokens}, "in_tok": tokens}
A row about one model may be flat: {"prompt": "...", "score": 1, "tokens": 79}."""

FIGURES = """\
Figures: apgr (two models: area under share of strong calls -> share of the accuracy gap closed,
random 0.5), cpt50 and cpt80 (least share of strong calls that closes 50 and 80 %, 0..1), area
(under cost / dearest cost -> accuracy, 0..1), d_area (that less ZeroRouter's, which mixes models
at random by the same labels, in hundredths; d_area_hindsight: less the best mix there is), qnc
(least cost that reaches the best single model's accuracy / that model's cost; null: never), peak
(highest accuracy, 0..1), peak_gain (over the best single model, in hundredths)."""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    router = subparsers.add_parser(
        "router", help="fit, profile, evaluate and inspect the model router"
    )
    commands = router.add_subparsers(metavar="COMMAND", required=True)
    for make in (_add_fit, _add_profile, _add_eval, _add_route, _add_inspect):
        make(commands)


def run(args: argparse.Namespace) -> int:
    """0; 2 with what is wrong on stderr."""
    from lunar_proxy.scoring.errors import ScoringError

    try:
        code: int = args.work(args)
    except ScoringError as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return code


def _refuse(what: str) -> int:
    print(f"lunar-proxy router: {what}", file=sys.stderr)
    return 2


# --- arguments ---------------------------------------------------------------------------------


def _command(commands: Any, name: str, work: Callable[..., int], **texts: str) -> Any:
    parser = commands.add_parser(
        name, formatter_class=argparse.RawDescriptionHelpFormatter, **texts
    )
    parser.set_defaults(run=run, work=work)
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument(
        "--embedder", type=Path, metavar="DIR", help="a sentence encoder other than the shipped one"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="where embeddings are kept between runs (default: $XDG_CACHE_HOME/lunar-proxy)",
    )
    parser.add_argument("--no-cache", action="store_true", help="keep no embeddings")
    return parser


def _files(parser: Any, *flags: str, **options: Any) -> None:
    parser.add_argument(
        *flags, nargs="+", action="extend", type=Path, metavar="FILE", default=[], **options
    )


def _draws(parser: Any) -> None:
    parser.add_argument(
        "--models", type=_names, action="extend", default=[], metavar="A,B,C", help="which models"
    )
    parser.add_argument(
        "--labels", type=_count, metavar="N", help="draw N graded prompts at random (default: all)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of all that is drawn")


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("no model named")
    return names


def _count(text: str) -> int | None:
    if text == "all":
        return None
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more, or all")
    return number


def _sizes(text: str) -> list[int]:
    sizes = [int(part) for part in text.split(",")]
    if min(sizes) < 2:
        raise argparse.ArgumentTypeError("needs 2 clusters or more")
    return sizes


def _add_fit(commands: Any) -> None:
    parser = _command(
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
    _files(parser, "--prompts", "--data", "--train", help="prompts, graded or not")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--k", type=_sizes, metavar="K,K", help="numbers of clusters to try")
    parser.add_argument("--map", choices=["learned", "soft"], default="learned")
    parser.add_argument("--no-profiles", action="store_true", help="write clusters only")
    parser.add_argument("--source", default="own", help="what the profiles say of their source")
    parser.add_argument(
        "--public", action="store_true", help="as the shipped ones were made: see scoring/public.py"
    )
    _draws(parser)


def _add_profile(commands: Any) -> None:
    parser = _command(
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
    _files(parser, "--scores", "--data", "--prompts", help="graded prompts; to ask, with --run")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--clusters", type=Path, metavar="DIR", help="default: DIR of --out, else the public ones"
    )
    parser.add_argument("--source", default="own", help="what the profile says of its source")
    _draws(parser)
    parser.add_argument("--run", dest="ask", action="store_true", help="ask the model")
    parser.add_argument("--judge", choices=["exact", "regex", "llm"], default="exact")
    parser.add_argument("--pattern", help="for regex; {answer} is the row's right answer")
    parser.add_argument("--judge-model", metavar="MODEL", help="who grades with --judge llm")
    parser.add_argument("--base-url", default="http://127.0.0.1:8080/v1", metavar="URL")
    parser.add_argument("--api-key", default=os.environ.get("LUNAR_API_KEY"), metavar="KEY")
    parser.add_argument("--answers", type=Path, metavar="FILE")
    parser.add_argument("--max-usd", type=float, metavar="USD", help="stop when so much is spent")
    parser.add_argument("--prices", type=Path, metavar="FILE", help="JSON {model: [in, out]}")


def _add_eval(commands: Any) -> None:
    parser = _command(
        commands,
        "eval",
        _eval,
        help="how good the router is on graded prompts",
        description="Measure on the rows of --data that grade all the models, against random, "
        "always-best,\nkNN and oracle.\n"
        "  eval --data HOLDOUT [--profiles DIR]     the profiles of DIR (default: the public "
        "ones)\n"
        "  eval --data HOLDOUT --train ROWS --labels N --seed S     profiles fitted to N rows of\n"
        "      ROWS (of the datasets that occur in HOLDOUT); the map is learned from the other\n"
        "      models in ROWS, or taken from --profiles\n"
        "  eval --data ROWS --labels N --seed S     the same, the N rows taken out of --data\n\n"
        + FIGURES
        + "\n\n"
        + FORMAT,
    )
    _files(parser, "--data", "--holdout", "--scores", help="what to measure on")
    _files(parser, "--train", help="where labels are drawn")
    parser.add_argument("--profiles", "--dir", type=Path, metavar="DIR")
    parser.add_argument("--draws", type=_count, default=1, help="repeat with seeds S, S+1, ...")
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
    _draws(parser)


def _add_route(commands: Any) -> None:
    parser = _command(
        commands,
        "route",
        _route,
        help="explain one decision",
        description="Decide for one text and say why. --models restricts the candidates.",
    )
    parser.add_argument("text", help='the prompt; "-" reads stdin')
    parser.add_argument("--profiles", "--dir", type=Path, metavar="DIR")
    parser.add_argument("--models", type=_names, action="extend", default=[], metavar="A,B,C")
    parser.add_argument("--cost-weight", type=float, default=0.0, metavar="W")
    parser.add_argument("--cost-scale", choices=["normalized", "usd"], default="normalized")
    parser.add_argument("--prices", type=Path, metavar="FILE", help="JSON {model: [in, out]}")


def _add_inspect(commands: Any) -> None:
    parser = _command(
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
    _files(parser, "--prompts", "--data", help="to show typical ones of")
    parser.add_argument("--typical", type=_count, default=3, metavar="N")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")


# --- what the commands share -------------------------------------------------------------------


def _progress(args: argparse.Namespace) -> Callable[[str, float], None]:
    """A bar on stderr, or nothing where nobody looks."""
    if args.quiet or not sys.stderr.isatty():
        return lambda _what, _share: None

    def show(what: str, share: float) -> None:
        filled = "#" * round(share * 30)
        end = "\n" if share >= 1 else ""
        print(f"\r{what:<12} [{filled:<30}] {share:4.0%}", end=end, file=sys.stderr, flush=True)

    return show


def _lens(args: argparse.Namespace) -> Lens:
    import hashlib

    from lunar_proxy.scoring.router import DEFAULT_EMBEDDER
    from lunar_proxy.scoring.store import VectorStore
    from lunar_proxy.scoring.study import Lens

    directory = args.embedder or DEFAULT_EMBEDDER
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lunar-proxy"
    manifest = directory / "embedder.json"
    # Another file, another cache: vectors of two encoders are never mixed.
    stamp = f"{(directory / 'model.onnx').stat().st_size}".encode() if directory.is_dir() else b""
    stamp += manifest.read_bytes() if manifest.exists() else str(directory.resolve()).encode()
    name = f"embeddings-{hashlib.sha256(stamp).hexdigest()[:16]}.npz"
    path = None if args.no_cache else (args.cache or home) / name
    return Lens(directory, VectorStore(path), _progress(args))


def _rows(paths: Sequence[Path], flag: str, *, model: str | None = None) -> list[Row]:
    from lunar_proxy.scoring.errors import ScoringError
    from lunar_proxy.scoring.rows import read_rows

    if not paths:
        raise ScoringError(f"{flag} is needed: a file of rows (see --help)")
    return read_rows([Path("/dev/stdin") if str(p) == "-" else p for p in paths], model=model)


def _router(directory: Path | None) -> Router:
    from lunar_proxy.scoring.clusters import FILE
    from lunar_proxy.scoring.router import DEFAULT_PROFILES, Router

    if directory is None:
        return Router.load()
    if directory.is_dir() and not (directory / FILE).exists():
        return Router.load(DEFAULT_PROFILES, directory)
    return Router.load(directory)


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _prices(path: Path | None) -> Prices:
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


def _per_1k(price: tuple[float, float] | None) -> float | None:
    """USD per 1,000 tokens, three of the prompt to one of the answer."""
    return None if price is None else (3 * price[0] + price[1]) / 4 / 1000


def _named(asked: Sequence[str], rows: Iterable[Row]) -> list[str]:
    """The models asked for, each once; all of the rows' without any."""
    from lunar_proxy.scoring.rows import models_of

    return list(dict.fromkeys(asked)) or models_of(rows)


# --- fit ---------------------------------------------------------------------------------------


def _fit(args: argparse.Namespace) -> int:
    from lunar_proxy.scoring.profiles import save_profile
    from lunar_proxy.scoring.public import public_clusters
    from lunar_proxy.scoring.rows import models_of
    from lunar_proxy.scoring.study import make_clusters

    rows = _rows(args.prompts, "--prompts")
    lens, progress = _lens(args), _progress(args)
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
    clusters.about["date"] = _today()
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
        return public_profiles(lens, clusters, rows, _today(), _progress(args))
    if args.models:
        return _together(args, lens, clusters, rows, args.models)
    graded = [row for row in rows if row.scores]
    models = models_of(graded)
    if not graded:
        return []
    if all(row.scores.keys() >= set(models) for row in graded):
        return _together(args, lens, clusters, graded, models)
    return profile_each(
        clusters,
        lens.basis(clusters, graded),
        graded,
        models,
        source=args.source,
        created=_today(),
        minimum=MIN_CORRECTED,
        corrected=False,
        progress=_progress(args),
    )


def _together(
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
        created=_today(),
        seed=args.seed,
        progress=_progress(args),
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
    _table_of(
        ["model", "labels", "error", "variants"],
        [[p.id, p.n_total, f"{p.error:.3f}", len(p.variant.split(", "))] for p in made],
    )


# --- profile -----------------------------------------------------------------------------------


def _profile(args: argparse.Namespace) -> int:
    from lunar_proxy.scoring.clusters import FILE
    from lunar_proxy.scoring.errors import ScoringError
    from lunar_proxy.scoring.profiles import save_profile

    names = list(dict.fromkeys([*args.model, *args.models]))
    rows = _rows(args.scores, "--scores", model=names[0] if len(names) == 1 else None)
    models = _named(names, rows)
    if not models:
        raise ScoringError("no MODEL named, and no row is graded")
    base = args.clusters or (args.out if (args.out / FILE).exists() else None)
    clusters = _router(base).clusters
    if args.ask:
        rows = _ask(args, models, rows)
    lens = _lens(args)
    made = _together(args, lens, clusters, rows, models)
    paths = [save_profile(profile, args.out) for profile in made]
    _say_profiles(args, clusters, made, paths)
    return 0


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
    _table_of(
        ["model", "labels", "error", "+-", "clusters with 5 labels", "file"],
        [
            [p.id, p.n_total, f"{p.error:.3f}", f"{p.standard_error:.3f}", f"{n}/{clusters.k}", f]
            for p, path, n, f in zip(made, paths, covered, paths, strict=True)
        ],
    )


def _ask(args: argparse.Namespace, models: Sequence[str], rows: Sequence[Row]) -> list[Row]:
    """Ask every model what it has not been asked yet; the rows, graded."""
    from lunar_proxy.scoring.errors import ScoringError
    from lunar_proxy.scoring.rows import draw

    if args.judge == "llm" and not args.judge_model:
        raise ScoringError("--judge llm needs --judge-model")
    bare = [number for number, row in enumerate(rows, 1) if not row.answer]
    if bare and (args.judge == "exact" or (args.judge == "regex" and not args.pattern)):
        raise ScoringError(f'row {bare[0]} has no "answer" to compare with')
    drawn = draw(rows, args.labels, args.seed)
    graded = [asyncio.run(_ask_one(args, model, drawn)) for model in models]
    return _merge(drawn, models, graded)


async def _ask_one(args: argparse.Namespace, model: str, rows: list[Row]) -> dict[str, Graded]:
    import aiohttp

    from lunar_proxy.scoring import judge
    from lunar_proxy.scoring.profiles import file_name

    answers = args.answers or args.out / "answers" / f"{file_name(model)}l"
    price = _prices(args.prices)(model)
    waiting = [row for row in rows if row.prompt not in judge.read_graded(answers, model)]
    usd = judge.estimate(waiting, price)
    said = "at an unknown price" if usd is None else f"about ${usd:.4f}"
    print(f"{model}: {len(waiting)} of {len(rows)} prompts to ask, {said}", file=sys.stderr)

    def progress(done: int, every: int, spent: float) -> None:
        if not args.quiet:
            end = "\n" if done == every else ""
            print(f"\r{done}/{every} asked, ${spent:.4f}", end=end, file=sys.stderr, flush=True)

    headers = {"Authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    async with aiohttp.ClientSession(headers=headers) as session:

        def asking(who: str) -> Callable[[str], Any]:
            return lambda prompt: ask_openai(session, args.base_url, who, prompt)

        judges: dict[str, Judge] = {
            "exact": judge.exact,
            "regex": judge.regex(args.pattern),
            "llm": judge.llm(asking(args.judge_model or "")),
        }
        return await judge.grade(
            rows,
            model,
            asking(model),
            judges[args.judge],
            answers,
            price=price,
            max_usd=args.max_usd,
            progress=progress,
        )


async def ask_openai(session: Any, base_url: str, model: str, prompt: str) -> Answer:
    """One chat completion. Raises ScoringError with what the server said."""
    import aiohttp

    from lunar_proxy.scoring.errors import ScoringError
    from lunar_proxy.scoring.judge import Answer

    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
    url = f"{base_url.rstrip('/')}/chat/completions"
    try:
        async with session.post(url, json=body) as response:
            if response.status != 200:
                said = (await response.text())[:300]
                raise ScoringError(f"{url}: {response.status} for {model}: {said}")
            doc = await response.json()
        usage = doc.get("usage") or {}
        return Answer(
            doc["choices"][0]["message"].get("content") or "",
            usage.get("completion_tokens"),
            usage.get("total_cost_usd"),
        )
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ScoringError(f"{url}: {error}") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ScoringError(f"{url}: not a chat completion: {error!r}") from error


def _merge(
    rows: Sequence[Row], models: Sequence[str], graded: Sequence[dict[str, Graded]]
) -> list[Row]:
    from dataclasses import replace

    found = []
    for row in rows:
        known = {m: g[row.prompt] for m, g in zip(models, graded, strict=True) if row.prompt in g}
        found.append(
            replace(
                row,
                scores={model: one.score for model, one in known.items()},
                tokens={m: float(one.tokens) for m, one in known.items() if one.tokens is not None},
            )
        )
    return found


# --- eval --------------------------------------------------------------------------------------


def _eval(args: argparse.Namespace) -> int:
    from lunar_proxy.scoring.errors import ScoringError

    data = _rows(args.data, "--data")
    models = _named(args.models, data)
    if args.profiles is None and args.out is not None and any(args.out.glob("*.json")):
        args.profiles = args.out
    if len(models) < 2:
        raise ScoringError(f"two models or more are needed, there is {', '.join(models) or 'none'}")
    lens, prices = _lens(args), _prices(args.prices)
    for model in models:
        if prices(model) is None:
            said = f"no price for {model}: $1 per million tokens assumed (--prices)"
            print(f"lunar-proxy router: {said}", file=sys.stderr)
    if args.train or args.labels is not None:
        runs = _runs_by_labels(args, lens, data, models, prices)
    else:
        from lunar_proxy.scoring.study import evaluate_router

        router = _router(args.profiles)
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

    train = _rows(args.train, "--train") if args.train else []
    others = [model for model in models_of(train) if model not in models]
    clusters = None
    if args.profiles is None and can_train(train, others):
        clusters = make_clusters(lens, train, others, seed=0, progress=_progress(args))
    if clusters is None:
        clusters = _router(args.profiles).clusters
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
                progress=_progress(args),
            )
        )
    return runs


def _say_runs(args: argparse.Namespace, runs: Sequence[Run]) -> None:
    lines = [json.dumps(_run_doc(run)) for run in runs]
    table = _run_table(runs)
    print("\n".join(lines) if args.json else table)
    plot = args.plot
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "eval.jsonl").write_text("\n".join(lines) + "\n")
        (args.out / "eval.txt").write_text(table + "\n")
        plot = plot or args.out / "eval.png"
    if plot is not None:
        plot.write_bytes(_picture(runs[0]))


def _run_doc(run: Run) -> dict[str, Any]:
    found = {key: _short(value) for key, value in asdict(run.figures()).items()}
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
            "accuracy": _short(float(run.pool.accuracy[best])),
            "usd": float(run.pool.mean_cost[best]),
        },
        "baselines": {
            method: {key: _short(value) for key, value in asdict(run.figures(method)).items()}
            for method in run.expected
            if method != "router"
        },
    }


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


_COLUMNS = ("apgr", "cpt50", "cpt80", "area", "d_area", "qnc", "peak", "peak_gain")


def _run_table(runs: Sequence[Run]) -> str:
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
            _rendered(["method", *_COLUMNS], rows),
            "",
            _rendered(["model", "accuracy", "usd a prompt"], singles),
        ]
    )


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.4f}" if len(known) == len(values) else "-"


def _picture(run: Run) -> bytes:
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


# --- route and inspect -------------------------------------------------------------------------


def _route(args: argparse.Namespace) -> int:
    from lunar_proxy.scoring.decide import Candidate
    from lunar_proxy.scoring.rows import Row

    text = sys.stdin.read() if args.text == "-" else args.text
    router, lens, prices = _router(args.profiles), _lens(args), _prices(args.prices)
    router.require(lens.embedder)
    names = args.models or [id for id in router.ids if prices(id) is not None] or router.ids
    candidates = [Candidate(name, _per_1k(prices(name))) for name in names]
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
    _table_of(["model", "expected error", "usd per 1k", "score"], rows)


def _inspect(args: argparse.Namespace) -> int:
    router = _router(args.directory or args.profiles)
    rows = _rows(args.prompts, "--prompts") if args.prompts else []
    vectors = None
    if rows:
        lens = _lens(args)
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


# --- tables ------------------------------------------------------------------------------------


def _table_of(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    if rows:
        print(_rendered(head, rows))


def _rendered(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )
