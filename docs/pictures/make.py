"""Pictures of a report for README and tutorial: ``python docs/pictures/make.py REPORT.html [OUTPUT]``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

# Name: the element at the top, the element after it (left out), the most pixels of height.
PARTS = {
    "verdict": ("#verdict", "#trade-off", 1010),
    "trade-off": ("#trade-off", "#methods", 900),
    "reliability": ("[data-chart=reliability]", "[data-chart=reliability] + details", 620),
}


def picture(page: Page, top: str, end: str, most: int, target: Path) -> None:
    page.locator(top).first.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    edges = "s => document.querySelector(s).getBoundingClientRect().top + scrollY"
    start, stop = page.evaluate(edges, top) - 8, page.evaluate(edges, end) - 8
    clip = {"x": 0, "y": start, "width": 1280, "height": min(stop - start, most)}
    page.screenshot(path=target, clip=clip, full_page=True)


def main() -> None:
    report = Path(sys.argv[1]).resolve()
    output = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1400}, color_scheme="light")
        page.goto(report.as_uri())
        page.wait_for_function("document.documentElement.dataset.ready")
        # The bar that sticks to the window would lie over whatever is below it.
        page.add_style_tag(content=".bar { position: static !important }")
        for name, (top, end, most) in PARTS.items():
            picture(page, top, end, most, output / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
