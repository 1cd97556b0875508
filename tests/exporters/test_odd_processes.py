"""Commands called where the system is at its end: no room, no working folder, no stderr."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
from support import DEMO_BUNDLE, assert_refused

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a shell's words")


def shell(before, folder, recipe="fp16", after="", source=DEMO_BUNDLE):
    command = [sys.executable, "-m", "clipq.exporters.cli", "quantize", str(source), "--recipe", recipe]
    output = [] if source != DEMO_BUNDLE else ["-o", str(folder)]
    script = f"{before}; {shlex.join([*command, *output])} {after}"
    return subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("blocks", [1, 100, 1000])
def test_files_larger_than_their_system_takes(tmp_path, blocks):
    """4 GB on a USB stick: the error of writing names no file."""
    assert_refused(shell(f"ulimit -f {blocks}", tmp_path), "File too large", "another output")
    assert list(tmp_path.iterdir()) == []


def test_a_working_folder_that_was_deleted(tmp_path):
    done = shell("mkdir gone; cd gone; rmdir ../gone", tmp_path, source="../fp32")
    assert_refused(done, "the folder that the command was called in")


def test_stderr_that_is_closed(tmp_path):
    assert shell("true", tmp_path, after="2>&-").returncode == 0
    assert (tmp_path / "fp16" / "clipq.json").is_file()


def test_a_full_folder_for_what_is_made_on_the_way(tmp_path):
    """Both libraries that write there say of it that something cannot be serialized."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to mount")
    try:
        assert_refused(shell(f"export TMPDIR={small}", tmp_path, "int8-dynamic"), "No space left", str(small))
    finally:
        subprocess.run(["umount", str(small)], check=False)
