"""The page to play in, as a person meets it: the real server, worlds trained for a second, a real browser."""

import base64
import io
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests.e2e import tiny_worlds
from tests.e2e.bridge import Bridge

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; on Debian: apt-get install chromium")

LAPTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
SECONDS = 30  # that anything may take on a busy machine


# ---------------------------------------------------------------------------------------------------- server and page


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Levels of the true game, and a guided and a latent world trained on them."""
    root = tmp_path_factory.mktemp("play")
    tiny_worlds.make(root)
    return root


@pytest.fixture(scope="module")
def server(folder) -> Iterator[str]:
    """The address of `bash run.sh --mode=play`, which has room for two players."""
    command = ["bash", "run.sh", "--mode=play", "--play.port=0", "--play.open_browser=false", "--play.max_sessions=2"]
    command += [f"--play.roots=[{folder / 'outputs'}]", "--play.fps=20", "--play.num_threads=1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        yield address_of(process)
    finally:
        process.terminate()
        process.wait(timeout=SECONDS)


def address_of(process: subprocess.Popen) -> str:
    """The address that the server prints as soon as it listens."""
    printed, deadline = "", time.monotonic() + 2 * SECONDS
    while "play at" not in printed:
        assert time.monotonic() < deadline and process.poll() is None, printed
        if select.select([process.stdout], [], [], 1)[0]:
            printed += os.read(process.stdout.fileno(), 4096).decode()
    return re.search(r"play at (http://\S+)", printed)[1]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        rights = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses a sandbox to root
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=rights)
        yield chromium
        chromium.close()


@contextmanager
def opened(browser: Browser, address: str, device: dict = LAPTOP, *, tolerated: str = "(?!)") -> Iterator[Page]:
    """The page on a device. Afterwards: nothing came from elsewhere, and no error was seen but those `tolerated`."""
    context = browser.new_context(**device, accept_downloads=True)
    page, problems, hosts = context.new_page(), [], set()
    page.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    context.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    page.goto(address)
    try:
        yield page
    finally:
        context.close()
    assert [problem for problem in problems if not re.search(tolerated, problem)] == []
    assert hosts <= {address.split("/")[2], ""}  # blob: has no host


@pytest.fixture
def page(browser, server) -> Iterator[Page]:
    """A laptop on which the guided world has begun to play."""
    with opened(browser, server) as page:
        until(page, lambda: frame(page) > 1)
        yield page


def until(page: Page, holds) -> None:
    """Wait for something to become true; the page's policy forbids what Playwright itself would wait with."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, page.locator("body").inner_text()
        page.wait_for_timeout(20)


def text(page: Page, selector: str) -> str:
    return page.locator(selector).inner_text()


def frame(page: Page) -> int:
    return int(text(page, "#frame"))


def picture(page: Page, selector: str = "#dream") -> np.ndarray:
    """(H, W, 3) uint8: what the canvas shows."""
    url = page.evaluate("(selector) => document.querySelector(selector).toDataURL()", selector)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))


def pause(page: Page) -> None:
    page.keyboard.press("Space")
    until(page, lambda: text(page, "#status") == "paused")
    page.wait_for_timeout(150)  # frames that were under way


def step(page: Page) -> np.ndarray:
    """One frame on, while paused."""
    before = frame(page)
    page.keyboard.press(".")
    until(page, lambda: frame(page) == before + 1)
    return picture(page)


def switch_to(page: Page, name: str) -> None:
    page.select_option("#world", label=name)
    until(page, lambda: text(page, "#status") == "playing" and page.locator("#notice").is_hidden() and frame(page) > 1)


# ------------------------------------------------------------------------------------------------------------- claims


def test_keys_choose_the_action_and_two_arrows_a_diagonal(page):
    def holding(*keys: str) -> None:
        for key in keys:
            page.keyboard.down(key)

    for keys, name in (
        (["ArrowRight"], "RIGHT"),
        (["ArrowRight", "ArrowUp"], "RIGHT JUMP"),
        (["a", "w"], "LEFT JUMP"),
        (["ArrowRight", "ArrowLeft"], "LEFT"),
        (["s"], "DOWN"),
        ([], "NOOP"),
    ):
        holding(*keys)
        until(page, lambda name=name: text(page, "#doing") == name)
        for key in keys:
            page.keyboard.up(key)
    assert page.evaluate("[scrollX, scrollY]") == [0, 0]


def test_the_focus_is_left_to_what_tab_or_a_list_needs_and_else_to_the_dream(page):
    page.locator("#play").focus()
    page.keyboard.press("Space")  # presses the button, and is not a command as well
    until(page, lambda: text(page, "#status") == "paused")
    page.locator("#play").click()
    until(page, lambda: text(page, "#status") == "playing")
    page.keyboard.press("Space")  # after a click it is for the dream
    until(page, lambda: text(page, "#status") == "paused")
    page.locator("#world").click()
    assert page.evaluate("document.activeElement.id") == "world"  # its list is open
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    until(page, lambda: page.locator("#pad.numbers").is_visible())


