"""A running proxy with its providers, and one test's share of it."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import re
import socket
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from lunar_proxy.core.sse import SSEEvent
from lunar_proxy.testing import Break, Close, Pause, Raw, Request, dead_url, self_signed
from tests.e2e.harness import Proxy, eventually, serving

from .apis import Api, parse
from .cast import PATIENCE_S, Cast, Play

# How a request is sent decides which door takes it; the answers must not differ.
DOORS = ("fast", "aiohttp")

# What a provider that is to run into a timer waits for. All others have seconds, so that a busy
# machine makes no failure.
SHORT_S = 0.3
PATIENT = {"connect_s": 10, "first_token_s": 10, "idle_s": 10, "total_s": 15}
# What a provider says who does not wait for the request to be over.
TOO_LARGE = b'{"error":{"message":"too large","type":"invalid_request_error","code":null}}'
EARLY = Raw(
    b"HTTP/1.1 413 Content Too Large\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(TOO_LARGE), TOO_LARGE)
)
GREETINGS = {
    "slams": (Break(),),
    "interrupts": (Pause(0.1), EARLY),
    "speaks-first": (EARLY, Close()),
}
# One port each. `hasty` has a short connect and first token timer, `restless` a short idle timer;
# `abrupt` is never left with a connection that could be used again.
PROVIDERS = (
    "a",
    "b",
    "abrupt",
    "hasty",
    "restless",
    "keyring",
    "openai",
    "priced",
    "tls",
    *GREETINGS,
)
OTHERS = ("dead", "unknown", "mute", "deaf")
KEYS = {name: f"sk-secret-of-{name}" for name in (*PROVIDERS, *OTHERS)}
KEYRING = tuple(f"sk-secret-{n}-of-keyring" for n in range(3))


def settings(cast: Cast, silent: str) -> dict[str, Any]:
    providers: dict[str, Any] = {
        name: {"base_url": cast.url(name), "api_key": KEYS[name]} for name in PROVIDERS
    }
    providers["hasty"]["timeouts"] = {"connect_s": SHORT_S, "first_token_s": SHORT_S}
    providers["restless"]["timeouts"] = {"idle_s": SHORT_S}
    providers["keyring"] = {"base_url": cast.url("keyring"), "api_keys": [*KEYRING]}
    elsewhere = {
        "dead": f"{dead_url()}/v1",
        "unknown": "http://nowhere.invalid/v1",
        # Both take a connection and never say a word of TLS.
        "mute": silent,
        "deaf": silent,
    }
    providers |= {name: {"base_url": url, "api_key": KEYS[name]} for name, url in elsewhere.items()}
    providers["deaf"]["timeouts"] = {"connect_s": SHORT_S}
    providers["priced"] = {
        "base_url": cast.url("priced"),
        "api_key": KEYS["priced"],
        "prices": {"priced-model": {"input_per_million": 1000, "output_per_million": 2000}},
    }
    providers["keyless"] = {"base_url": cast.url("keyless"), "api_key": None}
    return {
        "providers": providers,
        "models": {"either": {"targets": ["a/either", "b/either"]}},
        "fallbacks": {"exactly-this": ["b/listed"], "glob-*": ["b/from-the-glob", "a/last"]},
        "breaker": {"failures": 1000},
        "retries": {
            "attempts": 2,
            "backoff_s": 0.01,
            "max_backoff_s": 0.05,
            "retry_after_cap_s": 2,
        },
        "timeouts": PATIENT,
    }


@dataclass
class Answer:
    """What the client got. `whole`: it was told, by HTTP's own means, that this is all."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes
    whole: bool
    seconds: float

    @property
    def doc(self) -> Any:
        return orjson.loads(self.body)

    @property
    def events(self) -> list[SSEEvent]:
        return parse(self.body)

    @property
    def docs(self) -> list[Any]:
        """The events that are JSON, parsed; every one but [DONE] has to be."""
        return [orjson.loads(e.data) for e in self.events if e.data and e.data != b"[DONE]"]

    @property
    def ends(self) -> bytes:
        """The data of the last event."""
        return self.events[-1].data

    @property
    def error(self) -> dict[str, Any]:
        """The `error` object of an answer in the shape that every error of ours has."""
        doc = self.doc
        assert self.headers["content-type"] == "application/json"
        assert set(doc["error"]) >= {"message", "type", "code", "param"}
        assert doc["detail"] == doc["error"]["message"]
        found: dict[str, Any] = doc["error"]
        return found

    @property
    def who(self) -> tuple[str, int, int]:
        """Provider, calls made upstream, index of the provider in the plan."""
        h = self.headers
        return h["x-lunar-provider"], int(h["x-lunar-attempts"]), int(h["x-lunar-fallback-index"])

    def text(self, api: Api) -> str:
        if self.headers["content-type"].startswith("text/event-stream"):
            return api.text(self.events)
        return api.said(self.doc)


