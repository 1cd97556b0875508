"""Pixels as towers see them, a chunk ahead of who uses them, kept on disk so that each image is decoded once.

The cache is a folder of chunks under keys made of digests, shared by all runs and processes of a machine. Decoding is
done by threads, for Pillow and the disk release Python's lock; corruptions are drawn by one, for their library draws
from numpy's global generator.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock
from safetensors import SafetensorError, safe_open

from clipq.ahead import ahead
from clipq.bundle import Preprocess
from clipq.data.views import DrawnView, OnBadImage, PixelBatch, View
from clipq.errors import DataError
from clipq.files import packed, sha256_bytes, write_atomic
from clipq.made_by import makers

# Of chunks. Those of the first one may hold images with exchanged axes, and are not read.
_LAYOUT = 2

DECODERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class PixelCache:
    """A folder of decoded chunks of at most ``capacity`` bytes.

    Where it is full, chunks that nobody used since ``since`` (seconds since 1970) go, oldest first; what then does not
    fit is not kept. So a data set larger than the cache is kept in part, and does not push itself out.
    """

    folder: Path
    capacity: int
    since: float = field(default_factory=time.time)

    def path(self, view: View, start: int, stop: int, config: Preprocess) -> Path:
        """Where a chunk lies: its key holds all that decides uint8 pixels, so mean and std are not in it."""
        geometry = config.model_dump(mode="json", exclude={"mean", "std"})
        made = {"view": view.digest, "geometry": geometry, "layout": _LAYOUT, **makers("image")}
        key = json.dumps(made, sort_keys=True)
        return self.folder / sha256_bytes(key.encode())[:32] / f"{start:08d}-{stop:08d}.safetensors"

    def read(self, path: Path) -> PixelBatch | None:
        """A chunk through the page cache, or None where it is not there (or was evicted, or is damaged)."""
        try:
            with safe_open(path, framework="numpy") as stored:
                skipped = json.loads((stored.metadata() or {})["skipped"])
                batch = PixelBatch(stored.get_tensor("rows"), stored.get_tensor("pixels"), skipped)
            os.utime(path)
        except (SafetensorError, OSError, KeyError, ValueError):
            return None
        return batch

    def write(self, path: Path, batch: PixelBatch) -> None:
        """Keep a chunk if it fits; a cache that cannot be written is only slower."""
        data = packed({"rows": batch.rows, "pixels": batch.pixels}, {"skipped": json.dumps(batch.skipped)})
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._make_room(len(data)):
                write_atomic(path, data)

    def lock(self, path: Path) -> contextlib.AbstractContextManager[object]:
        """Held while a chunk is made, so that processes that want the same wait for it and read it."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            return FileLock(path.with_suffix(".lock"))
        except OSError:
            return contextlib.nullcontext()

    def _make_room(self, size: int) -> bool:
        chunks = []
        for chunk in self.folder.glob("*/*.safetensors"):
            with contextlib.suppress(OSError):
                found = chunk.stat()
                chunks.append((found.st_mtime, found.st_size, chunk))
        over = sum(kept for _, kept, _ in chunks) + size - self.capacity
        for used, kept, chunk in sorted(chunks):
            if over <= 0 or used >= self.since:
                break
            chunk.unlink(missing_ok=True)
            over -= kept
        return over <= 0


@dataclass(frozen=True)
class PixelReader:
    """Reads pixels of views for one preprocessing, from the cache where there is one."""

    config: Preprocess
    on_bad_image: OnBadImage = "error"
    cache: PixelCache | None = None

    def read(self, view: View, start: int, stop: int) -> PixelBatch:
        """Samples ``start`` to ``stop``; raises DataError for a bad image unless those are to be skipped."""
        stop = min(stop, len(view.samples))
        if self.cache is None or view.is_in_memory:
            return self._make(view, start, stop)
        path = self.cache.path(view, start, stop, self.config)
        batch = self.cache.read(path)
        if batch is None:
            with self.cache.lock(path):
                batch = self.cache.read(path)
                if batch is None:
                    batch = self._make(view, start, stop)
                    self.cache.write(path, batch)
        if batch.skipped and self.on_bad_image == "error":
            raise _unusable(next(iter(batch.skipped.values())))
        return batch

    def ahead(self, view: View, ranges: Iterable[tuple[int, int]]) -> Iterator[PixelBatch]:
        """Chunks in order, each read while the one before is used; two are in memory at once."""
        return ahead(self.read(view, start, stop) for start, stop in ranges)

    def _make(self, view: View, start: int, stop: int) -> PixelBatch:
        if isinstance(view, DrawnView):
            base = self.read(view.base, start, stop)
            drawn = [view.draw(int(row), pixels) for row, pixels in zip(base.rows, base.pixels, strict=True)]
            return PixelBatch(base.rows, np.stack(drawn) if drawn else base.pixels, base.skipped)
        rows, arrays, skipped = [], [], {}
        for index, pixels in zip(range(start, stop), self._decoded(view, start, stop), strict=True):
            if isinstance(pixels, DataError):
                if self.on_bad_image == "error":
                    raise _unusable(str(pixels)) from pixels
                skipped[view.samples[index].id] = str(pixels)
            else:
                arrays.append(pixels)
                rows.append(index)
        stacked = np.stack(arrays) if arrays else np.zeros((0, *self.config.image_size, 3), np.uint8)
        return PixelBatch(np.array(rows, dtype=np.int64), stacked, skipped)

    def _decoded(self, view: View, start: int, stop: int) -> Iterator[np.ndarray | DataError]:
        decode = partial(_decode, view, self.config)
        with ThreadPoolExecutor(DECODERS, "decode") as decoders:
            yield from decoders.map(decode, range(start, stop))


def _decode(view: View, config: Preprocess, index: int) -> np.ndarray | DataError:
    try:
        return view.cropped(index, config)
    except DataError as error:
        return error


def _unusable(reason: str) -> DataError:
    return DataError(f"{reason}; mend it, or leave such files out with --on-bad-image skip")
