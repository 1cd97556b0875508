"""The report in a real headless Chromium: what it drew, what its console said, what it asked the network for."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass, field

import pytest

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip


@dataclass
class Opened:
    """An open page; ``said`` and ``asked`` are to stay empty."""

    page: object
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def text(self, selector):
        return self.page.locator(selector).first.inner_text()

    def count(self, selector):
        return self.page.locator(selector).count()

    def open_everything(self):
        """Open what is folded and wait until it is drawn."""
        self.page.evaluate("delete document.documentElement.dataset.ready; for (const one of document.querySelectorAll('details')) one.open = true")  # fmt: skip
        self.wait()

    def wait(self):
        self.page.wait_for_function("document.documentElement.dataset.ready", timeout=120_000)

    def choose(self, selector, action):
        """Do something to an element, and wait until everything is drawn again."""
        self.page.evaluate("delete document.documentElement.dataset.ready")
        action(self.page.locator(selector))
        self.wait()


@contextlib.contextmanager
def opened(path, **options):
    """The page of a file, drawn."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)  # fmt: skip
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_context(viewport={"width": 1280, "height": 1600}, **options).new_page()
        found = Opened(page)
        page.on("console", lambda message: found.said.append(message.text))
        page.on("pageerror", lambda error: found.said.append(str(error)))
        page.on("request", lambda one: one.url.startswith(("file:", "data:")) or found.asked.append(one.url))
        page.goto(path.resolve().as_uri())
        found.wait()
        yield found
        browser.close()