@dataclass
class World:
    proxy: Proxy
    cast: Cast
    _models: Iterator[int] = field(default_factory=itertools.count)

    def scene(self) -> Scene:
        return Scene(self, f"model-{next(self._models)}")

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the series of that name with these labels."""
        with urllib.request.urlopen(f"{self.proxy.admin}/metrics", timeout=PATIENCE_S) as response:
            text = response.read().decode()
        total = 0.0
        for found, inside, value in re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE):
            has = dict(re.findall(r'(\w+)="([^"]*)"', inside))
            if found == name and labels.items() <= has.items():
                total += float(value)
        return total

    def record(self, request_id: str) -> dict[str, Any]:
        """The log's record of that call, waited for."""

        def found() -> dict[str, Any] | None:
            lines = [line for line in self.proxy.stderr().splitlines() if request_id in line]
            records = [orjson.loads(line) for line in lines if line.endswith("}")]
            return next((r for r in records if r.get("request_id") == request_id), None)

        record = eventually(found)
        assert record is not None
        return record


@dataclass
class Scene:
    """One test: a model that no other test uses, and what the providers do when asked for it."""

    world: World
    model: str

    def plays(self, provider: str, play: Play) -> None:
        self.world.cast.plays(provider, self.model, play)

    def asked(self, provider: str) -> list[Request]:
        return self.world.cast.asked(provider, self.model)

    def target(self, provider: str) -> str:
        return provider if "/" in provider else f"{provider}/{self.model}"

    def ask(self, api: Api, *to: str, **how: Any) -> Answer:
        """One call and its whole answer; see `opened`."""
        began = time.monotonic()
        with self.opened(api, *to, **how) as response:
            try:
                body, whole = response.read(), True
            except http.client.IncompleteRead as cut:
                body, whole = cut.partial, False
            except ConnectionResetError:
                body, whole = b"", False
            fields = {name.lower(): value for name, value in response.getheaders()}
            seconds = time.monotonic() - began
        return Answer(response.status, fields, body, whole, seconds)

    @contextlib.contextmanager
    def opened(
        self,
        api: Api,
        *to: str,
        stream: bool = False,
        door: str = "fast",
        headers: Mapping[str, str] | None = None,
        **body: Any,
    ) -> Iterator[http.client.HTTPResponse]:
        """The same once its head is there; left early, the client hangs up.

        `to`: providers (or PROVIDER/MODEL), the first choice and its fallbacks.
        """
        connection = self.sent(api, *to, stream=stream, door=door, headers=headers, **body)
        try:
            yield connection.getresponse()
        finally:
            connection.close()

    def sent(
        self,
        api: Api,
        *to: str,
        stream: bool = False,
        door: str = "fast",
        headers: Mapping[str, str] | None = None,
        **body: Any,
    ) -> http.client.HTTPConnection:
        """The same as soon as it is asked. Its id in the log is the model's name."""
        first, *others = to or ("a",)
        doc = {"model": self.target(first), **api.body, **body}
        if stream:
            doc["stream"] = True
        fields = {"content-type": "application/json", "x-request-id": self.model}
        if others:
            fields["x-lunar-fallbacks"] = ",".join(map(self.target, others))
        fields |= headers or {}
        connection = http.client.HTTPConnection(
            urlsplit(self.world.proxy.url).netloc, timeout=PATIENCE_S
        )
        data, chunked = orjson.dumps(doc), door == "aiohttp"
        if chunked:
            fields["transfer-encoding"] = "chunked"
        connection.request(
            "POST", api.path, iter([data]) if chunked else data, fields, encode_chunked=chunked
        )
        return connection

    @property
    def record(self) -> dict[str, Any]:
        return self.world.record(self.model)


@contextlib.contextmanager
def world(folder: Path, **changes: Any) -> Iterator[World]:
    """A proxy with that config over the usual one, and its providers."""
    tls = {"tls": self_signed().server}
    with Cast(*PROVIDERS, "keyless", greetings=GREETINGS, tls=tls) as cast:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"https://127.0.0.1:{silent.getsockname()[1]}/v1"
            with serving(folder, settings(cast, url) | changes) as proxy:
                yield World(proxy, cast)
        assert [r for r in proxy.records() if r.get("level") in ("error", "critical")] == []
        for name, upstream in cast.upstreams.items():
            assert upstream.failures == [], name
