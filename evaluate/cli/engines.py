"""``clipq-eval inspect`` and ``bench``: engines without data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from clipq.bounds import TIMED_BATCH
from clipq.console import Command, fetch_option, refuse_idle
from clipq.cpu import Precision
from clipq.errors import BundleError, one_line
from clipq.evaluate.cli.options import (
    batches_option,
    bundles_argument,
    cpu_precision_option,
    graphs_option,
    json_option,
    reference_option,
    repeats_option,
    runtime_option,
    threads_option,
)
from clipq.evaluate.results import strict_json

if TYPE_CHECKING:
    from clipq.bundle import TowerName


@click.command(cls=Command)
@click.argument("bundle", type=click.Path(path_type=Path))
@runtime_option
@threads_option
@cpu_precision_option
@click.option("--simulated", is_flag=True, help="Inspect the simulated engine (integer kernels off).")
@click.option(
    "--batch", default=8, show_default=True, type=click.IntRange(*TIMED_BATCH), help="Batch size of the profiled run."
)
@click.option(
    "--data", metavar="[NAME=]SOURCE",
    help="Count what saturates without VNNI on these labelled images and their prompts, not on plausible inputs.",
)  # fmt: skip
@fetch_option
@json_option
def inspect(
    bundle: Path,
    runtime: str,
    threads: int,
    cpu_precision: Precision,
    simulated: bool,
    batch: int,
    data: str | None,
    cache: str | None,
    as_json: bool,
) -> None:
    """Show which kernels really ran in BUNDLE, how much they did in integers, and what saturates without VNNI."""
    from clipq.bundle import TOWERS, open_bundle
    from clipq.engines.catalog import check_fits, require_runtime
    from clipq.evaluate.bench.bench import plausible_feed, subject_census
    from clipq.evaluate.cells.first_batch import first_batch
    from clipq.evaluate.cells.subjects import Subject, check_precision, check_runs_here, has_twin, runtime_of
    from clipq.evaluate.report.terminal import print_census

    if data is None:
        refuse_idle("fetches nothing without --data; leave it out", "cache")
    opened = open_bundle(bundle)
    subject = Subject(opened, runtime_of(opened, runtime), threads, simulated, precision=cpu_precision)
    check_fits(opened, subject.runtime, simulated=simulated)
    check_runs_here([subject], "kernels")
    if simulated and not has_twin(opened):
        raise BundleError(f"--simulated: {opened.name} has no Q/DQ nodes (int8-static has); nothing to simulate")
    require_runtime(subject.runtime)
    check_precision([subject], cpu_precision)
    real = first_batch(data, Path(cache).expanduser() if cache else None, batch) if data else None
    rows = [subject_census(subject, tower, plausible_feed(opened, tower, batch), real) for tower in TOWERS]
    if as_json:
        click.echo(strict_json.dumps([row.model_dump() for row in rows]))
    else:
        print_census(opened.name, opened.manifest, rows, simulated=simulated)


@click.command(cls=Command)
@bundles_argument
@runtime_option
@reference_option
@threads_option
@cpu_precision_option
@batches_option
@repeats_option
@graphs_option
@click.option(
    "--tower",
    "towers",
    type=click.Choice(["image", "text", "both"]),
    default="both",
    show_default=True,
    help="Tower to time.",
)
@json_option
def bench(
    bundles: Sequence[Path],
    runtime: str,
    reference: str | None,
    threads: int,
    cpu_precision: Precision,
    batches: Sequence[int],
    repeats: int,
    cuda_graphs: bool,
    towers: str,
    as_json: bool,
) -> None:
    """Time BUNDLES side by side, in turns, and give latencies as ratios to the reference's."""
    from clipq.evaluate.bench.bench import BenchSettings, time_subjects
    from clipq.evaluate.cells.subjects import check_runs_here, gather_cohort
    from clipq.evaluate.report.terminal import latency_rows, print_latency
    from clipq.evaluate.results.record import busy_note
    from clipq.evaluate.settings import Settings

    settings = Settings(runtime=runtime, threads=threads, cpu_precision=cpu_precision, graphs=cuda_graphs)
    cohort = gather_cohort(bundles, settings, reference=reference)
    check_runs_here(cohort.subjects, "latency")
    chosen = cast("tuple[TowerName, ...]", ("image", "text") if towers == "both" else (towers,))
    asked = BenchSettings(batches=tuple(sorted(set(batches))), repeats=repeats)
    base = cohort.reference.label if cohort.reference else None
    timed = time_subjects(cohort.subjects, chosen, asked, reference=cohort.reference)
    rows = latency_rows(timed, base)
    if as_json:
        click.echo(strict_json.dumps(rows))
    else:
        print_latency(rows)
    if note := busy_note(timed):
        click.echo(f"note: {one_line(note)}", err=True)