def test_a_short_tap_still_reaches_a_frame_and_a_lost_window_lets_go(page):
    page.evaluate(
        "window.seen = []; new MutationObserver(() => seen.push(doing.textContent)).observe(doing, {childList: true})"
    )
    page.keyboard.press("ArrowLeft")  # down and up at once
    until(page, lambda: "LEFT" in page.evaluate("seen"))
    until(page, lambda: text(page, "#doing") == "NOOP")
    page.keyboard.down("ArrowRight")
    until(page, lambda: text(page, "#doing") == "RIGHT")
    page.evaluate("window.dispatchEvent(new Event('blur'))")
    until(page, lambda: text(page, "#doing") == "NOOP")


def test_what_is_dreamed_follows_the_action_and_rewinding_brings_it_back(page):
    pause(page)
    page.keyboard.press("r")
    until(page, lambda: frame(page) == 0)

    def dream_of(key: str | None) -> np.ndarray:
        """The third frame with a key held, after which all is taken back."""
        if key:
            page.keyboard.down(key)
        frames = [step(page) for _ in range(3)]
        if key:
            page.keyboard.up(key)
        page.keyboard.press("Backspace")
        until(page, lambda: frame(page) == 2)
        assert (picture(page) == frames[1]).all()
        page.keyboard.press("r")
        until(page, lambda: frame(page) == 0)
        return frames[-1]

    nothing, again, right, left = (dream_of(key) for key in (None, None, "ArrowRight", "ArrowLeft"))
    assert (nothing == again).all()
    assert (nothing != right).any() and (nothing != left).any() and (left != right).any()


def test_the_slider_shows_a_frame_before_it_goes_back_to_it(page):
    pause(page)
    for _ in range(3):
        step(page)
    shown, last = picture(page), frame(page)
    step(page)
    slider = page.locator("#rewind")
    slider.evaluate("(slider) => { slider.value -= 1; slider.dispatchEvent(new Event('input')); }")
    assert frame(page) == last and (picture(page) == shown).all()
    slider.evaluate("(slider) => slider.dispatchEvent(new Event('change'))")
    until(page, lambda: page.evaluate("rewind.max") == str(last))
    assert (picture(page) == shown).all()
    step(page)
    assert frame(page) == last + 1


def test_reality_runs_beside_the_dream_and_is_measured(page):
    until(page, lambda: re.fullmatch(r"\d+\.\d", text(page, "#psnr")))
    assert picture(page, "#reality").shape == (64, 64, 3) and (picture(page, "#spark") != 0).any()
    page.locator("#with-reality").uncheck()
    until(page, lambda: page.locator("#reality-view").is_hidden() and frame(page) > 1)


def test_an_uploaded_picture_becomes_the_first_frame(page, tmp_path):
    pause(page)
    Image.new("RGB", (300, 200), (200, 30, 60)).save(tmp_path / "red.png")
    page.set_input_files("#upload", tmp_path / "red.png")
    until(page, lambda: frame(page) == 0 and (picture(page) == (200, 30, 60)).all())
    assert page.locator("#reality-view").is_hidden()
    page.locator("#gallery button").nth(1).click()  # the first one is now the upload
    until(page, lambda: (picture(page) != (200, 30, 60)).any() and frame(page) == 0)


def test_what_is_no_picture_is_said_to_be_none_and_the_dream_goes_on(browser, server, tmp_path):
    with opened(browser, server, tolerated="400") as page:  # Chromium reports every refusal
        until(page, lambda: frame(page) > 1)
        (tmp_path / "no.png").write_bytes(b"no picture")
        page.set_input_files("#upload", tmp_path / "no.png")
        until(page, lambda: "not a picture" in text(page, "#error"))
        before = frame(page)
        until(page, lambda: frame(page) > before)


def test_a_picture_may_be_dropped_or_pasted(page):
    pause(page)
    for event, data, colour in (("drop", "dataTransfer", (10, 200, 90)), ("paste", "clipboardData", (250, 120, 0))):
        page.evaluate(
            """async ([event, data, colour]) => {
                const canvas = new OffscreenCanvas(80, 80);
                const context = canvas.getContext("2d");
                context.fillStyle = `rgb(${colour})`;
                context.fillRect(0, 0, 80, 80);
                const files = new DataTransfer();
                files.items.add(new File([await canvas.convertToBlob()], "plain.png", { type: "image/png" }));
                const Kind = event === "drop" ? DragEvent : ClipboardEvent;
                document.body.dispatchEvent(new Kind(event, { [data]: files, bubbles: true, cancelable: true }));
            }""",
            [event, data, colour],
        )
        until(page, lambda colour=colour: frame(page) == 0 and (picture(page) == colour).all())


