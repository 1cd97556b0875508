"""A source as it is written, taken apart, and the files beside images that several kinds of sources read."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from clipq.errors import DataError

if TYPE_CHECKING:
    from clipq.data.views import View

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"

Want = Literal["labels", "images", "captions"]


@dataclass(frozen=True)
class Source:
    """A source taken apart; ``path`` is what results and errors call it, ``place`` the path without the prefix."""

    name: str
    path: str
    place: str
    options: Mapping[str, str]

    @property
    def where(self) -> str:
        """What errors call it."""
        return f"--data {self.path}"


def split_source(spec: str, folder: Path = Path()) -> tuple[str, str, str]:
    """``[NAME=]SOURCE[:option=value,...]`` as three texts: ``NAME=`` or nothing, SOURCE, ``:option=...`` or nothing.

    A path that exists as it stands, seen from the folder, is taken as it stands.
    """
    before, path, after = "", spec, ""
    found = re.match(r"([A-Za-z0-9][\w.-]*=)(.+)$", path)
    if found and not _exists(folder / path):
        before, path = found.groups()
    found = re.match(r"(.+?)(:(?:[a-z_]+=[^,=]+)(?:,[a-z_]+=[^,=]+)*)$", path)
    if found and not _exists(folder / path):
        path, after = found.groups()
    return before, path, after


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # A source with its name and options may be longer than names of files get.
        return False


def read_csv(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file; raises DataError where a needed column, every row or the file is missing."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = list(reader.fieldnames or [])
            rows = list(reader)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    for column in needed:
        if column not in columns:
            hint = "; paths go there" if column == "file" else ""
            hint = "; :label=COLUMN chooses another label column" if column == "label" else hint
            raise DataError(f"{path}: has no column {column!r} (it has {', '.join(columns)}){hint}")
    if not rows:
        raise DataError(f"{path}: has no rows")
    return rows


def files_beside(path: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """Where the files lie that a CSV names; raises DataError for one that is missing or named twice."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: names {repeated[0]} more than once")
    for name in names:
        if not (path.parent / name).is_file():
            raise DataError(f"{path}: names {name}, which does not exist")
    return tuple(path.parent / name for name in names)


def side_file(folder: Path, name: str) -> tuple[Path, tuple[str, ...]] | None:
    """The lines of a side file in the folder or beside it, with the file's path."""
    for path in (folder / name, folder.resolve().parent / name):
        if path.is_file():
            return path, side_lines(path.read_text(encoding="utf-8-sig"))
    return None


def side_lines(text: str) -> tuple[str, ...]:
    """The lines of a file of class names or templates, without empty ones."""
    lines = [line.strip() for line in text.splitlines()]
    return tuple(line for line in lines if line)


def side_templates(folder: Path) -> tuple[str, ...] | None:
    """The templates in the folder or beside it, None where there are none."""
    found = side_file(folder, TEMPLATES)
    return None if found is None else checked_templates(*found)


def checked_templates(path: object, lines: Sequence[str]) -> tuple[str, ...]:
    """Templates with ``{}`` for the class name; raises DataError for one without."""
    templates = tuple(line.replace("{c}", "{}") for line in lines)
    for template in templates:
        if template.count("{}") != 1:
            raise DataError(f"{path}: template {template!r} must hold {{}} or {{c}} exactly once")
    return templates


def checked_classes(view: View) -> View:
    """The view, if classification makes sense on it: two classes or more, told apart, with enough samples."""
    assert view.classes is not None
    names = view.classes.names
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{view.source}: class name {repeated[0]!r} stands for more than one class; tell them apart")
    if len(view.classes.keys) < 2:
        raise DataError(f"{view.source}: only one class ({names[0]!r}); classification needs two")
    if len(view.samples) < len(view.classes.keys):
        raise DataError(
            f"{view.source}: {len(view.samples)} samples are fewer than the {len(view.classes.keys)} classes"
        )
    return view
