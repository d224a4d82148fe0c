"""Several workers behind one address: together they are one proxy."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lunar_proxy.testing import Until, chat, chat_stream

from .guarded import TEAM, USAGE, admin, bearer, config
from .harness import (
    PATIENCE_S,
    Proxy,
    Stage,
    ask,
    command,
    environment,
    eventually,
    first_line,
    opened,
    serving,
    write_config,
)
from .harness import chat as chat_doc

WORKERS = 3


@pytest.fixture
def proxy(stage: Stage, tmp_path: Path) -> Iterator[Proxy]:
    with serving(tmp_path, settings(stage)) as running:
        yield running


def settings(stage: Stage, **more: Any) -> dict[str, Any]:
    return config(stage.upstream.url, workers=WORKERS, **more)


def workers(proxy: Proxy) -> list[int]:
    pid = proxy.process.pid
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def requests_counted(proxy: Proxy) -> float:
    text = admin(proxy, "/metrics").body.decode()
    rows = re.findall(r"^lunar_requests_total\{.*\} (\S+)$", text, re.MULTILINE)
    return sum(map(float, rows))


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()


def test_a_scrape_tells_what_all_of_them_did(proxy: Proxy, stage: Stage) -> None:
    stage.play(chat("Hello", USAGE))
    for _ in range(30):
        assert ask(proxy.url, chat_doc()).status == 200
    assert len(workers(proxy)) == WORKERS
    assert [requests_counted(proxy) for _ in range(5)] == [30.0] * 5


def test_a_worker_that_dies_is_replaced(proxy: Proxy, stage: Stage) -> None:
    stage.play(chat("Hello"))
    victim, *others = workers(proxy)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in workers(proxy) and len(workers(proxy)) == WORKERS)
    assert set(others) < set(workers(proxy))
    eventually(lambda: admin(proxy, "/-/ready").status == 200)
    for _ in range(20):
        assert ask(proxy.url, chat_doc()).status == 200
    assert "a worker died (-9)" in proxy.stderr()


@pytest.mark.parametrize("how", ["signal", "admin"])
def test_a_reload_reaches_them_all(proxy: Proxy, stage: Stage, how: str) -> None:
    stage.play(chat("Hello"))
    write_config(proxy.config, settings(stage, models={"fresh": {"targets": ["own/m"]}}))
    if how == "signal":
        proxy.signal(signal.SIGHUP)
    else:
        assert admin(proxy, "/-/reload", method="POST").status == 200
    generation = "lunar_config_generation 2.0"  # the least of all workers'
    eventually(lambda: generation in admin(proxy, "/metrics").body.decode())
    for _ in range(12):
        assert ask(proxy.url, chat_doc("fresh")).status == 200


def test_running_streams_finish_when_the_proxy_is_stopped(proxy: Proxy, stage: Stage) -> None:
    free = stage.event()
    script = chat_stream("one two", usage=USAGE)
    stage.play((*script[:3], Until(free), *script[3:]))
    pids = workers(proxy)
    with opened(proxy.url, chat_doc(stream=True)) as response:
        proxy.signal(signal.SIGTERM)
        eventually(lambda: all(refuses(proxy.address) for _ in range(5)))
        stage.set(free)
        assert response.read().endswith(b"data: [DONE]\n\n")
    assert proxy.process.wait(PATIENCE_S) == 0
    assert all(gone(pid) for pid in pids)


def refuses(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_no_worker_outlives_the_parent(stage: Stage, tmp_path: Path) -> None:
    path, log = tmp_path / "lunar.yaml", tmp_path / "stderr"
    write_config(path, settings(stage, listen="127.0.0.1:0"))
    with log.open("wb") as stderr:
        parent = subprocess.Popen(
            command("serve", "--config", str(path)),
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment(),
        )
    with parent:
        started = first_line(parent, log)
        pids = workers(Proxy(parent, started["proxy"], started["admin"], log, path))
        parent.kill()
        eventually(lambda: all(gone(pid) for pid in pids))
    assert len(pids) == WORKERS


def test_limits_are_those_of_one_proxy(stage: Stage, tmp_path: Path) -> None:
    keys = [{"name": "a", "key": TEAM, "limits": {"requests_per_minute": 10}}]
    store = f"sqlite:{tmp_path / 'lunar.db'}"
    stage.play(chat("Hello"))
    with serving(tmp_path, settings(stage, store=store, auth={"keys": keys})) as proxy:
        statuses = [ask(proxy.url, chat_doc(), headers=bearer(TEAM)).status for _ in range(20)]
        assert statuses == [200] * 10 + [429] * 10


def test_keys_in_memory_cannot_be_made_where_only_one_would_know_them(proxy: Proxy) -> None:
    answer = admin(proxy, "/-/keys", {"name": "a"})
    assert answer.status == 400
    assert "redis or sqlite" in answer.error["message"]


@pytest.mark.parametrize("why", ["the port is taken", "the store cannot be opened"])
def test_what_keeps_one_from_starting_ends_them_all(stage: Stage, tmp_path: Path, why: str) -> None:
    path = tmp_path / "lunar.yaml"
    missing = f"sqlite:{tmp_path}/no/such/folder/lunar.db"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1] if "port" in why else 0
        more = {} if "port" in why else {"store": missing}
        write_config(path, settings(stage, listen=f"127.0.0.1:{port}", **more))
        ended = subprocess.run(
            command("serve", "--config", str(path)),
            env=environment(),
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert b"Traceback" not in ended.stderr
