"""HTTPS_PROXY with real clients: what they ask of a provider's host, and what becomes of it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import orjson
import pytest
import requests

from lunar_proxy.testing import (
    Chunk,
    End,
    Head,
    Request,
    Script,
    SelfSigned,
    Step,
    Until,
    chat_answer,
    chat_stream,
    error_answer,
    json_answer,
    self_signed,
)

from .harness import (
    PATIENCE_S,
    Answer,
    Proxy,
    Stage,
    chat,
    command,
    drain,
    environment,
    eventually,
    serving,
    write_config,
)

KEY = "pk_live_" + "k" * 40
OURS = "sk-planted-openai"
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


# --- the scene ----------------------------------------------------------------------------------


@dataclass
class Scene:
    """A proxy with a CA, its HTTPS upstream, and what a client needs to trust the one and reach it.

    To the application the upstream is api.openai.com, api.groq.com and so on: the path of what
    arrives tells whose base URL it came by.
    """

    proxy: Proxy
    stage: Stage
    ca: Path
    upstream: SelfSigned

    @property
    def env(self) -> dict[str, str]:
        """As `lunar-proxy ca show --env` says; the address is that of this proxy."""
        bundle = str(self.ca / "ca-bundle.pem")
        return {
            "HTTPS_PROXY": self.proxy.url,
            "SSL_CERT_FILE": bundle,
            "REQUESTS_CA_BUNDLE": bundle,
            "CURL_CA_BUNDLE": bundle,
            "NODE_EXTRA_CA_CERTS": str(self.ca / "ca.pem"),
        }

    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca / "ca.pem"))

    @contextlib.contextmanager
    def opened(
        self, host: str = "api.openai.com", port: int = 443, key: str | None = None
    ) -> Iterator[http.client.HTTPSConnection]:
        """A connection that is opened, to be used for any number of requests."""
        connection = http.client.HTTPSConnection(
            *self.proxy.address, timeout=PATIENCE_S, context=self.trusting()
        )
        credentials = {} if key is None else {"Proxy-Authorization": f"Bearer {key}"}
        connection.set_tunnel(host, port, credentials)
        try:
            yield connection
        finally:
            connection.close()

    def ask(
        self,
        doc: Any = None,
        *,
        host: str = "api.openai.com",
        port: int = 443,
        path: str = "/v1/chat/completions",
        method: str = "POST",
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        door: str = "fast",
    ) -> Answer:
        with self.opened(host, port, key) as connection:
            return exchange(connection, doc, path, method, headers, door)


def exchange(
    connection: http.client.HTTPConnection,
    doc: Any = None,
    path: str = "/v1/chat/completions",
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    door: str = "fast",
) -> Answer:
    body = doc if isinstance(doc, bytes | None) else orjson.dumps(doc)
    fields = {"content-type": "application/json"} if body is not None else {}
    fields |= dict(headers or {})
    if body is not None and door == "aiohttp":
        fields["transfer-encoding"] = "chunked"
        connection.request(method, path, iter([body]), fields, encode_chunked=True)
    else:
        connection.request(method, path, body, fields)
    response = connection.getresponse()
    fields = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, fields, response.read())


def logged(scene: Scene, answer: Answer) -> dict[str, Any]:
    """The record of that very call: the log is written a moment later, so the last may be older."""
    id = answer.headers["x-request-id"]
    found = eventually(lambda: [c for c in scene.proxy.calls() if c["request_id"] == id])
    return found[0]


def config(upstream: str, ca: Path, bundle: Path) -> dict[str, Any]:
    return {
        "providers": {
            "openai": {"base_url": f"{upstream}/openai/v1", "api_key": OURS},
            "groq": {"base_url": f"{upstream}/groq/v1", "api_key": "gsk_planted"},
            "together": {"base_url": f"{upstream}/together/v1"},  # no key: the caller's own
            "azure": {
                "base_url": f"{upstream}/azure",
                "api_key": "planted-azure",
                "api_version": "2024-10-21",
            },
        },
        "models": {"smart": {"targets": ["groq/llama-3.3-70b-versatile"]}},
        "fallbacks": {"gpt-4.1": ["groq/llama-3.3-70b-versatile"]},
        "intercept": {
            "enabled": True,
            "ca_dir": str(ca),
            "hosts": ["localhost=anthropic", "*.corp.example=openai"],
        },
        "upstream_ca": str(bundle),
        "breaker": {"failures": 100000},
        "retries": {"attempts": 1},
    }


def init_ca(folder: Path, config: Mapping[str, Any]) -> None:
    file = folder / "init.yaml"
    write_config(file, config)
    made = subprocess.run(
        command("ca", "init", "--config", str(file)),
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr


@contextlib.contextmanager
def scene(
    folder: Path,
    stage: Stage,
    upstream: SelfSigned,
    changes: Mapping[str, Any] | None = None,
    *args: str,
) -> Iterator[Scene]:
    bundle, ca = folder / "upstream.pem", folder / "ca"
    bundle.write_bytes(upstream.pem)
    wanted = config(stage.upstream.url, ca, bundle)
    for name, value in (changes or {}).items():
        merged = isinstance(value, dict) and name == "intercept"
        wanted[name] = {**wanted[name], **value} if merged else value
    init_ca(folder, wanted)
    with serving(folder, wanted, *args) as proxy:
        yield Scene(proxy, stage, ca, upstream)


@pytest.fixture(scope="module")
def certificate() -> SelfSigned:
    return self_signed("127.0.0.1", "localhost")


@pytest.fixture(scope="module")
def tls_stage(certificate: SelfSigned) -> Iterator[Stage]:
    with Stage(certificate.server) as stage:
        yield stage


@pytest.fixture(scope="module")
def shared_scene(
    tls_stage: Stage, certificate: SelfSigned, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("opened"), tls_stage, certificate) as made:
        yield made


@pytest.fixture
def here(shared_scene: Scene) -> Iterator[Scene]:
    shared_scene.stage.clear()
    yield shared_scene
    shared_scene.stage.clear()


# --- clients ------------------------------------------------------------------------------------


@pytest.fixture
def client_env(here: Scene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    for name in ("NO_PROXY", "no_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in here.env.items():
        monkeypatch.setenv(name, value)
    return here


def test_curl(client_env: Scene) -> None:
    client_env.stage.play(chat_answer("hi", usage=USAGE))
    curl = ["curl", "--silent", "--show-error", "https://api.openai.com/v1/chat/completions"]
    curl += ["--header", "content-type: application/json", "--data"]
    curl.append(orjson.dumps(chat("gpt-4o")).decode())
    done = subprocess.run(curl, capture_output=True, env=environment(**client_env.env), check=True)
    assert orjson.loads(done.stdout)["choices"][0]["message"]["content"] == "hi"
    assert client_env.stage.request.path == "/openai/v1/chat/completions"
    assert client_env.stage.request.header("authorization") == f"Bearer {OURS}"


def test_requests(client_env: Scene) -> None:
    client_env.stage.play(chat_answer("hi", usage=USAGE))
    with requests.Session() as session:
        url = "https://api.openai.com/v1/chat/completions"
        for _ in range(2):
            answer = session.post(url, json=chat("gpt-4o"), timeout=PATIENCE_S)
            assert answer.json()["choices"][0]["message"]["content"] == "hi"
    first, second = client_env.stage.requests
    assert first.connection == second.connection


def test_httpx(client_env: Scene) -> None:
    client_env.stage.play(chat_answer("hi", usage=USAGE))
    with httpx.Client() as client:
        answer = client.post("https://api.groq.com/openai/v1/chat/completions", json=chat("llama"))
    assert answer.headers["x-lunar-provider"] == "groq"
    assert client_env.stage.request.path == "/groq/v1/chat/completions"


def test_openai(client_env: Scene) -> None:
    client_env.stage.play(chat_stream("one two three", usage=USAGE))
    with openai.OpenAI(api_key="none-of-its-own") as client:
        stream = client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "one two three"
    assert client_env.stage.request.header("authorization") == f"Bearer {OURS}"


async def test_openai_with_aiohttp(client_env: Scene) -> None:
    client_env.stage.play(chat_answer("hi", usage=USAGE))
    async with openai.AsyncOpenAI(
        api_key="none-of-its-own", http_client=openai.DefaultAioHttpClient()
    ) as client:
        answer = await client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": "hi"}]
        )
    assert answer.choices[0].message.content == "hi"
    assert client_env.stage.request.path == "/openai/v1/chat/completions"


def test_anthropic_passes_untouched(client_env: Scene) -> None:
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-scripted",
        "content": [{"type": "text", "text": "hi"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 1},
    }
    client_env.stage.play(json_answer(message))
    url = f"https://localhost:{client_env.stage.upstream.port}"
    with anthropic.Anthropic(api_key="sk-ant-own", base_url=url) as client:
        answer = client.messages.create(
            model="claude-scripted",
            max_tokens=10,
            messages=[{"role": "user", "content": "hi"}],
        )
    assert answer.content[0].type == "text"
    sent = client.auth_headers  # which header carries the key depends on the kind of key
    request = client_env.stage.request
    assert request.path == "/v1/messages"
    assert {name: request.header(name) for name in sent} == sent
    assert request.header("host") == f"localhost:{client_env.stage.upstream.port}"


# --- calls to models ----------------------------------------------------------------------------


def test_an_opened_connection_speaks_http_1_1_and_is_kept(here: Scene, door: str) -> None:
    here.stage.play(chat_answer("hi", usage=USAGE))
    with here.opened() as connection:
        answers = [exchange(connection, chat("gpt-4o"), door=door) for _ in range(3)]
        assert connection.sock.selected_alpn_protocol() in (None, "http/1.1")
    assert [answer.status for answer in answers] == [200] * 3
    assert {request.connection for request in here.stage.requests} == {
        here.stage.requests[0].connection
    }


def test_bodies_stay_as_the_provider_wrote_them(here: Scene, door: str) -> None:
    here.stage.play(chat_answer("hi", usage=USAGE))
    answer = here.ask(chat("gpt-4o"), door=door)
    assert answer.doc["usage"] == USAGE
    assert orjson.loads(answer.headers["x-lunar-usage"])["total_cost_usd"] > 0
    call = logged(here, answer)
    assert (call["provider"], call["input_tokens"], call["output_tokens"]) == ("openai", 5, 7)


def test_a_request_asks_what_the_application_asked(here: Scene, door: str) -> None:
    """OpenRouter's own fields, say, are not ours when they are sent to its host."""
    here.stage.play(chat_answer("hi", usage=USAGE))
    doc = chat("meta-llama/Llama-3", models=["a/b"], provider={"sort": "price"})
    assert here.ask(doc, door=door).status == 200
    assert here.stage.request.doc == doc


