"""The command ``clipq-eval``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from clipq import __version__
from clipq.console import Group, progress_bars
from clipq.errors import DataError

if TYPE_CHECKING:
    from clipq.bundle import TowerName

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

bundles_argument = click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
runtime_option = click.option("--runtime", default="ort-cpu", show_default=True, help="Runtime the engines run in.")
threads_option = click.option(
    "--threads", default=0, show_default="all cores", type=click.IntRange(min=0), help="Threads of the runtime."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
batches_option = click.option(
    "--batch", "batches", multiple=True, default=(1, 8), show_default=True, type=click.IntRange(min=1),
    help="Batch size of the latency measurement; repeatable.",
)  # fmt: skip
repeats_option = click.option(
    "--repeats", default=30, show_default=True, type=click.IntRange(min=3), help="Timed batches per engine and size."
)


@click.group(cls=Group, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="clipq-eval")
def main() -> None:
    """Measure quantized CLIP engines: accuracy, confidence calibration, agreement, latency, memory, kernels."""


@main.command()
@bundles_argument
@click.option(
    "--data", multiple=True, required=True, metavar="[NAME=]SOURCE",
    help="Labelled images; repeatable. SOURCE is an ImageFolder, a CSV (file,label[,group...]; `labels.csv:label=age` "
    "takes another column), or demo:test, demo:outline, demo:palette, demo:background.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="RESULTS", help="Results folder."
)
@runtime_option
@click.option("--reference", metavar="NAME", help="Bundle the others are compared with [default: the FP32 one].")
@click.option(
    "--simulated", is_flag=True, help="Also run each Q/DQ bundle with integer kernels off (fake quantization)."
)
@click.option(
    "--templates", metavar="NAME", help="Template set of the bundle [default: the data set's own, else imagenet-80]."
)
@click.option(
    "--on-bad-image",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="What to do with images that cannot be decoded; skipped ones are named in the record.",
)
@click.option(
    "--ece-bins", default=15, show_default=True, type=click.IntRange(min=2), help="Bins of ECE, adaptive ECE and MCE."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the bootstrap.")
@threads_option
@batches_option
@repeats_option
@click.option("--no-bench", is_flag=True, help="Leave out latency, memory and the kernel census.")
@json_option
def run(
    bundles: Sequence[Path],
    data: Sequence[str],
    output: Path,
    runtime: str,
    reference: str | None,
    simulated: bool,
    templates: str | None,
    on_bad_image: str,
    ece_bins: int,
    seed: int,
    threads: int,
    batches: Sequence[int],
    repeats: int,
    no_bench: bool,
    as_json: bool,
) -> None:
    """Evaluate BUNDLES on data, compared with the FP32 one among them; writes records, results.csv and report.html."""
    from clipq.evaluate.bench import BenchSettings
    from clipq.evaluate.run import Settings

    settings = Settings(
        data=tuple(data),
        runtime=runtime,
        reference=reference,
        simulated=simulated,
        templates=templates,
        on_bad_image=cast("Any", on_bad_image),
        bins=ece_bins,
        seed=seed,
        threads=threads,
        bench=None if no_bench else BenchSettings(batches=tuple(sorted(set(batches))), repeats=repeats),
    )
    _evaluate(bundles, settings, output, as_json)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@runtime_option
@threads_option
@click.option("--simulated", is_flag=True, help="Inspect the simulated engine (integer kernels off).")
@click.option(
    "--batch", default=8, show_default=True, type=click.IntRange(min=1), help="Batch size of the profiled run."
)
@json_option
def inspect(bundle: Path, runtime: str, threads: int, simulated: bool, batch: int, as_json: bool) -> None:
    """Show which kernels really ran in BUNDLE, and how much of the work they did in integers."""
    from clipq.bundle import TOWERS, open_bundle
    from clipq.engines.catalog import require_runtime
    from clipq.engines.census import take_census
    from clipq.evaluate.bench import census_record, plausible_feed
    from clipq.evaluate.tables import print_census

    require_runtime(runtime)
    opened = open_bundle(bundle)
    rows = []
    for tower in TOWERS:
        feed = plausible_feed(opened, tower, batch)
        census = take_census(opened.tower_path(tower), tower, feed, threads=threads, simulated=simulated)
        rows.append(census_record(census, opened.manifest.tower(tower).recipe))
    if as_json:
        click.echo(json.dumps([row.model_dump() for row in rows], indent=2))
    else:
        print_census(opened.name, rows, simulated=simulated)


@main.command()
@bundles_argument
@runtime_option
@threads_option
@batches_option
@repeats_option
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
    threads: int,
    batches: Sequence[int],
    repeats: int,
    towers: str,
    as_json: bool,
) -> None:
    """Time BUNDLES side by side, in turns, and give latencies as ratios to the FP32 one among them."""
    from clipq.evaluate.bench import BenchSettings, time_subjects
    from clipq.evaluate.subjects import gather_subjects
    from clipq.evaluate.tables import latency_rows, print_latency

    subjects, reference = gather_subjects(bundles, runtime=runtime, threads=threads, simulated=False, reference=None)
    chosen = cast("tuple[TowerName, ...]", ("image", "text") if towers == "both" else (towers,))
    settings = BenchSettings(batches=tuple(sorted(set(batches))), repeats=repeats)
    rows = latency_rows(time_subjects(subjects, chosen, settings), reference.label if reference else None)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        print_latency(rows)


@main.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The page [default: RESULTS/report.html].")
def report(results: Path, output: Path | None) -> None:
    """Write the report of a results folder again: one HTML file that needs no network."""
    from clipq.evaluate.report.page import write_report
    from clipq.record import read_records

    click.echo(str(write_report(read_records(results), output or results / "report.html")))


@main.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("clipq-demo"),
    show_default=True,
    help="Folder for bundles/ and results/.",
)
@click.option("--samples", type=click.IntRange(min=48), help="Images of each set [default: all].")
@json_option
def demo(output: Path, samples: int | None, as_json: bool) -> None:
    """Quantize and evaluate the built-in checkpoint, offline: a tour of what clipq does, in about a minute."""
    from clipq.evaluate.demo import demo_settings, make_bundles

    with progress_bars() as progress:
        bundles = make_bundles(output / "bundles", progress)
    click.echo("The figures are about the demo checkpoint and its drawn world; they say nothing about CLIP.", err=True)
    _evaluate(bundles, demo_settings(samples), output / "results", as_json)


def _evaluate(bundles: Sequence[Path], settings: Any, output: Path, as_json: bool) -> None:
    from clipq.evaluate.report.page import write_report
    from clipq.evaluate.run import evaluate
    from clipq.evaluate.tables import print_summary

    if output.exists() and not output.is_dir():
        raise DataError(f"-o {output} is a file; give a folder")
    context = click.get_current_context()
    given = {"command": context.info_name, "bundles": [str(path) for path in bundles], **_jsonable(context.params)}
    with progress_bars() as progress:
        records = evaluate(bundles, settings, output, given=given, progress=progress)
    page = write_report(records, output / "report.html")
    if as_json:
        click.echo(json.dumps([row.model_dump() for record in records for row in record.measurements], indent=2))
    else:
        print_summary(records)
    click.echo(f"report: {page}", err=True)


def _jsonable(parameters: dict[str, Any]) -> dict[str, Any]:
    return {key: json.loads(json.dumps(value, default=str)) for key, value in parameters.items() if key != "bundles"}


if __name__ == "__main__":
    main()
