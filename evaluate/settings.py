"""How a run is set up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from clipq.engines.catalog import DEFAULT_RUNTIME
from clipq.errors import ClipqError

if TYPE_CHECKING:
    from clipq.data.pixels import PixelCache

LARGEST_BATCH = 256


# Where decoded and corrupted images are kept where nothing else is said, and how much of them.
PIXEL_CACHE = Path("~/.cache/clipq/pixels")
PIXEL_CACHE_GB = 10.0


@dataclass(frozen=True)
class Settings:
    """How engines run and what is kept for the next run. What is measured is not said here but in a suite.

    * ``runtime``: of ONNX bundles; built ones run in the runtime that they were built for.
    * ``threads``: of the runtime; 0 is all cores.
    * ``graphs``: launch plans as CUDA graphs.
    * ``batch``: how many images or texts an engine is given at once, 1 to 256; "measure" finds the fastest.
    * ``auto_batch``: halve the batch where GPU memory ends, which is an error otherwise.
    * ``fetch``: the folder that remote sources are downloaded to; None downloads nothing.
    * ``pixels``: where decoded images are kept; None keeps none.
    * ``cells``: where embeddings are kept, a folder (a relative one lies in the results folder) or a URL.
    * ``thumbnails``: keep small pictures of a few images that engines answer differently, for the report.

    Raises ClipqError for a batch or a number of threads that cannot be.
    """

    runtime: str = DEFAULT_RUNTIME
    threads: int = 0
    graphs: bool = False
    batch: int | Literal["measure"] = 32
    auto_batch: bool = False
    fetch: Path | None = None
    pixels: PixelCache | None = None
    cells: str = "cells"
    thumbnails: bool = True

    def __post_init__(self) -> None:
        if self.batch != "measure" and not (isinstance(self.batch, int) and 1 <= self.batch <= LARGEST_BATCH):
            raise ClipqError(f"batch {self.batch!r}: give a whole number from 1 to {LARGEST_BATCH}, or 'measure'")
        if self.threads < 0:
            raise ClipqError(f"threads {self.threads}: give how many, or 0 for all cores")

    def within(self, results: Path) -> Settings:
        """These settings with ``cells`` spelled out for a results folder."""
        return self if "://" in self.cells else replace(self, cells=str(results / self.cells))


def kept_pixels(folder: Path, gigabytes: float) -> PixelCache | None:
    """A cache of decoded images of at most so many GB, or None where it may hold nothing."""
    from clipq.data.pixels import PixelCache

    return PixelCache(folder.expanduser(), int(gigabytes * 1e9)) if gigabytes else None
