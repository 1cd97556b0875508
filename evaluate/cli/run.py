"""``clipq-eval run`` and ``demo``: bundles to a results folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from clipq.bounds import ECE_BINS, REPEATS, SAMPLES, SEED, TIMED_BATCH
from clipq.console import Command, OutputFolder, RenamedOption, fetch_option, refuse_idle
from clipq.cpu import Precision
from clipq.data.open import describe_sources
from clipq.errors import one_line
from clipq.evaluate.cli.options import (
    as_batch_size,
    as_cpu_option,
    bundles_argument,
    cpu_precision_option,
    graphs_option,
    json_option,
    jsonable,
    pixel_cache_option,
    pixel_cache_size_option,
    reference_option,
    runtime_option,
    threads_option,
)
from clipq.evaluate.results import strict_json
from clipq.evaluate.settings import Settings, kept_pixels
from clipq.progress import progress_bars

if TYPE_CHECKING:
    from clipq.evaluate.results.entry import Entry
    from clipq.evaluate.suites.schema import Suite


@click.command(cls=Command)
@bundles_argument
@click.option("--suite", metavar="FILE|NAME", help="What to evaluate on; see `clipq-eval suite`.")
@click.option(
    "--data", multiple=True, metavar="[NAME=]SOURCE",
    help=f"Labelled images, instead of a suite; repeatable. SOURCE is {describe_sources()}.",
)  # fmt: skip
@click.option("-o", "--output", type=OutputFolder(), required=True, metavar="RESULTS", help="Results folder.")
@runtime_option
@reference_option
@click.option(
    "--simulated", is_flag=True, help="Also run each Q/DQ bundle with integer kernels off (fake quantization)."
)
@as_cpu_option
@click.option(
    "--templates",
    metavar="NAME",
    help="Template set of the bundle, but for a suite's views with one of their own [default: the data set's own, else "
    "imagenet-80].",
)
@click.option(
    "--on-bad-image", type=click.Choice(["error", "skip"]),
    help="What to do with images that cannot be decoded; skipped ones are named in the record [default: error].",
)  # fmt: skip
@click.option("--ece-bins", type=click.IntRange(*ECE_BINS), help="Bins of the calibration errors [default: 15].")
@click.option("--seed", type=click.IntRange(*SEED), help="Seed of resamples, samples and corruptions [default: 0].")
@fetch_option
@threads_option
@cpu_precision_option
@click.option(
    "--latency-batch", "batches", multiple=True, type=click.IntRange(*TIMED_BATCH),
    help="Batch size of the latency measurement; repeatable [default: 1, 8].", cls=RenamedOption, formerly="--batch",
)  # fmt: skip
@click.option("--repeats", type=click.IntRange(*REPEATS), help="Timed batches per engine and size [default: 30].")
@click.option(
    "--batch-size", callback=as_batch_size, default="32", show_default=True, metavar="N|measure",
    help="Images and texts an engine is given at once; `measure` finds the fastest. Dynamic INT8 depends on it.",
)  # fmt: skip
@click.option("--auto-batch", is_flag=True, help="Halve the batch where GPU memory ends, and record it.")
@pixel_cache_option
@pixel_cache_size_option
@graphs_option
@click.option(
    "--no-bench",
    is_flag=True,
    help="Leave out latency, memory and the kernel census; what RESULTS has of the same engines is kept.",
)
@click.option("--no-images", is_flag=True, help="Keep no thumbnails of photos that engines answer differently.")
@json_option
def run(
    bundles: Sequence[Path],
    suite: str | None,
    data: Sequence[str],
    output: Path,
    runtime: str,
    cache: str | None,
    threads: int,
    cpu_precision: Precision,
    as_cpu: str,
    batches: Sequence[int],
    repeats: int | None,
    batch_size: int | Literal["measure"],
    auto_batch: bool,
    pixel_cache: Path,
    pixel_cache_gb: float,
    cuda_graphs: bool,
    no_bench: bool,
    no_images: bool,
    as_json: bool,
    reference: str | None,
    simulated: bool,
    templates: str | None,
    on_bad_image: str | None,
    ece_bins: int | None,
    seed: int | None,
) -> None:
    """Evaluate BUNDLES by a suite or on data, compared with the FP32 one; writes records, results.csv, report.html."""
    from clipq.evaluate.api import suite_of
    from clipq.evaluate.suites.schema import LatencyEntry
    from clipq.evaluate.suites.suite import check_suite, read_suite

    if bool(suite) == bool(data):
        raise click.UsageError("give --suite FILE, or --data SOURCE (repeatable)")
    if no_bench:
        refuse_idle("times nothing beside --no-bench; leave one of them out", "batches", "repeats")
    given = {
        "reference": reference, "simulated": simulated or None, "templates": templates, "on_bad_image": on_bad_image,
        "ece_bins": ece_bins, "seed": seed,
    }  # fmt: skip
    asked = {key: value for key, value in given.items() if value is not None}
    chosen = read_suite(suite) if suite else suite_of(data)
    latency = chosen.latency
    if batches or repeats:
        base = latency or LatencyEntry()
        latency = LatencyEntry(batches=tuple(batches) or base.batches, repeats=repeats or base.repeats)
    chosen = chosen.model_copy(update={**asked, "latency": None if no_bench else latency})
    if suite and templates:
        check_suite(chosen)
    settings = Settings(
        runtime=runtime,
        threads=threads,
        cpu_precision=cpu_precision,
        as_cpu=as_cpu,
        graphs=cuda_graphs,
        batch=batch_size,
        auto_batch=auto_batch,
        fetch=Path(cache).expanduser() if cache else None,
        pixels=kept_pixels(pixel_cache, pixel_cache_gb),
        thumbnails=not no_images,
    )
    _evaluate(bundles, chosen, output, settings, as_json)


@click.command(cls=Command)
@click.option(
    "-o",
    "--output",
    type=OutputFolder(),
    default=Path("clipq-demo"),
    show_default=True,
    help="Folder for bundles/ and results/.",
)
@click.option("--samples", type=click.IntRange(96, SAMPLES.most), help="Images of each set [default: all].")
@pixel_cache_option
@pixel_cache_size_option
@json_option
def demo(output: Path, samples: int | None, pixel_cache: Path, pixel_cache_gb: float, as_json: bool) -> None:
    """Quantize and evaluate the built-in checkpoint, offline: every axis of reliability, in minutes."""
    from clipq.evaluate.demo import demo_suite, make_bundles

    with progress_bars() as progress:
        bundles = make_bundles(output / "bundles", progress)
    click.echo("The figures are about the demo checkpoint and its drawn world; they say nothing about CLIP.", err=True)
    settings = Settings(pixels=kept_pixels(pixel_cache, pixel_cache_gb))
    _evaluate(bundles, demo_suite(samples), output / "results", settings, as_json)


def _notes(engines: Sequence[Entry]) -> list[str]:
    """What is to be known beside the tables: of times, of engines that others made, and of those that ran elsewhere."""
    from clipq.evaluate.results.record import busy_note, disagreement_notes, unanswered_notes

    kept: dict[str, list[str]] = {}
    for entry in engines:
        if entry.record.timed:
            kept.setdefault(entry.record.timed, []).append(entry.name)
    found = [f"{', '.join(names)}: latency, memory and kernels are kept from {when}" for when, names in kept.items()]
    found += filter(None, [busy_note({entry.name: entry.record.latency for entry in engines})])
    found += disagreement_notes({entry.name: entry.record.bundle.adopted for entry in engines})
    return [*found, *unanswered_notes({entry.name: entry.record.unanswered for entry in engines})]


def _evaluate(bundles: Sequence[Path], suite: Suite, results: Path, settings: Settings, as_json: bool) -> None:
    from clipq.evaluate.api import read_results, run_suite
    from clipq.evaluate.report.terminal import print_summary

    context = click.get_current_context()
    given = {"command": context.info_name, "bundles": [str(path) for path in bundles], **jsonable(context.params)}
    with progress_bars() as progress:
        found = run_suite(bundles, suite, results, settings, given, progress)
    records = [entry.record for entry in found.engines]
    # The numbers first: the page may want a package that is not there.
    if as_json:
        click.echo(strict_json.dumps([asdict(row) for record in records for row in record.measurements]))
    else:
        print_summary(records)
    for note in _notes(found.engines):
        click.echo(f"note: {one_line(note)}", err=True)
    # Of engines of earlier runs too, as `report` writes it.
    page = read_results(results).report(results / "report.html", images=settings.thumbnails)
    click.echo(f"report: {page}", err=True)
