"""What a sweep says on the terminal."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipq.evaluate.sweep.probe import free_bytes
from clipq.evaluate.sweep.run import SweepPlan, Swept
from clipq.evaluate.sweep.state import SweepFolder, whole


def print_sweep_plan(planned: SweepPlan, folder: SweepFolder, where: str) -> None:
    """What is going to be done, how long it may take and how much disk it needs."""
    console = Console()
    table = Table()
    for column in ("group", "runtime", "engines", "texts", "images", "attacks", "cells", "done", "failed"):
        table.add_column(column, justify="left" if column in ("group", "runtime") else "right")
    for group in planned.groups:
        jobs = [job for job in planned.jobs if job.group == group.name]
        kinds = Counter(job.kind for job in jobs)
        counts = (
            len(group.cohort.subjects), kinds["classes"] + kinds["captions"], kinds["images"], kinds["attack"],
            len(jobs), sum(job.cell in planned.done for job in jobs), sum(job.cell in planned.failed for job in jobs),
        )  # fmt: skip
        table.add_row(Text(group.name), Text(group.runtime), *map(str, counts))
    console.print(table)
    for what in planned.not_made:
        console.print(f"not made yet, so its cells are not counted: {what}", markup=False)
    if planned.failed:
        console.print(
            f"{len(planned.failed)} cells failed before and are left alone; clipq-eval sweep retry {folder.path}",
            markup=False,
            soft_wrap=True,
        )
    cost = planned.cost
    if cost is not None:
        storage = folder.storage(planned.grid)
        free = "" if storage.is_remote else f", {_bytes(free_bytes(folder.path))} free"
        console.print(
            f"{len(planned.to_do)} cells to fill {where}: about {_duration(cost.seconds(planned.slots))} "
            f"by a probe of each engine and view; cells {_bytes(cost.cell_bytes)} in {storage.root}{free}; "
            f"pixels {_bytes(cost.pixel_bytes)} at most, in the pixel cache of each node",
            markup=False,
            soft_wrap=True,
        )


def print_swept(swept: Swept) -> None:
    """What was filled and what failed."""
    console = Console()
    console.print(f"{swept.filled} cells filled in {_duration(swept.seconds)}, {len(swept.failures)} failures")
    for failure in swept.failures[:10]:
        console.print(
            f"failed: {failure.group}: {failure.engine}: {failure.what}: {failure.reason}", markup=False, soft_wrap=True
        )
    if len(swept.failures) > 10:
        console.print(f"and {len(swept.failures) - 10} more: clipq-eval sweep status")


def status_rows(folder: SweepFolder) -> list[dict[str, Any]]:
    """Cells by group and engine: planned, done, failed, missing. Done is what lies in the storage."""
    state = folder.read_plan()
    names = folder.storage(state.grid).tree()
    failed = {failure.cell for failure in folder.failures()}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for cell in state.cells:
        row = rows.setdefault(
            (cell.group, cell.engine),
            {"group": cell.group, "engine": cell.engine, "cells": 0, "done": 0, "failed": 0, "missing": 0},
        )
        kind = (
            "done" if whole(names, cell.cell, cell.rows, cell.chunk) else "failed" if cell.cell in failed else "missing"
        )
        row["cells"] += 1
        row[kind] += 1
    return list(rows.values())


def print_status(folder: SweepFolder) -> None:
    """Where a sweep stands."""
    console = Console()
    rows = status_rows(folder)
    table = Table()
    for column in ("group", "engine", "cells", "done", "failed", "missing"):
        table.add_column(column, justify="left" if column in ("group", "engine") else "right")
    for row in rows:
        # As it is: a name may have brackets, which a table would read as colours.
        table.add_row(*(Text(str(row[column])) for column in ("group", "engine", "cells", "done", "failed", "missing")))
    total = {key: sum(row[key] for row in rows) for key in ("cells", "done", "failed", "missing")}
    table.add_section()
    table.add_row("all", "", *(str(value) for value in total.values()))
    console.print(table)
    for failure in folder.failures():
        console.print(
            f"failed: {failure.group}: {failure.engine}: {failure.what}: {failure.reason}", markup=False, soft_wrap=True
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _bytes(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
