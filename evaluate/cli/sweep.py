"""``clipq-eval sweep``: a grid of engines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipq.console import DefaultGroup, OutputFolder, fetch_option
from clipq.errors import DataError
from clipq.evaluate.cli.options import (
    json_option,
    jsonable,
    pixel_cache_option,
    pixel_cache_size_option,
    ray_option,
)
from clipq.evaluate.results import strict_json
from clipq.evaluate.settings import Settings, kept_pixels
from clipq.progress import progress_bars

if TYPE_CHECKING:
    from clipq.evaluate.sweep.grid import Grid
    from clipq.evaluate.sweep.jobs import Outcome
    from clipq.evaluate.sweep.state import SweepFolder
    from clipq.progress import Progress


@click.group(cls=DefaultGroup, default="run")
def sweep() -> None:
    """Evaluate a grid of engines, cell by cell, here or on Ray: `sweep GRID -o RESULTS` (options: `sweep run -h`)."""


@sweep.command("run")
@click.argument("grid", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=OutputFolder(), required=True, metavar="RESULTS", help="Results folder.")
@click.option("--dry-run", is_flag=True, help="Show the plan and do nothing; engines that are not made yet stay so.")
@ray_option
@fetch_option
@pixel_cache_option
@pixel_cache_size_option
def sweep_run(
    grid: Path,
    output: Path,
    dry_run: bool,
    ray: str | None,
    cache: str | None,
    pixel_cache: Path,
    pixel_cache_gb: float,
) -> None:
    """Fill the cells of GRID (a TOML file) that are missing in RESULTS, then write records and reports.

    Whatever is finished is kept: the same command goes on where it was stopped. Cells that failed are left alone; see
    `sweep status` and `sweep retry`. Exit code 3 where something failed.
    """
    from clipq.evaluate.sweep.grid import read_grid
    from clipq.evaluate.sweep.run import connected, plan_sweep
    from clipq.evaluate.sweep.state import SweepFolder
    from clipq.evaluate.sweep.tables import print_sweep_plan

    read = read_grid(grid)
    folder = SweepFolder(output)
    settings = _settings(cache, pixel_cache, pixel_cache_gb)
    if dry_run:
        with progress_bars() as progress, connected(read, ray) as cluster:
            planned = plan_sweep(read, folder, settings, progress, cluster=cluster, makes=False)
        print_sweep_plan(planned, folder, _where(ray, planned.slots))
        return
    _sweep(read, folder, settings, ray)


@sweep.command("status")
@click.argument("results", type=click.Path(path_type=Path))
@json_option
def sweep_status(results: Path, as_json: bool) -> None:
    """Show which cells of the sweep in RESULTS are done, failed or missing, and why."""
    from clipq.evaluate.sweep.state import SweepFolder
    from clipq.evaluate.sweep.tables import print_status, status_rows

    folder = SweepFolder(results)
    if as_json:
        failures = [failure.model_dump() for failure in folder.failures()]
        click.echo(strict_json.dumps({"engines": status_rows(folder), "failures": failures}))
    else:
        print_status(folder)


@sweep.command("retry")
@click.argument("results", type=click.Path(path_type=Path))
@ray_option
@fetch_option
@pixel_cache_option
@pixel_cache_size_option
def sweep_retry(results: Path, ray: str | None, cache: str | None, pixel_cache: Path, pixel_cache_gb: float) -> None:
    """Forget the failures of the sweep in RESULTS and go on with it."""
    from clipq.evaluate.sweep.grid import checked_grid
    from clipq.evaluate.sweep.state import PLAN, SweepFolder

    folder = SweepFolder(results)
    grid = checked_grid(folder.read_plan().grid, results / PLAN)
    click.echo(f"{folder.forget_failures()} failures forgotten", err=True)
    _sweep(grid, folder, _settings(cache, pixel_cache, pixel_cache_gb), ray)


def _sweep(grid: Grid, folder: SweepFolder, settings: Settings, ray: str | None) -> None:
    from clipq.evaluate.api import read_results
    from clipq.evaluate.sweep.run import Listener, sweep
    from clipq.evaluate.sweep.tables import print_sweep_plan, print_swept

    if folder.path.exists() and not folder.path.is_dir():
        raise DataError(f"-o {folder.path} is a file; give a folder")
    context = click.get_current_context()
    given = {"command": f"sweep {context.info_name}", **jsonable(context.params)}
    with progress_bars() as progress:
        told = _counting(progress)
        listener = Listener(progress, lambda plan: print_sweep_plan(plan, folder, _where(ray, plan.slots)), told)
        swept = sweep(grid, folder, settings, ray, given, listener)
    print_swept(swept)
    if swept.results:
        click.echo(f"report: {read_results(*swept.results).report(folder.path / 'report.html')}", err=True)
    if swept.failures:
        click.get_current_context().exit(3)


def _settings(cache: str | None, pixel_cache: Path, pixel_cache_gb: float) -> Settings:
    fetch = Path(cache).expanduser() if cache else None
    return Settings(fetch=fetch, pixels=kept_pixels(pixel_cache, pixel_cache_gb))


def _where(ray: str | None, slots: int) -> str:
    return "in this process" if ray is None else f"on Ray, {slots} at once"


def _counting(progress: Progress) -> Callable[[Outcome], None]:
    """Advances the bar; where there is none, says every half minute how far it is."""
    seen = {"cells": 0, "failed": 0}
    said = [time.monotonic()]

    def told(outcome: Outcome) -> None:
        progress.advance(1)
        seen["cells"] += 1
        seen["failed"] += bool(outcome.failure)
        if not sys.stderr.isatty() and time.monotonic() - said[0] >= 30:
            said[0] = time.monotonic()
            click.echo(f"{seen['cells']} cells, {seen['failed']} failed", err=True)

    return told
