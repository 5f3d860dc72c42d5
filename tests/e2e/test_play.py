"""The page to play in, as a person meets it: the real server, worlds trained for a second, a real browser."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from play.latent_actions import read
from tests.e2e import tiny_worlds
from tests.e2e.bridge import Bridge
from tests.e2e.page import (
    CHROMIUM,
    PHONE,
    SECONDS,
    address_of,
    finger_on,
    frame,
    opened,
    pause,
    picture,
    step,
    switch_to,
    text,
    until,
)
from tests.play.stage import serving, settings_for
from training.settings import PlaySettings

ROOT = Path(__file__).resolve().parents[2]
CUT_OFF = "ERR_CONNECTION|ERR_CONTENT_LENGTH_MISMATCH|WebSocket"  # what Chromium says when a server goes away
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; on Debian: apt-get install chromium")


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        rights = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses a sandbox to root
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=rights)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, server) -> Iterator[Page]:
    """A laptop on which the guided world has begun to play."""
    with opened(browser, server) as page:
        until(page, lambda: frame(page) > 1)
        yield page


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
    page.mouse.click(paper["x"] + paper["width"] / 2, paper["y"] + paper["height"] - 10)  # a dot
    page.locator("#use").click()
    until(page, lambda: frame(page) == 0 and tuple(picture(page)[2, 2]) == (0xF6, 0xC9, 0x45))
    assert tuple(picture(page)[62, 32]) == (0x15, 0x17, 0x1A)
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
        assert download.value.suggested_filename == f"dream.{kind}"
        download.value.save_as(tmp_path / f"dream.{kind}")
    with Image.open(tmp_path / "dream.gif") as film:
        assert film.format == "GIF" and film.n_frames >= 6 and film.height % 64 == 0
    assert (tmp_path / "dream.mp4").read_bytes()[4:8] == b"ftyp"


def test_arrows_play_a_latent_world_that_nobody_named_yet(page, folder):
    """As the map from real to latent actions says, which was learned from the levels at hand."""
    switch_to(page, "genie_redux")
    known = read(folder / "outputs" / "genie_redux" / "genie_redux", 7)
    assert {"", "ArrowRight", "ArrowUp"} <= set(known.keys) and known.num_labelled
    for key, sign in (("ArrowUp", "↑"), ("d", "→")):
        button = page.locator("#pad [data-wish]", has=page.locator(".keys", has_text=sign))
        page.keyboard.down(key)
        until(page, lambda button=button: text(page, "#doing") == button.locator(".name").inner_text())
        assert "down" in button.get_attribute("class")
        page.keyboard.up(key)


def test_latent_actions_have_numbers_and_names_that_last(page, server, browser):
    switch_to(page, "genie_redux")
    assert page.locator("#pad .grid [data-wish]").count() == 7 and page.locator("#reality-view").is_hidden()
    page.locator("#edit-names").click()
    page.locator("#pad input").nth(2).fill("fly away")
    page.locator("#pad input").nth(4).fill("go right")
    page.locator("#pad input").nth(6).fill("right")
    page.keyboard.press("Enter")
    until(page, lambda: "fly away" in text(page, "#pad"))
    for key, name, number in (("3", "fly away", 3), ("ArrowRight", "right", 7)):
        page.keyboard.down(key)
        until(page, lambda name=name: text(page, "#doing") == name)
        assert page.locator("#pad .down b").all_inner_texts() == [str(number)]
        page.keyboard.up(key)
    page.reload()
    until(page, lambda: frame(page) > 1)
    switch_to(page, "genie_redux")
    assert "fly away" in text(page, "#pad") and "→" in text(page, "#pad [data-wish='#6']")
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


def test_who_finds_all_places_taken_gets_in_when_one_is_free(browser, server, page):
    with opened(browser, server) as second:
        until(second, lambda: frame(second) > 1)
        with opened(browser, server) as third:
            until(third, lambda: "All 2 places are taken" in text(third, "#notice"))
            second.goto("about:blank")
            second.wait_for_timeout(200)  # the server hears of it
            third.locator("#notice-button").click()
            until(third, lambda: frame(third) > 1)


def with_settings(folder: Path, **changes) -> PlaySettings:
    """Of a server within the test."""
    world = folder / "outputs" / "genie_redux_guided" / "genie_redux_guided"
    return settings_for(folder, model_fpath=str(world), fps=5.0, **changes)


def test_who_holds_a_key_down_is_there_and_who_lets_go_of_all_is_not(browser, folder):
    with serving(with_settings(folder, idle_seconds=4.0)) as (address, _), opened(browser, address) as page:
        until(page, lambda: frame(page) > 1)
        page.keyboard.down("ArrowRight")
        page.evaluate(
            """window.sent = [];
            const send = WebSocket.prototype.send;
            WebSocket.prototype.send = function (text) { sent.push(text); send.call(this, text); };
            null"""
        )
        until(page, lambda: page.evaluate("""sent.filter((text) => text.includes('"here"')).length""") >= 3)
        assert text(page, "#status") == "playing" and text(page, "#doing") == "RIGHT"
        page.keyboard.up("ArrowRight")
        until(page, lambda: "your place was given to others" in text(page, "#notice"))
        page.locator("#notice-button").click()
        until(page, lambda: text(page, "#status") == "playing" and frame(page) > 1)


def test_a_lost_server_is_found_again(browser, server):
    port = int(server.rpartition(":")[2].strip("/"))
    refusals = f"ERR_EMPTY|{CUT_OFF}"  # that Chromium reports meanwhile
    with Bridge(port) as bridge, opened(browser, bridge.address, tolerated=refusals) as page:
        until(page, lambda: frame(page) > 1)
        bridge.break_down()
        until(page, lambda: "The server does not answer" in text(page, "#notice"))
        bridge.build()
        until(page, lambda: text(page, "#status") == "playing" and page.locator("#notice").is_hidden())
        before = frame(page)
        until(page, lambda: frame(page) > before)
        all_there = "[...document.querySelectorAll('#gallery img')].every((picture) => picture.naturalWidth > 0)"
        until(page, lambda: page.evaluate(all_there))  # those too that were under way when the server was lost


def test_a_server_that_was_started_anew_knows_no_pictures_of_before_and_is_played_on(browser, folder, tmp_path):
    Image.new("RGB", (64, 64), (200, 30, 60)).save(tmp_path / "red.png")
    with ExitStack() as server:
        address, _ = server.enter_context(serving(with_settings(folder)))
        with opened(browser, address, tolerated=f"{CUT_OFF}|40[04]") as page:
            until(page, lambda: frame(page) > 1)
            page.set_input_files("#upload", tmp_path / "red.png")
            until(page, lambda: page.locator("#gallery [title='Your picture']").count() == 1 and frame(page) > 1)
            server.close()
            until(page, lambda: "The server does not answer" in text(page, "#notice"))
            port = int(address.rpartition(":")[2].strip("/"))
            server.enter_context(serving(with_settings(folder, port=port)))
            until(page, lambda: text(page, "#status") == "playing" and page.locator("#notice").is_hidden())
            assert page.locator("#gallery [title='Your picture']").count() == 0
            before = frame(page)
            until(page, lambda: frame(page) > before)
