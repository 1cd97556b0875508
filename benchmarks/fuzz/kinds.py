"""The kinds of inputs that are mutated, and how often: cases take them in turn."""

from __future__ import annotations

import math

from benchmarks.fuzz.archives import archives
from benchmarks.fuzz.bundles import files, manifests
from benchmarks.fuzz.case import Kind
from benchmarks.fuzz.downloads import downloads, sources
from benchmarks.fuzz.folders import folders, images
from benchmarks.fuzz.hub import tables_of_hub
from benchmarks.fuzz.questions import grids, policies, suites
from benchmarks.fuzz.stores import cells, pairings, pixels, records, sweeps
from benchmarks.fuzz.tables import tables
from benchmarks.fuzz.words import options, outputs

KINDS: dict[str, Kind] = {
    "manifest": manifests, "file": files, "suite": suites, "grid": grids, "policy": policies, "table": tables, "tar": archives,
    "folder": folders, "image": images, "record": records, "pairing": pairings, "cell": cells, "pixels": pixels,
    "sweep": sweeps,
    "hub": tables_of_hub,
    "download": downloads, "source": sources, "option": options, "output": outputs,
}  # fmt: skip
WEIGHTS = {"manifest": 3, "file": 2, "suite": 2, "table": 2, "tar": 3, "image": 2, "record": 3, "cell": 2, "folder": 2}
TURNS = [name for name in KINDS for _ in range(WEIGHTS.get(name, 1))]
assert math.gcd(len(TURNS), 11) == 1


def kind_of(number: int) -> str:
    """The kind of a case."""
    # 11 shares no factor with the turns, so that neighbours are of different kinds.
    return TURNS[number * 11 % len(TURNS)]
