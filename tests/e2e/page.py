"""The page to play in, opened in a real browser on real devices, and what its tests ask of it."""

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

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LAPTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
SECONDS = 30  # that anything may take on a busy machine


def address_of(process: subprocess.Popen) -> str:
    """The address that the server prints as soon as it listens."""
    printed, deadline = "", time.monotonic() + 2 * SECONDS
    while "play at" not in printed:
        assert time.monotonic() < deadline and process.poll() is None, printed
        if select.select([process.stdout], [], [], 1)[0]:
            printed += os.read(process.stdout.fileno(), 4096).decode()
    return re.search(r"play at (http://\S+)", printed)[1]


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
    unexpected = [problem for problem in problems if not re.search(tolerated, problem)]
    assert not unexpected, unexpected
    assert hosts <= {address.split("/")[2], ""}  # blob: has no host


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


def finger_on(page: Page, name: str) -> dict[str, float]:
    """A touch in the middle of a button."""
    box = page.get_by_role("button", name=name, exact=True).bounding_box()
    return {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "id": round(box["x"])}
