"""Connections that are kept: what one answer leaves behind must not touch the next call."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import orjson
import pytest

from lunar_proxy.testing import (
    Break,
    Chunk,
    Close,
    End,
    Head,
    Pause,
    Raw,
    Request,
    Script,
    Step,
    error_answer,
)

from .apis import CHAT, TEXT
from .cast import PATIENCE_S
from .world import DOORS, TOO_LARGE, Scene


def answer(text: str) -> bytes:
    body = orjson.dumps(CHAT.whole(text, "theirs"))
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


def test_a_connection_is_used_again(scene: Scene) -> None:
    scene.plays("a", CHAT.says(TEXT))
    for stream in (False, True, False):
        scene.ask(CHAT, stream=stream)
    assert len({request.connection for request in scene.asked("a")}) == 1


def test_a_connection_is_used_again_after_an_error(scene: Scene) -> None:
    scene.plays("a", error_answer(400))
    scene.ask(CHAT)
    scene.ask(CHAT, stream=True)
    assert len({request.connection for request in scene.asked("a")}) == 1


@pytest.mark.parametrize("gone", [Break(), Close()], ids=["reset", "closed"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("door", DOORS)
def test_a_kept_connection_that_has_gone_is_no_failure(
    scene: Scene, gone: Step, stream: bool, door: str
) -> None:
    """The provider closes an idle connection at the very moment it is used again."""
    scene.plays("a", CHAT.says("warm"))
    scene.ask(CHAT)
    (warm,) = scene.asked("a")

    def play(request: Request) -> Script:
        return (gone,) if request.connection == warm.connection else CHAT.says(TEXT)(request)

    scene.plays("a", play)
    scene.plays("b", CHAT.says("not me"))
    found = scene.ask(CHAT, "a", "b", stream=stream, door=door)
    assert found.text(CHAT) == TEXT
    assert found.who == ("a", 1, 0)
    assert len(scene.asked("a")) == 3
    assert scene.record["tried"] == []


LEFT_BEHIND: dict[str, Script] = {
    "noise": (Raw(answer(TEXT) + b"\r\n\r\nnoise"),),
    "noise in a read of its own": (Raw(answer(TEXT)), Pause(0.05), Raw(b"noise")),
    "a second answer": (Raw(answer(TEXT) + answer("evil")),),
    "a second answer in a read of its own": (Raw(answer(TEXT)), Pause(0.05), Raw(answer("evil"))),
    "half of a second answer": (Raw(answer(TEXT) + answer("evil")[:60]),),
    "the head of a second answer": (
        Raw(answer(TEXT) + b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"),
    ),
    "a body behind 204": (Raw(b"HTTP/1.1 204 No Content\r\n\r\n" + answer("evil")),),
}


@pytest.mark.parametrize("script", LEFT_BEHIND.values(), ids=LEFT_BEHIND)
def test_bytes_nobody_asked_for_are_nobodys_answer(scene: Scene, script: Script) -> None:
    """Nor may two calls be put on the connection that brought them."""
    scene.plays("a", (*script, End()))
    answered = scene.ask(CHAT)
    if script != LEFT_BEHIND["a body behind 204"]:
        assert answered.text(CHAT) == TEXT  # which was whole, whatever came behind it
    (first,) = {request.connection for request in scene.asked("a")}
    scene.world.cast.closed("a", first, within_s=2)

    def echo(request: Request) -> Script:
        said = request.doc["messages"][0]["content"]
        return (Pause(0.05), *CHAT.says(said)(request))

    scene.plays("a", echo)

    def ask(n: int) -> str:
        messages = [{"role": "user", "content": f"number {n}"}]
        return scene.ask(CHAT, messages=messages).text(CHAT)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == [f"number {n}" for n in range(4)]


# --- an answer that does not wait for the request -----------------------------------------------


def test_an_answer_before_the_body_is_through_is_read(scene: Scene) -> None:
    messages = [{"role": "user", "content": "x" * 8_000_000}]
    found = scene.ask(CHAT, "interrupts", messages=messages)
    assert found.status == 413
    assert found.body == TOO_LARGE


@pytest.mark.parametrize("door", DOORS)
def test_a_connection_reset_when_accepted_does_not_hang(scene: Scene, door: str) -> None:
    scene.plays("b", CHAT.says(TEXT))
    found = scene.ask(CHAT, "slams", "b", door=door)
    assert found.text(CHAT) == TEXT
    assert found.seconds < 3


def test_an_answer_before_the_question_does_not_hang(scene: Scene) -> None:
    found = scene.ask(CHAT, "speaks-first", stream=True)
    assert found.status in (413, 502)  # it depends on who is quicker
    assert found.seconds < 3


def test_an_upload_is_not_awaited_when_the_answer_is_there(scene: Scene) -> None:
    host, port = scene.world.proxy.address
    with socket.create_connection((host, port), timeout=PATIENCE_S) as sock:
        sock.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: x\r\nX-Lunar-Provider: interrupts\r\n"
            b"Content-Type: application/octet-stream\r\nContent-Length: 900000\r\n\r\n"
            + bytes(400_000)
        )
        received = b""
        while TOO_LARGE not in received:
            more = sock.recv(65536)
            assert more, received
            received += more
    assert received.startswith(b"HTTP/1.1 413")
    # It has half of a request on it.
    number = len(scene.world.cast.upstreams["interrupts"].connections) - 1
    scene.world.cast.closed("interrupts", number, within_s=2)


def test_100_continue_from_a_provider_is_passed_over(scene: Scene) -> None:
    early = Raw(b"HTTP/1.1 100 Continue\r\n\r\n")
    hints = Raw(b"HTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n")
    scene.plays("a", lambda request: (early, hints, early, *CHAT.says(TEXT)(request)))
    for stream in (False, True):
        found = scene.ask(CHAT, stream=stream)
        assert found.text(CHAT) == TEXT
        assert "link" not in found.headers


def test_a_body_that_ends_with_the_connection_is_whole(scene: Scene) -> None:
    head = Head(200, {"content-type": "application/json", "connection": "close"})
    scene.plays("a", (head, Chunk(orjson.dumps(CHAT.whole(TEXT, "theirs"))), End()))
    assert scene.ask(CHAT).text(CHAT) == TEXT
