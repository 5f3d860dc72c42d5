"""First frames: those of held-out levels, and pictures from strangers, who may send anything."""

import contextlib
import io
import struct
import zlib

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from data.episodes import Episodes
from data_generation.environment import Level
from play import prompts
from play.library import Library
from play.prompts import GALLERY_SIZE, KEPT_SIDE, Prompts, Uploads, decode
from play.reality import game_of
from tests.play.stage import GUIDED, LEVELS, Client, info, serving, settings_for
from tests.training.workers.tiny import SIZE

RED, BLUE = (255, 0, 0), (0, 0, 255)
SMALL = {"upload_bytes": 20_000, "upload_pixels": 10_000}


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it holds that many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10_000)))
        + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def small(root):
    with serving(settings_for(root, **SMALL)) as (url, _):
        yield url


def upload(url: str, data) -> httpx.Response:
    return httpx.post(f"{url}api/prompts", content=data)


def test_the_gallery_holds_first_frames_of_held_out_episodes_which_their_levels_start_with(root):
    settings = settings_for(root)
    library = Library(settings, torch.device("cpu"))
    library.scan()
    entry = next(entry for entry in library.entries.values() if entry.name == GUIDED)
    gallery = Prompts(settings).gallery(entry)
    episodes = Episodes(root / "levels", LEVELS, "test")
    assert (
        [prompt.level for prompt in gallery.prompts[:5]] == episodes.level_seeds.tolist() == list(range(10_000, 10_005))
    )
    for number, prompt in enumerate(gallery.prompts[:5]):
        level = Level(game_of(gallery.info), prompt.level)
        assert np.array_equal(prompt.picture, episodes.frames(number, 0, 1)[0])
        assert np.array_equal(prompt.picture, level.frame)
        level.close()


def test_few_episodes_fill_the_gallery_with_frames_from_within_them(root):
    settings = settings_for(root)
    library = Library(settings, torch.device("cpu"))
    library.scan()
    gallery = Prompts(settings).gallery(next(entry for entry in library.entries.values() if entry.name == GUIDED))
    episodes = Episodes(root / "levels", LEVELS, "test")
    assert len(gallery.prompts) == GALLERY_SIZE // 5 * 5
    for number, prompt in enumerate(gallery.prompts[5:], start=5):
        part, episode = divmod(number, 5)
        frame = part * int(episodes.lengths[episode]) // (GALLERY_SIZE // 5)
        assert prompt.level is None and np.array_equal(prompt.picture, episodes.frames(episode, frame, 1)[0])


def test_without_a_data_set_there_is_one_grey_picture_and_the_reason(root):
    settings = settings_for(root, dataset_name="nowhere")
    library = Library(settings, torch.device("cpu"))
    gallery = Prompts(settings).gallery(library.scan()[0])
    assert len(gallery.prompts) == 1 and np.ptp(gallery.prompts[0].picture) == 0
    assert "nowhere" in gallery.missing and "\n" not in gallery.missing


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_picture_of_any_common_kind_becomes_the_first_frame(small, kind):
    answer = upload(small, encoded(Image.new("RGB", (40, 30), RED), kind))
    assert answer.status_code == 200
    uploaded = answer.json()
    with Client(small) as client:
        shown = client.start(prompt=uploaded["id"])["frame"]["dream"]
    assert shown.shape == (SIZE, SIZE, 3) and np.abs(shown.astype(int) - RED).max() < 6
    assert httpx.get(f"{small.rstrip('/')}{uploaded['url']}").headers["content-type"] == "image/png"


def test_the_middle_of_a_picture_is_shown_upright_and_on_white(root):
    wide = Image.new("RGB", (400, 100), RED)
    wide.paste(BLUE, (130, 0, 270, 100))  # what is shown, and as much beside it as scaling looks at
    assert (prompts.fit(decode(encoded(wide), 10**6), (SIZE, SIZE)) == BLUE).all()
    turned = Image.new("RGB", (20, 10), RED)
    turned.paste(BLUE, (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees: what is left in the file is at the top
    upright = decode(encoded(turned, exif=exif), 10**6)
    assert upright.size == (10, 20) and upright.getpixel((5, 2)) == BLUE and upright.getpixel((5, 17)) == RED
    drawing = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert decode(encoded(drawing), 10**6).getpixel((4, 4)) == (255, 255, 255)


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.new("RGB", (8, 8), colour) for colour in (BLUE, RED, RED)]
    for kind in ("GIF", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.abs(np.asarray(decode(data, 10**6)).astype(int) - BLUE).max() < 6


def test_large_pictures_are_kept_small():
    assert decode(encoded(Image.new("RGB", (3000, 1000), RED), "JPEG"), 10**7).size == (KEPT_SIDE, 171)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        bytes(10_000),
        encoded(Image.new("RGB", (8, 8)))[:-30],
        encoded(Image.new("RGB", (8, 8)), "JPEG")[:200],
        encoded(Image.new("RGB", (8, 8)), "BMP"),
        encoded(Image.new("RGB", (8, 8)), "TIFF"),
        b"<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'/>",
        b"GIF89a\x08\x00\x08\x00\xff",
        b"RIFF\x00\x00\x00\x00WEBPVP8 ",
        bomb(100, 100),  # fewer pixels than it says
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_picture_is_refused_in_one_line(small, data):
    answer = upload(small, data)
    assert answer.status_code == 400
    assert answer.json()["error"] == "this is not a picture that can be read; expected PNG, JPEG, GIF, WEBP"


@pytest.mark.parametrize("size", [(101, 100), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_before_they_are_decoded(small, size):
    answer = upload(small, bomb(*size))
    assert answer.status_code == 400 and "error" in answer.json()
    if size[0] < 2**31 - 1:  # beyond, it is no picture for the library either
        assert answer.json()["error"].endswith("expected at most 10000 in all")


def test_too_many_bytes_are_refused_while_they_come(small):
    def endless():
        while True:
            yield bytes(1000)

    with contextlib.suppress(httpx.TransportError):  # the server has hung up, which is an answer too
        assert upload(small, endless()).status_code == 413
    for data in (bytes(20_001), iter([bytes(15_000), bytes(15_000)])):  # chunked, the length is never said
        answer = upload(small, data)
        assert answer.status_code == 413 and answer.json() == {"error": "too large: at most 20000 bytes are taken"}
    assert upload(small, bytes(20_000)).status_code == 400


def test_uploads_are_bounded_and_forgotten(monkeypatch):
    uploads, picture = Uploads(), Image.new("RGB", (2, 2))
    monkeypatch.setattr(prompts, "MOST_UPLOADS", 3)
    names = [uploads.add(picture) for _ in range(5)]
    assert len(set(names)) == 5 and [uploads.get(name) is not None for name in names] == [False] * 2 + [True] * 3
    monkeypatch.setattr(prompts, "UPLOAD_SECONDS", 0.0)
    assert uploads.get(names[-1]) is None


def test_the_overview_links_pictures_of_the_world_that_is_asked_for(url):
    for world in info(url)["worlds"]:
        assert all(
            prompt["url"].endswith(f"?world={world['id']}") for prompt in info(url, world=world["id"])["prompts"]
        )
    assert httpx.get(f"{url}api/info", params={"world": "x"}).status_code == 400