@pytest.mark.parametrize(
    ("host", "path", "arrives"),
    [
        ("api.groq.com", "/openai/v1/chat/completions", "/groq/v1/chat/completions"),
        ("api.together.xyz", "/v1/chat/completions", "/together/v1/chat/completions"),
        ("llm.corp.example", "/v1/chat/completions", "/openai/v1/chat/completions"),
        ("127.0.0.1", "/groq/v1/chat/completions", "/groq/v1/chat/completions"),
        ("127.0.0.1", "/openai/v1/responses", "/openai/v1/responses"),
    ],
)
def test_host_and_path_tell_the_provider(
    here: Scene, door: str, host: str, path: str, arrives: str
) -> None:
    here.stage.play(chat_answer("hi", usage=USAGE))
    headers = {"authorization": "Bearer sk-own"}
    answer = here.ask(chat("m", input="x"), host=host, path=path, door=door, headers=headers)
    assert answer.status == 200, answer.body
    assert here.stage.request.path == arrives


def test_an_azure_deployment_is_named_by_the_path(here: Scene) -> None:
    here.stage.play(chat_answer("hi", usage=USAGE))
    path = "/openai/deployments/my-gpt/chat/completions?api-version=2025-01-01"
    doc = {"messages": [{"role": "user", "content": "hi"}]}
    answer = here.ask(doc, host="res.openai.azure.com", path=path, headers={"api-key": "x"})
    assert answer.status == 200, answer.body
    assert answer.headers["x-lunar-model"] == "my-gpt"
    request = here.stage.request
    assert request.path == "/azure" + path
    assert request.header("api-key") == "planted-azure"


