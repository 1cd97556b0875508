"""How a run is set up."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from clipq.bounds import BATCH, THREADS
from clipq.bounds import PIXEL_CACHE_GB as MOST_GB
from clipq.cpu import Precision, check_predictable
from clipq.engines.catalog import DEFAULT_RUNTIME, known_runtime
from clipq.errors import ClipqError
from clipq.given import as_number, as_path, as_store, as_text, shown

if TYPE_CHECKING:
    from clipq.data.pixels import PixelCache

# Of linear algebra, whatever the machine has: on another number of threads sums end in other digits.
METRIC_THREADS = 2


# Where decoded and corrupted images are kept where nothing else is said, and how much of them.
PIXEL_CACHE = Path("~/.cache/clipq/pixels")
PIXEL_CACHE_GB = 10.0


@dataclass(frozen=True)
class Settings:
    """How engines run and what is kept for the next run. What is measured is not said here but in a suite.

    * ``runtime``: of ONNX bundles; built ones run in the runtime that they were built for.
    * ``threads``: of the runtime; 0 is all cores.
    * ``cpu_precision``: "as-is" runs as a session does that nothing was told; "exact" has ONNX Runtime keep 8-bit
      products from saturating, by kernels that are slower on every x86 CPU.
    * ``as_cpu``: a level of CPUs without VNNI ("avx2"): engines with integer products are evaluated once more, as they
      are predicted to be there.
    * ``graphs``: launch plans as CUDA graphs.
    * ``batch``: how many images or texts an engine is given at once, 1 to 256; "measure" finds the fastest.
    * ``auto_batch``: halve the batch where GPU memory ends, which is an error otherwise.
    * ``fetch``: the folder that remote sources are downloaded to; None downloads nothing.
    * ``pixels``: what keeps decoded images for the next engine and run, as the commands do; None keeps none.
    * ``cells``: where embeddings are kept, a folder (a relative one lies in the results folder) or a URL.
    * ``thumbnails``: keep small pictures of a few images that engines answer differently, for the report.

    Raises ClipqError for what cannot be.
    """

    runtime: str = DEFAULT_RUNTIME
    threads: int = 0
    cpu_precision: Precision = "as-is"
    as_cpu: str = ""
    graphs: bool = False
    batch: int | Literal["measure"] = 32
    auto_batch: bool = False
    fetch: Path | None = None
    pixels: PixelCache | None = field(default_factory=lambda: default_pixels())
    cells: str = "cells"
    thumbnails: bool = True

    def __post_init__(self) -> None:
        known_runtime(as_text(self.runtime, "runtime"))
        taken: dict[str, object] = {
            "threads": as_number(self.threads, "threads", *THREADS),
            "as_cpu": as_text(self.as_cpu, "as_cpu") if self.as_cpu else "",
            "cells": as_text(self.cells, "cells"),
            "fetch": None if self.fetch is None else as_path(self.fetch, "fetch"),
        }
        if not (isinstance(self.batch, str) and self.batch == "measure"):
            taken["batch"] = as_number(self.batch, "batch", *BATCH, also=", or 'measure'")
        if self.cpu_precision not in get_args(Precision):
            raise ClipqError(f"cpu_precision {shown(self.cpu_precision)}: give {' or '.join(get_args(Precision))}")
        if taken["as_cpu"]:
            check_predictable(str(taken["as_cpu"]))
        for name in ("graphs", "auto_batch", "thumbnails"):
            if not isinstance(getattr(self, name), bool):
                raise ClipqError(f"{name} {shown(getattr(self, name))}: give True or False")
        if not (self.pixels is None or hasattr(self.pixels, "capacity")):
            raise ClipqError(f"pixels {shown(self.pixels)}: give None to keep none; CLIPQ_PIXEL_CACHE says where to")
        as_store(str(taken["cells"]), Path())
        for name, value in taken.items():
            object.__setattr__(self, name, value)

    def within(self, results: Path) -> Settings:
        """These settings with ``cells`` spelled out for a results folder."""
        return replace(self, cells=as_store(self.cells, results))


def default_pixels() -> PixelCache | None:
    """What the commands keep decoded images in where nothing is said."""
    size = os.environ.get("CLIPQ_PIXEL_CACHE_GB") or PIXEL_CACHE_GB
    folder = Path(os.environ.get("CLIPQ_PIXEL_CACHE") or PIXEL_CACHE)
    try:
        return kept_pixels(folder, float(size), "CLIPQ_PIXEL_CACHE_GB=")
    except ValueError as error:
        raise ClipqError(f"CLIPQ_PIXEL_CACHE_GB={size}: give how many GB, or 0 to keep none") from error


def kept_pixels(folder: Path, gigabytes: float, what: str = "--pixel-cache-gb ") -> PixelCache | None:
    """A cache of decoded images of at most so many GB, or None where it may hold nothing.

    Raises ClipqError, with ``what`` said so, for what is no size.
    """
    if not MOST_GB.least <= gigabytes <= MOST_GB.most:
        span = f"from {MOST_GB.least} to {MOST_GB.most}"
        raise ClipqError(f"{what}{gigabytes:g}: give how many GB, {span}, or 0 to keep none")
    from clipq.data.pixels import PixelCache

    return PixelCache(folder.expanduser(), int(gigabytes * 1e9)) if gigabytes else None
