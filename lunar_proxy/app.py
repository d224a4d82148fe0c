"""The composition root: it makes every object, hands each what it needs, and starts and stops them.

    Config -> Runtime -> Gateway -> doors -> listeners

Only this module owns clocks, randomness and process-wide state; everything else gets them passed.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import signal
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from lunar_proxy._version import __version__
from lunar_proxy.config import Address, Config, ConfigError, load, providers
from lunar_proxy.core.attachment import Attachment
from lunar_proxy.core.connect import Authority, Listener, Parent, Policy, parse_parent
from lunar_proxy.core.errors import RouterNotReady
from lunar_proxy.core.record import Lines
from lunar_proxy.core.script import Step
from lunar_proxy.gateway import (
    Callers,
    Closed,
    Gateway,
    Loaded,
    Ports,
    Runtime,
    compile_config,
    token_verifier,
    wants_router,
)
from lunar_proxy.metrics import Metrics, Snapshot, merge
from lunar_proxy.pricing import Shelf, TokenCounter
from lunar_proxy.pricing import load as load_prices
from lunar_proxy.providers import demo
from lunar_proxy.providers.base import Origin
from lunar_proxy.relay.engine import Line
from lunar_proxy.relay.fetch import fetch
from lunar_proxy.relay.inprocess import Script
from lunar_proxy.relay.upstream import Pool
from lunar_proxy.servers import api, hosts
from lunar_proxy.servers.admin import Admin
from lunar_proxy.servers.bounds import last_answer
from lunar_proxy.servers.certs import Ca, CaError, LeafStore, find_ca
from lunar_proxy.servers.dial import Dialer
from lunar_proxy.servers.door import Door, Doorway
from lunar_proxy.servers.forward import Forward, Intercepted
from lunar_proxy.servers.http import HttpDoor
from lunar_proxy.servers.peers import Peers
from lunar_proxy.stores import Store, open_store
from lunar_proxy.stores.jwt import JwtVerifier
from lunar_proxy.tasks import spawn

logger = logging.getLogger(__name__)

# Connections the kernel may hold until they are accepted; a burst of clients is no refusal.
BACKLOG = 4096

# Made once: to pad a number takes as long as to write the rest of a time.
_THOUSANDTHS = tuple(b"%03d" % number for number in range(1000))


@dataclass(frozen=True, slots=True)
class Source:
    """Where the config came from, so that it can be read again."""

    path: Path | None
    environ: Mapping[str, str]
    overrides: Mapping[str, Any]

    def load(self) -> Config:
        """Raises ConfigError."""
        return load(self.path, self.environ, overrides=self.overrides)


@dataclass(frozen=True, slots=True)
class Seat:
    """Where one of several workers serves: sockets that are bound, the others, and a descriptor
    that ends when the parent does."""

    proxy: socket.socket
    admin: socket.socket
    peers: Peers
    lifeline: int


class Log:
    """Call records as JSON lines, a write for all that are told together."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._lines = Lines()
        self._second = -1
        self._date_and_time = b""
        self.enabled = True

    def __call__(self, closed: Iterable[Closed]) -> None:
        if self.enabled:
            line, time = self._lines.line, self._time
            self._write(b"".join([line(outcome, time(at)) for outcome, at in closed]))

    def _time(self, at: float) -> bytes:
        """In ISO 8601; all but the milliseconds are written once a second."""
        second, ms = divmod(int(at * 1000), 1000)
        if second != self._second:
            self._second = second
            self._date_and_time = datetime.fromtimestamp(second, UTC).isoformat()[:-6].encode()
        return b"%b.%b+00:00" % (self._date_and_time, _THOUSANDTHS[ms])


@dataclass(frozen=True, slots=True)
class _Lines:
    """The pool's, and a script for the provider that lives in this process."""

    pool: Pool

    def idle(self, origin: Origin) -> Line | None:
        if origin.scheme == "demo":
            return Script(_demo_answer)
        return self.pool.idle(origin)

    async def connect(self, origin: Origin, *, timeout_s: float) -> Line:
        if origin.scheme == "demo":
            return Script(_demo_answer)
        return await self.pool.connect(origin, timeout_s=timeout_s)


