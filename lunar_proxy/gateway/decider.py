"""The router's life: loaded when it is needed, reloaded without a restart, never in the way.

    idle     nothing of it is imported: a proxy that routes by name pays nothing
    loading  files and encoder are read in threads; calls that can do without do not wait
    loaded   a decision is one embedding in a thread, or none when the text came before, and
             some arithmetic on the loop

Whoever asks within a deadline gets None when it passes; the embedding goes on, so that the same
text is answered at once the next time.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from lunar_proxy.config.schema import Router as Settings
from lunar_proxy.core.errors import RouterNotReady
from lunar_proxy.tasks import in_task, spawn

if TYPE_CHECKING:  # numpy and onnxruntime, for nobody but the router
    from lunar_proxy.scoring.decide import Candidate, Decision
    from lunar_proxy.scoring.encoder import EmbedderId, Vector
    from lunar_proxy.scoring.feedback import Feedback
    from lunar_proxy.scoring.router import Reading, Router

logger = logging.getLogger(__name__)

# Files that are no good stay so until somebody mends them: not every call should read them again.
RETRY_S = 5.0
# Up to so many characters, counting them costs less than changing to a thread.
BRIEF = 1024
# As many as the embedder remembers; some 500 bytes each.
READINGS = 4096


# An embedder without its model file or runtime -> the one that needs neither. A directory of the
# user's has profiles of its own, which no other embedder understands.
STANDS_IN = {"minilm": "static"}


class Embeds(Protocol):
    """Text to vector, off the event loop (`scoring.embedder.Embedder`)."""

    def cached(self, text: str) -> Vector | None: ...

    async def start(self) -> EmbedderId: ...

    async def embed(self, text: str) -> Vector: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """Profiles and the embedder they were made with; replaced whole by a reload."""

    router: Router  # what decides: the profiles, moved by feedback if there is any
    profiles: Router  # as they are in their files
    feedback: Feedback | None  # None: not asked for
    embedder: Embeds
    place: str  # of the embedder: one that stays the same is not loaded again


class Verdict(NamedTuple):
    decision: Decision
    seconds: float
    cached: bool  # the embedding was remembered


class Readings:
    """What the profiles said of texts seen lately: the same text again costs no arithmetic."""

    def __init__(self, most: int = READINGS) -> None:
        self._most = most
        self._found: OrderedDict[bytes, tuple[Router, Reading]] = OrderedDict()

    def get(self, text: str, router: Router) -> Reading | None:
        """None as well when another router read it: feedback or a reload came in between."""
        reader, reading = self._found.get(_digest(text), (None, None))
        return reading if reader is router else None

    def put(self, text: str, router: Router, reading: Reading) -> None:
        self._found[_digest(text)] = router, reading
        while len(self._found) > self._most:
            self._found.popitem(last=False)


def _digest(text: str) -> bytes:
    # The text itself is not kept: a memory of readings must not be a store of prompts.
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()


class Decider:
    def __init__(
        self,
        settings: Settings,
        now: Callable[[], float],
        embedder_at: Callable[[Path], Embeds] | None = None,
    ) -> None:
        self.settings = settings
        self.problem: str | None = None  # why it could not be loaded
        self._now = now
        self._embedder_at = embedder_at or _embedder_at
        self._loaded: Loaded | None = None
        self._loading: asyncio.Task[Loaded] | None = None
        self._failed_at: float | None = None
        self._learning = asyncio.Lock()
        self._readings = Readings()

    @property
    def loaded(self) -> Loaded | None:
        return self._loaded

    async def prepare(self, settings: Settings) -> Loaded:
        """Read the files that `settings` name. Raises RouterNotReady; changes nothing yet."""
        from lunar_proxy.scoring.errors import ScoringError

        try:
            return await self._read(settings)
        except ScoringError as error:
            raise RouterNotReady(f"the router cannot be loaded: {error}") from error
        except ImportError as error:  # onnxruntime has no wheels for some platforms
            raise RouterNotReady(f"the router needs {error.name}, which is not here") from error

    def use(self, settings: Settings, loaded: Loaded | None) -> None:
        """Decide by these from now on; without `loaded`, load at the next need."""
        # An embedder that is replaced is not closed: calls may be waiting for it. Its threads end
        # when the last of them has let go.
        self.settings, self._loaded = settings, loaded
        self._failed_at = self.problem = None

    async def load(self) -> Loaded:
        """What decides, loaded if it is not yet. Raises RouterNotReady."""
        if self._loaded is not None:
            return self._loaded
        if self._failed_at is not None and self._now() < self._failed_at + RETRY_S:
            raise RouterNotReady(self.problem or "the router cannot be loaded")
        if self._loading is None:
            self._loading = spawn(self._load(), name="router")
            self._loading.add_done_callback(self._no_longer_loading)
        return await asyncio.shield(self._loading)

    async def decide(
        self,
        text: str,
        candidates: Sequence[Candidate],
        cost_weight: float,
        within_s: float | None = None,
    ) -> Verdict | None:
        """Choose one of `candidates`; None when it takes longer. Raises RouterNotReady."""
        began = self._now()
        loaded = await self.load()
        reading = self._readings.get(text, loaded.router)
        cached = reading is not None or loaded.embedder.cached(text) is not None
        if reading is None:
            await in_task()
            try:
                async with asyncio.timeout(within_s):
                    reading = await self._read_text(loaded, text)
            except TimeoutError:
                return None
        scale = self.settings.cost_scale
        decision = loaded.router.choose(reading, candidates, cost_weight, scale)
        return Verdict(decision, self._now() - began, cached)

    async def _read_text(self, loaded: Loaded, text: str) -> Reading:
        from lunar_proxy.scoring.features import surface

        brief = len(text) <= BRIEF
        features = surface(text) if brief else await asyncio.to_thread(surface, text)
        reading = loaded.router.read(await loaded.embedder.embed(text), features)
        self._readings.put(text, loaded.router, reading)
        return reading

    async def learn(self, change: Callable[[Feedback], Feedback]) -> None:
        """Decide by changed feedback from now on, and keep it where the config says.

        In a thread, since it makes the whole matrix anew. Raises RouterNotReady.
        """
        async with self._learning:
            loaded = await self.load()
            if loaded.feedback is None:
                return
            feedback = change(loaded.feedback)
            path = self.settings.feedback
            router = await asyncio.to_thread(_moved, loaded.profiles, feedback, path)
            if self._loaded is loaded:  # else a reload came in between, and read the file
                self._loaded = replace(loaded, router=router, feedback=feedback)

    def close(self) -> None:
        if self._loaded is not None:
            self._loaded.embedder.close()

    # --- inside -----------------------------------------------------------------------------------

    async def _load(self) -> Loaded:
        settings = self.settings
        try:
            loaded = await self.prepare(settings)
        except RouterNotReady as error:
            self._failed_at, self.problem = self._now(), error.message
            logger.error("%s", error.message)
            raise
        if settings is self.settings:  # else a reload came in between
            self._loaded = loaded
        return loaded

    def _no_longer_loading(self, task: asyncio.Task[Loaded]) -> None:
        self._loading = None
        if not task.cancelled():
            task.exception()  # seen: whoever waits has it

    async def _read(self, settings: Settings) -> Loaded:
        from lunar_proxy.scoring.errors import Absent, ScoringError

        place = settings.embedder
        try:
            return await self._read_for(settings, place)
        except Absent as error:
            if place not in STANDS_IN:
                raise
            logger.warning("router: %s; embedder %r stands in", error, STANDS_IN[place])
            try:
                return await self._read_for(settings, STANDS_IN[place])
            except ScoringError as another:
                raise Absent(f"{error}; {STANDS_IN[place]} cannot stand in: {another}") from error

    async def _read_for(self, settings: Settings, place: str) -> Loaded:
        """The files that go with the embedder at `place`."""
        loop, before = asyncio.get_running_loop(), self._loaded
        kept = before.embedder if before is not None and before.place == place else None
        embedder = kept or self._embedder_at(_directory(place))
        try:
            id = await embedder.start()
            known = before.feedback if before is not None else None
            own, keep = settings.profiles, settings.feedback
            router, profiles, feedback = await loop.run_in_executor(
                None, _read_files, place, own, keep, known
            )
            profiles.require(id)
        except BaseException:
            if kept is None:
                embedder.close()
            raise
        return Loaded(router, profiles, feedback, embedder, place)


def _read_files(
    place: str, own: Path | None, keep: bool | Path, known: Feedback | None
) -> tuple[Router, Router, Feedback | None]:
    from lunar_proxy.scoring.feedback import Feedback, load_feedback
    from lunar_proxy.scoring.router import SHIPPED, Router

    public = SHIPPED.get(place, SHIPPED["minilm"]).profiles
    directories = (public,) if own is None else (public, own)
    router = Router.load(*directories)
    if keep is False:
        return router, router, None
    clusters = router.clusters
    if isinstance(keep, Path):
        known = load_feedback(keep, clusters)
    elif known is None or known.clusters_sha256 != clusters.sha256:
        known = Feedback(clusters.sha256)
    return known.applied(router), router, known


def _moved(profiles: Router, feedback: Feedback, keep: bool | Path) -> Router:
    from lunar_proxy.scoring.feedback import save_feedback

    router = feedback.applied(profiles)
    if isinstance(keep, Path):
        save_feedback(feedback, keep)
    return router


def _directory(place: str) -> Path:
    from lunar_proxy.scoring.router import SHIPPED

    return SHIPPED[place].embedder if place in SHIPPED else Path(place)


def _embedder_at(directory: Path) -> Embeds:
    from lunar_proxy.scoring.embedder import Embedder  # numpy, and a pool of threads

    return Embedder(directory)
