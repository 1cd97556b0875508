"""The demo's page in a browser."""

from __future__ import annotations

import os
from pathlib import Path

from browser import opened
from click.testing import CliRunner

from clipq.evaluate.cli.main import main
from clipq.evaluate.suites.suite import read_suite


def few_of_each(name):
    """A built-in suite that corrupts and attacks four images, in so few steps that most of it is the engines' start."""
    suite = read_suite(name)
    corruptions = tuple(one.model_copy(update={"samples": 4}) for one in suite.corruptions)
    square = tuple(one.model_copy(update={"samples": 4, "queries": 10}) for one in suite.square)
    return suite.model_copy(update={"corruptions": corruptions, "square": square})


def test_the_demo_report_in_a_browser(tmp_path, monkeypatch):
    """CLIPQ_DEMO names what ``clipq-eval demo`` made already: .ci/run has it from the README's first command.

    Else it is made of as few images as the command takes, and of fewer where it corrupts and attacks them.
    """
    demo = Path(os.environ.get("CLIPQ_DEMO") or tmp_path)
    if demo == tmp_path:
        monkeypatch.setattr("clipq.evaluate.demo.read_suite", few_of_each)
        done = CliRunner().invoke(main, ["demo", "--samples", "96", "-o", str(demo)])
        assert done.exit_code == 0 and "int2-weight-only-rtn" in done.stdout, done.output
    with opened(demo / "results" / "report.html") as report:
        report.open_everything()
        assert report.said == [] and report.asked == []
        engines, views, ood = 10, 4, 2
        assert report.count("[data-chart=reliability] svg.marks") == engines * views
        assert report.count("[data-chart=histogram] svg.marks") == engines * ood
        # The simulated ones have no speed, the twins are no engines.
        assert report.count("[data-chart=trade_off] [aria-roledescription=point]") == 7
        assert report.count("[data-chart=severity] svg.marks") == report.count("[data-chart=retrieval] svg.marks") == 1
        assert report.count(".heat tbody tr") == 9 and report.count(".verdicts li") == 9
        assert report.page.locator("#gallery img").first.evaluate("one => one.naturalWidth") > 8
