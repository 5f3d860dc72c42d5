"""What the tests of play stand on: worlds of toy size with true CoinRun levels, a real server, a real client."""

import json
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from omegaconf import OmegaConf
from websockets.sync.client import ClientConnection, connect

from data_generation.generate import read_settings
from data_generation.shards import generate
from models.pretrained import TOKENIZER, WEIGHTS, copy_weights, save_weights
from play.hall import Hall
from play.server import listen, make_server, url_of
from tests.models.builders import settle
from tests.training.workers.tiny import SIZE, configure, tiny_tokenizer
from training.command_line import CONFIGS
from training.settings import PlaySettings
from training.setup import build_model

LEVELS = "coinrun_plain_test"
GUIDED, LATENT = "guided", "latent"
LONG = 20  # seconds that nothing on a healthy machine takes


def make_worlds(root: Path) -> None:
    """`outputs/guided` (next rule) and `outputs/latent` (in place) with random weights, and levels to start from."""
    generate(
        read_settings(
            "coinrun_quickstart_test",
            {"root_dpath": str(root / "levels"), "n_instances": "5", "n_steps_max": "12", "image_size": str(SIZE)}
            | {"n_workers": "1"},
        )
    )
    make_world(root, GUIDED, "genie_redux_guided")
    make_world(root, LATENT, "genie_redux", dynamics__rule="in_place")


def make_world(root: Path, name: str, kind: str, **settings: Any) -> None:
    cfg = configure(
        kind, root, data__num_actions=7, eval__dataset_root_dpath=root / "levels", eval__dataset_name=LEVELS, **settings
    )
    run = root / "outputs" / name
    torch.manual_seed(0)
    save_weights(
        settle(build_model(cfg.network)),
        run / "step-00000007" / WEIGHTS,
        config=OmegaConf.to_container(cfg.network, resolve=True),
        metadata={"step": 7},
    )
    copy_weights(tiny_tokenizer(root), run / TOKENIZER)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))


def settings_for(root: Path, **changes: Any) -> PlaySettings:
    defaults = PlaySettings.from_config(OmegaConf.load(CONFIGS / "play" / "default.yaml"))
    common = {
        "roots": [str(root / "outputs")],
        "model_fpath": str(root / "outputs" / GUIDED),
        "port": 0,
        "device": "cpu",
        "num_threads": 1,
        "max_rewind": 4,
        "fps": 200.0,
        "max_fps": 1000.0,
        "open_browser": False,
    }
    return replace(defaults, **common | changes)


@contextmanager
def serving(settings: PlaySettings) -> Iterator[tuple[str, Hall]]:
    """A server on a free port, in a thread of its own; its URL, and what its players share."""
    hall, listener = Hall(settings), listen(settings)
    server = make_server(hall)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield url_of(listener), hall
    finally:
        server.should_exit = True
        thread.join(LONG)
        hall.close()
    assert not thread.is_alive()


class Client:
    """A player: sends messages, takes answers and frames."""

    def __init__(self, url: str, **options: Any):
        self.url = url
        self._opened = ExitStack()
        self.socket: ClientConnection = self._opened.enter_context(
            connect(url.replace("http", "ws") + "ws", proxy=None, **options)
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_) -> None:
        self._opened.close()

    def send(self, kind: str, **values: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **values}))

    def receive(self, timeout: float = LONG) -> dict[str, Any]:
        """The next message; a frame as {"type": "frame", **header, "dream", "truth"}. Raises TimeoutError."""
        received = self.socket.recv(timeout)
        return json.loads(received) if isinstance(received, str) else read_frame(received)

    def expect(self, kind: str) -> dict[str, Any]:
        message = self.receive()
        assert message["type"] == kind, message
        return message

    def frame(self) -> dict[str, Any]:
        """The next frame, acknowledged."""
        frame = self.expect("frame")
        self.send("ack", n=frame["n"])
        return frame

    def start(self, **values: Any) -> dict[str, Any]:
        """Begin a dream; what `started` says, with its first frame as "frame"."""
        self.send("start", **values)
        return self.expect("started") | {"frame": self.frame()}

    def step(self, action: int, count: int = 1) -> list[dict[str, Any]]:
        self.send("action", action=action)
        self.send("step", count=count)
        return [self.frame() for _ in range(count)]

    def refusal(self, kind: str, **values: Any) -> str:
        """The line that answers a message which is refused."""
        self.send(kind, **values)
        return self.expect("error")["message"]


def read_frame(received: bytes) -> dict[str, Any]:
    (length,) = struct.unpack_from("<I", received)
    header = json.loads(received[4 : 4 + length])
    pixels = np.frombuffer(received, np.uint8, offset=4 + length).reshape(-1, header["h"], header["w"], 3)
    assert len(pixels) == 1 + header["reality"]
    return {"type": "frame", **header, "dream": pixels[0], "truth": pixels[1] if header["reality"] else None}


def info(url: str, **query: str) -> dict[str, Any]:
    return httpx.get(f"{url}api/info", params=query).json()


def world_id(url: str, name: str) -> str:
    return next(world["id"] for world in info(url)["worlds"] if world["name"] == name)
