"""Arrays as bytes of a file that carries a checksum, so that a flipped bit is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
