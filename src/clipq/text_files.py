"""Files that people and other programs write, read as UTF-8, JSON or TOML: what cannot be read is one line's error."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from clipq.errors import ClipqError

# Of a text that people write; a larger one is another kind of file, or made to fill the memory.
MOST_BYTES = 64 * 2**20
# What stands in a file's place where Git was asked for it without its large files.
_POINTER = b"version https://git-lfs.github.com/spec/"
_IS_POINTER = "is a pointer of Git LFS, not the file itself; fetch that (git lfs pull)"


def read_bytes(path: Path, wrong: type[ClipqError], most: int = MOST_BYTES) -> bytes:
    """A file's content; raises ``wrong`` where it cannot be read, is no regular file, or larger than ``most`` bytes.

    Devices and pipes are refused, for they may never end.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise wrong(f"{path}: is no regular file; give one")
        if found.st_size > most:
            raise wrong(f"{path}: has {found.st_size} bytes, more than the {most} that such a file may have")
        with path.open("rb") as stream:
            data = stream.read(most + 1)
    except OSError as error:
        raise wrong(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        # A NUL in its name.
        raise wrong(f"{str(path)!r}: is no path ({error})") from error
    if len(data) > most:
        raise wrong(f"{path}: has more than the {most} bytes that such a file may have")
    return data


def pointer_of_git_lfs(path: Path) -> str | None:
    """What is wrong with a file that Git left a pointer in the place of; None where it did not."""
    with path.open("rb") as stream:
        return f"{path}: {_IS_POINTER}" if stream.read(len(_POINTER)) == _POINTER else None


def read_text(path: Path, wrong: type[ClipqError], most: int = MOST_BYTES) -> str:
    """A file's text, a byte order mark left out; raises ``wrong`` as ``read_bytes`` does, and where it is not UTF-8."""
    return as_text(read_bytes(path, wrong, most), path, wrong)


def as_text(data: bytes, where: object, wrong: type[ClipqError]) -> str:
    """Bytes as UTF-8; raises ``wrong`` with the line of the first that is not."""
    if data.startswith(_POINTER):
        raise wrong(f"{where}: {_IS_POINTER}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise wrong(f"{where}: line {line} is not UTF-8 (byte 0x{byte:02x}); save it as UTF-8") from error


def read_json(path: Path, wrong: type[ClipqError], way_out: str, most: int = MOST_BYTES) -> Any:
    """A JSON file's value; raises ``wrong``, which ends with the way out, where it is none."""
    data = read_bytes(path, wrong, most)
    try:
        value = json.loads(data)
        if b"\\ud" in data.lower():
            # Half a letter, by its number: JSON allows it, and nothing can write it again.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise wrong(f"{path} is not valid JSON ({reason}); {way_out}") from error
    return value


def parse_toml(text: str, where: object, wrong: type[ClipqError]) -> dict[str, Any]:
    """A TOML text's tables; raises ``wrong`` with the line of what is none."""
    import tomli

    try:
        return tomli.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise wrong(f"{where}: is no TOML: {reason}") from error
