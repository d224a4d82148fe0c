"""`workers: N`: a parent that holds the sockets, and N processes that serve.

The parent has no event loop and makes nothing that a fork could break. It waits for signals, passes
them on, and replaces a worker that died. The children:

- each listen on the data address with a socket of their own (SO_REUSEPORT), so that the kernel
  deals connections out evenly: of one shared socket the quickest loop takes whole bursts. Where
  the kernel does not deal them out (not Linux), they do share one;
- share the admin socket: whoever takes a scrape asks the others (`servers.peers`);
- end when the parent is gone, which shows at the end of a pipe.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

logger = logging.getLogger(__name__)

# A worker that dies again at once must not keep the machine busy with starting it.
FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 10.0
# Who has served this long has started well, whatever killed it.
HEALTHY_S = 60.0
# Beyond `drain_s`, for closing stores, before a worker is killed.
STOP_GRACE_S = 5.0

_STOPS = frozenset({signal.SIGTERM, signal.SIGINT})
_WATCHED = (*_STOPS, signal.SIGHUP, signal.SIGCHLD)


@dataclass(frozen=True, slots=True)
class Place:
    """What a child is given: which one it is, and its pipes to the parent."""

    slot: int
    folder: Path  # of the workers' own sockets
    lifeline: int  # ends when the parent does
    ready: Callable[[], None]


@dataclass(slots=True)
class _Worker:
    pid: int = 0  # 0: it is not running
    started_at: float = 0.0
    deaths: int = 0  # in a row, each soon after a start
    due_at: float = 0.0  # when it is started again


@dataclass(slots=True)
class Supervisor:
    """`work` is what a child does; it returns the child's exit code."""

    count: int
    drain_s: float
    work: Callable[[Place], int]
    _workers: list[_Worker] = field(default_factory=list)
    _ready: int = 0
    _announced: bool = False
    _stop_at: float | None = None  # asked to stop: when whoever is left is killed
    _exit_code: int = 0

    def run(self, announce: Callable[[], None]) -> int:
        """Until a signal says stop, or a worker cannot even start. Returns the exit code."""
        with tempfile.TemporaryDirectory(prefix="lunar-") as folder, _signals() as wakeups:
            lifeline, ours = os.pipe()
            ready, childs = os.pipe()
            os.set_blocking(ready, False)

            def start(worker: _Worker, slot: int) -> None:
                def child() -> int:
                    os.close(ours)
                    os.close(ready)
                    place = Place(slot, Path(folder), lifeline, lambda: _tell(childs))
                    return self.work(place)

                worker.pid, worker.started_at = _fork(child), time.monotonic()

            self._workers = [_Worker() for _ in range(self.count)]
            while self._stop_at is None or self._running():
                self._start_due(start)
                readable, _, _ = select.select([wakeups, ready], [], [], self._wait_s())
                if ready in readable:
                    self._ready += len(os.read(ready, self.count))
                if wakeups in readable:
                    for number in os.read(wakeups, 4096):
                        self._signalled(number)
                self._reap()
                self._kill_the_late()
                if not self._announced and self._ready >= self.count and self._stop_at is None:
                    self._announced = True
                    announce()
            for descriptor in (lifeline, ours, ready, childs):
                os.close(descriptor)
        return self._exit_code

    def _running(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.pid]

    def _start_due(self, start: Callable[[_Worker, int], None]) -> None:
        for slot, worker in enumerate(self._workers):
            if self._stop_at is None and not worker.pid and worker.due_at <= time.monotonic():
                start(worker, slot)

    def _wait_s(self) -> float | None:
        due = [worker.due_at for worker in self._workers if not worker.pid]
        if self._stop_at is not None:
            due = [self._stop_at]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _signalled(self, number: int) -> None:
        if number in _STOPS:
            self._stop(0)
        elif number == signal.SIGHUP:
            self._send(signal.SIGHUP)

    def _stop(self, code: int) -> None:
        if self._stop_at is None:
            self._stop_at = time.monotonic() + self.drain_s + STOP_GRACE_S
            self._exit_code = code
            self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        for worker in self._running():
            with suppress(ProcessLookupError):
                os.kill(worker.pid, number)

    def _kill_the_late(self) -> None:
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            self._send(signal.SIGKILL)
            self._stop_at = time.monotonic() + STOP_GRACE_S

    def _reap(self) -> None:
        for worker in self._running():
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                worker.pid = 0
                self._ended(worker, os.waitstatus_to_exitcode(status))

    def _ended(self, worker: _Worker, code: int) -> None:
        if self._stop_at is not None:
            return
        if not self._announced:  # what keeps one from starting keeps all
            self._stop(code if code > 0 else 1)
            return
        now = time.monotonic()
        worker.deaths = 1 if now - worker.started_at >= HEALTHY_S else worker.deaths + 1
        backoff_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (worker.deaths - 1))
        worker.due_at = now + backoff_s
        logger.error("a worker died (%d) and is started again in %.1f s", code, backoff_s)


@contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that tells the signals as bytes, so that none is lost before a `select`."""
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)
    handlers = {number: signal.signal(number, lambda *_: None) for number in _WATCHED}
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _fork(child: Callable[[], int]) -> int:
    """Run `child` in a new process; its pid. The child never returns from here."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)  # none may be taken by the wrong handler
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in _WATCHED:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it can reload
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        code = child()
    except Exception:
        logger.exception("a worker failed")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _tell(descriptor: int) -> None:
    with suppress(OSError):
        os.write(descriptor, b".")
