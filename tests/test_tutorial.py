"""docs/tutorial.md, command by command, in one folder, as a reader would."""

from __future__ import annotations

import re

import pytest
from browser import opened
from support import ROOT
from test_readme import blocks, shell

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
COMMANDS = [block.strip() for block in re.findall(r"```bash\n(.*?)```", TUTORIAL, flags=re.S)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where every command but the installation has run, with what each printed."""
    root = tmp_path_factory.mktemp("tutorial")
    # The installation is the README's, which .ci/run tries in a fresh environment.
    assert COMMANDS[0] == "pip install ." and blocks()[0].startswith(COMMANDS[0])
    printed = {}
    for command in COMMANDS[1:]:
        done = shell(command, root)
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