def test_a_configured_name_leads_to_another_provider(here: Scene, door: str) -> None:
    here.stage.play(chat_answer("hi", usage=USAGE))
    answer = here.ask(chat("smart"), headers={"authorization": "Bearer sk-own"}, door=door)
    assert answer.headers["x-lunar-provider"] == "groq"
    assert here.stage.request.header("authorization") == "Bearer gsk_planted"


def test_a_fallback_serves_an_application_that_knows_one_host(here: Scene, door: str) -> None:
    def plan(request: Request) -> Script:
        down = request.path.startswith("/openai/")
        return error_answer(503) if down else chat_answer("hi", usage=USAGE)

    here.stage.play(plan)
    answer = here.ask(chat("gpt-4.1"), door=door)
    assert (answer.status, answer.headers["x-lunar-provider"]) == (200, "groq")
    assert here.stage.requests[-1].model == "llama-3.3-70b-versatile"


def test_the_callers_own_key_goes_to_its_provider_only(here: Scene, door: str) -> None:
    here.stage.play(chat_answer("hi", usage=USAGE))
    own = {"authorization": "Bearer sk-own-together"}
    here.ask(chat("m"), host="api.together.xyz", headers=own, door=door)
    here.ask(chat("smart"), host="api.together.xyz", headers=own, door=door)
    there, elsewhere = here.stage.requests
    assert there.header("authorization") == "Bearer sk-own-together"
    assert b"sk-own" not in b" ".join(value for _, value in elsewhere.headers)