class App:
    """One proxy process, from its config to its last connection."""

    def __init__(self, source: Source, config: Config, log: Log, seat: Seat | None = None) -> None:
        self.source = source
        self.seat = seat
        self.config = config
        self.log = log
        self.stopping = asyncio.Event()
        self._reloading = asyncio.Lock()
        self.listeners: list[Listener] = []
        self.pool = Pool(time.monotonic, upstream_tls(config), lambda: self.listeners)
        self.pool.go_through(parent_of(config))
        self.store = _store_of(config)
        self.shelves: Mapping[str, Shelf] = load_prices()
        runtime = self._compile(config, generation=1)
        self.metrics = Metrics(known=runtime.known, version=__version__)
        self.verifier = self._verifier(config)
        self.gateway = Gateway(self._ports(), runtime, self._callers(config))
        self.doors: set[Door] = set()
        self.ca = find(config)
        self.exposed = not config.listen.loopback  # a reload binds nothing anew
        self.forward: Forward | None = None
        self.ready = False

    # --- made of parts ----------------------------------------------------------------------------

    def _compile(self, config: Config, generation: int) -> Runtime:
        return compile_config(
            config,
            self.source.environ,
            self.shelves,
            generation=generation,
            now=lambda: datetime.now(UTC),
        )

    def _callers(self, config: Config) -> Callers:
        return Callers(config, self.store, time.time, self.verifier)  # noqa: TID251

    def _verifier(self, config: Config, before: JwtVerifier | None = None) -> JwtVerifier | None:
        return token_verifier(config.auth.jwt, self._fetch, time.time, before)  # noqa: TID251

    async def _fetch(self, url: str) -> bytes:
        return await fetch(self.pool, url)

    def _read_issuer_keys(self) -> None:
        """Beside everything else: an issuer that is down must not hold up a start."""
        if self.verifier is not None:
            _ = spawn(self.verifier.start(), name="jwks")

    def _ports(self) -> Ports:
        return Ports(
            lines=_Lines(self.pool),
            counter=TokenCounter(),
            store=self.store,
            metrics=self.metrics,
            now=time.monotonic,
            wall=time.time,  # noqa: TID251
            draw=random.random,
            new_id=_new_id,
            log=self.log,
        )

    # --- running ----------------------------------------------------------------------------------

    async def run(self, started: Callable[[dict[str, str]], None]) -> None:
        """Serve until `stopping` is set, then drain. Raises OSError when a port is taken."""
        async with AsyncExitStack() as stack:
            await self.store.start()
            stack.push_async_callback(self.store.close)
            stack.callback(self.gateway.books.enter)
            stack.callback(self.pool.close)
            self._read_issuer_keys()
            stack.callback(self.gateway.router.decider.close)
            self._use_router(self.config, await self._load_router(self.config))
            http = HttpDoor(
                self.gateway.serve,
                api.routes(self.gateway),
                time.monotonic,
                self._max_body(),
                new_id=_new_id,
                is_provider=lambda authority: self.gateway.knows(authority),
                is_here=self._is_here,
            )
            doorway = Doorway(
                begin=self.gateway.begin,
                hand_over=http.hand_over,
                now=time.monotonic,
                max_body=self._max_body(),
                doors=self.doors,
                new_id=_new_id,
            )
            self.forward = forward = self._forward(doorway, http)
            stack.callback(forward.close)
            doorway = replace(doorway, connect=forward.connect)
            admin = Admin(self)
            proxy, admin_server = await self._listen(doorway, admin)
            self.listeners += [sock.getsockname()[:2] for sock in proxy.sockets]
            stack.push_async_callback(admin.close, admin_server)
            if self.seat is not None:
                await self._sit_down(self.seat, stack)
            self._watch_signals()
            _spare_the_collector()
            self.ready = True
            started(
                {
                    "proxy": url_of(proxy.sockets[0]),
                    "admin": url_of(admin_server.sockets[0]),
                }
            )
            await self.stopping.wait()
            await self._drain(proxy, http)

    def _forward(self, doorway: Doorway, http: HttpDoor) -> Forward:
        """CONNECT; what it opens meets the same two doors, which then know whom it was for."""

        def opened(seen: Intercepted) -> Door:
            via = Attachment(seen.authority, seen.tls, seen.proxy_authorization)
            hand_over = partial(http.hand_over, via=via)
            return Door(replace(doorway, hand_over=hand_over, via=via))

        return Forward(
            self._policy(self.config),
            make_protocol=opened,
            render=last_answer,
            leaves=self._leaves(),
            dialer=self._dialer(self.config),
            authenticate=lambda said, address: self.gateway.callers.of_proxy(said, address),
        )

    def _policy(self, config: Config) -> Policy:
        found = providers(config, self.source.environ)
        policy = hosts.policy(config, found, has_ca=self.ca is not None)
        policy = replace(policy, exposed=self.exposed)
        if config.intercept.enabled and self.ca is None:
            logger.warning(
                "nothing is intercepted: there is no CA in %s (`lunar-proxy ca init`)",
                config.intercept.ca_dir,
            )
        missing = [p for p in policy.intercept.patterns if self.ca and not self.ca.covers(p)]
        if missing:
            logger.warning(
                "the CA is not for %s, so these fail: `lunar-proxy ca init --force` makes another",
                ", ".join(missing),
            )
        return policy

    def _leaves(self) -> LeafStore | None:
        return LeafStore(self.ca, now=time.time) if self.ca is not None else None  # noqa: TID251

    def _dialer(self, config: Config) -> Dialer:
        return Dialer(
            exposed=self.exposed,
            parent=parent_of(config),
            listeners=lambda: self.listeners,
            connect_s=config.timeouts.connect_s,
        )

    def _is_here(self, authority: Authority) -> bool:
        """Whether a request in absolute form asks for us, as any server may be asked."""
        return (authority.host, authority.port) in self.listeners

    async def _load_router(self, config: Config) -> Loaded | None:
        """A router that the config speaks of is loaded before the first call, not by it.

        Raises ConfigError. None: nothing of it is imported until somebody asks for it.
        """
        decider = self.gateway.router.decider
        if decider.loaded is None and not wants_router(config):
            return None
        try:
            return await decider.prepare(config.router)
        except RouterNotReady as error:
            raise ConfigError([f"router: {error.message}"]) from error

    def _use_router(self, config: Config, loaded: Loaded | None) -> None:
        self.gateway.router.decider.use(config.router, loaded)

    async def _listen(
        self, doorway: Doorway, admin: Admin
    ) -> tuple[asyncio.Server, asyncio.Server]:
        loop, seat = asyncio.get_running_loop(), self.seat
        ours = seat.proxy if seat is not None else bind(self.config.listen)
        proxy = await loop.create_server(lambda: Door(doorway), sock=ours, backlog=BACKLOG)
        ours = seat.admin if seat is not None else bind(self.config.admin.listen)
        admin_server = await loop.create_server(admin.protocol, sock=ours, backlog=BACKLOG)
        return proxy, admin_server

    async def _sit_down(self, seat: Seat, stack: AsyncExitStack) -> None:
        """Answer the other workers, and end when the parent does."""
        commands = {"metrics": self.numbers, "reload": self._reload_beside}
        stack.callback((await seat.peers.serve(commands)).close)
        loop = asyncio.get_running_loop()
        loop.add_reader(seat.lifeline, self._orphaned)
        stack.callback(loop.remove_reader, seat.lifeline)

    def _orphaned(self) -> None:
        asyncio.get_running_loop().remove_reader(self.seat.lifeline)  # type: ignore[union-attr]
        self.stopping.set()

    async def _drain(self, proxy: asyncio.Server, http: HttpDoor) -> None:
        """No new connections; what runs may finish, for `drain_s`."""
        self.ready = False
        proxy.close()
        for door in list(self.doors):
            door.finish_and_close()
        http.pre_shutdown()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.config.drain_s):
                await self.gateway.idle()
                if self.forward is not None:
                    await self.forward.quiet()
        self.gateway.draining = True
        for door in list(self.doors):
            door.cut()
        await http.shutdown(timeout=0.5)
        with suppress(TimeoutError):  # what was cut is settled, too
            async with asyncio.timeout(1):
                await self.gateway.idle()

    def _max_body(self) -> int:
        return int(self.config.max_body_mb * 1024 * 1024)

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_beside)

    def numbers(self) -> Snapshot:
        """The metrics of this process as they are now."""
        gateway, metrics = self.gateway, self.metrics
        gateway.books.enter()
        states = gateway.health.snapshot()
        metrics.targets(
            {target: int(seen.state) for target, seen in states.items()},
            degraded=[target for target, seen in states.items() if seen.key_refused],
        )
        metrics.inflight = gateway.inflight
        metrics.config_generation = gateway.runtime.generation
        metrics.store_degraded = self.store.degraded is not None
        return metrics.snapshot()

    async def all_numbers(self) -> Snapshot:
        """The same, of all workers together."""
        if self.seat is None:
            return self.numbers()
        return merge([self.numbers(), *await self.seat.peers.ask("metrics")])

    async def reload_all(self) -> int:
        """`reload`, here and then in the other workers."""
        generation = await self.reload()
        if self.seat is not None:
            await self.seat.peers.ask("reload")
        return generation

    def _reload_beside(self) -> asyncio.Task[None]:
        return spawn(self._reload_on_signal(), name="reload")

    async def _reload_on_signal(self) -> None:
        try:
            await self.reload()
        except ConfigError as error:
            logger.error("the reload changed nothing: %s", error)

    async def reload(self) -> int:
        """Read the config again, and the router's files, and use them from the next call on.
        Returns its generation.

        Raises ConfigError, and then nothing has changed. What is bound to sockets and stores
        (listen, admin.listen, store, workers) stays as it was until a restart.
        """
        async with self._reloading:
            config = self.source.load()
            return self._use(config, await self._load_router(config))

    def _use(self, config: Config, router: Loaded | None) -> int:
        runtime = self._compile(config, self.gateway.runtime.generation + 1)
        tls = upstream_tls(config)
        verifier = self._verifier(config, self.verifier)
        ca = find(config)
        self.config, self.verifier = config, verifier
        if tls is not None or config.upstream_ca != self.gateway.runtime.config.upstream_ca:
            self.pool.trust(tls or ssl.create_default_context())
        self.pool.go_through(parent_of(config))
        self.gateway.books.enter()  # under the names they went by
        self.gateway.use(runtime, self._callers(config))
        self._read_issuer_keys()
        self._use_forward(config, ca)
        self._use_router(config, router)
        self.metrics.reload(runtime.known)
        logger.info("config reloaded, generation %d", runtime.generation)
        return runtime.generation

    def _use_forward(self, config: Config, ca: Ca | None) -> None:
        """What is open stays open; the next CONNECT meets the new rules."""
        forward = self.forward
        before, self.ca = self.ca, ca
        if forward is None:
            return
        if ca is None or before is None or ca.pem != before.pem:
            forward.leaves = self._leaves()
        forward.policy = self._policy(config)
        forward.dialer = self._dialer(config)


