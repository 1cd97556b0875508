"""The report of 40 engines on 200 views: its size, and how long a browser takes until it answers.

Numbers are random, so they compress worse than measured ones. "Answers" is when the filter works and the first section
is drawn. The ratio is to the page of 2 engines on 1 view: what Chromium and the charts' library take by themselves.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from clipq.evaluate.report.page import write_report
from clipq.evaluate.results.folders import gather

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from browser import FLAGS
from synthetic import many

REPEATS = 5


def main() -> None:
    chromium = shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        pages = {}
        for engines, views in ((40, 200), (2, 1)):
            records = many(engines, views)
            started = time.perf_counter()
            path = write_report(gather([(Path(folder), records)]), Path(folder) / f"{engines}x{views}.html")
            pages[engines, views] = path
            print(
                f"{engines} engines × {views} views: {sum(len(one.measurements) for one in records):,} measurements, "
                f"{path.stat().st_size / 1e6:.2f} MB, written in {time.perf_counter() - started:.1f} s"
            )
        times: dict[tuple[int, int], list[float]] = {size: [] for size in pages}
        for _ in range(REPEATS):
            for size, path in pages.items():
                browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
                page = browser.new_page(viewport={"width": 1280, "height": 1600})
                started = time.perf_counter()
                page.goto(path.as_uri())
                page.wait_for_selector("#shown:not(:empty)")
                page.wait_for_selector("[data-chart=trade_off] svg")
                times[size].append(time.perf_counter() - started)
                browser.close()
        for size, seconds in times.items():
            print(f"{size}: answers after {statistics.median(seconds):.2f} s [{min(seconds):.2f}, {max(seconds):.2f}]")
        ratios = [big / small for big, small in zip(*times.values(), strict=True)]
        print(f"ratio {statistics.median(ratios):.1f} [{min(ratios):.1f}, {max(ratios):.1f}], {REPEATS} pairs")


if __name__ == "__main__":
    main()
