"""What callers give from Python, taken as what was meant or refused in a line, before anything is done with it."""

from __future__ import annotations

import operator
import os
import re
import reprlib
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

from clipq.errors import ClipqError, DataError

PathLike: TypeAlias = "str | os.PathLike[str]"


def shown(value: object) -> str:
    """A value in a message: short, and on one line."""
    return " ".join(reprlib.repr(value).split())


# What Linux's file systems take; Windows' and macOS's take no more.
_NAME_BYTES, _PATH_BYTES = 255, 4095


def unusable(path: str) -> str | None:
    """Why no file system can have such a path; None for one that may well be there."""
    if "\0" in path:
        return "holds a NUL"
    if any(len(os.fsencode(part)) > _NAME_BYTES for part in path.split("/")) or len(os.fsencode(path)) > _PATH_BYTES:
        return f"is too long (a name has at most {_NAME_BYTES} bytes, a path {_PATH_BYTES})"
    return None


def as_path(value: object, what: str) -> Path:
    """A path, ``~`` spelled out (no shell does it here); raises ClipqError for what is none."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ClipqError(f"{what} {shown(value)}: give a path")
    if wrong := unusable(os.fspath(value)):
        raise ClipqError(f"{what} {shown(value)}: {wrong}")
    try:
        return Path(os.fspath(value)).expanduser()
    except RuntimeError as error:
        raise ClipqError(f"{what} {shown(value)}: {error}") from error


def as_folder(value: object, what: str) -> Path:
    """A path where a folder is, or can be made; raises ClipqError else."""
    path = as_path(value, what)
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not there.is_dir():
        raise ClipqError(f"{what} {path}: {there} is a file; give a folder")
    return path


def as_list(values: object, what: str) -> list[Any]:
    """One text or path, or several of them, as a list of at least one; raises ClipqError for anything else."""
    several = [values] if isinstance(values, str | os.PathLike) else values
    if isinstance(several, bytes | Mapping) or not isinstance(several, Iterable):
        raise ClipqError(f"{what} {shown(values)}: give one, or a list")
    found = list(several)
    if not found:
        raise ClipqError(f"{what}: the list is empty; give one at least")
    return found


def as_text(value: object, what: str) -> str:
    """A text, or a path as one; raises ClipqError for anything else."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text:
        raise ClipqError(f"{what} {shown(value)}: give it as text")
    return text


def as_number(value: object, what: str, least: int, most: int | None = None, *, also: str = "") -> int:
    """A whole number, numpy's too, within bounds; raises ClipqError for anything else."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        span = f"from {least} up" if most is None else f"from {least} to {most}"
        raise ClipqError(f"{what} {shown(value)}: give a whole number {span}{also}")
    return number


def as_share(value: object, what: str) -> float:
    """A number between 0 and 1, as differences of fractions are; raises DataError for anything else."""
    if not isinstance(value, Real) or not 0 < float(value) < 1:
        raise DataError(f"{what} {shown(value)}: give a number above 0 and below 1 (0.01 is one point)")
    return float(value)


# A letter alone is a Windows drive.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//)?")
# Schemes of this machine's folders, of what can be read and not kept in, and of this process's memory.
_FOLDERS, _READ_ONLY = ("file", "local"), ("http", "https", "data")
MEMORY = "memory"


def as_store(cells: str, folder: Path) -> str:
    """Where cells lie by what a user says: a folder, a relative one in ``folder``, or the URL of a store.

    Raises ClipqError for what is neither.
    """
    found = _URL.match(cells)
    scheme, slashes = found.groups() if found else ("", "")
    place = cells[found.end() :] if found else ""
    if not cells or cells != cells.strip() or not cells.isprintable() or "::" in cells or (found and not slashes):
        raise ClipqError(
            f"cells {cells!r}: is neither a folder nor a store's URL; give s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, "
            "file:///FOLDER, or a folder (./NAME where its name has a colon)"
        )
    if not scheme:
        return str(folder / as_path(cells, "cells"))
    if scheme in _FOLDERS:
        if not place.startswith("/") or not place.strip("/"):
            raise ClipqError(f"cells {cells!r}: give the whole path of a folder, as {scheme}:///FOLDER")
        return str(Path(place))
    if scheme in _READ_ONLY:
        raise ClipqError(f"cells {cells!r}: nothing can be kept there; give a folder or s3://BUCKET/PREFIX")
    if scheme != MEMORY and (not place or place.startswith("/")):
        raise ClipqError(f"cells {cells!r}: names no bucket; give {scheme}://BUCKET/PREFIX")
    return f"{scheme}://{place.rstrip('/')}"
