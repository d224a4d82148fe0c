"""The client hangs up: in every phase the provider's connection is closed within a second, what was
used is settled, the slot is free, the target is not blamed, and the phase is counted.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from lunar_proxy.testing import Chunk, Head, Pause, Script, error_answer
from tests.e2e.faults.apis import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, SSE, TEXT, Api
from tests.e2e.faults.world import DOORS, Scene, World, world
from tests.e2e.harness import ask, eventually

JSON = Head(200, {"content-type": "application/json"})


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(
        tmp_path_factory.mktemp("cancellation"),
        breaker={"failures": 1},  # to blame a target once is to close it
        limits={"concurrent_requests": 4},
    ) as found:
        yield found


@pytest.fixture
def scene(running: World) -> Scene:
    return running.scene()


@dataclass(frozen=True)
class Moment:
    """What the provider has done when the client leaves; `seen`: the client waits for the head."""

    plays: Callable[[Api], Script]
    phase: str
    stream: bool = True
    seen: bool = False


MOMENTS = {
    "headers of a document": Moment(lambda api: (), "headers", stream=False),
    "within a document": Moment(lambda api: (JSON, Chunk(b'{"id":')), "body", stream=False),
    "headers of a stream": Moment(lambda api: (), "headers"),
    "first token": Moment(lambda api: (SSE,), "first_token"),
    "first token, after the preamble": Moment(lambda api: api.opening(), "first_token"),
    "stream": Moment(lambda api: api.opening("Hello ", "wor"), "stream", seen=True),
    "stream, finished but open": Moment(
        lambda api: (*api.opening("Hello"), Chunk(api.finish)), "stream", seen=True
    ),
}
APIS = (CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS)
WAYS = [
    pytest.param(moment, api, door, id=f"{name}-{api}-{door}")
    for name, moment in MOMENTS.items()
    for api in APIS
    for door in DOORS
    if api.finish or not moment.stream
]


def hang_up(connection: http.client.HTTPConnection, *, reset: bool = False) -> None:
    if reset:
        linger = struct.pack("ii", 1, 0)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.close()


def disconnects(scene: Scene, phase: str) -> float:
    return scene.world.metric("lunar_client_disconnects_total", phase=phase)


def is_forgotten(scene: Scene) -> None:
    """Nothing is left of a call that was given up, and nobody is blamed for it."""
    eventually(lambda: scene.world.metric("lunar_inflight_requests") == 0)
    path = f"/v1/providers?model={scene.target('a')}"
    (row,) = ask(scene.world.proxy.url, path=path, method="GET").doc
    assert row["enabled"]
    assert row["params"]["state"] == "closed"
    assert not row["params"]["error_rate"]


@pytest.mark.parametrize(("moment", "api", "door"), WAYS)
def test_the_provider_is_let_go(scene: Scene, moment: Moment, api: Api, door: str) -> None:
    before = disconnects(scene, moment.phase)
    scene.plays("a", moment.plays(api))
    connection = scene.sent(api, stream=moment.stream, door=door)
    eventually(lambda: scene.asked("a"))
    if moment.seen:
        assert connection.getresponse().read1()
    else:
        said = sum(len(step.data) for step in moment.plays(api) if isinstance(step, Chunk))
        number = scene.asked("a")[0].connection
        upstream = scene.world.cast.upstreams["a"].connections[number]
        eventually(lambda: upstream.bytes_sent >= said)
        held_by_the_proxy(scene)
    hang_up(connection)
    scene.world.cast.closed("a", scene.asked("a")[0].connection, within_s=1)
    record = scene.record
    assert record["disconnected"] == moment.phase
    assert record["status"] == 499
    assert len(scene.asked("a")) == 1
    assert disconnects(scene, moment.phase) - before == 1
    is_forgotten(scene)


def held_by_the_proxy(scene: Scene) -> None:
    """What the provider said has been read: a call after it, on the same loop, is answered."""
    ask(scene.world.proxy.url, path="/health", method="GET")


@pytest.mark.parametrize("door", DOORS)
def test_a_reset_is_a_hang_up_too(scene: Scene, door: str) -> None:
    scene.plays("a", ())
    connection = scene.sent(CHAT, door=door)
    eventually(lambda: scene.asked("a"))
    hang_up(connection, reset=True)
    scene.world.cast.closed("a", scene.asked("a")[0].connection, within_s=1)
    is_forgotten(scene)


@pytest.mark.parametrize("door", DOORS)
def test_while_connecting(scene: Scene, door: str) -> None:
    before = disconnects(scene, "connect")
    connection = scene.sent(CHAT, "mute", door=door)
    eventually(lambda: scene.world.metric("lunar_inflight_requests") == 1)
    hang_up(connection)
    assert scene.record["disconnected"] == "connect"
    assert disconnects(scene, "connect") - before == 1
    is_forgotten(scene)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("door", DOORS)
def test_while_backing_off(scene: Scene, door: str, stream: bool) -> None:
    """The provider has failed, and is blamed for that; but it is not asked again."""
    before = disconnects(scene, "backoff")
    scene.plays("a", error_answer(429, headers={"retry-after": "2"}))
    connection = scene.sent(CHAT, stream=stream, door=door)
    eventually(lambda: scene.asked("a"))
    held_by_the_proxy(scene)
    hang_up(connection)
    assert scene.record["disconnected"] == "backoff"
    assert disconnects(scene, "backoff") - before == 1
    eventually(lambda: scene.world.metric("lunar_inflight_requests") == 0)
    assert len(scene.asked("a")) == 1


@pytest.mark.parametrize("door", DOORS)
def test_after_a_fallback_the_one_that_answers_is_let_go(scene: Scene, door: str) -> None:
    scene.plays("b", CHAT.opening("Hello"))
    connection = scene.sent(CHAT, "dead", "b", stream=True, door=door)
    assert connection.getresponse().read1()
    hang_up(connection)
    scene.world.cast.closed("b", scene.asked("b")[0].connection, within_s=1)
    assert scene.record["provider"] == "b"


@pytest.mark.parametrize("api", [CHAT, COMPLETIONS, RESPONSES], ids=repr)
def test_what_was_said_until_then_is_settled(scene: Scene, api: Api) -> None:
    scene.plays("a", api.opening("Hello ", "there ", "my ", "friend"))
    with scene.opened(api, stream=True) as response:
        received = b""
        while b"friend" not in received:
            received += response.read1()
    record = scene.record
    assert record["estimated"]
    assert 3 <= record["output_tokens"] <= 6
    assert record["input_tokens"] > 0


def test_usage_that_the_provider_had_told_is_settled(scene: Scene) -> None:
    usage = CHAT.ending[0]
    scene.plays("a", (*CHAT.opening("Hello"), Chunk(CHAT.finish + usage), Pause(30)))
    with scene.opened(CHAT, stream=True) as response:
        received = b""
        while b"total_cost_usd" not in received:
            received += response.read1()
    record = scene.record
    assert (record["input_tokens"], record["output_tokens"]) == (5, 7)
    assert not record["estimated"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_slot_of_a_concurrency_limit_is_given_back(scene: Scene, stream: bool) -> None:
    scene.plays("a", CHAT.opening("Hello") if stream else ())
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                stack.callback(scene.sent(CHAT, stream=stream).close)
            eventually(lambda: scene.world.metric("lunar_inflight_requests") == 4)
            scene.plays("b", CHAT.says(TEXT))
            assert scene.ask(CHAT, "b").status == 429
        eventually(lambda: scene.world.metric("lunar_inflight_requests") == 0)
    assert scene.ask(CHAT, "b").status == 200


def test_a_provider_that_goes_on_talking_is_left_all_the_same(scene: Scene) -> None:
    steps = [step for _ in range(200) for step in (Chunk(CHAT.word("on ")), Pause(0.02))]
    scene.plays("a", (*CHAT.opening("on and "), *steps))
    with scene.opened(CHAT, stream=True) as response:
        assert response.read1()
    scene.world.cast.closed("a", scene.asked("a")[0].connection, within_s=1)
    assert scene.record["disconnected"] == "stream"
    is_forgotten(scene)