def test_events_arrive_one_by_one(here: Scene, door: str) -> None:
    words = (b"one", b"two", b"three")
    events = [b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % w for w in words]
    events.append(b"data: [DONE]\n\n")
    gates = [asyncio.Event() for _ in events]
    steps: list[Step] = [Head(200, {"content-type": "text/event-stream"})]
    for event, gate in zip(events, gates, strict=True):
        steps += [Chunk(event), Until(gate)]
    here.stage.play([*steps, End()])
    with here.opened() as connection:
        body = orjson.dumps(chat("gpt-4o", stream=True))
        connection.request(
            "POST",
            "/v1/chat/completions",
            iter([body]) if door == "aiohttp" else body,
            {"content-type": "application/json"},
            encode_chunked=door == "aiohttp",
        )
        response = connection.getresponse()
        for event, gate in zip(events, gates, strict=True):
            assert response.read(len(event)) == event
            here.stage.set(gate)
        assert response.read() == b""


# --- everything else ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "arrives"),
    [
        ("GET", "/v1/models", "/openai/v1/models"),
        ("GET", "/health", "/health"),
        ("DELETE", "/v1/files/file-1?x=%2F", "/openai/v1/files/file-1?x=%2F"),
        ("PATCH", "/dashboard", "/dashboard"),
    ],
)
def test_what_is_no_call_to_a_model_passes_untouched(
    here: Scene, method: str, path: str, arrives: str
) -> None:
    here.stage.play(
        [
            Head(
                418,
                {"set-cookie": "a=b", "x-request-id": "theirs", "content-encoding": "odd"},
            ),
            Chunk(b"\x00\xffbytes"),
            End(),
        ]
    )
    sent = {
        "Authorization": "Bearer sk-own",
        "Cookie": "session=1",
        "Accept-Encoding": "br;q=1, gzip",
        "X-Lunar-Odd": "1",
        "Proxy-Connection": "keep-alive",
    }
    body = None if method in ("GET", "DELETE") else b"{not json"
    answer = here.ask(body, path=path, method=method, headers=sent)
    assert (answer.status, answer.body) == (418, b"\x00\xffbytes")
    assert answer.headers["set-cookie"] == "a=b"
    assert answer.headers["x-request-id"] == "theirs"
    request = here.stage.request
    assert (request.method, request.path, request.body) == (method, arrives, body or b"")
    for name, value in sent.items():
        assert request.header(name) == (None if name == "Proxy-Connection" else value)


