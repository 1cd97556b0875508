"""The command ``clipq-eval``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from clipq import __version__, strict_json
from clipq.console import DefaultGroup, Group, progress_bars
from clipq.errors import DataError

if TYPE_CHECKING:
    from clipq.bundle import TowerName
    from clipq.data.pixels import PixelCache
    from clipq.evaluate.run import Where
    from clipq.evaluate.suite import Suite
    from clipq.evaluate.sweep.grid import Grid
    from clipq.evaluate.sweep.jobs import Outcome
    from clipq.evaluate.sweep.run import Means
    from clipq.evaluate.sweep.state import SweepFolder
    from clipq.progress import Progress

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

bundles_argument = click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
runtime_option = click.option(
    "--runtime", default="ort-cpu", show_default=True, help="Runtime of ONNX bundles; built ones run in their own."
)
threads_option = click.option(
    "--threads", default=0, show_default="all cores", type=click.IntRange(min=0), help="Threads of the runtime."
)
fetch_option = click.option(
    "--fetch", "cache", is_flag=False, flag_value="~/.cache/clipq", metavar="[FOLDER]",
    help="Allow downloads of remote sources, kept in FOLDER [default: ~/.cache/clipq].",
)  # fmt: skip
graphs_option = click.option(
    "--cuda-graphs", is_flag=True, help="Launch plans as CUDA graphs, one per batch size: less work between kernels."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
batches_option = click.option(
    "--batch", "batches", multiple=True, default=(1, 8), show_default=True, type=click.IntRange(min=1),
    help="Batch size of the latency measurement; repeatable.",
)  # fmt: skip
repeats_option = click.option(
    "--repeats", default=30, show_default=True, type=click.IntRange(min=3), help="Timed batches per engine and size."
)
pixel_cache_option = click.option(
    "--pixel-cache", type=click.Path(path_type=Path), default=Path("~/.cache/clipq/pixels"), show_default=True,
    envvar="CLIPQ_PIXEL_CACHE", show_envvar=True, metavar="FOLDER",
    help="Where decoded and corrupted images are kept for the next engine, run and process.",
)  # fmt: skip
pixel_cache_size_option = click.option(
    "--pixel-cache-gb", default=10.0, show_default=True, type=click.FloatRange(min=0), envvar="CLIPQ_PIXEL_CACHE_GB",
    show_envvar=True, help="The most it may hold, in GB; 0 keeps nothing.",
)  # fmt: skip


def _batch_size(context: click.Context, parameter: click.Parameter, value: str) -> int | None:
    """A whole number up to 256, or None for ``measure``."""
    return None if value == "measure" else click.IntRange(1, 256)(value, parameter, context)


@click.group(cls=Group, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="clipq-eval")
def main() -> None:
    """Measure quantized CLIP engines: accuracy, calibration, OOD, robustness, fairness, retrieval, latency, kernels."""


@main.command()
@bundles_argument
@click.option("--suite", metavar="FILE|NAME", help="What to evaluate on; see `clipq-eval suite`.")
@click.option(
    "--data", multiple=True, metavar="[NAME=]SOURCE",
    help="Labelled images, instead of a suite; repeatable. SOURCE is an ImageFolder, a CSV (file,label[,group...]; "
    "`labels.csv:label=age` takes another column), demo:SET, wds:FOLDER-OR-URL, hf:ORG/NAME or utkface:FOLDER.",
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
    "--on-bad-image", type=click.Choice(["error", "skip"]),
    help="What to do with images that cannot be decoded; skipped ones are named in the record [default: error].",
)  # fmt: skip
@click.option("--ece-bins", type=click.IntRange(min=2), help="Bins of the calibration errors [default: 15].")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of resamples, samples and corruptions [default: 0].")
@fetch_option
@threads_option
@click.option(
    "--batch", "batches", multiple=True, type=click.IntRange(min=1),
    help="Batch size of the latency measurement; repeatable [default: 1, 8].",
)  # fmt: skip
@click.option("--repeats", type=click.IntRange(min=3), help="Timed batches per engine and size [default: 30].")
@click.option(
    "--batch-size", callback=_batch_size, default="32", show_default=True, metavar="N|measure",
    help="Images and texts an engine is given at once; `measure` finds the fastest. Dynamic INT8 depends on it.",
)  # fmt: skip
@click.option("--auto-batch", is_flag=True, help="Halve the batch where GPU memory ends, and record it.")
@pixel_cache_option
@pixel_cache_size_option
@graphs_option
@click.option("--no-bench", is_flag=True, help="Leave out latency, memory and the kernel census.")
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
    batches: Sequence[int],
    repeats: int | None,
    batch_size: int | None,
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
    from clipq.evaluate.run import Where
    from clipq.evaluate.suite import LatencyEntry, Suite, ViewEntry, read_suite

    if bool(suite) == bool(data):
        raise click.UsageError("give --suite FILE, or --data SOURCE (repeatable)")
    given = {
        "reference": reference, "simulated": simulated or None, "templates": templates, "on_bad_image": on_bad_image,
        "ece_bins": ece_bins, "seed": seed,
    }  # fmt: skip
    asked = {key: value for key, value in given.items() if value is not None}
    chosen = read_suite(suite) if suite else Suite(view=tuple(ViewEntry(source=source) for source in data))
    latency = chosen.latency or (None if suite else LatencyEntry())
    if batches or repeats:
        base = latency or LatencyEntry()
        latency = LatencyEntry(batches=tuple(sorted(set(batches))) or base.batches, repeats=repeats or base.repeats)
    chosen = chosen.model_copy(update={**asked, "latency": None if no_bench else latency})
    where = Where(
        output,
        runtime,
        threads,
        Path(cache).expanduser() if cache else None,
        auto_batch,
        cuda_graphs,
        not no_images,
        _pixels(pixel_cache, pixel_cache_gb),
        batch_size,
    )
    _evaluate(bundles, chosen, where, as_json)


@main.group(cls=Group)
def suite() -> None:
    """Suites: what an evaluation asks. Built in are demo, quick, paper and template."""


@suite.command("init")
@click.argument("name", default="template")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("suite.toml"), show_default=True, metavar="FILE"
)
def suite_init(name: str, output: Path) -> None:
    """Write the built-in suite NAME [template] to a file of your own."""
    from clipq.evaluate.suite import suite_text
    from clipq.files import write_atomic

    text = suite_text(name)
    if output.exists():
        raise DataError(f"{output} exists; choose another name with -o")
    write_atomic(output, text)
    click.echo(str(output))


@suite.command("check")
@click.argument("name", metavar="FILE|NAME")
@click.option("--open", "opens", is_flag=True, help="Also open every local data set, as a run would.")
def suite_check(name: str, opens: bool) -> None:
    """Say what is wrong with a suite, all at once, each with its line."""
    from clipq.evaluate.plan import open_plan
    from clipq.evaluate.suite import read_suite

    checked = read_suite(name)
    if opens:
        open_plan(checked, None)
    click.echo(f"{name}: good")


@suite.command("show")
@click.argument("name", metavar="FILE|NAME")
@json_option
def suite_show(name: str, as_json: bool) -> None:
    """Show what a suite asks, defaults resolved."""
    from clipq.evaluate.suite import read_suite
    from clipq.evaluate.tables import print_suite

    checked = read_suite(name)
    if as_json:
        click.echo(checked.model_dump_json(indent=2, by_alias=True))
    else:
        print_suite(name, checked)


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
    from clipq.engines.catalog import check_fits, require_runtime
    from clipq.evaluate.bench import plausible_feed, subject_census
    from clipq.evaluate.subjects import Subject, runtime_of
    from clipq.evaluate.tables import print_census

    opened = open_bundle(bundle)
    subject = Subject(opened, runtime_of(opened, runtime), threads, simulated)
    check_fits(opened, subject.runtime)
    require_runtime(subject.runtime)
    rows = [subject_census(subject, tower, plausible_feed(opened, tower, batch)) for tower in TOWERS]
    if as_json:
        click.echo(strict_json.dumps([row.model_dump() for row in rows]))
    else:
        print_census(opened.name, rows, simulated=simulated)


@main.command()
@bundles_argument
@runtime_option
@threads_option
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
    threads: int,
    batches: Sequence[int],
    repeats: int,
    cuda_graphs: bool,
    towers: str,
    as_json: bool,
) -> None:
    """Time BUNDLES side by side, in turns, and give latencies as ratios to the FP32 one among them."""
    from clipq.evaluate.bench import BenchSettings, time_subjects
    from clipq.evaluate.subjects import gather_subjects
    from clipq.evaluate.tables import latency_rows, print_latency

    subjects, reference = gather_subjects(
        bundles, runtime=runtime, threads=threads, simulated=False, reference=None, graphs=cuda_graphs
    )
    chosen = cast("tuple[TowerName, ...]", ("image", "text") if towers == "both" else (towers,))
    settings = BenchSettings(batches=tuple(sorted(set(batches))), repeats=repeats)
    rows = latency_rows(time_subjects(subjects, chosen, settings), reference.label if reference else None)
    if as_json:
        click.echo(strict_json.dumps(rows))
    else:
        print_latency(rows)


@main.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write [default: RESULTS/report.FORMAT].")
@click.option(
    "--format", "form", type=click.Choice(["html", "md", "json", "csv", "pdf"]), default="html", show_default=True,
    help="html: one page that needs no network; pdf: that page, printed by a headless Chromium.",
)  # fmt: skip
@click.option("--no-images", is_flag=True, help="Show no photo.")
def report(results: Sequence[Path], output: Path | None, form: str, no_images: bool) -> None:
    """Write the report of one or more results folders: verdicts, trade-offs, evidence, provenance."""
    from clipq.evaluate.report.formats import write
    from clipq.evaluate.report.results import read_results

    if output is None and len(results) > 1:
        raise click.UsageError("several results: say where the report goes with -o")
    target = output or results[0] / f"report.{form}"
    if target.exists() and target.suffix != f".{form}":
        raise DataError(f"{target} exists and is no .{form} file; choose another name with -o")
    click.echo(str(write(read_results(results), form, target, images=not no_images)))


@main.command()
@click.argument("a", type=click.Path(exists=True, path_type=Path), metavar="A")
@click.argument("b", type=click.Path(exists=True, path_type=Path), metavar="B")
@click.option(
    "--margin", default=0.01, show_default=True, type=click.FloatRange(min=0, min_open=True),
    help="Engines are the same where the whole interval lies within ± this (0.01: one point).",
)  # fmt: skip
@click.option(
    "--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Also write tables for a pull request."
)  # fmt: skip
@json_option
def compare(a: Path, b: Path, margin: float, markdown: Path | None, as_json: bool) -> None:
    """Compare B with A: two results folders, or two records (RESULTS/records/*.json).

    Paired where the samples are the same. Exit code 0: same or better, 1: worse beyond chance, 3: undecided.
    """
    from clipq.evaluate import compare as comparing
    from clipq.evaluate.tables import print_comparison
    from clipq.files import write_atomic

    found = comparing.compare(comparing.read_measured(a), comparing.read_measured(b), margin=margin)
    if markdown is not None:
        write_atomic(markdown, comparing.as_markdown(found))
    if as_json:
        click.echo(strict_json.dumps(found.as_json()))
    else:
        print_comparison(found)
    click.get_current_context().exit(comparing.EXIT_CODES[found.outcome])


@main.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--bundle", metavar="NAME", help="Engine to describe [default: the only deployed candidate].")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("CARD.md"), show_default=True, metavar="FILE"
)
def card(results: Path, bundle: str | None, output: Path) -> None:
    """Write a Hugging Face model card: evaluation block, differences to FP32, fairness, limitations, provenance."""
    from clipq.evaluate.card import choose_engine, write_card
    from clipq.evaluate.report.results import read_results

    click.echo(str(write_card(choose_engine(read_results([results]), bundle), output)))


class _GateGroup(Group):
    """``gate RESULTS --policy …`` judges; ``gate init RESULTS`` writes a policy."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["check", *args]
        return super().parse_args(context, args)


@main.group(cls=_GateGroup, options_metavar="RESULTS --policy FILE|NAME [OPTIONS]", subcommand_metavar="| init RESULTS")
def gate() -> None:
    """Judge results by a policy, for CI. Exit code 0: pass, 1: fail, 3: investigate. See `gate check -h`."""


@gate.command("check")
@click.argument("results", type=click.Path(path_type=Path))
@click.option(
    "--policy", required=True, metavar="FILE|NAME",
    help="TOML with [[rule]] tables, or strict, mlperf-99, mlperf-99.9, demo.",
)  # fmt: skip
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Also write JUnit XML.")
@click.option("--github", is_flag=True, help="Also print GitHub annotations.")
@json_option
def gate_check(results: Path, policy: str, junit: Path | None, github: bool, as_json: bool) -> None:
    """Judge RESULTS by a policy, on intervals; `gate RESULTS` is short for it.

    Exit code 0: pass, 1: fail, 3: investigate (an interval holds its limit: more samples would decide).
    """
    from clipq.evaluate import gate as gating
    from clipq.evaluate import gate_output
    from clipq.evaluate.pairing import Measured
    from clipq.evaluate.tables import print_findings
    from clipq.files import write_atomic
    from clipq.record import read_records

    rules = gating.read_policy(policy)
    findings = gating.judge_policy([Measured(record, results) for record in read_records(results)], rules)
    if junit is not None:
        write_atomic(junit, gate_output.as_junit(findings))
    if as_json:
        click.echo(strict_json.dumps(gate_output.as_json(findings)))
    else:
        print_findings(findings)
    if github:
        # Beside JSON on stdout they would break it; the runner reads both streams.
        for line in gate_output.as_annotations(findings):
            click.echo(line, err=as_json)
    click.get_current_context().exit(gating.EXIT_CODES[gating.outcome(findings)])


@gate.command("init")
@click.argument("results", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("policy.toml"), show_default=True, metavar="FILE"
)
@click.option("--bundle", "bundles", multiple=True, metavar="NAME", help="Engines to take; repeatable [default: all].")
@click.option(
    "--margin", default=0.01, show_default=True, type=click.FloatRange(min=0), help="To spare beyond the intervals."
)
def gate_init(results: Path, output: Path, bundles: Sequence[str], margin: float) -> None:
    """Write a policy that the engines in RESULTS pass, with a margin: today's figures as tomorrow's limits."""
    from clipq.evaluate.gate import policy_from
    from clipq.evaluate.pairing import Measured
    from clipq.files import write_atomic
    from clipq.record import read_records

    if output.exists():
        raise DataError(f"{output} exists; choose another name with -o")
    records = read_records(results)
    for name in bundles:
        if name not in {record.bundle.name for record in records}:
            raise DataError(f"--bundle {name}: the results have {', '.join(r.bundle.name for r in records)}")
    chosen = [Measured(one, results) for one in records if not bundles or one.bundle.name in bundles]
    write_atomic(output, policy_from(chosen, margin))
    click.echo(str(output))


@main.group(cls=DefaultGroup, default="run")
def sweep() -> None:
    """Evaluate a grid of engines, cell by cell, here or on Ray: `sweep GRID -o RESULTS` (options: `sweep run -h`)."""


ray_option = click.option(
    "--ray", metavar="ADDRESS|local",
    help="Fill cells on a Ray cluster: `auto` (the one of this machine), HOST:PORT, or `local` for one just for this.",
)  # fmt: skip


@sweep.command("run")
@click.argument("grid", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="RESULTS", help="Results folder."
)
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
    means = _means(ray, cache, pixel_cache, pixel_cache_gb)
    if dry_run:
        with progress_bars() as progress, connected(read, means) as cluster:
            planned = plan_sweep(read, folder, means, progress, cluster=cluster, makes=False)
        print_sweep_plan(planned, folder, _where(ray, planned.slots))
        return
    _sweep(read, folder, means)


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
    from clipq.evaluate.sweep.state import SweepFolder

    folder = SweepFolder(results)
    grid = folder.read_plan().grid
    click.echo(f"{folder.forget_failures()} failures forgotten", err=True)
    _sweep(grid, folder, _means(ray, cache, pixel_cache, pixel_cache_gb))


def _sweep(grid: Grid, folder: SweepFolder, means: Means) -> None:
    from clipq.evaluate.report.page import write_report
    from clipq.evaluate.report.results import gather
    from clipq.evaluate.sweep.run import Listener, sweep
    from clipq.evaluate.sweep.tables import print_sweep_plan, print_swept
    from clipq.record import read_records

    if folder.path.exists() and not folder.path.is_dir():
        raise DataError(f"-o {folder.path} is a file; give a folder")
    context = click.get_current_context()
    given = {"command": f"sweep {context.info_name}", **_jsonable(context.params)}
    with progress_bars() as progress:
        told = _counting(progress)
        listener = Listener(progress, lambda plan: print_sweep_plan(plan, folder, _where(means.ray, plan.slots)), told)
        swept = sweep(grid, folder, means, given, listener)
    print_swept(swept)
    if swept.results:
        records = [(path, read_records(path)) for path in swept.results]
        click.echo(f"report: {write_report(gather(records), folder.path / 'report.html', images=True)}", err=True)
    if swept.failures:
        click.get_current_context().exit(3)


def _means(ray: str | None, cache: str | None, pixel_cache: Path, pixel_cache_gb: float) -> Means:
    from clipq.evaluate.sweep.run import Means

    return Means(ray, _pixels(pixel_cache, pixel_cache_gb), Path(cache).expanduser() if cache else None)


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


@main.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("clipq-demo"),
    show_default=True,
    help="Folder for bundles/ and results/.",
)
@click.option("--samples", type=click.IntRange(min=96), help="Images of each set [default: all].")
@pixel_cache_option
@pixel_cache_size_option
@json_option
def demo(output: Path, samples: int | None, pixel_cache: Path, pixel_cache_gb: float, as_json: bool) -> None:
    """Quantize and evaluate the built-in checkpoint, offline: every axis of reliability, in minutes."""
    from clipq.evaluate.demo import demo_suite, make_bundles
    from clipq.evaluate.run import Where

    with progress_bars() as progress:
        bundles = make_bundles(output / "bundles", progress)
    click.echo("The figures are about the demo checkpoint and its drawn world; they say nothing about CLIP.", err=True)
    where = Where(output / "results", pixels=_pixels(pixel_cache, pixel_cache_gb))
    _evaluate(bundles, demo_suite(samples), where, as_json)


def _evaluate(bundles: Sequence[Path], suite: Suite, where: Where, as_json: bool) -> None:
    from clipq.evaluate.report.page import write_report
    from clipq.evaluate.report.results import gather
    from clipq.evaluate.run import evaluate
    from clipq.evaluate.tables import print_summary

    if where.results.exists() and not where.results.is_dir():
        raise DataError(f"-o {where.results} is a file; give a folder")
    context = click.get_current_context()
    given = {"command": context.info_name, "bundles": [str(path) for path in bundles], **_jsonable(context.params)}
    with progress_bars() as progress:
        records = evaluate(bundles, suite, where, given=given, progress=progress)
    # The numbers first: the page may want a package that is not there.
    if as_json:
        click.echo(strict_json.dumps([row.model_dump() for record in records for row in record.measurements]))
    else:
        print_summary(records)
    page = write_report(gather([(where.results, records)]), where.results / "report.html", images=where.thumbnails)
    click.echo(f"report: {page}", err=True)


def _pixels(folder: Path, gigabytes: float) -> PixelCache | None:
    from clipq.data.pixels import PixelCache

    return PixelCache(folder.expanduser(), int(gigabytes * 1e9)) if gigabytes else None


def _jsonable(parameters: dict[str, Any]) -> dict[str, Any]:
    return {key: json.loads(json.dumps(value, default=str)) for key, value in parameters.items() if key != "bundles"}


if __name__ == "__main__":
    main()
