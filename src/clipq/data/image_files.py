"""Which files below a folder are images: every other one is an error, or left out with a reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from clipq.data.source import IMAGE_SUFFIXES, SIDE_FILES, refuse_unwritable
from clipq.errors import DataError, spelled_out

# What systems and programs leave in folders, in lower case; so are all folders whose names begin with a dot.
SYSTEM_FOLDERS = {
    "__macosx", "__pycache__", "lost+found", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "recycler",
    "system volume information",
}  # fmt: skip


@dataclass(frozen=True)
class ImageFiles:
    """The images below a folder, in order; ``folders`` lie right in it, and ``left_out`` says why others are none."""

    files: tuple[Path, ...]
    folders: tuple[Path, ...]
    left_out: dict[str, str] = field(default_factory=dict)


def find_images(root: Path) -> ImageFiles:
    """All images below a folder, links followed.

    Raises DataError for a link to nothing, what cannot be read, and names that are no UTF-8.
    """
    files: list[Path] = []
    folders: list[Path] = []
    left_out: dict[str, str] = {}
    # A folder waits with those around it, so that a link back to one of them does not go on for ever.
    waiting: list[tuple[Path, tuple[tuple[int, int], ...]]] = [(root, (_identity(root),))]
    while waiting:
        folder, around = waiting.pop()
        for entry in _entries(folder):
            path = folder / entry.name
            reason = _reason(entry)
            if not reason and entry.is_dir():
                if _identity(path) in around:
                    reason = "a link to a folder around it"
                else:
                    waiting.append((path, (*around, _identity(path))))
                    folders += [path] if folder == root else []
            elif not reason:
                files.append(path)
            if reason and not (folder == root and entry.name in SIDE_FILES):
                left_out[spelled_out(str(path.relative_to(root)))] = reason
    refuse_unwritable(map(str, (*folders, *files)), str(root))
    return ImageFiles(tuple(sorted(files)), tuple(sorted(folders)), dict(sorted(left_out.items())))


def _reason(entry: os.DirEntry[str]) -> str:
    """Why an entry is neither an image nor a folder to look into; nothing where it is."""
    if entry.name.startswith("."):
        return "hidden"
    if entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110
        raise DataError(f"{entry.path}: is a link to nothing; mend it, or take it out")
    if entry.is_dir():
        return "a folder of the system's" if entry.name.lower() in SYSTEM_FOLDERS else ""
    if not entry.is_file():
        return "no regular file"
    return "" if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES else "no image's suffix"  # noqa: PTH122


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); mend it, or take it out") from error


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino
