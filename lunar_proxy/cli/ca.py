"""`lunar-proxy ca init / show / bundle`: the CA that lets HTTPS_PROXY look inside."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lunar_proxy.config import Config, ConfigError, load, providers
from lunar_proxy.core.connect import host_pattern
from lunar_proxy.servers.certs import (
    BUNDLE,
    CERTIFICATE,
    Ca,
    CaError,
    init_ca,
    load_ca,
    root_files,
    write_bundle,
)
from lunar_proxy.servers.hosts import signable_hosts


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "ca",
        help="make or show the CA for HTTPS_PROXY",
        description="The local CA whose certificates open HTTPS to known providers. Who has its "
        "key can impersonate the hosts it is made for to every client that trusts it.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    init = commands.add_parser("init", help="make a CA and a bundle of it and the system's roots")
    init.add_argument("--host", action="append", default=[], help="one more host it may sign for")
    init.add_argument("--any-host", action="store_true", help="let it sign for every host")
    existing = init.add_mutually_exclusive_group()
    existing.add_argument("--force", action="store_true", help="replace the CA that is there")
    existing.add_argument("--if-missing", action="store_true", help="keep the CA that is there")
    show = commands.add_parser("show", help="the certificate, and what clients need to trust it")
    only = show.add_mutually_exclusive_group()
    only.add_argument("--pem", action="store_true", help="the certificate alone")
    only.add_argument("--env", action="store_true", help="the shell lines alone, for eval")
    bundle = commands.add_parser("bundle", help="write the bundle anew, with the roots of today")
    for command, action in ((init, _init), (show, _show), (bundle, _bundle)):
        command.add_argument("--config", type=Path, metavar="FILE", help="YAML file")
        command.add_argument("--dir", type=Path, metavar="DIR", help="instead of intercept.ca_dir")
        command.set_defaults(run=run, action=action)


def run(args: argparse.Namespace) -> int:
    try:
        config = load(args.config, os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    directory: Path = (args.dir or config.intercept.ca_dir).expanduser().absolute()
    try:
        code: int = args.action(args, config, directory)
    except CaError as error:
        print(f"lunar-proxy ca: {error}", file=sys.stderr)
        return 1
    return code


def _init(args: argparse.Namespace, config: Config, directory: Path) -> int:
    extra = [host_pattern(host) for host in args.host]
    if None in extra:
        print("lunar-proxy ca: --host takes a name, an address or *.NAME", file=sys.stderr)
        return 2
    hosts = [*signable_hosts(config, providers(config, os.environ)), *filter(None, extra)]
    if args.if_missing and (directory / CERTIFICATE).exists():
        ca = load_ca(directory)
        missing = [host for host in hosts if not ca.covers(host)]
        print(f"kept the CA in {directory}, {_summary(ca)}")
        if missing:
            print(f"it may not sign for {', '.join(missing)}: --force makes a new one")
        return 0
    now = datetime.now(UTC)
    ca = init_ca(directory, hosts, now=now, constrained=not args.any_host, force=args.force)
    print(f"made a CA in {directory}, {_summary(ca)}")
    print(f"it may sign for {', '.join(ca.permits) if ca.permits is not None else 'every host'}")
    print("`lunar-proxy ca show` says what clients need to trust it")
    return 0


def _summary(ca: Ca) -> str:
    return f"valid to {ca.expires:%Y-%m-%d}, SHA-256 {ca.fingerprint}"


def _bundle(_args: argparse.Namespace, _config: Config, directory: Path) -> int:
    ca = load_ca(directory)
    count = write_bundle(directory, ca.pem.encode(), root_files())
    print(f"{directory / BUNDLE}: {count} roots and our CA")
    return 0


def _show(args: argparse.Namespace, config: Config, directory: Path) -> int:
    ca = load_ca(directory)
    if args.pem:
        sys.stdout.write(ca.pem)
    elif args.env:
        print("\n".join(_environment(config, directory)))
    else:
        print("\n".join(_explained(ca, config, directory)))
    return 0


def _explained(ca: Ca, config: Config, directory: Path) -> Iterator[str]:
    """Who reads a PEM certificate ignores the text around it, so this may be piped to them."""
    permits = "every host" if ca.permits is None else ", ".join(ca.permits)
    host, port = _proxy(config)
    certificate = directory / CERTIFICATE
    yield ca.pem
    yield f"# {certificate}"
    yield f"# SHA-256 {ca.fingerprint}"
    yield f"# valid to {ca.expires:%Y-%m-%d}; may sign for {permits}"
    yield ""
    yield '# the shell of the application (or: eval "$(lunar-proxy ca show --env)")'
    yield from _environment(config, directory)
    yield ""
    yield "# one call with curl"
    yield (
        f"#   curl --proxy http://{host}:{port} --cacert {shlex.quote(str(certificate))} "
        "https://api.openai.com/v1/models"
    )
    yield "# Java reads neither of these: import the certificate, and name the proxy"
    yield (
        "#   keytool -importcert -noprompt -cacerts -storepass changeit -alias lunar-proxy "
        f"-file {shlex.quote(str(certificate))}"
    )
    yield f"#   java -Dhttps.proxyHost={host} -Dhttps.proxyPort={port} ..."


def _environment(config: Config, directory: Path) -> Iterator[str]:
    """SSL_CERT_FILE and its like replace the trusted roots, so they get the bundle; Node's variable
    adds to them, so it gets our certificate alone.
    """
    host, port = _proxy(config)
    bundle, certificate = str(directory / BUNDLE), str(directory / CERTIFICATE)
    rows = (
        ("HTTPS_PROXY", f"http://{host}:{port}", ""),
        ("NO_PROXY", "localhost,127.0.0.1,::1", ""),
        ("SSL_CERT_FILE", bundle, "Python (openai, httpx, aiohttp), Go, Ruby, OpenSSL"),
        ("REQUESTS_CA_BUNDLE", bundle, "Python (requests)"),
        ("CURL_CA_BUNDLE", bundle, "curl"),
        ("NODE_EXTRA_CA_CERTS", certificate, "Node"),
        ("NODE_USE_ENV_PROXY", "1", "Node 24 and later: fetch heeds HTTPS_PROXY"),
    )
    for name, value, whom in rows:
        yield f"export {name}={shlex.quote(value)}" + (f"  # {whom}" if whom else "")


def _proxy(config: Config) -> tuple[str, int]:
    """Where a client on this machine finds the listener."""
    host = config.listen.host
    host = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    return f"[{host}]" if ":" in host else host, config.listen.port
