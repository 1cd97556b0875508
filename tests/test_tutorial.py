"""docs/tutorial.md, command by command, in one folder, as a reader would."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from browser import opened
from click.testing import CliRunner
from support import ROOT
from test_readme import blocks, shell

from clipq.evaluate.cli.main import main
from clipq.evaluate.suites.suite import read_suite

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
COMMANDS = [block.strip() for block in re.findall(r"```bash\n(.*?)```", TUTORIAL, flags=re.S)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where every command but the installation has run, on fewer images, with what each printed."""
    root = tmp_path_factory.mktemp("tutorial")
    # The installation is the README's, which .ci/run tries in a fresh environment.
    assert COMMANDS[0] == "pip install ." and blocks()[0].startswith(COMMANDS[0])
    printed = {}
    for command in COMMANDS[1:]:
        # Enough to tell the engines apart, and to call two the same.
        done = shell(re.sub(r'(source = "demo:.*")', r"\1\nsamples = 320", command), root)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        printed[command] = done.stdout
    return root, printed


def test_the_commands_do_what_the_text_says(folder):
    root, printed = folder
    gates = [text for command, text in printed.items() if "clipq-eval gate results" in command]
    assert [text.strip().splitlines()[-1].split(":")[0] for text in gates[:2]] == ["pass", "pass"]
    refused = next(text for command, text in printed.items() if "gate.xml" in command)
    assert "::error" in refused and (root / "gate.xml").read_text().count("<failure") > 0
    assert "worse" in (root / "comparison.md").read_text()
    assert "model-index" in (root / "release" / "engine" / "README.md").read_text()
    inspected = next(text for command, text in printed.items() if "inspect" in command)
    assert "MatMulIntegerToFloat" in inspected


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


def test_the_report_of_two_folders(folder):
    with opened(folder[0] / "both.html") as report:
        assert report.text("#shown") == "4 of 4 engines" and report.said == []


def test_the_workflow_runs(folder):
    """Every ``run`` step of the workflow but the installation, in the folder of the tutorial."""
    yaml = pytest.importorskip("yaml")
    root, _ = folder
    workflow = yaml.safe_load(re.search(r"```yaml\n(.*?)```", TUTORIAL, flags=re.S)[1])
    steps = [step["run"] for step in workflow["jobs"]["engine"]["steps"] if "run" in step]
    assert steps[0].startswith("pip install")
    for step in steps[1:]:
        done = shell(f'export GITHUB_STEP_SUMMARY="$PWD/summary.md"; {step}', root)
        assert done.returncode == 0, (step, done.stdout, done.stderr)
    assert "same or better" in (root / "summary.md").read_text()


def test_pictures_and_links_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", TUTORIAL):
        assert (ROOT / "docs" / target).exists(), target
