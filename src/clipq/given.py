"""What callers give from Python, taken as what was meant or refused in a line, before anything is done with it."""

from __future__ import annotations

import difflib
import operator
import os
import re
import reprlib
import secrets
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

from clipq.errors import CONTROL, ClipqError, DataError
from clipq.files import WRITING

PathLike: TypeAlias = "str | os.PathLike[str]"


def shown(value: object) -> str:
    """A value in a message: short, and on one line."""
    return " ".join(reprlib.repr(value).split())


def closest(asked: object, known: Iterable[str], spoken: Mapping[str, Iterable[str]] | None = None) -> str:
    """The name that was meant by one that there is not; empty where none is close. ``spoken`` has other words for some.

    >>> closest("sorce", ["name", "source"]), closest("accuracy", ["nll", "acc1"], {"acc1": ["top-1 accuracy"]})
    ('source', 'acc1')
    """

    def letters(text: str) -> str:
        return re.sub(r"[\W_]+", "", text.casefold())

    word = letters(str(asked))

    def likeness(said: str) -> float:
        inside = 0.8 if len(word) > 2 and word in letters(said) else 0.0
        return max(inside, difflib.SequenceMatcher(None, word, letters(said)).ratio())

    scores = {name: max(map(likeness, (name, *(spoken or {}).get(name, ())))) for name in known}
    best = max(scores, key=scores.__getitem__, default="")
    return best if scores.get(best, 0) >= 0.6 else ""


def hint(asked: object, known: Iterable[str], spoken: Mapping[str, Iterable[str]] | None = None) -> str:
    """``; did you mean NAME?`` for the end of a complaint about a name that there is not, where one is close."""
    close = closest(asked, known, spoken)
    return f"; did you mean {close}?" if close else ""


def without_folders(place: str) -> str:
    """A place as others may see it, who need not know the folders of this machine: the last part of an absolute path.

    >>> without_folders("local-dir:/home/me/clip"), without_folders("photos/test"), without_folders("wds:https://a/b")
    ('local-dir:clip', 'photos/test', 'wds:https://a/b')
    """
    found = re.fullmatch(r"([a-z-]+:)?([/~].*)", place, re.DOTALL)
    return f"{found[1] or ''}{Path(found[2]).name}" if found else place


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
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text:
        raise ClipqError(f"{what} {shown(value)}: give a path")
    text = _checked(text, what)
    if wrong := unusable(text):
        raise ClipqError(f"{what} {shown(text)}: {wrong}")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ClipqError(f"{what} {shown(text)}: {error}") from error


def as_folder(value: object, what: str) -> Path:
    """A path where a folder is, or can be made, that can be written to; raises ClipqError else."""
    path = as_path(value, what)
    try:
        for one in (path, *path.parents):
            if one.is_symlink() and not one.exists():
                raise ClipqError(f"{what} {path}: {one} is a link to nothing; make what it leads to, or give a folder")
        there = next(one for one in (path, *path.absolute().parents) if one.exists())
        if not there.is_dir():
            raise ClipqError(f"{what} {path}: {there} is a file; give a folder")
        # Tried, for file systems that are read-only or made by the kernel do not say so in a folder's mode.
        trial = there / f"{WRITING}{secrets.token_hex(8)}"
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        raise ClipqError(f"{what} {path}: cannot be written ({error.strerror}); give another folder") from error
    return path


def as_file(value: object, what: str) -> Path:
    """A path where a file is, or can be made, in a folder that can be written to; raises ClipqError else."""
    path = as_path(value, what)
    as_folder(path.absolute().parent, f"{what} {path}: the folder")
    try:
        if path.exists() and not path.is_file():
            raise ClipqError(f"{what} {path}: is no regular file; give a file's name")
    except OSError as error:
        raise ClipqError(f"{what} {path}: cannot be written ({error.strerror}); give another name") from error
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
    return _checked(text, what)


def _checked(text: str, what: str) -> str:
    """A text that is UTF-8, as results are, and has no NUL; raises ClipqError else."""
    if "\0" in text or not is_unicode(text):
        raise ClipqError(f"{what} {shown(text)}: is not UTF-8, or holds a NUL; rename it, or lead there by a link")
    return text


def is_nameable(name: str) -> bool:
    """Whether results can call something so: in a line of UTF-8."""
    return is_unicode(name) and not CONTROL.search(name)


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: names of files that are not are read as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
