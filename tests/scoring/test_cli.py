"""`lunar-proxy router` from the outside: files in, files and one line of JSON out."""

import asyncio
import gzip
import json
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from lunar_proxy.cli import main

Skill = tuple[float, ...]
TOPICS = {
    "sum": "What is {a} plus {b}?",
    "verb": "Translate the French verb number {a} of chapter {b}, please.",
    "code": "def f(x):\n    return x * {a} + {b}\n\nWhat does f return?",
}
# "maths" is good at sums, "words" at verbs; code is hard for both. The rest train the map.
SKILL: dict[str, Skill] = {"maths": (0.95, 0.2, 0.5), "words": (0.3, 0.95, 0.5)}
OTHERS = {f"other-{n}": tuple(0.3 + 0.1 * ((n + i) % 6) for i in range(3)) for n in range(5)}


def rows(count: int, seed: int, models: Mapping[str, Skill]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        topic = int(rng.integers(3))
        name = list(TOPICS)[topic]
        a, b = rng.integers(1, 999, size=2).tolist()
        scores = {model: int(rng.random() < skill[topic]) for model, skill in models.items()}
        made.append(
            {
                "id": f"{name}/{seed}/{number}",
                "dataset": "made-up",
                "prompt": TOPICS[name].format(a=a, b=b),
                "scores": scores,
                "tok": dict.fromkeys(scores, 20),
                "in_tok": 12,
            }
        )
    return made


def write(path: Path, made: list[dict[str, Any]]) -> Path:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in made).encode()))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.gz (all models), test.gz (the pool), prices.json, a cache, and DIR fitted to train."""
    directory = tmp_path_factory.mktemp("router")
    write(directory / "train.gz", rows(420, 1, {**SKILL, **OTHERS}))
    write(directory / "test.gz", rows(200, 2, SKILL))
    (directory / "prices.json").write_text('{"maths": [1, 3], "words": [0.1, 0.3]}')
    data = ("--prompts", f"{directory / 'train.gz'}", "--out", f"{directory / 'DIR'}")
    drawn = ("--models", "maths,words", "--labels", "200", "--seed", "3", "--k", "4,8")
    assert main(["router", "fit", *data, *drawn, "--cache", f"{directory}", "--quiet"]) == 0
    return directory


@contextmanager
def serving(answer: Callable[[web.Request], Awaitable[web.Response]]) -> Iterator[str]:
    """A chat endpoint on a thread of its own: the command under test runs its own event loop."""
    loop = asyncio.new_event_loop()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    loop.run_until_complete(runner.setup())
    loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def call(capsys: pytest.CaptureFixture[str], made: Path, *args: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["router", *map(str, args), "--cache", str(made), "--quiet"])
    out, err = capsys.readouterr()
    return code, out, err


def test_fit_writes_clusters_and_the_profiles_asked_for(made: Path) -> None:
    assert sorted(path.name for path in (made / "DIR").iterdir()) == [
        "clusters.npz",
        "maths.json",
        "words.json",
    ]
    doc = json.loads((made / "DIR" / "maths.json").read_text())
    assert doc["n_total"] == 200
    assert doc["sources"] == [{"dataset": "made-up", "n": 200, "error": doc["error"]}]
    assert doc["output_tokens"] == 20


def test_no_file_holds_a_prompt(made: Path) -> None:
    for path in (made / "DIR").iterdir():
        assert b"French" not in path.read_bytes()


KEYS = {"apgr", "cpt50", "cpt80", "area", "d_area", "qnc", "peak"}


def test_eval_measures_fitted_profiles(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(
        capsys,
        made,
        *("eval", "--data", made / "test.gz", "--profiles", made / "DIR", "--json"),
        *("--prices", made / "prices.json", "--models", "maths,words"),
    )
    assert (code, err) == (0, "")
    (line,) = out.splitlines()
    doc = json.loads(line)
    assert doc.keys() >= KEYS
    assert doc["apgr"] > 0.8
    assert doc["d_area"] > 5
    assert doc["baselines"]["oracle"]["area"] > doc["area"]
    assert doc["prompts"] == 200


@pytest.mark.parametrize("train", [True, False], ids=["from --train", "from --data"])
def test_eval_fits_profiles_to_drawn_labels(
    made: Path, capsys: pytest.CaptureFixture[str], train: bool
) -> None:
    where = ("--train", made / "train.gz") if train else ()
    code, out, _ = call(
        capsys,
        made,
        *("eval", "--data", made / "test.gz", *where, "--labels", 90, "--seed", 1, "--json"),
        *("--models", "maths,words", "--prices", made / "prices.json", "--draws", 2),
    )
    assert code == 0
    runs = [json.loads(line) for line in out.splitlines()]
    assert [(run["seed"], run["labels"]) for run in runs] == [(1, 90), (2, 90)]
    assert runs[0]["prompts"] == (200 if train else 110)
    assert min(run["apgr"] for run in runs) > 0.7
    assert all({"knn", "oracle"} <= run["baselines"].keys() for run in runs)


def test_eval_prints_a_table_and_draws(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(
        capsys,
        made,
        *("eval", "--data", made / "test.gz", "--profiles", made / "DIR", "--out", made / "report"),
    )
    assert code == 0
    assert {line.split()[0] for line in out.splitlines()[2:] if line} >= {
        "router",
        "oracle",
        "random",
        "always",
    }
    assert (made / "report" / "eval.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((made / "report" / "eval.jsonl").read_text()).keys() >= KEYS


def test_eval_can_report_beside_the_profiles_it_measures(
    made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fitted = tmp_path / "fitted"
    shutil.copytree(made / "DIR", fitted)
    for _ in range(2):  # the report of the first must not be taken for a profile by the second
        code, out, _ = call(
            capsys, made, "eval", "--data", made / "test.gz", "--out", fitted, "--json"
        )
        assert code == 0
        assert json.loads(out)["apgr"] > 0.8


def test_eval_says_which_price_it_does_not_know(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, err = call(capsys, made, "eval", "--data", made / "test.gz", "--profiles", made / "DIR")
    assert "no price for maths" in err


def test_profile_adds_a_model_without_touching_the_rest(
    made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flat = tmp_path / "scores.jsonl"
    flat.write_text(
        "".join(
            json.dumps({"prompt": row["prompt"], "score": row["scores"]["words"]}) + "\n"
            for row in rows(60, 5, SKILL)
        )
    )
    code, out, _ = call(
        capsys,
        made,
        *("profile", "new-model", "--scores", flat, "--clusters", made / "DIR"),
        *("--out", tmp_path / "own", "--json"),
    )
    assert code == 0
    doc = json.loads(out)
    assert (doc["model"], doc["labels"]) == ("new-model", 60)
    assert Path(doc["file"]).name == "new-model.json"
    assert 0 < doc["standard_error"] < 0.1


def test_route_explains_a_decision(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(
        capsys, made, "route", "What is 12 plus 30?", "--profiles", made / "DIR", "--json"
    )
    assert code == 0
    doc = json.loads(out)
    assert doc["selected"] == "maths"
    assert doc["all_scores"]["maths"] < doc["all_scores"]["words"]
    code, out, _ = call(capsys, made, "route", "What is 12 plus 30?", "--profiles", made / "DIR")
    assert out.startswith("maths\n")


def test_inspect_shows_typical_prompts_and_a_picture(
    made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    args = ("inspect", made / "DIR", "--prompts", made / "test.gz", "--plot", tmp_path / "map.png")
    code, out, _ = call(capsys, made, *args, "--json")
    doc = json.loads(out)
    assert code == 0
    assert len(doc["clusters"]) == doc["k"]
    assert any("French" in text for one in doc["clusters"] for text in one["typical"])
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert "difficulty" in call(capsys, made, *args)[1]


BAD = {
    "no file": (["eval", "--data", "{dir}/absent.jsonl"], "absent.jsonl: No such file"),
    "bad line": (["fit", "--prompts", "{dir}/bad.jsonl", "--out", "{dir}/x"], "bad.jsonl:2: "),
    "no data": (["eval"], "--data is needed"),
    "no clusters": (["inspect", "{dir}/nothing"], "nothing: no such directory"),
    "no encoder": (
        ["distill", "--embedder", "{dir}/nothing", "--out", "{dir}/x"],
        "nothing: no such directory with an embedder",
    ),
    "profiles of another encoder": (
        ["route", "hello", "--embedder", "static", "--profiles", "{made}/DIR"],
        "made with embedder",
    ),
    "unknown model": (
        ["eval", "--data", "{made}/test.gz", "--models", "maths,nobody", "--labels", "9"],
        "no row scores nobody; there are scores of maths, words",
    ),
    "no profile": (
        ["eval", "--data", "{made}/test.gz"],
        "no profile for maths, words; give --train",
    ),
    "one model": (["eval", "--data", "{made}/test.gz", "--models", "maths"], "two models or more"),
    "judge": (
        ["profile", "m", "--prompts", "{made}/test.gz", "--run", "--out", "{dir}/x"],
        'row 1 has no "answer"',
    ),
    "prices": (
        ["eval", "--data", "{made}/test.gz", "--prices", "{dir}/bad.jsonl"],
        "bad.jsonl:1: prices",
    ),
}


@pytest.mark.parametrize(("args", "said"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_exit_2_and_one_line(
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    said: str,
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt":"p"}\n{"prompt":3}\n')
    code, out, err = call(capsys, made, *(arg.format(dir=tmp_path, made=made) for arg in args))
    assert (code, out) == (2, "")
    assert said in err.splitlines()[-1]


@pytest.mark.parametrize(
    "args", [["fit"], ["eval", "--labels", "0"], ["fit", "--out", "x", "--k", "a"], ["nothing"]]
)
def test_bad_arguments_are_exit_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["router", *args])
    assert caught.value.code == 2


def test_run_asks_only_what_was_not_asked_yet(
    made: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        doc = await request.json()
        asked.append(doc["messages"][0]["content"])
        said = {"message": {"content": f"The answer is {len(asked[-1])}."}}
        usage = {"completion_tokens": 7, "total_cost_usd": 0.001}
        return web.json_response({"choices": [said], "usage": usage})

    prompts = [f"How long is this text, number {n}?" for n in range(6)]
    data = tmp_path / "ask.jsonl"
    right = [str(len(prompt)) if n else "no" for n, prompt in enumerate(prompts)]
    lines = [{"prompt": p, "answer": a} for p, a in zip(prompts, right, strict=True)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ("profile", "asked/model", "--run", "--prompts", data, "--clusters", made / "DIR")
    with serving(answer) as url:
        more = ("--out", tmp_path / "own", "--base-url", url, "--json")
        code, out, err = call(capsys, made, *command, *more, "--max-usd", "0.004")
        assert (code, len(asked)) == (0, 4)
        assert "asked/model: 6 of 6 prompts to ask" in err
        code, out, err = call(capsys, made, *command, *more)
        assert (code, len(asked)) == (0, 6)
        assert "asked/model: 2 of 6 prompts to ask" in err
    assert json.loads(out)["labels"] == 6
    assert json.loads(out)["error"] == pytest.approx(1 / 6, abs=1e-4)
