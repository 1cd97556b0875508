"""Cells: embeddings of one engine over one view, stored in chunks under a key made of digests.

A chunk is written whole or not at all, so a run that was killed goes on where it stopped, and a run that was finished
finds everything there and does no inference.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipq.bundle import Preprocess
from clipq.data.pixels import PixelReader
from clipq.data.views import View
from clipq.engines.base import Array, Engine
from clipq.errors import EngineError, OutOfMemory, ResultsError
from clipq.evaluate.cells.storage import Storage
from clipq.files import sha256_bytes
from clipq.packed import Damaged, packed, unpacked
from clipq.preprocess import normalize

logger = logging.getLogger(__name__)

CHUNK = 256


@dataclass(frozen=True)
class Cell:
    """One array of embeddings in the making or done: where its chunks lie, and how many rows there will be."""

    storage: Storage
    identity: str
    rows: int
    chunk: int

    @property
    def name(self) -> str:
        """The folder's name: the digest of the identity."""
        return sha256_bytes(self.identity.encode())[:32]

    def starts(self) -> range:
        """First rows of all chunks."""
        return range(0, self.rows, self.chunk)

    def missing(self) -> list[int]:
        """First rows of the chunks that are not stored yet."""
        present = self.storage.names(self.name)
        return [start for start in self.starts() if _file(start) not in present]

    def store(self, start: int, rows: NDArray[np.int64], features: Array, skipped: Mapping[str, str]) -> None:
        """Store one chunk; the first says beside it, in ``cell.json``, what the cell is of."""
        if start == 0:
            self.storage.write(f"{self.name}/cell.json", self.identity.encode() + b"\n")
        tensors: dict[str, Array] = {"rows": rows, "features": features.astype(np.float32)}
        said = {"skipped": json.dumps(dict(skipped)), "cell": self.name}
        self.storage.write(f"{self.name}/{_file(start)}", packed(tensors, said))

    def load(self, again: Callable[[], object]) -> tuple[NDArray[np.int64], NDArray[np.float32], dict[str, str]]:
        """Row numbers, features (rows × dimension) and the skipped samples with their reasons.

        Chunks that are damaged are removed, and ``again`` is called to make them. Raises ResultsError for one that is
        damaged after that, too.
        """
        chunks = self._chunks()
        damaged = [start for start, chunk in chunks.items() if isinstance(chunk, Damaged)]
        if damaged:
            logger.warning("%s: %s; it is made again", self._url(damaged[0]), chunks[damaged[0]])
            for start in damaged:
                self.storage.remove(f"{self.name}/{_file(start)}")
            again()
            chunks = self._chunks()
        whole = []
        for start, chunk in chunks.items():
            if isinstance(chunk, Damaged):
                raise ResultsError(f"{self._url(start)} is damaged ({chunk}); delete it and run again") from chunk
            whole.append(chunk)
        # Of a chunk without rows the dimension may be unknown.
        full = [chunk for chunk in whole if len(chunk.rows)] or whole[:1]
        return (
            np.concatenate([chunk.rows for chunk in full]),
            np.concatenate([chunk.features for chunk in full]),
            {name: reason for chunk in whole for name, reason in chunk.skipped.items()},
        )

    def _chunks(self) -> dict[int, _Chunk | Damaged]:
        """Every chunk by its first row, or what is wrong with it."""
        found: dict[int, _Chunk | Damaged] = {}
        for start in self.starts():
            try:
                found[start] = self._read(start)
            except Damaged as error:
                found[start] = error
        widths = {one.features.shape[1] for one in found.values() if isinstance(one, _Chunk) and len(one.rows)}
        return found if len(widths) < 2 else dict.fromkeys(found, Damaged("its neighbours have another dimension"))

    def _read(self, start: int) -> _Chunk:
        try:
            arrays, said = unpacked(self.storage.read(f"{self.name}/{_file(start)}"))
            chunk = _Chunk(arrays["rows"], arrays["features"], json.loads(said["skipped"]))
        except (OSError, KeyError, ValueError) as error:
            raise error if isinstance(error, Damaged) else Damaged(str(error)) from error
        rows = range(start, min(start + self.chunk, self.rows))
        if said.get("cell") != self.name or not chunk.fits(rows):
            raise Damaged("it is of other samples or of another kind")
        return chunk

    def _url(self, start: int) -> str:
        return self.storage.url(f"{self.name}/{_file(start)}")


@dataclass(frozen=True)
class _Chunk:
    """Some rows of a cell, and the samples among them that were left out."""

    rows: NDArray[np.int64]
    features: NDArray[np.float32]
    skipped: dict[str, str]

    def fits(self, asked: range) -> bool:
        """Whether this can be what was stored of the samples in a range."""
        if not isinstance(self.skipped, dict) or self.rows.dtype != np.int64 or self.features.dtype != np.float32:
            return False
        rows = self.rows.tolist()
        # Several samples can have one name: of the same file.
        left_out = len(asked) - len(rows)
        return (
            self.rows.ndim == 1
            and rows == sorted(set(rows) & set(asked))
            and (left_out == 0) == (not self.skipped)
            and len(self.skipped) <= left_out
            and self.features.ndim == 2
            and len(self.features) == len(rows)
            and bool(np.isfinite(self.features).all())
        )


def chunk_names(rows: int, chunk: int) -> set[str]:
    """The names of a cell's chunks."""
    return {_file(start) for start in range(0, rows, chunk)}


def _file(start: int) -> str:
    return f"{start:08d}.safetensors"


