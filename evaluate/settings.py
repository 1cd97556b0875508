"""How a run is set up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clipq.data.pixels import PixelCache
from clipq.engines.catalog import DEFAULT_RUNTIME
from clipq.evaluate.cells.cells import BATCH
from clipq.evaluate.cells.storage import Storage


@dataclass(frozen=True)
class Where:
    """Where engines run and results and fetched data go; without a cache nothing is fetched.

    ``auto_batch`` halves the batch where GPU memory ends, which is an error otherwise; ``graphs`` launches plans as
    CUDA graphs. ``thumbnails`` keeps small pictures of a few flips for the report; ``pixels`` keeps decoded images.
    ``batch`` None: the batch size is found by measurement.
    ``cells`` are in the results folder where nothing else is said; ``failed`` engines, by label, are not tried.
    """

    results: Path
    runtime: str = DEFAULT_RUNTIME
    threads: int = 0
    cache: Path | None = None
    auto_batch: bool = False
    graphs: bool = False
    thumbnails: bool = True
    pixels: PixelCache | None = None
    batch: int | None = BATCH
    cells: Storage | None = None
    failed: Mapping[str, str] = field(default_factory=dict)
