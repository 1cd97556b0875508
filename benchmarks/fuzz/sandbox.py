"""Folders that a case lives in, and what changed in them: a command may write below its output and nowhere else."""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

GHOSTSCRIPT = "#!/bin/sh\ntouch {0}/ghostscript-ran\nexit 1\n"


@dataclass(frozen=True)
class Sandbox:
    """A folder with a home, a folder for temporary files, a working folder, and one to write to.

    ``bin`` has a Ghostscript that leaves a file in the home: whoever starts it is found out.
    """

    root: Path

    def path(self, name: str) -> Path:
        """One of its folders: ``home``, ``tmp``, ``cwd``, ``beside``, ``bin``, ``output``."""
        return self.root / name

    def make(self) -> None:
        """Make it anew, empty."""
        discard(self.root)
        for name in ("home/.cache", "tmp", "cwd", "bin", "output"):
            self.path(name).mkdir(parents=True)
        for name in ("home/letter.txt", "cwd/letter.txt", "letter.txt"):
            self.path(name).write_text("not clipq's")
        for name in ("gs", "gswin32c", "gswin64c"):
            program = self.path("bin") / name
            program.write_text(GHOSTSCRIPT.format(self.path("home")))
            program.chmod(0o755)

    def environment(self) -> dict[str, str]:
        """What a command's process has in its environment."""
        return {
            "HOME": str(self.path("home")), "TMPDIR": str(self.path("tmp")),
            "XDG_CACHE_HOME": str(self.path("home") / ".cache"),
            "PATH": f"{self.path('bin')}:{os.environ['PATH']}", "CLIPQ_PIXEL_CACHE_GB": "0",
            "COLUMNS": "200", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1",
            "no_proxy": "*",
        }  # fmt: skip

    def of_onnx_runtime(self) -> tuple[Path, Path]:
        """Where ONNX Runtime, and not clipq, notes which machine and session this is."""
        return self.path("home") / ".cache" / "Microsoft", self.path("tmp") / ".ses"


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything below a folder, by path; links are not followed."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(folder, name)  # noqa: PTH118
            status = os.lstat(path)
            # A folder changes by what is in it, which is looked at itself.
            found[path] = (0, 0) if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns)
    return found


def changed(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> list[str]:
    """Paths that came, went or changed."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def leftovers(output: Path) -> list[str]:
    """Hidden and temporary names below an output, which no command that ended may leave.

    What other libraries keep beside clipq's downloads is theirs.
    """
    return [
        os.path.join(folder, name)  # noqa: PTH118
        for folder, folders, files in os.walk(output)
        for name in (*folders, *files)
        if "/fetched/" not in folder or "/fetched/wds" in folder
        if name.startswith(".") or name.endswith((".tmp", ".part", ".incomplete"))
    ]


def discard(folder: Path) -> None:
    """Remove a folder, whatever its rights are."""
    for parent, folders, _ in os.walk(folder):
        for name in folders:
            os.chmod(os.path.join(parent, name), 0o755)  # noqa: PTH101, PTH118
    shutil.rmtree(folder, ignore_errors=True)
