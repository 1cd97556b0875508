"""Digests, stamps and names of files, writes that happen whole or not at all, and what killed ones leave."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

# Bytes, so that a longer ending than any of clipq's fits into the 255 of a file's name.
LONGEST_STEM = 200
# What was left in making is deleted after so many seconds: until then another machine may be at work on it.
STALE = 7 * 24 * 3600.0
# What files and trials of one are called until they are whole, and folders of what is fetched.
WRITING = ".clipq-writing-"
FETCHING = ".clipq-fetching-"


def sha256_bytes(data: bytes) -> str:
    """Hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(2**20):
            state.update(chunk)
    return state.hexdigest()


def file_stem(name: str) -> str:
    """A name as that of a file, an ending to follow: one too long for file systems (255 bytes) ends in its digest."""
    data = name.encode()
    if len(data) <= LONGEST_STEM:
        return name
    return f"{data[: LONGEST_STEM - 17].decode(errors='ignore')}-{sha256_bytes(data)[:16]}"


Stamp = tuple[int, int, int]


def stamp(path: Path) -> Stamp | None:
    """Size and times of a file, which differ where it was written or exchanged since; None where there is none.

    No inode: file systems of other machines give the same file another one.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


@cache
def remove_stale(folder: Path, pattern: str) -> None:
    """Delete files and folders of a pattern that nobody touched for STALE: killed processes left them.

    Once in a process.
    """
    # Others remove what is theirs while it is listed.
    with suppress(OSError):
        for left in folder.glob(pattern):
            with suppress(OSError):
                if time.time() - left.lstat().st_mtime > STALE:
                    shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file under a temporary name, then rename it: readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path.parent, f"{WRITING}*")
    # Not named after the file, whose name may be as long as names get; made by open, which honours the umask.
    temporary = path.parent / f"{WRITING}{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as stream:
            stream.write(data.encode() if isinstance(data, str) else data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
