"""Strangers at the door: places, slow and vanished players, garbage, foreign pages, paths."""

import base64
import contextlib
import json
import os
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from play.pacing import MOST_UNDER_WAY
from play.server import HEADERS, LARGEST_MESSAGE, STATIC, Guard, hosts_of, listen
from tests.play.stage import LONG, Client, info, serving, settings_for


def wait_until(condition) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


# ---- places


def test_beyond_the_places_there_is_a_clear_answer_until_one_is_free(root):
    with serving(settings_for(root, max_sessions=2)) as (url, hall):
        with Client(url) as first, Client(url) as second:
            first.start()
            second.start()
            with Client(url) as third:
                assert third.receive() == {"type": "busy", "sessions": 2, "max_sessions": 2}
                with pytest.raises(ConnectionClosed) as closed:
                    third.receive()
                assert closed.value.rcvd.code == 1013
            assert second.step(1)[0]["n"] == 1
        wait_until(lambda: hall.num_players == 0)
        with Client(url) as fourth:
            assert fourth.start()["frame"]["n"] == 0


def test_a_slow_player_gets_two_frames_and_slows_nobody_else(url):
    with Client(url) as slow, Client(url) as quick:
        quick.start()
        slow.send("start")
        slow.expect("started")
        prompt = slow.expect("frame")
        slow.send("play")
        unread = [slow.expect("frame")["n"] for _ in range(MOST_UNDER_WAY - 1)]
        assert prompt["n"] == 0 and unread == [1], "the prompt is under way as well"
        with pytest.raises(TimeoutError):
            slow.receive(timeout=0.3)
        quick.send("play")
        assert [quick.frame()["n"] for _ in range(20)] == list(range(1, 21))
        slow.send("ack", n=1)
        assert [slow.expect("frame")["n"] for _ in range(MOST_UNDER_WAY)] == [2, 3]


def test_players_take_turns(url):
    """Of the frames while all play, everybody gets the like, whoever came first."""
    counts, end = {}, threading.Event()

    def play(number: int) -> None:
        with Client(url) as client:
            client.start()
            barrier.wait()
            client.send("play")
            while not end.is_set():
                counts[number] = client.frame()["n"]

    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=play, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(counts) == 4 and max(counts.values()) >= 60)
    end.set()
    for thread in threads:
        thread.join(LONG)
    assert min(counts.values()) >= max(counts.values()) / 2, counts


def test_a_player_whose_connection_breaks_is_freed_with_what_the_dream_held(root):
    with serving(settings_for(root)) as (url, hall), Client(url) as client:
        client.start(reality=True)
        client.send("record", on=True)
        client.send("play")
        client.frame()
        world = next(iter(hall.library._loaded.values()))
        assert (hall.num_players, world.num_players) == (1, 1)
        client.socket.socket.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: (hall.num_players, world.num_players) == (0, 0))


