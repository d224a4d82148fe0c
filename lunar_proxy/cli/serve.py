"""`lunar-proxy serve`: the proxy itself."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lunar_proxy.config import Address, Config, ConfigError
from lunar_proxy.core.errors import ProxyError

if TYPE_CHECKING:
    from lunar_proxy.app import Seat, Source

# What stands in a line of text without quotes.
_PLAIN = re.compile(r"[\w./:@+*~?&%,;-]+", re.ASCII)


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="run the proxy",
        description="Run the proxy. Without --config, every built-in provider whose key is in the "
        "environment is on.",
        epilog="example: lunar-proxy serve --demo, then ask http://127.0.0.1:8080/v1 for demo/echo",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file")
    parser.add_argument("--listen", metavar="HOST:PORT", help="where clients call (port 0: any)")
    parser.add_argument("--admin", metavar="HOST:PORT", help="metrics, health and keys")
    parser.add_argument(
        "--demo", action="store_true", help="add the provider `demo`, which needs no key"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    # Imported here, so that `--help` and the other commands do not pay for the whole proxy.
    from lunar_proxy.app import Source

    overrides = {
        "listen": args.listen,
        "admin.listen": args.admin,
        "demo": True if args.demo else None,
    }
    source = Source(args.config, os.environ, overrides)
    try:
        config = source.load()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    _configure_logging(config)
    _allow_many_connections()
    if config.workers > 1:
        return _exit_code(lambda: _supervise(source, config))
    return _exit_code(lambda: _work(source, config))


def _allow_many_connections() -> None:
    """Every connection is an open file, a tunnel two. The usual soft limit, 1024, is there for
    programs that use select(); servers raise it to the hard one, which is the administrator's."""
    try:
        import resource
    except ImportError:  # not on Windows, which has no such limit
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS calls its hard limit infinite and refuses it.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _exit_code(serve: Callable[[], int]) -> int:
    try:
        return serve()
    except ConfigError as error:  # what only showed when it was used: a key file, an extra
        print(error, file=sys.stderr)
        return 2
    except (OSError, ProxyError) as error:
        print(f"lunar-proxy: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 1


def _work(source: Source, config: Config, seat: Seat | None = None, started: Any = None) -> int:
    _runner()(_serve(source, config, seat, started or _announce))
    return 0


async def _serve(source: Source, config: Config, seat: Seat | None, started: Any) -> None:
    from lunar_proxy.app import App, Log

    log = Log(sys.stderr.buffer.write if config.logging.format == "json" else _write_text)
    log.enabled = config.logging.level in ("debug", "info")
    await App(source, config, log, seat).run(started)


def _supervise(source: Source, config: Config) -> int:
    """Bind once, then serve in several processes."""
    from lunar_proxy.app import Seat, bind, url_of
    from lunar_proxy.servers.peers import Peers

    from .workers import Place, Supervisor

    dealt_out = sys.platform == "linux"
    proxy, admin = bind(config.listen), bind(config.admin.listen)
    host, port = proxy.getsockname()[:2]
    listen = Address(host, port, config.listen.text)
    if dealt_out:  # it was bound alone first, so that a second proxy on this port is an error
        proxy.close()
        proxy = bind(listen, shared_port=True)

    def work(place: Place) -> int:
        ours = bind(listen, shared_port=True) if dealt_out else proxy
        peers = Peers(place.folder, place.slot, config.workers)
        seat = Seat(ours, admin, peers, place.lifeline)
        current = _as_of_now(source, config)
        return _exit_code(lambda: _work(source, current, seat, lambda _: place.ready()))

    urls = {"proxy": url_of(proxy), "admin": url_of(admin)}
    return Supervisor(config.workers, config.drain_s, work).run(lambda: _announce(urls))


def _as_of_now(source: Source, first: Config) -> Config:
    """What a worker that is started again serves by: the file as it is now, unless it is broken,
    but for what stays as it was until a restart of them all."""
    try:
        now = source.load()
    except ConfigError:
        return first
    return now.model_copy(update={"store": first.store, "workers": first.workers})


def _announce(urls: dict[str, str]) -> None:
    print(json.dumps({"event": "listening", **urls}, separators=(",", ":")), flush=True)


def _runner() -> Any:
    try:
        import uvloop
    except ImportError:  # not made for Windows; asyncio does the same, slower
        return asyncio.run
    return uvloop.run


def _write_text(lines: bytes) -> None:
    for line in lines.splitlines():
        print(text_line(line), file=sys.stderr)


def text_line(record: bytes) -> str:
    """A record of the log for human eyes: `name=value`, without what does not apply."""
    members = json.loads(record).items()
    return " ".join(f"{name}={_word(value)}" for name, value in members if value is not None)


def _word(value: Any) -> str:
    """Names come from clients: what is not a plain word is quoted, so that none forges a line."""
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return json.dumps(value)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        doc = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "event": "log",
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            doc["traceback"] = self.formatException(record.exc_info)
        return json.dumps(doc)


def _configure_logging(config: Config) -> None:
    handler = logging.StreamHandler(sys.stderr)
    if config.logging.format == "json":
        handler.setFormatter(_JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=config.logging.level.upper(), handlers=[handler], force=True)
