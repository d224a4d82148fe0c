"""The small values a setting can be made of: secrets, addresses, stores, hosts.

Each parses from the text of the file, prints as it was given, and prints masked when it can hold a
secret. A parser raises ValueError with words for the operator; those words never repeat a secret.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, PlainValidator
from pydantic import ValidationInfo as Info

# The last four characters tell two keys apart; of a short secret they would tell too much.
_TAIL, _LONG = 4, 16


class Secret:
    """Text that shows itself only to `reveal()`. False when empty."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def masked(self) -> str:
        """`****`, and the last four characters of a long one, to tell two apart."""
        if not self._value:
            return ""
        return "****" + (self._value[-_TAIL:] if len(self._value) >= _LONG else "")

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return f"Secret({self.masked()!r})"

    def __str__(self) -> str:
        return self.masked()


def parse_secret(value: Any) -> Secret:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        raise ValueError("must be text; put it in quotes")
    # A trailing newline is what a mounted secret file or an `echo` into one leaves behind.
    text = value.strip()
    if not all("!" <= c <= "~" or c == " " for c in text):
        raise ValueError("holds a character that no header can carry (a line break, say)")
    return Secret(text)


SecretText = Annotated[
    Secret, PlainValidator(parse_secret), PlainSerializer(lambda s: s.masked(), return_type=str)
]


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. `host` has no brackets; `str()` is the text that was configured."""

    host: str
    port: int
    text: str

    @property
    def loopback(self) -> bool:
        """Only this machine can reach it. A name other than localhost may point anywhere."""
        if self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return self.text


_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>\d{1,5})")


def parse_address(value: Any) -> Address:
    if isinstance(value, Address):
        return value
    match = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080")
    if match["v6"]:
        _check_ipv6(match["v6"])
    port = int(match["port"])
    if port > 65535:
        raise ValueError("the port must be 0 to 65535 (0: any free one)")
    return Address(match["v6"] or match["host"], port, match[0])


def _check_ipv6(text: str) -> None:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        raise ValueError("the part in brackets is not an IPv6 address") from None


ListenAddress = Annotated[
    Address, PlainValidator(parse_address), PlainSerializer(str, return_type=str)
]


def mask_userinfo(url: str) -> str:
    """The URL with user and password hidden: `redis://****@host/0`."""
    return re.sub(r"(?<=://).*@", "****@", url)


@dataclass(frozen=True, slots=True, repr=False)
class Url:
    """A URL that may carry a password, so only `reveal()` shows it whole."""

    value: str

    def reveal(self) -> str:
        return self.value

    def __str__(self) -> str:
        return mask_userinfo(self.value)

    def __repr__(self) -> str:
        return f"Url({str(self)!r})"


def _url_problem(url: str, schemes: tuple[str, ...]) -> str | None:
    """What is wrong with it, in words that do not repeat it: it may hold a password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is not a URL"
    if parts.scheme not in schemes:
        return "must start with " + " or ".join(f"{scheme}://" for scheme in schemes)
    if not parts.hostname:
        return "has no host"
    if port == 0:
        return "has port 0, which nothing can listen on"
    if any(not "!" <= c <= "~" for c in url):
        return "holds a character that has to be percent-encoded"
    return None


def _base_url(value: str) -> str:
    if problem := _url_problem(value, ("http", "https")):
        raise ValueError(problem)
    parts = urlsplit(value)
    if "@" in parts.netloc:
        raise ValueError("must not hold a user or password; use api_key or headers")
    if parts.query or parts.fragment:
        raise ValueError("must end with its path; no ? or #")
    return value.rstrip("/")


BaseUrl = Annotated[str, AfterValidator(_base_url)]


def _web_url(value: str) -> str:
    if problem := _url_problem(value, ("http", "https")):
        raise ValueError(problem)
    if "@" in urlsplit(value).netloc:
        raise ValueError("must not hold a user or password")
    return value


WebUrl = Annotated[str, AfterValidator(_web_url)]


def _proxy_url(value: Any) -> Url:
    if isinstance(value, Url):
        return value
    if not isinstance(value, str):
        raise ValueError("must be http://HOST:PORT")
    if problem := _url_problem(value, ("http",)):
        raise ValueError(problem)
    if urlsplit(value).port is None or urlsplit(value).path not in ("", "/"):
        raise ValueError("must be http://HOST:PORT")
    return Url(value)


ProxyUrl = Annotated[Url, PlainValidator(_proxy_url), PlainSerializer(str, return_type=str)]


