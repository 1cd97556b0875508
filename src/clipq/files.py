"""Digests, and writes that either happen whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipq.errors import ClipqError

if TYPE_CHECKING:
    from numpy.typing import NDArray


# Bytes, so that a longer ending than any of clipq's fits into the 255 of a file's name.
LONGEST_STEM = 200


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


class Damaged(ValueError):
    """Stored arrays are not what was stored."""


# Where a file's own checksum stands in its header: no name or text there can hold this, for quotes are escaped in them.
_SEAL = b'"sha256":"'
_BLANK = b"0" * 64


def packed(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """Arrays by name as the bytes of a safetensors file, each in the order that its axes have.

    safetensors (0.8) writes memory as it lies: an array with exchanged axes came back as another one. It writes
    metadata in any order, too: here the same arrays give the same bytes. The metadata also hold ``sha256``, of all
    bytes of the file with zeros in its place.
    """
    import numpy as np
    from safetensors.numpy import save

    plain = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    start = 8 + int.from_bytes(plain[:8], "little")
    said = dict(sorted({**(metadata or {}), "sha256": _BLANK.decode()}.items()))
    text = json.dumps({"__metadata__": said, **json.loads(plain[8:start])}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head, body = len(text).to_bytes(8, "little") + text, memoryview(plain)[start:]
    where = head.index(_SEAL) + len(_SEAL)
    return b"".join((head[:where], _checksum(head, body, where), head[where + 64 :], body))


def unpacked(
    data: bytes | bytearray, unsealed: Set[str] | None = None
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Arrays, in the memory of ``data``, and metadata of what ``packed`` made; raises Damaged where a bit differs.

    A file without a checksum is damaged, too, unless its metadata have exactly the keys ``unsealed``: those that such
    files had before there were checksums.
    """
    start = 8 + int.from_bytes(data[:8], "little")
    where = data.find(_SEAL, 8, start) + len(_SEAL)
    is_sealed = where >= len(_SEAL)
    if is_sealed and _checksum(data, b"", where) != data[where : where + 64]:
        raise Damaged("its checksum does not fit its content")
    try:
        header = json.loads(data[8:start])
        metadata = header.pop("__metadata__", {})
        if not is_sealed and metadata.keys() != unsealed:
            raise Damaged("it has no checksum")
        arrays = {name: _array(data, start, **entry) for name, entry in header.items()}
    except Damaged:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise Damaged(f"it is no safetensors file ({error})") from error
    return arrays, {key: value for key, value in metadata.items() if key != "sha256"}


# By the format's names; of those that numpy has.
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8",
    "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def _array(
    data: bytes | bytearray, start: int, *, dtype: str, shape: Sequence[int], data_offsets: tuple[int, int]
) -> NDArray[Any]:
    """One array of a file whose data begin at ``start``. The library would copy it, which takes twice the memory."""
    import numpy as np

    first, end = data_offsets
    return np.frombuffer(memoryview(data)[start + first : start + end], _DTYPES[dtype]).reshape(shape)


def _checksum(head: bytes | bytearray, body: bytes | memoryview, where: int) -> bytes:
    state = hashlib.sha256(memoryview(head)[:where])
    state.update(_BLANK)
    state.update(memoryview(head)[where + 64 :])
    state.update(body)
    return state.hexdigest().encode()


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file under a temporary name, then rename it: readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not named after the file, whose name may be as long as names get; made by open, which honours the umask.
    temporary = path.parent / f".clipq-writing-{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as stream:
            stream.write(data.encode() if isinstance(data, str) else data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


# What a folder that clipq made has in it.
MARKERS = ("clipq.json", "clipq-attack.json")

# Hidden folders beside a target: one in making, whose maker holds a lock on it, or one that is being deleted; and the
# folder that had the target's name until a moment ago, which is restored where the new one did not come.
_MAKING = ".clipq-making-"
_BEFORE = ".clipq-before-"

# A folder in making on another machine, whose lock may not be seen here, is left alone for so many seconds.
_FOREIGN = 7 * 24 * 3600


def check_target(target: Path) -> None:
    """Raise ClipqError for a file, a mount point, and a folder that is not empty and no earlier run made."""
    if target.is_mount():
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


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """A new empty folder and the lock on it, which its process's end releases, however it ends."""
    while True:
        making = _new_name(parent)
        making.mkdir()
        # Another process may have deleted it before it was locked.
        with suppress(FileNotFoundError):
            lock = os.open(making, os.O_RDONLY)
            if _lock(lock) is not False and making.is_dir():
                return making, lock
            os.close(lock)


def _lock(descriptor: int) -> bool | None:
    """Whether the lock was taken: False where another process has it, None where this file system has no locks."""
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
            recent = time.time() - making.stat().st_mtime < _FOREIGN
            if recent and not making.name.startswith(f"{_MAKING}{_host()}-"):
                continue
            lock = os.open(making, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if _lock(lock):
                    shutil.rmtree(making, ignore_errors=True)
            finally:
                os.close(lock)