def test_a_large_body_passes_as_it_comes(here: Scene) -> None:
    here.stage.play(json_answer({"id": "file-1"}))
    body = os.urandom(3_000_000)
    answer = here.ask(body, path="/v1/files", headers={"content-type": "application/octet-stream"})
    assert answer.status == 200
    assert here.stage.request.body == body


def test_a_host_is_asked_at_the_port_the_application_named(here: Scene) -> None:
    here.stage.play(json_answer({"ok": True}))
    answer = here.ask(
        None, host="localhost", port=here.stage.upstream.port, path="/any", method="GET"
    )
    assert answer.doc == {"ok": True}


def test_a_host_without_a_provider_is_openai_shaped_itself(
    tls_stage: Stage, certificate: SelfSigned, tmp_path: Path
) -> None:
    tls_stage.clear()
    tls_stage.play(chat_answer("hi", usage=USAGE))
    with scene(tmp_path, tls_stage, certificate, {"intercept": {"hosts": ["localhost"]}}) as here:
        answer = here.ask(
            chat("org/any-model"),
            host="localhost",
            port=tls_stage.upstream.port,
            path="/api/v1/chat/completions",
            headers={"authorization": "Bearer sk-own"},
        )
        assert answer.status == 200, answer.body
        assert answer.headers["x-lunar-provider"] == "localhost"
        call = eventually(here.proxy.calls)[0]
        assert (call["provider"], call["model"], call["output_tokens"]) == (
            "localhost",
            "org/any-model",
            7,
        )
    assert tls_stage.request.path == "/api/v1/chat/completions"
    assert tls_stage.request.header("authorization") == "Bearer sk-own"


# --- tunnels ------------------------------------------------------------------------------------