def test_a_sketch_becomes_the_first_frame(page):
    pause(page)
    page.locator("#draw").click()
    page.locator("#colours button[title=Coin]").click()
    page.locator("#clear").click()
    page.locator("#colours button[title=Black]").click()
    page.locator("#brush").fill("64")
    paper = page.locator("#paper").bounding_box()
    middle = paper["y"] + paper["height"] / 2
    page.mouse.move(paper["x"] + 10, middle)
    page.mouse.down()
    page.mouse.move(paper["x"] + paper["width"] - 10, middle, steps=4)
    page.mouse.up()
    page.locator("#use").click()
    until(page, lambda: frame(page) == 0 and tuple(picture(page)[2, 2]) == (0xF6, 0xC9, 0x45))
    assert tuple(picture(page)[32, 32]) == (0x15, 0x17, 0x1A)


def test_a_recording_is_downloaded_as_gif_and_mp4(page, tmp_path):
    page.locator("#record").click()
    before = frame(page)
    until(page, lambda: frame(page) > before + 6)
    page.locator("#record").click()
    until(page, page.locator("#gif").is_visible)
    for kind in ("gif", "mp4"):
        with page.expect_download() as download:
            page.locator(f"#{kind}").click()
        assert download.value.suggested_filename.endswith(kind)
        download.value.save_as(tmp_path / f"dream.{kind}")
    with Image.open(tmp_path / "dream.gif") as film:
        assert film.format == "GIF" and film.n_frames >= 6 and film.height % 64 == 0
    assert (tmp_path / "dream.mp4").read_bytes()[4:8] == b"ftyp"


def test_latent_actions_have_numbers_and_names_that_last(page, server, browser):
    switch_to(page, "genie_redux")
    assert page.locator("#pad [data-wish]").count() == 7 and page.locator("#reality-view").is_hidden()
    page.locator("#edit-names").click()
    page.locator("#pad input").nth(2).fill("fly away")
    page.keyboard.press("Enter")
    until(page, lambda: "fly away" in text(page, "#pad"))
    page.keyboard.down("3")
    until(page, lambda: text(page, "#doing") == "fly away")
    page.keyboard.up("3")
    page.reload()
    until(page, lambda: frame(page) > 1)
    switch_to(page, "genie_redux")
    assert "fly away" in text(page, "#pad")
    switch_to(page, "genie_redux_guided")
    assert page.locator("#pad.arrows").is_visible()


def test_two_thumbs_on_a_phone_press_two_buttons_and_slide_between_them(browser, server):
    with opened(browser, server, PHONE) as page:
        until(page, lambda: frame(page) > 1)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        left, right, up = (finger_on(page, name) for name in ("Left", "Right", "Up"))
        assert 0 < up["y"] < PHONE["viewport"]["height"]  # within reach, without scrolling
        touch = page.context.new_cdp_session(page)
        for kind, fingers, name in (
            ("touchStart", [left], "LEFT"),
            ("touchMove", [left | {"x": right["x"]}], "RIGHT"),
            ("touchStart", [left | {"x": right["x"]}, up], "RIGHT JUMP"),
            ("touchEnd", [], "NOOP"),
        ):
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})
            until(page, lambda name=name: page.locator("#doing").text_content() == name)


def finger_on(page: Page, name: str) -> dict[str, float]:
    """A touch in the middle of a button."""
    box = page.get_by_role("button", name=name, exact=True).bounding_box()
    return {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "id": round(box["x"])}


def test_who_finds_all_places_taken_gets_in_when_one_is_free(browser, server, page):
    with opened(browser, server) as second:
        until(second, lambda: frame(second) > 1)
        with opened(browser, server) as third:
            until(third, lambda: "All 2 places are taken" in text(third, "#notice"))
            second.goto("about:blank")
            second.wait_for_timeout(200)  # the server hears of it
            third.locator("#notice-button").click()
            until(third, lambda: frame(third) > 1)


def test_a_lost_server_is_found_again(browser, server):
    port = int(server.rpartition(":")[2].strip("/"))
    refusals = "ERR_CONNECTION|ERR_EMPTY|WebSocket"  # that Chromium reports meanwhile
    with Bridge(port) as bridge, opened(browser, bridge.address, tolerated=refusals) as page:
        until(page, lambda: frame(page) > 1)
        bridge.break_down()
        until(page, lambda: "The server does not answer" in text(page, "#notice"))
        bridge.build()
        until(page, lambda: text(page, "#status") == "playing" and page.locator("#notice").is_hidden())
        before = frame(page)
        until(page, lambda: frame(page) > before)
