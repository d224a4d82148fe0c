"""Whatever three providers do, a client reads one coherent answer, or that it is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lunar_proxy.core.sse import SSEParser
from lunar_proxy.testing import Break, Chunk, Close, End, Script, Step

from .apis import CHAT, COMPLETIONS, SSE, Api, event
from .test_after_commit import ERROR
from .world import DOORS, Answer, World, world

NAMES = ("a", "b", "keyring")
# They begin alike, so that going on elsewhere may be right, or only seem so. No byte of them is
# wasted on what a cut in the middle could not hurt: escapes, and characters of two to four bytes.
TEXTS = (
    ("Hel", "lo ", "\u00e9t\u00e9", ' "and"\n', "\u20ac", "\U0001f600 ", "good day"),
    ("Hello ", "\u00e9t", "\u00e9", ' "and', '"\n\u20ac\U0001f600', " good day"),
    ("Hello ", "\u00e9t\u00e9", ' "but"\n', "not quite ", "so"),
    ("Good", "bye"),
)
WHOLE = {"".join(words) for words in TEXTS}


@dataclass(frozen=True)
class Act:
    """What one provider does: so much of an answer, in such pieces, and then this."""

    words: tuple[str, ...]
    part: float  # of its bytes, 1: all of them
    pieces: tuple[int, ...]
    end: tuple[Step, ...]

    def script(self, api: Api) -> Script:
        raw = b"".join([*api.preamble, *map(api.word, self.words), api.finish, *api.ending])
        raw = raw[: round(len(raw) * self.part)]
        if isinstance(self.end[0], Chunk):  # an event stands between events
            raw = b"".join(raw.rpartition(b"\n\n")[:2])
        return (SSE, *map(Chunk, self._cut(raw)), *self.end)

    def _cut(self, raw: bytes) -> Iterator[bytes]:
        for size in self.pieces:
            yield raw[:size]
            raw = raw[size:]
        yield raw


ENDS: tuple[tuple[Step, ...], ...] = (
    (End(),),
    (Close(),),
    (Break(),),
    (Chunk(event(ERROR)), End()),
    (Chunk(event(ERROR, "error")), Close()),
)
ACTS = st.builds(
    Act,
    st.sampled_from(TEXTS),
    st.one_of(st.just(1.0), st.floats(0, 1)),
    st.lists(st.integers(1, 400), max_size=12).map(tuple),
    st.sampled_from(ENDS),
)
CALLS = st.tuples(
    st.lists(ACTS, min_size=1, max_size=3),
    st.sampled_from([CHAT, COMPLETIONS]),
    st.sampled_from(DOORS),
)


@pytest.fixture(scope="module", params=["error", "splice"])
def recovering(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp(request.param)
    with world(folder, stream_recovery=request.param) as running:
        yield running


@settings(max_examples=150, derandomize=True, database=None)
@given(call=CALLS)
def test_a_stream_is_one_answer_or_says_that_it_is_none(
    recovering: World, call: tuple[list[Act], Api, str]
) -> None:
    acts, api, door = call
    scene = recovering.scene()
    for name, act in zip(NAMES, acts, strict=False):
        scene.plays(name, act.script(api))
    answer = scene.ask(api, *NAMES[: len(acts)], stream=True, door=door)
    assert answer.whole
    assert answer.seconds < 5  # none of them is silent, so there is nothing to wait for
    if answer.status == 200:
        is_coherent(answer, api)
    else:
        assert answer.status == 502
        assert answer.doc["error"]["message"]


def is_coherent(answer: Answer, api: Api) -> None:
    body, done, _ = answer.body.partition(b"data: [DONE]\n\n")  # behind which nobody reads
    parser = SSEParser()
    events = parser.feed(body)  # half an event behind them is no event, says the standard
    docs = [orjson.loads(e.data) for e in events if e.data]
    text = api.text(events)
    choices = [choice for doc in docs for choice in doc["choices"]]
    ends = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    assert ends in (["stop"], ["error"], ["stop", "error"])
    assert len({doc["id"] for doc in docs}) == 1
    assert sum("role" in choice.get("delta", {}) for choice in choices) <= 1
    if ends[-1] == "stop":
        assert text in WHOLE
        assert not any(doc.get("error") for doc in docs)
    else:
        assert any(whole.startswith(text) for whole in WHOLE)
        assert docs[-1]["error"]["code"]
        assert done
        assert not parser.pending
