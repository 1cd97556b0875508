"""Folders that come whole or not at all: made beside their place, then renamed in."""

from __future__ import annotations

import errno
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clipq.errors import ClipqError
from clipq.files import STALE, sha256_bytes

# What a folder that clipq made has in it.
MARKERS = ("clipq.json", "clipq-attack.json", "clipq-work.json")

# Hidden folders beside a target: one in making, whose maker holds a lock on it, or one that is being deleted; and the
# folder that had the target's name until a moment ago, which is restored where the new one did not come.
_MAKING = ".clipq-making-"
_BEFORE = ".clipq-before-"

# Windows locks no folders: there, too, only what is old is deleted.
_HAS_LOCKS = os.name == "posix"


def check_target(target: Path) -> None:
    """Raise ClipqError for a file, a mount point, and a folder that is not empty and no earlier run made."""
    # Path.is_mount takes a link to another file system for one.
    if os.path.ismount(os.path.realpath(target)):
        raise ClipqError(f"{target} is a mount point, which cannot be replaced; give a folder in it")
    ours = any((target / marker).is_file() for marker in MARKERS)
    if target.exists() and not ours and (not target.is_dir() or any(target.iterdir())):
        raise ClipqError(f"{target} exists and was not made by clipq; choose another folder with -o")


@contextmanager
def directory_in_making(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` that takes its place on success and vanishes on failure.

    A folder that an earlier run made is replaced, by renaming: killed at any moment, the old one is there or the new
    one. Another that is not empty is refused (``check_target``). What killed processes left beside it is deleted.
    """
    # Of a link the folder that it leads to is replaced, and of "." there is a name.
    target = Path(os.path.realpath(target))
    restore(target)
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _delete_before(target)
    _delete_remainders(target.parent)
    making, lock = _locked_folder(target.parent)
    try:
        yield making
        _put(making, target)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        restore(target)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def restore(target: Path) -> None:
    """Give a folder its name back where a process was killed between renaming it aside and renaming the new one in."""
    if not os.path.lexists(target):
        for before in target.parent.glob(f"{_before(target)}*"):
            # Another process may restore it too, or the new one come after all.
            with suppress(OSError):
                before.rename(target)


def _before(target: Path) -> str:
    return f"{_BEFORE}{sha256_bytes(os.fsencode(target.name))[:16]}-"


def _put(making: Path, target: Path) -> None:
    """Rename the new folder in, and the old one aside, which is deleted then."""
    while True:
        try:
            making.rename(target)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        # Again where another process was as fast: it may have put one of its own there.
        check_target(target)
        with suppress(FileNotFoundError):
            target.rename(target.parent / f"{_before(target)}{secrets.token_hex(8)}")
    _delete_before(target)


def _delete_before(target: Path) -> None:
    # Found first and looked for the new one then: what another process renames aside now is not among them.
    found = list(target.parent.glob(f"{_before(target)}*"))
    for before in found if target.exists() else ():
        # Under the name of what may be deleted, for half of a folder must not be restored.
        doomed = _new_name(target.parent)
        with suppress(OSError):
            before.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def _new_name(parent: Path) -> Path:
    return parent / f"{_MAKING}{_host()}-{secrets.token_hex(8)}"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "", platform.node())[:64] or "unknown"


def _locked_folder(parent: Path) -> tuple[Path, int | None]:
    """A new empty folder and the lock on it, which its process's end releases, however it ends."""
    while True:
        making = _new_name(parent)
        making.mkdir()
        if not _HAS_LOCKS:
            return making, None
        # Another process may have deleted it before it was locked.
        with suppress(FileNotFoundError):
            lock = os.open(making, os.O_RDONLY)
            if _lock(lock) is not False and making.is_dir():
                return making, lock
            os.close(lock)


def _lock(descriptor: int) -> bool | None:
    """Whether the lock was taken: False where another process has it, None where this file system has no locks."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _delete_remainders(parent: Path) -> None:
    """Delete the folders in making whose makers are dead."""
    for making in parent.glob(f"{_MAKING}*"):
        with suppress(OSError):
            # Of one on another machine the lock may not be seen here.
            recent = time.time() - making.stat().st_mtime < STALE
            if recent and not (_HAS_LOCKS and making.name.startswith(f"{_MAKING}{_host()}-")):
                continue
            if not _HAS_LOCKS:
                shutil.rmtree(making, ignore_errors=True)
                continue
            lock = os.open(making, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if _lock(lock):
                    shutil.rmtree(making, ignore_errors=True)
            finally:
                os.close(lock)