@contextlib.contextmanager
def frozen_player(url: str):
    """A machine that stays connected and never answers again, not even the protocol's own pings."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port)) as raw:
        key = base64.b64encode(os.urandom(16)).decode()
        raw.sendall(
            f"GET /ws HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert b" 101 " in raw.recv(4096)
        for message in ({"type": "start"}, {"type": "play"}):
            text = json.dumps(message).encode()
            raw.sendall(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)  # masked with zeros
        yield


def test_a_player_who_answers_nothing_any_more_is_freed(root):
    with serving(settings_for(root, vanish_seconds=0.6)) as (url, hall), frozen_player(url):
        wait_until(lambda: hall.library._loaded and hall.num_players == 1)
        world = next(iter(hall.library._loaded.values()))
        wait_until(lambda: (hall.num_players, world.num_players) == (0, 0))


def test_a_player_who_presses_nothing_gives_the_place_up(root):
    with serving(settings_for(root, idle_seconds=0.5)) as (url, hall), Client(url) as client:
        client.start()
        client.send("play")
        message = client.receive()
        while message["type"] == "frame":  # drawing is not pressing
            client.send("ack", n=message["n"])
            message = client.receive()
        assert message == {"type": "idle", "seconds": 0.5}
        wait_until(lambda: hall.num_players == 0)


def test_a_player_who_says_to_be_there_keeps_the_place_without_pressing_anything_new(root):
    with serving(settings_for(root, idle_seconds=0.5)) as (url, _), Client(url) as client:
        client.start(fps=20)
        client.send("play")
        for number in range(1, 25):  # more than a second
            assert client.frame()["n"] == number
            client.send("here")


def test_the_server_stops_while_somebody_plays(root):
    with serving(settings_for(root)) as (url, _):
        client = Client(url)
        client.start()
        client.send("play")
        client.frame()
    with pytest.raises(ConnectionClosed):
        while True:
            client.receive()


# ---- garbage

GARBAGE = [
    "",
    "{",
    "null",
    "[]",
    "[" * 5000,
    '"start"',
    "{}",
    '{"type": 3}',
    '{"type": "__class__"}',
    '{"type": "' + "x" * 5000 + '"}',
    '{"type": "play"}',
    '{"type": "start", "world": {"a": 1}}',
    '{"type": "start", "world": "/etc/passwd"}',
    '{"type": "start", "prompt": ["g0"]}',
    '{"type": "start", "prompt": "../../g0"}',
    '{"type": "start", "seed": -1}',
    '{"type": "start", "seed": 1e400}',
    '{"type": "start", "seed": 99999999999999999999}',
    '{"type": "start", "steps": true}',
    '{"type": "start", "temperature": NaN}',
    '{"type": "start", "temperature": "hot"}',
    '{"type": "start", "fps": 0}',
    '{"type": "start", "reality": "yes"}',
    '{"type": "step", "count": 1000}',
    '{"type": "rewind", "count": 1.5}',
    '{"type": "rewind", "count": -3}',
    '{"type": "action"}',
    '{"type": "ack", "n": null}',
    '{"type": "record", "on": 1}',
    b"\x00\x01",
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda garbage: repr(garbage)[:40])
def test_garbage_is_answered_with_one_line_and_the_dream_goes_on(client, root, garbage):
    before_a_dream = garbage == '{"type": "play"}'
    if not before_a_dream:
        client.start()
    client.socket.send(garbage)
    line = client.expect("error")["message"]
    assert line and len(line) < 300 and "\n" not in line
    assert "Traceback" not in line and "Error" not in line and str(root) not in line
    if before_a_dream:
        client.start()
    assert client.step(1)[0]["n"] == 1


def test_a_message_that_is_too_long_ends_the_connection_alone(url):
    with Client(url) as long, Client(url) as other:
        other.start()
        long.socket.send("x" * (LARGEST_MESSAGE + 1))
        with pytest.raises(ConnectionClosed) as closed:
            long.receive()
        assert closed.value.rcvd.code == 1009
        assert other.step(1)[0]["n"] == 1


# ---- foreign pages


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1", "x"])
def test_a_page_from_elsewhere_gets_nothing(url, origin):
    with pytest.raises(InvalidStatus) as refused:
        Client(url, origin=origin)
    assert refused.value.response.status_code == 403
    answer = httpx.post(f"{url}api/names", headers={"origin": origin}, json={})
    assert answer.status_code == 403 and answer.json() == {"error": "asked for by another page"}


def test_the_page_itself_is_let_in(url):
    with Client(url, origin=url.rstrip("/")) as client:
        assert client.start()["frame"]["n"] == 0


@pytest.mark.parametrize(
    ("host", "is_let_in"),
    [
        ("127.0.0.1:80", True),
        ("[::1]:80", True),
        ("localhost", True),
        ("LOCALHOST:9", True),
        ("192.168.7.7:80", True),
        ("play.example", True),
        ("evil.example:80", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        ("[", False),
    ],
)
def test_a_foreign_name_that_points_here_is_not_answered(root, host, is_let_in):
    guard = Guard(None, hosts_of(settings_for(root, allowed_hosts=["play.example"])))
    assert (guard._problem(host, None) is None) == is_let_in


def test_pages_come_with_headers_that_keep_them_to_themselves(url):
    page = httpx.get(url)
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    for name, value in HEADERS.items():
        assert page.headers[name] == value
    assert page.headers["content-security-policy"].startswith("default-src 'self';")


def test_scripts_and_styles_come_as_what_they_are(url):
    types = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
    for fpath in STATIC.iterdir():
        answer = httpx.get(f"{url}static/{fpath.name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(types.get(fpath.suffix, "")), fpath


# ---- paths


@pytest.mark.parametrize(
    "path",
    [
        "static/../server.py",
        "static/..%2fserver.py",
        "static/%2e%2e/server.py",
        "static/%2e%2e%2fserver.py",
        "static/..\\server.py",
        "static//etc/passwd",
        "static/%2fetc%2fpasswd",
        "static/\0",
        "api/prompts/..%2f..%2fserver.png",
        "api/prompts/%2e%2e.png?world=../guided",
        "api/prompts/g0.png?world=/etc/passwd",
        "api/recordings/..%2f..%2fserver.gif",
        "api/recordings/x.exe",
        "api/info/../../server.py",
        "../play/server.py",
    ],
)
def test_no_path_from_a_stranger_reaches_a_file(url, path):
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port)) as raw:  # clients would tidy the path up
        raw.sendall(f"GET /{path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    status = int(answer.split()[1])
    assert status in (400, 404), answer
    assert b"Traceback" not in answer and b"root:" not in answer and b"import" not in answer


# ---- starting


def test_a_port_that_is_taken_is_one_clear_line(root):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"play.port={port} on play.host=127.0.0.1 cannot be used .*play.port=0"):
            listen(settings_for(root, port=port))


def test_an_address_that_is_not_this_machines_is_one_clear_line(root):
    with pytest.raises(ValueError, match=r"play\.host=192\.0\.2\.1"):
        listen(settings_for(root, host="192.0.2.1"))


def test_the_overview_names_worlds_and_no_path(url, root):
    text = json.dumps(info(url))
    assert str(root) not in text and "outputs" not in text
    worlds = {world["name"]: world for world in info(url)["worlds"]}
    assert list(worlds) == ["guided", "latent"]
    assert worlds["guided"]["keys"]["ArrowRight+ArrowUp"] == 4
    assert (worlds["guided"]["max_steps"], worlds["latent"]["max_steps"]) == (1, 25)
