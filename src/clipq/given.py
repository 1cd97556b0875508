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


def as_path(value: object, what: str) -> Path:
    """A path, ``~`` spelled out (no shell does it here); raises ClipqError for what is none."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text:
        raise ClipqError(f"{what} {shown(value)}: give a path")
    return Path(_checked(text, what)).expanduser()


def as_folder(value: object, what: str) -> Path:
    """A path where a folder is, or can be made, that can be written to; raises ClipqError else."""
    path = as_path(value, what)
    try:
        there = next(one for one in (path, *path.absolute().parents) if one.exists())
        if not there.is_dir():
            raise ClipqError(f"{what} {path}: {there} is a file; give a folder")
        # Tried, for file systems that are read-only or made by the kernel do not say so in a folder's mode.
        trial = there / f".clipq-writing-{secrets.token_hex(8)}"
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