def open_cell(storage: Storage, identity: Mapping[str, Any], rows: int, chunk: int) -> Cell:
    """The cell of an identity: all that its numbers depend on (engine, view, preprocessing)."""
    return Cell(storage, json.dumps(dict(identity), sort_keys=True), rows, chunk)


@dataclass(frozen=True)
class ImageJob:
    """One engine's share of filling a view's cells; ``open`` loads it when it is needed, ``labels`` are its names."""

    cell: Cell
    open: Callable[[], Engine]
    labels: list[str]


def fill_image_cells(
    view: View,
    jobs: Sequence[ImageJob],
    reader: PixelReader,
    advance: Callable[[int], None],
    batch_size: BatchSize,
) -> list[tuple[ImageJob, EngineError]]:
    """Embed a view with every engine that lacks it; each image is decoded once for all of them.

    Returns the jobs that were given up, each with the reason: their engines failed, or answered with what is no
    embedding.
    """
    missing = {id(job): set(job.cell.missing()) for job in jobs}
    engines: dict[int, Engine] = {}
    failures: list[tuple[ImageJob, EngineError]] = []
    waiting = []
    for job in jobs:
        if missing[id(job)]:
            try:
                engines[id(job)] = job.open()
                waiting.append(job)
            except EngineError as error:
                failures.append((job, error))
    starts = sorted(set().union(*(missing[id(job)] for job in waiting)))
    if starts:
        # Processes that run several engines over one view begin at different chunks, so that each makes other pixels.
        first = int(waiting[0].cell.name[:8], 16) % len(starts)
        starts = starts[first:] + starts[:first]
    for start, batch in zip(starts, reader.ahead(view, [(start, start + CHUNK) for start in starts]), strict=True):
        for job in [job for job in waiting if start in missing[id(job)]]:
            try:
                features = run_on_pixels(engines[id(job)], batch.pixels, reader.config, batch_size)
                unit(features)
            except EngineError as error:
                failures.append((job, error))
                waiting.remove(job)
                continue
            job.cell.store(start, batch.rows, features, batch.skipped)
            advance(len(batch.rows))
        if not waiting:
            break
    return failures


def fill_class_cell(
    cell: Cell, names: Sequence[str], embed: Callable[[str], NDArray[np.float32]], advance: Callable[[int], None]
) -> None:
    """Store the embedding of every class, a row each; ``embed`` makes one by the class's name."""
    for start in cell.missing():
        features = []
        for name in names[start : start + cell.chunk]:
            features.append(embed(name))
            advance(1)
        cell.store(start, np.arange(start, start + len(features), dtype=np.int64), np.stack(features), {})


def class_embedding(engine: Engine, prompts: Array, batch_size: BatchSize) -> NDArray[np.float32]:
    """The averaged, normalized embedding of a class, of the token ids of its prompts.

    No batch holds two classes, so that a class has one embedding whatever its neighbours.
    """
    return unit(unit(run_in_batches(engine, prompts, batch_size)).mean(0))


def fill_text_cell(
    cell: Cell, engine: Engine, tokens: Array, advance: Callable[[int], None], batch_size: BatchSize
) -> None:
    """Embed texts by their token ids, a row each; a text that comes twice in a chunk is embedded once."""
    for start in cell.missing():
        chunk = tokens[start : start + cell.chunk]
        distinct, place = np.unique(chunk, axis=0, return_inverse=True)
        features = unit(run_in_batches(engine, distinct, batch_size))[place.reshape(-1)]
        cell.store(start, np.arange(start, start + len(chunk), dtype=np.int64), features, {})
        advance(len(chunk))


def unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length 1; raises EngineError for a row that is zero or not finite."""
    # What overflows is refused in the next line.
    with np.errstate(over="ignore", invalid="ignore"):
        length = np.linalg.norm(features, axis=-1, keepdims=True)
    if not np.isfinite(length).all() or (length == 0).any():
        raise EngineError("an embedding is zero or not finite: the engine is broken on this input")
    return np.asarray(features / length)


@dataclass
class BatchSize:
    """How many samples engines are given at once; ``automatic``: halved, for all that follow, where memory ends.

    Dynamic quantization takes its ranges from the batch, so the size that was asked for is part of a cell's key.
    """

    size: int
    automatic: bool = False

    def halve(self) -> bool:
        """Go on with half as many, where that was allowed and is possible."""
        if not self.automatic or self.size == 1:
            return False
        self.size //= 2
        logger.warning("out of GPU memory: going on with batches of %d", self.size)
        return True


def run_on_pixels(
    engine: Engine, pixels: NDArray[np.uint8], config: Preprocess, batch: BatchSize
) -> NDArray[np.float32]:
    """An image tower's features of pixels, normalized batch by batch."""
    return run_in_batches(engine, pixels, batch, lambda part: normalize(part, config))


def run_in_batches(
    engine: Engine, array: Array, batch: BatchSize, prepare: Callable[[Array], Array] = lambda part: part
) -> NDArray[np.float32]:
    """An engine's features of an array, in batches; raises OutOfMemory where they may not or cannot be halved.

    ``prepare`` makes what the engine is fed of a part of the array, in a thread, while the engine runs the part before.
    """
    (name,) = (spec.name for spec in engine.inputs)
    (output,) = engine.outputs
    parts: list[NDArray[np.float32]] = []
    done = 0
    while done < len(array):
        size = batch.size
        feeds = ({name: prepare(array[start : start + size])} for start in range(done, len(array), size))
        try:
            for result in engine.run_ahead(feeds):
                parts.append(result[output.name])
                done += len(parts[-1])
        except OutOfMemory:
            if not batch.halve():
                raise
    return np.concatenate(parts) if parts else np.zeros((0, output.shape[-1] or 0), np.float32)
