"""`router profile --run`: ask models through a running proxy and grade their answers."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .inputs import price_list

if TYPE_CHECKING:
    from lunar_proxy.scoring.judge import Answer, Graded, Judge
    from lunar_proxy.scoring.rows import Row


def ask(args: argparse.Namespace, models: Sequence[str], rows: Sequence[Row]) -> list[Row]:
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
    price_of = price_list(args.prices)
    price = price_of(model)
    judged_usd: list[float] = []
    waiting = [row for row in rows if row.prompt not in judge.read_graded(answers, model)]
    said = _dollars(judge.estimate(waiting, price))
    if args.judge == "llm":
        judging = judge.estimate_judging(waiting, price_of(args.judge_model))
        said += f", and {_dollars(judging)} to have them graded"
    print(f"{model}: {len(waiting)} of {len(rows)} prompts to ask, {said}", file=sys.stderr)

    def progress(done: int, every: int, spent: float) -> None:
        if not args.quiet:
            end = "\n" if done == every else ""
            print(f"\r{done}/{every} asked, ${spent:.4f}", end=end, file=sys.stderr, flush=True)

    headers = {"Authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    async with aiohttp.ClientSession(headers=headers) as session:

        def asking(who: str) -> Callable[[str], Any]:
            return lambda prompt: ask_openai(session, args.base_url, who, prompt)

        async def ask_judge(prompt: str) -> Answer:
            answer = await ask_openai(session, args.base_url, args.judge_model, prompt)
            tokens = len(prompt) / judge.CHARS_PER_TOKEN
            judged_usd.append(judge.cost_of(answer, tokens, price_of(args.judge_model)) or 0.0)
            return answer

        judges: dict[str, Judge] = {
            "exact": judge.exact,
            "regex": judge.regex(args.pattern),
            "llm": judge.llm(ask_judge),
        }
        return await judge.grade(
            rows,
            model,
            asking(model),
            judges[args.judge],
            answers,
            price=price,
            max_usd=args.max_usd,
            judging_usd=lambda: sum(judged_usd),
            progress=progress,
        )


def _dollars(usd: float | None) -> str:
    return "at an unknown price" if usd is None else f"about ${usd:.4f}"


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