def find(config: Config) -> Ca | None:
    """The CA to open connections with. Raises ConfigError when it is there and of no use."""
    if not config.intercept.enabled:
        return None
    try:
        return find_ca(config.intercept.ca_dir.expanduser())
    except CaError as error:
        raise ConfigError([f"intercept.ca_dir: {error}"]) from error


def parent_of(config: Config) -> Parent | None:
    return parse_parent(config.upstream_proxy.reveal()) if config.upstream_proxy else None


def _new_id() -> str:
    return "req_" + random.randbytes(16).hex()


def _spare_the_collector() -> None:
    """What was made at start lives as long as the process: cyclic garbage is not looked for in it.

    The price table alone is some 100,000 objects, which a full collection would visit each time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _store_of(config: Config) -> Store:
    try:
        return open_store(config.store.url, time.time)  # noqa: TID251
    except ValueError as error:  # an extra that is not installed
        raise ConfigError([f"store: {error}"]) from None


def _demo_answer(method: str, path: str, body: bytes) -> Iterator[Step]:
    doc = orjson.loads(body) if body else None
    return demo.answer(
        method,
        path.strip("/"),
        doc,
        id=uuid.uuid4().hex,
        created=int(time.time()),  # noqa: TID251
    )


def upstream_tls(config: Config) -> ssl.SSLContext | None:
    """Trust for providers: the system's, SSL_CERT_FILE (OpenSSL reads it), and `upstream_ca`.

    None: the default one, made when it is first needed, since it costs some 20 ms.
    """
    if config.upstream_ca is None:
        return None
    context = ssl.create_default_context()
    context.load_verify_locations(cafile=str(config.upstream_ca))
    return context


def bind(address: Address, *, shared_port: bool = False) -> socket.socket:
    """A socket to listen on; SO_REUSEADDR, so that a restart need not wait for TIME_WAIT.

    `shared_port`: others of this user may listen there too, and the kernel deals connections out.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((address.host, address.port))
    except OSError:
        sock.close()
        raise
    return sock


def url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