@dataclass(frozen=True, slots=True, repr=False)
class Store:
    """Where keys, limits and the ledger live. `url` is whole; `str()` hides its password."""

    kind: str  # memory | sqlite | redis
    url: str

    @property
    def path(self) -> Path:
        """The file of a sqlite store."""
        return Path(self.url.removeprefix("sqlite:"))

    def __str__(self) -> str:
        return mask_userinfo(self.url)

    def __repr__(self) -> str:
        return f"Store({str(self)!r})"


def parse_store(value: Any, home: str = "") -> Store:
    """`memory`, `sqlite:PATH` or `redis://HOST:PORT/DB` (`rediss://` for TLS)."""
    if isinstance(value, Store):
        return value
    text = value if isinstance(value, str) else ""
    if text == "memory":
        return Store("memory", text)
    if text.startswith("sqlite:"):
        return Store("sqlite", f"sqlite:{_sqlite_path(text.removeprefix('sqlite:'), home)}")
    if text.startswith(("redis:", "rediss:")):
        return Store("redis", _redis_url(text))
    raise ValueError("must be memory, sqlite:PATH or redis://HOST:PORT/DB")


def _sqlite_path(path: str, home: str) -> str:
    if not path or path == ":memory:":
        raise ValueError("sqlite: needs the path of a file; `memory` is the store without one")
    if "\0" in path:
        raise ValueError("a path cannot hold a NUL character")
    return expand_home(path, home)


def _redis_url(url: str) -> str:
    if problem := _url_problem(url, ("redis", "rediss")):
        raise ValueError(problem)
    if not re.fullmatch(r"/?\d{0,4}", urlsplit(url).path):
        raise ValueError("the part after the host must be a database number, such as /0")
    return url


def expand_home(path: str, home: str) -> str:
    """`~/x` below the caller's home, which is passed in: only `load` reads the environment."""
    return home + path[1:] if home and (path == "~" or path.startswith("~/")) else path


def _home(info: Info) -> str:
    return str(info.context["home"]) if info.context else ""


StoreUrl = Annotated[
    Store,
    PlainValidator(lambda value, info: parse_store(value, _home(info))),
    PlainSerializer(str, return_type=str),
]


def _path(value: Any, info: Info) -> Path:
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("must be a path")
    return Path(expand_home(value, _home(info)))


FilePath = Annotated[Path, PlainValidator(_path), PlainSerializer(str, return_type=str)]


def _file_or_bool(value: Any, info: Info) -> bool | Path:
    if isinstance(value, bool):
        return value
    try:
        return _path(value, info)
    except ValueError:
        raise ValueError("must be true, false or a path") from None


FileOrBool = Annotated[
    bool | Path,
    PlainValidator(_file_or_bool),
    PlainSerializer(lambda value: value if isinstance(value, bool) else str(value)),
]


@dataclass(frozen=True, slots=True)
class InterceptHost:
    """A host to open, and the provider its requests belong to (None: found by its base URL)."""

    host: str
    provider: str | None = None

    def __str__(self) -> str:
        return f"{self.host}={self.provider}" if self.provider else self.host


_HOST = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")


def _intercept_host(value: Any) -> InterceptHost:
    if isinstance(value, InterceptHost):
        return value
    host, _, provider = value.partition("=") if isinstance(value, str) else ("", "", "")
    if not _HOST.fullmatch(host) or (not provider and "=" in str(value)):
        raise ValueError("must be HOST or HOST=PROVIDER (HOST: a name, *.NAME or address)")
    return InterceptHost(host.lower(), provider or None)


InterceptHostText = Annotated[
    InterceptHost, PlainValidator(_intercept_host), PlainSerializer(str, return_type=str)
]

_TUNNELS: dict[str, tuple[str, ...]] = {"all": ("*",), "none": ()}


def _tunnel(value: Any) -> Any:
    if isinstance(value, str):
        if value not in _TUNNELS:
            raise ValueError("must be all, none or a list of host globs")
        return _TUNNELS[value]
    return value


def _show_tunnel(globs: tuple[str, ...]) -> str | list[str]:
    words = {globs_: word for word, globs_ in _TUNNELS.items()}
    return words.get(globs, list(globs))


Tunnel = Annotated[
    tuple[str, ...], BeforeValidator(_tunnel), PlainSerializer(_show_tunnel, when_used="json")
]


def _no_bool(value: Any) -> Any:
    """`workers: true` is a slip, though Python would count it as 1."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


NotBool = BeforeValidator(_no_bool)
