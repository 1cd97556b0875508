"""Digests, and writes that either happen whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipq.errors import ClipqError

if TYPE_CHECKING:
    from numpy.typing import NDArray


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


def packed(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """Arrays by name as the bytes of a safetensors file, each in the order that its axes have.

    safetensors (0.8) writes memory as it lies: an array with exchanged axes came back as another one.
    """
    import numpy as np
    from safetensors.numpy import save

    ordered = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(ordered, None if metadata is None else dict(metadata))


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file under a temporary name, then rename it: readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data.encode() if isinstance(data, str) else data)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


# What a folder that clipq made has in it.
MARKERS = ("clipq.json", "clipq-attack.json")


def check_target(target: Path) -> None:
    """Raise ClipqError for a file, and for a folder that is not empty and was not made by an earlier run."""
    ours = any((target / marker).is_file() for marker in MARKERS)
    if target.exists() and not ours and (not target.is_dir() or any(target.iterdir())):
        raise ClipqError(f"{target} exists and was not made by clipq; choose another folder with -o")


@contextmanager
def directory_in_making(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` that takes its place on success and vanishes on failure.

    A folder that an earlier run made is replaced; another that is not empty is refused (``check_target``).
    """
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        making.chmod(0o755)
        yield making
        if target.exists():
            shutil.rmtree(target)
        making.replace(target)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
