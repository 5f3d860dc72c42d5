"""Downloads from a stand-in of the hub: whole, broken off, truncated, altered, unreachable."""

import hashlib
import json
import threading
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import download_models
from download_models import TABLE, main

GOLDEN = Path(__file__).parent / "data" / "golden"
GOLDEN_NAMES = {"tokenizer": "tokenizer", "guided": "genie_redux_guided", "genie_redux": "genie_redux"}
FILES = {file.name: file for file in TABLE}
PREFIX = f"/{download_models.REPOSITORY}/resolve/main/"


@dataclass
class Hub:
    """What the stand-in serves and how it misbehaves."""

    contents: dict[str, bytes]
    break_after: int | None = None  # bytes of a body after which the connection is closed
    is_repaired: bool = False  # whether the next request is served whole
    cut_to: int | None = None  # the body ends there, as if that were all
    digest: str | None = None  # announced instead of the true one
    without_range: bool = False
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # of bodies: path, range
    address: str = ""


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            body = hub.contents.get(self.path)
            if body is None:
                return self.answer(404, {"X-Error-Code": "EntryNotFound", "Connection": "close"}, b"")
            digest = hub.digest or hashlib.sha256(body).hexdigest()
            linked = {"X-Repo-Commit": "0" * 40, "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(body))}
            self.answer(200, linked | {"ETag": f'"{digest}"'}, body, is_head=True)

        def do_GET(self):
            if self.path.startswith("/api/models/"):
                paths = [path.removeprefix(PREFIX) for path in hub.contents]
                tree = [{"type": "file", "path": path, "size": 1, "oid": "0" * 40} for path in paths]
                return self.answer(
                    200, {"Content-Type": "application/json", "Connection": "close"}, json.dumps(tree).encode()
                )
            wanted = self.headers.get("Range")
            if self.path in hub.contents:
                hub.requests.append((self.path, wanted))
            if hub.break_after is not None and not hub.is_repaired and len(hub.requests) > 1:
                return self.answer(503, {}, b"")
            if self.path not in hub.contents:
                return self.answer(404, {"Connection": "close"}, b"")
            body = hub.contents[self.path][: hub.cut_to]
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and not hub.without_range else 0
            if start and start >= len(body):
                return self.answer(416, {}, b"")
            span = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
            self.answer(206 if start else 200, span, body[start:], stop=None if hub.is_repaired else hub.break_after)

        def answer(self, status, headers, body, *, is_head=False, stop=None):
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if not is_head:
                self.wfile.write(body[:stop])
            self.close_connection = True

        def log_message(self, *_):
            pass

    return Handler


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that holds the three models, small; downloads go below the working folder."""
    hub = Hub(
        {
            PREFIX + FILES[name].source: (GOLDEN / f"{golden}_model-1.pt").read_bytes()
            for name, golden in GOLDEN_NAMES.items()
        }
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    yield hub
    server.shutdown()
    server.server_close()


def content(hub: Hub, name: str) -> bytes:
    return hub.contents[PREFIX + FILES[name].source]


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_all_models_arrive_at_their_places(hub, capsys):
    assert main([]) == 0, capsys.readouterr().err
    for name in GOLDEN_NAMES:
        assert Path(FILES[name].fpath).read_bytes() == content(hub, name)
    assert Path("checkpoints/GenieRedux_CoinRun_250mln_v1.0/model.pt").is_file()
    assert left_in(Path()) == ["model.pt"] * 3
    asked = len(hub.requests)
    assert main([]) == 0 and len(hub.requests) == asked  # complete files are not fetched again


def test_models_can_be_chosen(hub):
    assert main(["--models", "tokenizer", "guided"]) == 0
    assert len(left_in(Path())) == 2 and not Path(FILES["genie_redux"].fpath).exists()
    with pytest.raises(SystemExit, match="2"):
        main(["--models", "another"])


def test_a_broken_transfer_goes_on_where_it_stopped_when_run_again(hub, capsys):
    hub.break_after = 300_000
    assert main(["--models", "tokenizer"]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and "broke off after" in error and "run the command again" in error
    assert not Path(FILES["tokenizer"].fpath).exists()
    (partial,) = (path for path in Path().rglob("*.partial"))
    held = partial.stat().st_size
    assert 0 < held <= 300_000 and partial.read_bytes() == content(hub, "tokenizer")[:held]
    hub.is_repaired = True
    assert main(["--models", "tokenizer"]) == 0
    assert hub.requests[-1][1] == f"bytes={held}-"
    assert Path(FILES["tokenizer"].fpath).read_bytes() == content(hub, "tokenizer")
    assert left_in(Path()) == ["model.pt"]


def test_a_source_without_ranges_sends_the_whole_again(hub):
    hub.break_after = 300_000
    assert main(["--models", "tokenizer"]) == 2
    hub.is_repaired = hub.without_range = True
    assert main(["--models", "tokenizer"]) == 0
    assert Path(FILES["tokenizer"].fpath).read_bytes() == content(hub, "tokenizer")


def test_a_connection_that_breaks_once_is_mended_within_one_run(hub, monkeypatch):
    hub.break_after = 300_000
    monkeypatch.setattr("time.sleep", lambda seconds: setattr(hub, "is_repaired", True))
    assert main(["--models", "tokenizer"]) == 0
    assert len(hub.requests) == 2 and hub.requests[-1][1].startswith("bytes=")


def test_a_truncated_file_is_not_accepted(hub, capsys):
    hub.cut_to = 1_000_000
    assert main(["--models", "tokenizer"]) == 2
    assert f"broke off after 1000000 of {len(content(hub, 'tokenizer'))} bytes" in capsys.readouterr().err
    assert not Path(FILES["tokenizer"].fpath).exists()


def test_a_wrong_hash_removes_what_came(hub, capsys):
    hub.digest = "ab" * 32
    assert main(["--models", "tokenizer"]) == 2
    assert "expected abababababab…" in capsys.readouterr().err
    assert left_in(Path()) == []


def test_a_hash_of_git_is_checked_too(hub):
    body = content(hub, "tokenizer")
    hub.digest = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
    assert main(["--models", "tokenizer"]) == 0
    hub.digest = "cd" * 20
    assert main(["--models", "tokenizer"]) == 2


def test_a_file_that_holds_something_else_is_not_accepted(hub, capsys):
    paths = {name: PREFIX + FILES[name].source for name in GOLDEN_NAMES}
    hub.contents[paths["guided"]] = hub.contents[paths["tokenizer"]]
    assert main(["--models", "guided"]) == 2
    assert "holds a STViViT, expected a WorldModel with RecordedActions" in capsys.readouterr().err
    hub.contents[paths["guided"]] = b"PK\x03\x04 no weights"
    assert main(["--models", "guided"]) == 2
    assert "truncated or holds more than weights" in capsys.readouterr().err
    assert left_in(Path()) == []


def test_a_damaged_file_on_the_disk_is_fetched_again(hub, capsys):
    fpath = Path(FILES["tokenizer"].fpath)
    fpath.parent.mkdir(parents=True)
    fpath.write_bytes(content(hub, "tokenizer")[:-1] + b"x")
    assert main(["--models", "tokenizer"]) == 0
    assert "fetching it again" in capsys.readouterr().out
    assert fpath.read_bytes() == content(hub, "tokenizer")


def test_a_file_that_moved_inside_the_repository_is_found(hub, capsys):
    old = PREFIX + FILES["guided"].source
    hub.contents[old.replace("resolve/main/", "resolve/main/weights/")] = hub.contents.pop(old)
    assert main(["--models", "guided"]) == 0, capsys.readouterr().err
    assert Path(FILES["guided"].fpath).is_file()
    hub.contents.clear()
    hub.contents[PREFIX + "other.bin"] = b""
    Path(FILES["guided"].fpath).unlink()
    assert main(["--models", "guided"]) == 2
    assert "has no GenieRedux_Guided_CoinRun_80mln_v1.0/model.pt, only other.bin" in capsys.readouterr().err


def test_offline_one_line_says_what_to_place_where(hub, monkeypatch, capsys):
    assert main(["--models", "tokenizer"]) == 0
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    capsys.readouterr()
    assert main(["--fid", "--fvd", "--lpips"]) == 2
    out, error = capsys.readouterr()
    assert "is there; its source could not be reached" in out
    assert error.count("\n") == 1 and error.startswith("error: http://127.0.0.1:9 could not be reached (Connect")
    for name in ("guided", "genie_redux", "inception", "i3d", "alexnet"):
        assert f"fetch {FILES[name].url} and save it as {FILES[name].fpath}" in error
    assert FILES["tokenizer"].fpath not in error


@pytest.mark.parametrize(("name", "flag"), [("inception", "--fid"), ("i3d", "--fvd"), ("alexnet", "--lpips")])
def test_a_metric_fetches_its_network_alone_and_knows_it_by_its_hash(hub, monkeypatch, capsys, name, flag):
    body = b"features" * 1000
    digest = hashlib.sha256(body).hexdigest()
    hub.contents["/network"] = body
    hub.digest = "not a hash"
    known = len(FILES[name].sha256)
    file = replace(FILES[name], source=f"{hub.address}/network", sha256=digest[:known])
    monkeypatch.setattr(download_models, "TABLE", [file if other.name == name else other for other in TABLE])
    assert main(["--models", flag]) == 0
    assert left_in(Path()) == [Path(file.fpath).name] and Path(file.fpath).read_bytes() == body
    assert Path(file.fpath).parent == Path("weights")
    hub.contents["/network"] = body[::-1]
    Path(file.fpath).unlink()
    assert main(["--models", flag]) == 2
    assert "has the hash" in capsys.readouterr().err
    assert left_in(Path()) == []


def test_the_hashes_of_published_networks_are_known():
    assert FILES["inception"].sha256 == "6726825d" and FILES["alexnet"].sha256 == "7be5be79"
    for name in ("inception", "alexnet"):
        assert FILES[name].sha256 in Path(FILES[name].fpath).name
    assert FILES["i3d"].sha256 == "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"


def test_another_hub_gives_its_files_of_metrics_too(hub, capsys):
    path = FILES["i3d"].source.removeprefix(download_models.HUB)
    hub.contents[path] = b"TorchScript"
    assert FILES["i3d"].url == f"{hub.address}{path}"
    assert main(["--models", "--fvd"]) == 2  # found there, but other content
    assert "has the hash" in capsys.readouterr().err
    del hub.contents[path]
    assert main(["--models", "--fvd"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"fetch {hub.address}{path} and save it as weights/i3d_torchscript.pt" in error
