# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pages in the Chromium of this machine, as a phone and a desk show them, in light and in dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NONE_HERE = "no Chromium on this machine: install it (Debian: apt-get install chromium)"
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
# Only what breaks a rule is wanted, which spares the time for the rest.
AXE = {"resultTypes": ["violations"]}


class Chromium:
    """The browser of this test process, in a thread of its own.

    Playwright leaves an event loop running in the thread that starts it, where `asyncio.run()` then refuses to run:
    every later test of asynchronous code in this process would fail.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="chromium")
        self._playwright, self._browser = self._thread.submit(_started).result()

    def faults(self, path: Path) -> list[str]:
        """What is wrong with a page; see `_faults`."""
        return self._thread.submit(_faults, self._browser, path).result()

    def close(self) -> None:
        self._thread.submit(self._browser.close).result()
        self._thread.submit(self._playwright.stop).result()
        self._thread.shutdown()


def _started() -> tuple[Playwright, Browser]:
    playwright = sync_playwright().start()
    # A container's user may not make namespaces, and the pages are our own.
    return playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium | None]:
    """The browser of this test process; None where there is none."""
    if CHROMIUM is None:
        yield None
        return
    browser = Chromium()
    yield browser
    browser.close()


def _faults(browser: Browser, path: Path) -> list[str]:
    """What is wrong with a page: each message, request, overflow and broken rule of axe-core, with where it is seen."""
    said: list[str] = []
    page = browser.new_page(viewport=PHONE, color_scheme="light")
    try:
        page.on("console", lambda message: said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: said.append(f"request: {request.url}"))
        address = path.absolute().as_uri()
        page.goto(address)
        said.remove(f"request: {address}")
        # Each size and each scheme once: a rule that depends on both would be one of layout and of colour at once.
        for name, size, scheme in (("phone", PHONE, "light"), ("desk", DESK, "dark")):
            page.set_viewport_size(size)
            page.emulate_media(color_scheme=scheme)
            said += [f"{name}, {scheme}: {fault}" for fault in _seen(page)]
    finally:
        page.close()
    return said


def _seen(page: Page) -> Iterator[str]:
    over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    if over > 0:
        yield f"overflows by {over} pixels"
    for broken in Axe().run(page, options=AXE).response["violations"]:
        yield f"axe {broken['id']}: {broken['nodes'][0]['html'][:200]}"
