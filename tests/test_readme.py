"""The README's commands run as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from foreign_layouts import LAYOUTS
from PIL import Image
from support import ROOT

from clipq.demo import world

README = (ROOT / "README.md").read_text()


def blocks():
    return [block.strip() for block in re.findall(r"```bash\n(.*?)```", README, flags=re.S)]


def shell(script, folder):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-euc", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_first_two_commands_install_and_run():
    assert blocks()[0] == "pip install . && clipq-eval demo"
    assert blocks()[1] == "pip install '.[export,test]' && pytest -n 2 --dist loadfile"
    # .ci/run executes both in fresh environments; the second is what is running now.
    script = (ROOT / ".ci" / "run").read_text()
    for command in blocks()[:2]:
        assert f"readme_command {blocks().index(command) + 1}" in script


@pytest.mark.skipif(shutil.which("clipq-export", path=str(Path(sys.executable).parent)) is None, reason="not installed")
def test_own_checkpoint_commands(tmp_path):
    """The commands for one's own checkpoint and photos, with stand-ins for both."""
    pytest.importorskip("open_clip", reason="needs the export extra")
    for part, start in (("calibration", 0), ("test", 24)):
        for number, name in enumerate(("circle", "ring", "star")):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for index in range(3):
                pixels = world.sample("test", start + 24 * index + number)[1]
                Image.fromarray(pixels).save(tmp_path / "photos" / part / name / f"{index}.png")
    LAYOUTS["clip-transformers-js"](tmp_path / "clip-transformers-js")
    for block in blocks()[2:]:
        if "sweep" in block:
            continue
        script = block.replace("ViT-B-32/laion2b_s34b_b79k", "demo")
        done = shell(script, tmp_path)
        assert done.returncode == 0, (script, done.stderr)


def test_sweep_commands(tmp_path):
    """The commands of a sweep, on two of its engines and smaller sets."""
    shutil.copytree(ROOT / "docs" / "examples", tmp_path / "docs" / "examples")
    grid, suite = (tmp_path / "docs" / "examples" / name for name in ("grid-demo.toml", "suite-sweep.toml"))
    grid.write_text(re.sub(r"recipes = \[.*?\]", 'recipes = ["int8-dynamic"]', grid.read_text(), flags=re.S))
    smaller = suite.read_text().replace("severities = [1, 3, 5]", "severities = [3]").replace("samples = 300\n", "")
    suite.write_text(smaller.replace('source = "demo:', 'samples = 72\nsource = "demo:'))
    (block,) = (block for block in blocks() if "sweep" in block)
    done = shell(block, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "26 cells filled" in done.stdout and "0 cells filled" in done.stdout, done.stdout


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
