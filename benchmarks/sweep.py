"""How a sweep grows with workers: cells per minute, and what a cell costs beyond its own work.

    python -m benchmarks.sweep docs/examples/grid-demo.toml -o FILE.json

The grid's cells are filled in this process, then on Ray clusters of 1, 2, … nodes of one CPU each on this machine, each
time from nothing and with cold pixels, in turns. Overhead is what the workers' time was not spent in cells, per cell:
(wall time × workers − seconds inside cells) ÷ cells; it holds Ray's own work, idle workers at the end, and the start of
worker processes. Medians of the rounds with smallest and largest.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from clipq.data.pixels import PixelCache
from clipq.environment import environment
from clipq.evaluate.settings import Settings
from clipq.evaluate.sweep.cluster import connect, disconnect
from clipq.evaluate.sweep.grid import read_grid
from clipq.evaluate.sweep.run import fill, plan_sweep
from clipq.evaluate.sweep.state import SweepFolder
from clipq.progress import Progress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2], help="0 is this process, without Ray")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    measured: dict[int, list[dict[str, float]]] = {workers: [] for workers in options.workers}
    with tempfile.TemporaryDirectory() as name:
        for _ in range(options.rounds):
            for workers in options.workers:
                measured[workers].append(run_once(options.grid, Path(name), workers))
                print(workers, measured[workers][-1], file=sys.stderr)
    rows = [
        {"workers": workers, **{key: spread([one[key] for one in runs]) for key in runs[0]}}
        for workers, runs in measured.items()
    ]
    print(
        "| workers | cells | cells per minute | overhead per cell, ms | seconds inside cells |\n|---|---|---|---|---|"
    )
    for row in rows:
        label = row["workers"] or "this process"
        print(
            f"| {label} | {row['cells'][0]:.0f} | {text(row['per_minute'])} | {text(row['overhead'])} | {text(row['inside'])} |"
        )
    if options.output:
        record = {"benchmark": "sweep", "machine": environment(), "rows": rows}
        options.output.write_text(json.dumps(record, indent=1) + "\n")


def run_once(path: Path, work: Path, workers: int) -> dict[str, float]:
    """Fill all cells of a grid; the engines are made once and kept."""
    grid, folder = read_grid(path), SweepFolder(work / "results")
    shutil.rmtree(work / "results" / "cells", ignore_errors=True)
    shutil.rmtree(work / "pixels", ignore_errors=True)
    settings = Settings(pixels=PixelCache(work / "pixels", 10**10))
    planned = plan_sweep(grid, folder, settings, Progress(), cluster=None)
    seconds: list[float] = []
    cluster: Any = None
    if workers:
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        for _ in range(workers - 1):
            nodes.add_node(num_cpus=1)
        cluster = connect(nodes.address, 1, 0.0)
    started = time.perf_counter()
    filled = fill(planned, folder, cluster, lambda outcome: seconds.append(outcome.seconds))
    wall = time.perf_counter() - started
    if workers:
        disconnect()
        nodes.shutdown()
    assert filled == len(planned.jobs), "cells failed"
    overhead = (wall * max(1, workers) - sum(seconds)) / filled
    return {"cells": filled, "per_minute": 60 * filled / wall, "overhead": 1e3 * overhead, "inside": sum(seconds)}


def spread(values: list[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def text(values: tuple[float, float, float]) -> str:
    return f"{values[0]:.0f} [{values[1]:.0f}, {values[2]:.0f}]"


if __name__ == "__main__":
    main()
