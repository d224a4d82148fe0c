"""Starting, stopping, reloading, and refusing to start."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import resource
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from lunar_proxy.testing import Chunk, End, Head, Until, chat_answer, dead_url

from .conftest import config
from .harness import (
    PATIENCE_S,
    Proxy,
    Stage,
    ask,
    chat,
    command,
    environment,
    eventually,
    opened,
    serving,
    write_config,
)

EVENT = (
    b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}\n\n'
)


def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*args),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=environment(**env),
        check=False,
    )


def test_the_demo_needs_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, None, "--demo") as proxy:
        usage = ask(proxy.url, chat("demo/echo")).doc["usage"]
        assert usage["total_cost_usd"] > 0
        assert usage["ttft_ms"] <= usage["latency_ms"]


def test_a_key_in_the_environment_turns_its_provider_on(tmp_path: Path) -> None:
    with serving(tmp_path, None, GROQ_API_KEY="gsk_1") as proxy:
        rows = ask(proxy.url, path="/v1/providers", method="GET").doc
        assert [row["id"] for row in rows if row["enabled"]] == ["groq"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_running_stream_finishes_before_the_end(
    tmp_path: Path, stage: Stage, door: str, number: signal.Signals
) -> None:
    gate = asyncio.Event()
    sse = Head(200, {"content-type": "text/event-stream"})
    stage.play([sse, Chunk(EVENT), Until(gate), Chunk(EVENT), Chunk(b"data: [DONE]\n\n"), End()])
    off = {"x-lunar-annotate": "off"}
    with serving(tmp_path, config(stage.upstream.url)) as proxy:
        assert ask(proxy.admin, path="/-/ready", method="GET").status == 200
        with opened(proxy.url, chat(stream=True), door=door, headers=off) as response:
            assert response.read(len(EVENT)) == EVENT
            proxy.signal(number)
            not_ready = eventually(lambda: _not_ready(proxy))
            assert not_ready["status"] == "not ready"
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(proxy.address, timeout=1)
            stage.set(gate)
            assert response.read() == EVENT + b"data: [DONE]\n\n"
        assert proxy.process.wait(PATIENCE_S) == 0


def _not_ready(proxy: Proxy) -> Any:
    answer = ask(proxy.admin, path="/-/ready", method="GET")
    return answer.doc if answer.status == 503 else None


def test_a_stream_without_end_is_cut_when_the_time_is_up(
    tmp_path: Path, stage: Stage, door: str
) -> None:
    stage.play([Head(200, {"content-type": "text/event-stream"}), Chunk(EVENT)])
    with (
        serving(tmp_path, config(stage.upstream.url) | {"drain_s": 0.5}) as proxy,
        opened(proxy.url, chat(stream=True), door=door) as response,
    ):
        response.read(len(EVENT))
        assert proxy.stop() == 0
        with pytest.raises((ConnectionError, http.client.IncompleteRead)):
            response.read()
    stage.closed_by_proxy(stage.request)
    (record,) = [record for record in proxy.records() if record["event"] == "call"]
    assert (record["status"], record["disconnected"]) == (499, "stream")
    assert record["output_tokens"] > 0


def test_an_idle_connection_does_not_hold_the_end_up(tmp_path: Path, stage: Stage) -> None:
    with (
        serving(tmp_path, config(stage.upstream.url), "--demo") as proxy,
        socket.create_connection(proxy.address, timeout=5) as sock,
    ):
        assert ask(proxy.url, chat("demo/echo")).status == 200
        proxy.signal(signal.SIGTERM)
        assert sock.recv(1) == b""
        assert proxy.process.wait(5) == 0


def test_sighup_reloads_and_a_bad_config_changes_nothing(tmp_path: Path, stage: Stage) -> None:
    wanted = config(stage.upstream.url)
    stage.play(chat_answer("Hi"))
    with serving(tmp_path, wanted) as proxy:
        assert ask(proxy.url, chat("later")).status == 404
        write_config(proxy.config, wanted | {"models": {"later": {"targets": ["openai/gpt-4o"]}}})
        proxy.signal(signal.SIGHUP)
        eventually(lambda: "generation 2" in proxy.stderr())
        assert ask(proxy.url, chat("later")).status == 200

        write_config(proxy.config, wanted | {"modles": {}})
        proxy.signal(signal.SIGHUP)
        eventually(lambda: "nothing" in proxy.stderr() and "did you mean models?" in proxy.stderr())
        assert ask(proxy.url, chat("later")).status == 200
        refused = ask(proxy.admin, path="/-/reload")
        assert refused.status == 400
        assert "did you mean models?" in refused.error["message"]
        assert ask(proxy.url, chat("later")).status == 200

        write_config(proxy.config, wanted)
        assert ask(proxy.admin, path="/-/reload").doc == {"status": "reloaded", "generation": 3}
        assert ask(proxy.url, chat("later")).status == 404


def test_a_reload_leaves_running_streams_alone(tmp_path: Path, stage: Stage) -> None:
    gate = asyncio.Event()
    sse = Head(200, {"content-type": "text/event-stream"})
    stage.play([sse, Chunk(EVENT), Until(gate), Chunk(b"data: [DONE]\n\n"), End()])
    off = {"x-lunar-annotate": "off"}
    with (
        serving(tmp_path, config(stage.upstream.url)) as proxy,
        opened(proxy.url, chat(stream=True), headers=off) as response,
    ):
        response.read(len(EVENT))
        assert ask(proxy.admin, path="/-/reload").status == 200
        stage.set(gate)
        assert response.read() == b"data: [DONE]\n\n"


def test_a_taken_port_is_exit_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("serve", "--demo", "--listen", address, "--admin", "127.0.0.1:0")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_config_is_exit_2_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("listen: 127.0.0.1:0\nproviders:\n  openai: {api_kee: x}\n")
    for args in (("serve", "--config", str(path)), ("check", str(path))):
        done = run(*args)
        assert done.returncode == 2
        assert f"{path}:3: providers.openai.api_kee:" in done.stderr
        assert "did you mean api_key?" in done.stderr


@pytest.mark.parametrize("args", [(), ("serve", "--nonsense"), ("dance",)])
def test_bad_arguments_are_exit_2(args: tuple[str, ...]) -> None:
    done = run(*args)
    assert done.returncode == 2
    assert "usage: lunar-proxy" in done.stderr


def test_help_and_version() -> None:
    assert "serve" in run("--help").stdout
    assert "--demo" in run("serve", "--help").stdout
    assert run("--version").stdout.startswith("lunar-proxy ")


def test_it_takes_more_connections_than_the_soft_limit_of_open_files(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as held:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
        try:
            proxy = held.enter_context(serving(tmp_path, None, "--demo"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(150):
            held.enter_context(socket.create_connection(proxy.address, timeout=PATIENCE_S))
        assert ask(proxy.url, chat("demo/echo")).status == 200


@pytest.mark.parametrize("args", [("--help",), ("serve", "--help"), ("--version",)])
def test_help_does_not_wait_for_the_whole_proxy(args: tuple[str, ...]) -> None:
    loaded = run(*args, PYTHONPROFILEIMPORTTIME="1").stderr
    assert "lunar_proxy.cli" in loaded
    for slow in ("aiohttp", "cryptography", "numpy", "onnxruntime", "tokenizers"):
        assert f" {slow}\n" not in loaded


def test_the_proxies_of_its_own_environment_are_not_for_its_calls(
    tmp_path: Path, stage: Stage
) -> None:
    """Where applications are sent to it by HTTPS_PROXY it may have inherited that: its calls would
    come back to itself. `upstream_proxy` is what it heeds."""
    stage.play(chat_answer("Hi"))
    variables = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    env = {name: dead_url() for each in variables for name in (each, each.lower())}
    with serving(tmp_path, config(stage.upstream.url), **env) as proxy:
        assert ask(proxy.url, chat()).status == 200


def test_two_hundred_calls_at_once_are_all_answered(proxy: Proxy, stage: Stage) -> None:
    stage.play(chat_answer("Hi"))
    statuses: list[int] = []

    def one() -> None:
        statuses.append(ask(proxy.url, chat()).status)

    threads = [threading.Thread(target=one) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 200


def test_the_wheel_runs_away_from_its_sources(tmp_path: Path) -> None:
    """What `pip install .` leaves out is missed only by those who have no checkout."""
    root = Path(__file__).parents[2]
    pip = [*command()[:1], "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    target = tmp_path / "site"
    built = subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--target", str(target), str(root)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    ask_for = "import lunar_proxy.pricing as p; print(p.__file__, p.TokenCounter().count('Hello'))"
    done = subprocess.run(
        [*command()[:1], "-c", ask_for],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        # Not measured: coverage would count the copy as code that nothing ran.
        env=environment(PYTHONPATH=str(target), COVERAGE_PROCESS_CONFIG=""),
    )
    where, count = done.stdout.split()
    assert where.startswith(str(target))
    assert int(count) == 1
    names = {path.name for path in (target / "lunar_proxy").rglob("*")}
    assert {"py.typed", "tokenizer.json"} <= names