@contextlib.contextmanager
def echoing(address: str, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server that gives every byte back; for one connection."""
    with socket.create_server((address, 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                sock, _ = listening.accept()
                with sock if tls is None else tls.wrap_socket(sock, server_side=True) as peer:
                    while data := peer.recv(65536):
                        peer.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.close()
        thread.join(PATIENCE_S)


def connect(scene: Scene, target: str, headers: str = "") -> tuple[bytes, socket.socket]:
    """Ask for a tunnel; the head of the answer, and the connection."""
    sock = socket.create_connection(scene.proxy.address, timeout=PATIENCE_S)
    sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{headers}\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    return head, sock


def refused(scene: Scene, target: str, headers: str = "") -> tuple[int, str]:
    head, sock = connect(scene, target, headers)
    with sock:
        return int(head.split(b" ")[1]), orjson.loads(drain(sock))["error"]["code"]


def test_an_unknown_host_is_tunnelled_byte_for_byte(here: Scene) -> None:
    sent = os.urandom(1_000_000)
    with echoing("127.0.0.2") as port:
        head, sock = connect(here, f"127.0.0.2:{port}")
        with sock:
            assert head == b"HTTP/1.1 200 Connection established\r\n\r\n"
            writer = threading.Thread(target=send_all, args=(sock, sent))
            writer.start()
            assert drain(sock) == sent
            writer.join()


def send_all(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def test_tls_of_an_unknown_host_ends_there(here: Scene) -> None:
    """A WebSocket, as far as a tunnel can tell: TLS both ways, not answer after question."""
    far = self_signed("ws.example")
    with echoing("127.0.0.2", far.server) as port:
        _, sock = connect(here, f"127.0.0.2:{port}")
        with far.client.wrap_socket(sock, server_hostname="ws.example") as secure:
            for frame in (b"\x81\x05hello", b"\x82\x7e" + bytes(70000)):
                secure.sendall(frame)
                assert received(secure, len(frame)) == frame


def received(sock: ssl.SSLSocket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += sock.recv(65536)
    return data


def test_another_name_in_tls_is_refused(here: Scene) -> None:
    _, sock = connect(here, "api.openai.com:443")
    with (
        pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"),
        here.trusting().wrap_socket(sock, server_hostname="api.groq.com"),
    ):
        pass
    sock.close()
    assert here.stage.requests == []


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("nowhere", 400, "invalid_authority"),
        ("api.openai.com:0", 400, "invalid_authority"),
        ("[::1:443", 400, "invalid_authority"),
        ("127.0.0.2:1", 502, "upstream_connect"),
    ],
)
def test_a_connect_that_fails_is_told_in_json(
    here: Scene, target: str, status: int, code: str
) -> None:
    assert refused(here, target) == (status, code)


def test_the_proxy_is_not_tunnelled_to(here: Scene) -> None:
    port = here.proxy.address[1]
    assert refused(here, f"[::ffff:127.0.0.1]:{port}") == (403, "proxy_loop")


def test_without_interception_every_connect_is_a_tunnel(
    tls_stage: Stage, certificate: SelfSigned, tmp_path: Path
) -> None:
    tls_stage.clear()
    tls_stage.play(json_answer({"ok": True}))
    with scene(tmp_path, tls_stage, certificate, {"intercept": {"enabled": False}}) as here:
        _, sock = connect(here, f"127.0.0.1:{tls_stage.upstream.port}")
        with certificate.client.wrap_socket(sock, server_hostname="127.0.0.1") as secure:
            assert secure.getpeercert(binary_form=True) in ssl_certificates(certificate)


def ssl_certificates(certificate: SelfSigned) -> list[bytes]:
    return [ssl.PEM_cert_to_DER_cert(certificate.pem.decode())]


def test_tunnel_none_refuses_what_is_not_opened(
    tls_stage: Stage, certificate: SelfSigned, tmp_path: Path
) -> None:
    tls_stage.clear()
    tls_stage.play(chat_answer("hi", usage=USAGE))
    with scene(tmp_path, tls_stage, certificate, {"intercept": {"tunnel": "none"}}) as here:
        assert refused(here, "127.0.0.2:443") == (403, "tunnel_refused")
        assert here.ask(chat("gpt-4o")).status == 200


def test_a_reload_changes_the_rules(
    tls_stage: Stage, certificate: SelfSigned, tmp_path: Path
) -> None:
    with scene(tmp_path, tls_stage, certificate) as here:
        assert refused(here, "127.0.0.2:1")[1] == "upstream_connect"
        changed = config(tls_stage.upstream.url, here.ca, tmp_path / "upstream.pem")
        changed["intercept"]["tunnel"] = "none"
        write_config(here.proxy.config, changed)
        assert httpx.post(f"{here.proxy.admin}/-/reload").status_code == 200
        assert refused(here, "127.0.0.2:1")[1] == "tunnel_refused"


# --- who may ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded_scene(
    tls_stage: Stage, certificate: SelfSigned, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    """Not on loopback, and with keys."""
    folder = tmp_path_factory.mktemp("guarded")
    changes = {
        "auth": {"required": True, "keys": [{"name": "team-a", "key": KEY}]},
        "intercept": {"hosts": ["localhost=openai"]},
    }
    with scene(folder, tls_stage, certificate, changes, "--listen", "0.0.0.0:0") as made:
        made.proxy.url = made.proxy.url.replace("0.0.0.0", "127.0.0.1")
        yield made


@pytest.fixture
def guarded(guarded_scene: Scene) -> Iterator[Scene]:
    guarded_scene.stage.clear()
    yield guarded_scene
    guarded_scene.stage.clear()


def bearer(key: str) -> str:
    return f"Proxy-Authorization: Bearer {key}\r\n"


@pytest.mark.parametrize("headers", ["", bearer("pk_live_" + "x" * 40), bearer("whatever")])
def test_a_stranger_gets_no_connect(guarded: Scene, headers: str) -> None:
    status, code = refused(guarded, "api.openai.com:443", headers)
    assert (status, code) == (407, "proxy_authentication_required")


def test_the_key_of_the_connect_counts_for_what_is_inside(guarded: Scene, door: str) -> None:
    guarded.stage.play(chat_answer("hi", usage=USAGE))
    answer = guarded.ask(chat("gpt-4o"), key=KEY, door=door)
    assert answer.status == 200, answer.body
    assert logged(guarded, answer)["key"] == "team-a"
    sent = guarded.stage.request
    assert KEY.encode() not in b"".join(value for _, value in sent.headers) + sent.body


def test_a_key_of_ours_opens_the_whole_api_and_never_leaves(guarded: Scene) -> None:
    guarded.stage.play(json_answer({"object": "list", "data": []}))
    for header in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}):
        answer = guarded.ask(path="/v1/models", method="GET", key=KEY, headers=header)
        assert answer.status == 200, answer.body
    for request in guarded.stage.requests:
        assert request.header("authorization") == f"Bearer {OURS}"
        assert all(KEY.encode() not in value for _, value in request.headers)


@pytest.mark.parametrize(
    "place",
    [
        {"path": "/v1/models?key=" + KEY},
        {"path": "/v1/models", "headers": {"cookie": f"k={KEY}"}},
        {"path": "/elsewhere", "headers": {"x-goog-api-key": KEY}},
    ],
)
def test_a_key_of_ours_in_an_odd_place_is_refused(guarded: Scene, place: dict[str, Any]) -> None:
    answer = guarded.ask(method="GET", key=KEY, **place)
    assert answer.status == 401
    assert KEY not in answer.body.decode()
    assert guarded.stage.requests == []


@pytest.mark.parametrize("key", [KEY, "pk_live_" + "planted" * 6], ids=["good", "unknown"])
@pytest.mark.parametrize("scheme", ["Bearer", "Basic"])
def test_the_key_of_a_connect_is_in_no_output(guarded: Scene, key: str, scheme: str) -> None:
    guarded.stage.play(chat_answer("hi", usage=USAGE))
    said = key if scheme == "Bearer" else base64.b64encode(f"me:{key}".encode()).decode()
    head, sock = connect(guarded, "api.openai.com:443", f"Proxy-Authorization: {scheme} {said}\r\n")
    sock.close()
    assert head.startswith(b"HTTP/1.1 200") is (key == KEY)
    outputs = [head.decode(), guarded.proxy.stderr()]
    for path in ("/metrics", "/-/config", "/-/ready", "/-/snapshot", "/-/keys"):
        answer = httpx.get(f"{guarded.proxy.admin}{path}")
        assert answer.status_code == 200
        outputs.append(answer.text)
    assert not [text for text in outputs if key in text or said in text]


@pytest.mark.parametrize("target", ["127.0.0.2:443", "10.0.0.1:443", "169.254.169.254:443"])
def test_private_addresses_are_out_of_reach(guarded: Scene, target: str) -> None:
    assert refused(guarded, target, bearer(KEY)) == (403, "private_address")


def test_only_port_443_is_tunnelled_for_strangers(guarded: Scene) -> None:
    assert refused(guarded, "mail.example:25", bearer(KEY)) == (403, "tunnel_refused")


# --- plain HTTP ---------------------------------------------------------------------------------


def absolute(scene: Scene, target: str, doc: Any = None, method: str = "POST") -> Answer:
    connection = http.client.HTTPConnection(*scene.proxy.address, timeout=PATIENCE_S)
    try:
        return exchange(connection, doc, target, method)
    finally:
        connection.close()


def test_an_absolute_request_for_a_provider_is_served(here: Scene) -> None:
    here.stage.play(chat_answer("hi", usage=USAGE))
    for host in ("http://api.openai.com", "https://API.OPENAI.COM:443"):
        answer = absolute(here, f"{host}/v1/chat/completions", chat("gpt-4o"))
        assert answer.status == 200, answer.body
        assert answer.doc["usage"] == USAGE
    assert [request.path for request in here.stage.requests] == ["/openai/v1/chat/completions"] * 2


def test_an_absolute_request_for_us_is_ours(here: Scene) -> None:
    assert absolute(here, f"{here.proxy.url}/health", method="GET").doc == {"status": "ok"}


@pytest.mark.parametrize("target", ["http://127.0.0.2/", "http://user@api.openai.com/", "http://"])
def test_an_absolute_request_for_anyone_else_is_refused(here: Scene, target: str) -> None:
    answer = absolute(here, target, method="GET")
    assert answer.status in (400, 403)
    assert answer.error["code"] in ("not_proxied", "invalid_authority", "bad_http")
    assert here.stage.requests == []


# --- a proxy above us ---------------------------------------------------------------------------


class ParentProxy:
    """A proxy that sends every tunnel to one place, whatever name it is asked for."""

    def __init__(self, to: tuple[str, int]) -> None:
        self.heads: list[bytes] = []
        self._to = to
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        far_reader, far_writer = await asyncio.open_connection(*self._to)
        if head.startswith(b"CONNECT "):
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            far_writer.write(head)
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_providers_are_reached_through_a_parent_proxy(scheme: str, tmp_path: Path) -> None:
    certificate = self_signed("llm.corp.example")
    with Stage(certificate.server if scheme == "https" else None) as stage:
        stage.play(chat_answer("hi", usage=USAGE))
        parent = ParentProxy(("127.0.0.1", stage.upstream.port))
        port = stage.run(parent.start())
        changes = {
            "providers": {
                "openai": {"base_url": f"{scheme}://llm.corp.example/v1", "api_key": OURS}
            },
            "models": {},
            "fallbacks": {},
            "upstream_proxy": f"http://me:secret@127.0.0.1:{port}",
            "intercept": {"hosts": []},
        }
        with scene(tmp_path, stage, certificate, changes) as here:
            for _ in range(2):
                assert here.ask(chat("gpt-4o")).status == 200
            first = [head.split(b"\r\n") for head in parent.heads]
        stage.run(parent.stop())
    asked = {
        "https": b"CONNECT llm.corp.example:443 HTTP/1.1",
        "http": b"POST http://llm.corp.example/v1/chat/completions HTTP/1.1",
    }
    assert [lines[0] for lines in first] == [asked[scheme]]  # and one connection for both
    names = [line.partition(b":")[0].lower() for line in first[0]]
    assert names.count(b"proxy-authorization") == 1


def test_a_base_url_that_leads_back_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    # An address that only the connection tells to be this machine's; `check` knows the plain ones.
    changes = {
        "providers": {"openai": {"base_url": f"http://127.1.1.1:{port}/v1", "api_key": "k"}},
        "auth": {"required": True, "keys": [{"name": "team-a", "key": KEY}]},
    }
    with serving(tmp_path, changes, "--listen", f"0.0.0.0:{port}"):
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        headers = {"authorization": f"Bearer {KEY}"}
        answer = httpx.post(url, json=chat("openai/gpt-4o"), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "proxy_loop")


# --- Node ---------------------------------------------------------------------------------------

NODE = Path(__file__).parent / "node"


@pytest.mark.skipif(not (NODE / "node_modules").is_dir(), reason="needs `make node`")
def test_openai_under_node(here: Scene) -> None:
    here.stage.play(chat_stream("one two three", usage=USAGE))
    done = subprocess.run(
        ["node", str(NODE / "stream.js")],
        capture_output=True,
        env=environment(**here.env),
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.stdout == b"one two three", done.stderr
    assert here.stage.request.path == "/openai/v1/chat/completions"
