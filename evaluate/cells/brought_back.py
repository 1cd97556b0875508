"""Embeddings that an engine gave elsewhere, as its user brings them back: read and checked, never mended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipq.engines.base import Array
from clipq.errors import DataError
from clipq.files import sha256_file

# What is so close to the bundle's answer for another row, and so much closer than its own row's, belongs to that row.
_SAME, _APART = 0.9, 0.1
_ROWS_AT_ONCE = 65536


@dataclass(frozen=True)
class Embedded:
    """Embeddings in the order of a work folder's rows (rows × width, float16 or float32), and the file they came in."""

    rows: Array
    path: Path
    sha256: str
    dtype: str
    unit_length: bool

    @property
    def alike(self) -> int:
        """How many rows are the same, to the bit, as an earlier one: their images or texts differ."""
        return len(self.rows) - len({row.tobytes() for row in self.rows})


@dataclass(frozen=True)
class Resemblance:
    """Cosines to the bundle's own answers on a few rows: the mean, the least, and the mean to those of other rows."""

    mean: float
    least: float
    others: float
    rows: int


def read_embeddings(path: Path, rows: int, width: int, what: str) -> Embedded:
    """Embeddings of ``rows`` images or texts; raises DataError, in a line, for what cannot be that."""
    array = _read_array(path, what)
    if array.dtype.kind != "f":
        way_out = "bring back embeddings as floats (dequantized)"
        raise DataError(f"{path}: holds {array.dtype}, and embeddings are floating point; {way_out}")
    if array.ndim != 2 or len(array) != rows or array.shape[1] != width:
        hint = _shape_hint(array, rows, width)
        raise DataError(
            f"{path}: has shape {' × '.join(map(str, array.shape))}, and {what} want {rows} × {width} "
            f"(rows asked × the checkpoint's width); {hint}"
        )
    dtype = str(array.dtype)
    array = np.ascontiguousarray(array, np.float16 if array.dtype == np.float16 else np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(array.astype(np.float32), axis=1)
    for wrong, said in (
        (~np.isfinite(array).all(1) | ~np.isfinite(lengths), "is not finite"),
        (lengths == 0, "is zero"),
        ((np.ptp(array, axis=1) == 0) & (width > 1), "has one value all over"),
    ):
        if wrong.any():
            raise DataError(
                f"{path}: row {int(wrong.argmax())} {said} ({int(wrong.sum())} of {rows} rows do); the engine is "
                "broken on these, or did not write them"
            )
    if rows > 1 and (array == array[0]).all():
        raise DataError(f"{path}: all {rows} rows are the same; the engine answers nothing that depends on its input")
    unit_length = bool((np.abs(lengths - 1) < (2e-3 if array.dtype == np.float16 else 1e-4)).all())
    return Embedded(array, path, sha256_file(path), dtype, unit_length)


def check_order(found: Embedded, trial: tuple[NDArray[np.int64], NDArray[np.float32]], name: str) -> Resemblance:
    """How much embeddings resemble those of the bundle ``name`` on the rows that it answered at export itself.

    Raises DataError where most of these rows are certainly others: what came back for another row is as good as the
    same, and what came back for the row itself is not.
    """
    asked, theirs = trial
    mine = _unit(found.rows[asked])
    table = mine @ theirs.T
    own = np.diag(table)
    best, where = np.full(len(asked), -2.0, np.float32), np.zeros(len(asked), np.int64)
    for start in range(0, len(found.rows), _ROWS_AT_ONCE):
        cosines = theirs @ _unit(found.rows[start : start + _ROWS_AT_ONCE]).T
        first = cosines.argmax(1)
        here = cosines[np.arange(len(asked)), first]
        where, best = np.where(here > best, first + start, where), np.maximum(here, best)
    swapped = (best >= _SAME) & (best - own > _APART)
    if swapped.mean() > 0.5:
        row = int(swapped.argmax())
        raise DataError(
            f"{found.path}: its rows are in another order than was asked: what {name} answers for row {asked[row]} "
            f"came back as row {where[row]} (cosine {best[row]:.3f}, row {asked[row]} itself {own[row]:.3f}), and so "
            f"for {int(swapped.sum())} of {len(asked)} rows; bring them back in the order of the file that was exported"
        )
    apart = table[~np.eye(len(asked), dtype=bool)]
    return Resemblance(float(own.mean()), float(own.min()), float(apart.mean()) if len(apart) else 0.0, len(asked))


def _unit(rows: Array) -> NDArray[np.float32]:
    whole = rows.astype(np.float32)
    return np.asarray(whole / np.linalg.norm(whole, axis=1, keepdims=True))


def _shape_hint(array: Array, rows: int, width: int) -> str:
    if array.ndim == 2 and array.shape == (width, rows):
        return "it is transposed"
    if array.ndim > 2:
        return "bring back the pooled, projected embedding of each row"
    if array.ndim == 2 and len(array) == rows:
        return "bring back the projected embedding, not the hidden state before it"
    return "bring back a row for each row of the file that was exported"


def _read_array(path: Path, what: str) -> Array:
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the {what} that the engine gave as .npy or .safetensors")
    kind = path.suffix.lower()
    try:
        if kind == ".npy":
            array = np.load(path, allow_pickle=False)
        elif kind == ".safetensors":
            array = _only_tensor(path)
        else:
            raise DataError(f"{path}: {what} come as .npy or .safetensors, not as {kind or 'a file without an ending'}")
    except DataError:
        raise
    except Exception as error:  # both libraries let all kinds of errors through
        raise DataError(f"{path}: cannot be read as {kind[1:]} ({error})") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: holds several arrays; save the {what} alone, with numpy.save")
    return array


def _only_tensor(path: Path) -> Array:
    from safetensors.numpy import load_file

    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size)) if size <= path.stat().st_size else {}
    types = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
    if "BF16" in types:
        raise DataError(f"{path}: holds bfloat16, which numpy has not; save it as float32")
    arrays = load_file(path)
    if len(arrays) != 1:
        raise DataError(f"{path}: holds {len(arrays)} tensors ({', '.join(sorted(arrays))[:200]}); save one alone")
    (array,) = arrays.values()
    return array
