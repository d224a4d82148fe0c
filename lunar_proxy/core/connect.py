"""CONNECT: what its authority says, what may be done with it, and the bytes a parent proxy needs.

`parse_authority` reads the target, `decide` says what becomes of it: opened (Intercept), passed on
blind (Tunnel) or turned away (Refuse). A name says nothing about where it leads, so where it counts
every address it resolves to is judged again by `is_private`, and exactly that address is dialled:
a second answer of the name server (DNS rebinding) is never asked for.
"""

from __future__ import annotations

import ipaddress
import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from .errors import ConnectFailed, Forbidden, InvalidRequest, ProxyError

# The longest name the domain system can hold, and its longest label (RFC 1035 2.3.4).
_MAX_NAME, _MAX_LABEL = 253, 63
_PORT = re.compile(r"[0-9]{1,5}")
# Underscores are not host names by the book, but container networks are full of them.
_NAME = re.compile(rf"[a-z0-9_]([a-z0-9_.-]{{0,{_MAX_NAME - 2}}}[a-z0-9_])?")
# A last label such as these makes resolvers read the name as an address ("127.1", "0x7f000001"),
# see "ends in a number" in the WHATWG URL standard.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_HTTPS = 443


@dataclass(frozen=True, slots=True)
class Authority:
    """`host` is lower-case, without brackets and final dot; addresses are in their short form."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_authority(raw: bytes) -> Authority:
    """Read the target of a CONNECT, `host:port`; both are needed (RFC 9110 9.3.6)."""
    text = raw.decode("latin-1")
    host, colon, port = text.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or not 0 < int(port) < 65_536:
        raise InvalidRequest("the target needs HOST:PORT", code="invalid_authority")
    name = _ipv6(host) if host.startswith("[") else canonical_host(host)
    if name is None:
        raise InvalidRequest("the target names no valid host", code="invalid_authority")
    return Authority(name, int(port))


def parse_absolute(raw: bytes) -> tuple[bool, Authority, bytes]:
    """Read the target of a request in absolute form (RFC 9112 3.2.2): whether it is https, whose it
    is, and its origin form.
    """
    match = _ABSOLUTE.fullmatch(raw)
    if match is None:
        raise InvalidRequest("the request target is not valid", code="invalid_authority")
    secure = match["scheme"].lower() == b"https"
    default = b":443" if secure else b":80"
    port = match["port"] if len(match["port"] or b":") > 1 else default
    rest = match["rest"] or b"/"
    target = rest if rest.startswith(b"/") else b"/" + rest
    return secure, parse_authority(match["host"] + port), target


_ABSOLUTE = re.compile(
    rb"(?P<scheme>https?)://(?P<host>[^/?#@:\[\]]+|\[[^/?#@\[\]]+\])(?P<port>:[0-9]*)?"
    rb"(?P<rest>[/?][^#]*)?",
    re.IGNORECASE,
)


def canonical_host(text: str) -> str | None:
    """The one spelling of a host name or IPv4 address; None when it is neither."""
    host = text.lower().removesuffix(".")
    if not _NAME.fullmatch(host):
        return None
    labels = host.split(".")
    if not all(0 < len(label) <= _MAX_LABEL for label in labels):
        return None
    return _ipv4(host) if _NUMBER.fullmatch(labels[-1]) else host


def is_address(host: str) -> bool:
    return ":" in host or _ipv4(host) is not None


def _ipv4(host: str) -> str | None:
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        return None


def _ipv6(host: str) -> str | None:
    if not host.endswith("]") or "%" in host:  # a zone means something on this machine only
        return None
    try:
        return str(ipaddress.IPv6Address(host[1:-1]))
    except ValueError:
        return None


# --- where a name leads -----------------------------------------------------------------------

# All of IPv6 that has been given out for use in public (RFC 4291 2.4, IANA's registry).
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
_V4_COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291 2.5.5.1, deprecated
# What the standard library takes for public and is not.
_INNER_V4 = (
    ipaddress.IPv4Network("192.0.0.0/24"),  # protocol assignments; Oracle's metadata is among them
    ipaddress.IPv4Network("168.63.129.16/32"),  # Azure's metadata and name server
)


def is_private(address: str) -> bool:
    """Whether an IP address is anything but a public unicast one; an unreadable one counts as such.

    That covers loopback, RFC 1918, shared (100.64/10), link-local with the metadata address,
    unique local, multicast, reserved, and an IPv4 address of these kinds dressed up as IPv6.
    """
    try:
        ip = _undress(ipaddress.ip_address(address))
    except ValueError:
        return True
    if not ip.is_global or ip.is_multicast:
        return True
    if isinstance(ip, ipaddress.IPv6Address):
        return ip not in _PUBLIC_V6
    return any(ip in network for network in _INNER_V4)


def _undress(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64 or ip in _V4_COMPATIBLE:
        return ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


# --- what becomes of it -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HostEntry:
    """A host to open. `pattern` is a name, an address or `*.NAME`; `port` breaks ties."""

    pattern: str
    provider: str | None = None  # None: opened, but no configured provider lives there
    port: int | None = None


@dataclass(frozen=True, slots=True)
class HostTable:
    """The hosts to open. The first entry wins that has no port or the very port asked for."""

    entries: tuple[HostEntry, ...] = ()

    def find(self, authority: Authority) -> HostEntry | None:
        matches = [entry for entry in self.entries if covers(entry.pattern, authority.host)]
        exact = [entry for entry in matches if entry.port in (None, authority.port)]
        return next(iter(exact or matches), None)

    @property
    def patterns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(entry.pattern for entry in self.entries))


def host_table(
    base_urls: Iterable[tuple[str, str]], hosts: Iterable[tuple[str, str | None]] = ()
) -> HostTable:
    """Build the table from (provider id, base URL) and (`intercept.hosts` name, provider or None).

    A named host comes before a base URL's. One without a provider takes the provider whose base URL
    has that host.
    """
    known = [entry for provider, url in base_urls if (entry := _entry(provider, url))]
    by_host = {entry.pattern: entry.provider for entry in reversed(known)}
    named = [
        HostEntry(pattern, provider or by_host.get(pattern))
        for host, provider in hosts
        if (pattern := host_pattern(host))
    ]
    return HostTable((*named, *known))


def _entry(provider: str, base_url: str) -> HostEntry | None:
    url = urlsplit(base_url)
    pattern = host_pattern(url.hostname or "")
    port = url.port or (80 if url.scheme == "http" else _HTTPS)
    return HostEntry(pattern, provider, port) if pattern else None


def host_pattern(host: str) -> str | None:
    """The one spelling of a name, an address or `*.NAME`; None when it is none of them."""
    star, name = ("*.", host[2:]) if host.startswith("*.") else ("", host)
    clean = _ipv6(f"[{name.strip('[]')}]") if ":" in name else canonical_host(name)
    return star + clean if clean else None


def covers(pattern: str, host: str) -> bool:
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


ANY = ("*",)


@dataclass(frozen=True, slots=True)
class Policy:
    """What CONNECT may do.

    `intercept` is empty while interception is off. `tunnel` holds globs of hosts, `HOST` or
    `HOST:PORT`; ANY lets all pass, () none. `exposed`: the listener is not on loopback, so whoever
    asks may be a stranger: ports other than 443 need a glob that names them, private addresses are
    out of reach, and credentials are demanded.
    """

    intercept: HostTable = HostTable()
    tunnel: tuple[str, ...] = ANY
    exposed: bool = False


@dataclass(frozen=True, slots=True)
class Intercept:
    provider: str | None
    authority: Authority


@dataclass(frozen=True, slots=True)
class Tunnel:
    """`check_name`: only some hosts may pass, so TLS inside must not ask for another one."""

    authority: Authority
    check_name: bool = False


@dataclass(frozen=True, slots=True)
class Refuse:
    error: ProxyError


Decision = Intercept | Tunnel | Refuse


def decide(authority: Authority, policy: Policy) -> Decision:
    if entry := policy.intercept.find(authority):
        return Intercept(entry.provider, authority)
    if not any(_passes(glob, authority, policy.exposed) for glob in policy.tunnel):
        return Refuse(Forbidden(f"no tunnel to {authority} is allowed", code="tunnel_refused"))
    if policy.exposed and is_address(authority.host) and is_private(authority.host):
        return Refuse(private_address(authority))
    return Tunnel(authority, check_name=policy.tunnel != ANY)


def private_address(authority: Authority) -> Forbidden:
    """The address itself stays unsaid: it would map the inner network for a stranger."""
    return Forbidden(f"{authority} is not a public address", code="private_address")


def _passes(glob: str, authority: Authority, exposed: bool) -> bool:
    host, port = _split_glob(glob)
    if port is None and exposed and authority.port != _HTTPS:
        return False
    return port in (None, authority.port) and bool(_glob(host).fullmatch(authority.host))


def _split_glob(glob: str) -> tuple[str, int | None]:
    host, colon, port = glob.rpartition(":")
    if colon and _PORT.fullmatch(port) and (":" not in host or host.endswith("]")):
        return host.strip("[]"), int(port)
    return glob.strip("[]"), None


def _glob(host: str) -> re.Pattern[str]:
    return re.compile(re.escape(host.lower()).replace(r"\*", ".*"))


# --- a parent proxy ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parent:
    """The proxy that everything outward goes through (`upstream_proxy`)."""

    host: str
    port: int
    authorization: bytes | None = field(default=None, repr=False)


def parse_parent(url: str) -> Parent:
    """Read `http://[user:pass@]host:port`. The ValueError never quotes the URL and its password."""
    try:
        parts = urlsplit(url)
        host, port = host_pattern(parts.hostname or ""), parts.port or 80
    except ValueError:
        parts, host, port = None, None, 0
    if parts is None or host is None or parts.scheme != "http" or parts.path not in ("", "/"):
        raise ValueError("must be http://[user:password@]host:port")
    if parts.username is None:
        return Parent(host, port)
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Parent(host, port, b"Basic " + b64encode(pair.encode()))


Listener = tuple[str, int]


def is_self(peer: str, near: str, port: int, listeners: Sequence[Listener]) -> bool:
    """Whether a connection from `near` to `peer`:`port` ends at one of our own listeners.

    Told by the connected socket, because a wildcard listener has more addresses than it names: a
    connection within this machine has one address at both ends, or a loopback one at the far end.
    """
    there, here = _ip(peer), _ip(near)
    within = there == here or there.is_loopback
    for host, bound in listeners:
        at = _ip(host)
        if bound == port and (there == at or (within and at.is_unspecified)):
            return True
    return False


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(text)
    return ip if isinstance(ip, ipaddress.IPv4Address) else ip.ipv4_mapped or ip


def through_parent(host: str) -> bool:
    """What is on this very machine is never asked of another one."""
    return host != "localhost" and not (is_address(host) and ipaddress.ip_address(host).is_loopback)


def connect_request(authority: Authority, parent: Parent) -> bytes:
    """The head that asks a parent proxy for a tunnel."""
    target = str(authority).encode()
    head = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n" % (target, target)
    if parent.authorization is not None:
        head += b"Proxy-Authorization: %b\r\n" % parent.authorization
    return head + b"\r\n"


class ConnectReply:
    """Reads a parent proxy's answer: `feed` until it gives something other than None.

    What it gives are the bytes after the head, which already belong to the tunnel. Anything but 2xx
    raises ConnectFailed, which names the status and nothing else of what the parent said.
    """

    LIMIT = 16_384  # nginx and squid keep heads under 8 and 64 KiB; a CONNECT answer needs little

    def __init__(self) -> None:
        self._head = bytearray()

    def feed(self, data: bytes) -> bytes | None:
        self._head += data
        end = self._head.find(b"\r\n\r\n", 0, self.LIMIT)
        if end >= 0:
            _check_status(bytes(self._head[:end]))
            return bytes(self._head[end + 4 :])
        if len(self._head) >= self.LIMIT:
            raise ConnectFailed("the upstream proxy's answer is not HTTP", code="upstream_proxy")
        return None


_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [^\r\n]*)?(?:\r\n|\Z)")


def _check_status(head: bytes) -> None:
    match = _STATUS.match(head)
    if match is None:
        raise ConnectFailed("the upstream proxy's answer is not HTTP", code="upstream_proxy")
    if not match[1].startswith(b"2"):
        status = match[1].decode()
        raise ConnectFailed(f"the upstream proxy answered {status}", code="upstream_proxy")
