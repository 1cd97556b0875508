"""An engine that ran elsewhere: what it is fed is looked up among what it was asked there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from clipq.bundle import Preprocess
from clipq.engines.base import Array, Engine, TensorSpec
from clipq.engines.runtime import Load
from clipq.errors import BundleError, EngineError
from clipq.packed import Damaged, packed, unpacked

# Far more than floats lose of a pixel, far less than between two.
_NEAR = 0.05


class ExternalEngine(Engine):
    """One tower of a bundle of answers: embeddings by the digest of what was embedded."""

    runtime = "external"

    def __init__(self, load: Load):
        manifest, self._tower = load.bundle.manifest, load.tower
        entry = manifest.tower(load.tower)
        if entry.answers is None or entry.answers.kind != "embeddings":
            raise BundleError(f"{load.path}: holds no embeddings; import the answers again")
        self._preprocess = manifest.preprocess
        self.inputs = (TensorSpec(entry.input_name, np.dtype(entry.input_dtype), entry.input_shape),)
        self.outputs = (TensorSpec(entry.output_name, np.dtype(np.float32), (None, manifest.embed_dim)),)
        try:
            arrays, _ = unpacked(load.path.read_bytes())
            digests, self._embeddings = arrays["digests"], arrays["embeddings"]
        except (Damaged, KeyError) as error:
            raise BundleError(f"{load.path}: is damaged ({error}); import the answers again") from error
        if digests.shape != (len(self._embeddings), 32) or self._embeddings.shape[1:] != (manifest.embed_dim,):
            raise BundleError(f"{load.path}: holds other shapes than its manifest says; import the answers again")
        self._rows = {digest.tobytes(): row for row, digest in enumerate(digests)}

    def _run(self, staged: dict[str, Array]) -> dict[str, Array]:
        (fed,) = staged.values()
        asked = pixels_of(fed, self._preprocess) if self._tower == "image" else fed
        rows = [self._rows.get(digest) for digest in digests_of(asked)]
        if None in rows:
            what = "an image" if self._tower == "image" else "a text"
            raise EngineError(
                f"{what} was never asked where it ran ({rows.count(None)} of {len(rows)} in this batch); export the "
                "cells again with this suite, and run it on what is new"
            )
        return {self.outputs[0].name: self._embeddings[np.array(rows, dtype=np.int64)].astype(np.float32)}

    def close(self) -> None:
        """Forget the answers."""
        self._rows, self._embeddings = {}, np.zeros((0, 0), np.float32)


def digests_of(rows: Array) -> Iterable[bytes]:
    """SHA-256 of every row's content: of pixels in uint8, of token ids in int64, whatever width they came in."""
    whole = np.uint8 if rows.dtype == np.uint8 else np.int64
    return (hashlib.sha256(np.ascontiguousarray(row, whole).tobytes()).digest() for row in rows)


def pixels_of(fed: Array, config: Preprocess) -> NDArray[np.uint8]:
    """The uint8 pixels (N × H × W × 3) that normalized ones (float, N × 3 × H × W) were made of.

    Raises EngineError where they were made of none.
    """
    mean, std = (np.array(one, np.float64)[:, None, None] for one in (config.mean, config.std))
    values = (fed * std + mean) * 255
    whole = np.rint(values)
    if not (np.abs(values - whole) < _NEAR).all() or whole.min(initial=0) < 0 or whole.max(initial=0) > 255:
        raise EngineError("it is fed what no image was made to; an engine that ran elsewhere knows images alone")
    return np.ascontiguousarray(np.moveaxis(whole.astype(np.uint8), 1, -1))


def packed_answers(digests: Array, embeddings: Array) -> bytes:
    """A tower's file: what was asked, by its digest (rows × 32, uint8), and what came back (rows × dimension)."""
    return packed({"digests": digests, "embeddings": embeddings})
