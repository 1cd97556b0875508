"""Results as tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from clipq.evaluate.bench import breaks_promise
from clipq.evaluate.statistics import interval, percentile_estimate
from clipq.record import CensusRecord, LatencyRecord, Measurement, Record

SUMMARY_METRICS = ("acc1", "ece", "confidence_gap", "agreement")


def print_summary(records: Sequence[Record]) -> None:
    """One table per view: each engine's main figures, with the paired difference to the reference and its interval."""
    console = _console()
    reference = records[0].reference
    for view in records[0].views:
        title = (
            f"{view.name}: {view.n} images, {view.classes} classes, templates {view.templates} ({view.template_count})"
        )
        if view.skipped:
            title += f", {len(view.skipped)} skipped"
        table = Table(title=title, title_justify="left")
        for column in ("engine", "acc1", "Δ acc1", "ECE", "Δ ECE", "conf − acc", "agreement", "McNemar p"):
            table.add_column(column, justify="left" if column == "engine" else "right", no_wrap=column == "engine")
        for record in records:
            rows = {row.metric: row for row in record.measurements if row.view == view.name and not row.group}
            accuracy = rows["acc1"]
            p_value = "" if accuracy.p_value is None else f"{accuracy.p_value:.2g}"
            agreement = percent(rows["agreement"].value) if "agreement" in rows else ""
            table.add_row(
                record.name,
                percent(accuracy.value),
                points(accuracy),
                percent(rows["ece"].value),
                points(rows["ece"]),
                f"{100 * rows['confidence_gap'].value:+.1f}",
                agreement,
                p_value,
            )
        console.print(table)
    console.print(
        f"percent and points; Δ against {reference or 'nothing (no FP32 bundle)'}, paired, 95 % bootstrap intervals",
        style="dim",
    )
    _print_engines(console, records)


def _print_engines(console: Console, records: Sequence[Record]) -> None:
    if not records[0].latency:
        return
    base = {
        (row.tower, row.batch): row for record in records if record.name == record.reference for row in record.latency
    }
    largest = max(row.batch for row in records[0].latency)
    table = Table(
        title=f"engines: batch {largest}, measured side by side on {records[0].environment['cpu']}",
        title_justify="left",
    )
    for column in ("engine", "MB", "image ms p50", "× ref", "text ms p50", "× ref", "image integer", "text integer"):
        table.add_column(column, justify="left" if column == "engine" else "right", no_wrap=column == "engine")
    for record in records:
        cells = [record.name, f"{record.bundle.file_bytes / 1e6:.1f}"]
        for tower in ("image", "text"):
            latency = next(row for row in record.latency if row.tower == tower and row.batch == largest)
            other = base.get((tower, largest))
            cells.append(f"{np.median(latency.milliseconds):.2f}")
            cells.append(
                "" if other is None else f"{np.median(latency.milliseconds) / np.median(other.milliseconds):.2f}"
            )
        for census in record.census:
            share = f"{100 * census.integer_share:.0f} %"
            broken = breaks_promise(census, simulated=record.simulated)
            cells.append(f"[bold red]{share}, says {census.recipe}[/]" if broken else share)
        table.add_row(*cells)
    console.print(table)


def percent(value: float) -> str:
    """A fraction in percent."""
    return f"{100 * value:.1f}"


def points(row: Measurement) -> str:
    """A difference in points with its interval; empty for the reference."""
    if row.delta is None or row.delta_low is None or row.delta_high is None:
        return ""
    return f"{100 * row.delta:+.1f} [{100 * row.delta_low:+.1f}, {100 * row.delta_high:+.1f}]"


def print_census(name: str, rows: Sequence[CensusRecord], *, simulated: bool) -> None:
    """The kernels of a bundle's towers."""
    console = _console()
    for census in rows:
        table = Table(
            title=f"{name}, {census.tower} tower{' (simulated)' if simulated else ''}: {census.verdict}",
            title_justify="left",
        )
        for column in ("kernel", "arithmetic", "nodes", "MMAC per batch", "ms per batch"):
            table.add_column(column, justify="left" if column in ("kernel", "arithmetic") else "right")
        for kernel in census.kernels:
            style = "green" if kernel.arithmetic == "integer" else None
            table.add_row(
                kernel.op,
                kernel.arithmetic,
                str(kernel.count),
                f"{kernel.macs / 1e6:.1f}",
                f"{kernel.milliseconds:.2f}",
                style=style,
            )
        console.print(table)
        console.print(
            f"integer: {100 * census.integer_share:.1f} % of the multiply-accumulates, "
            f"{100 * census.integer_time_share:.1f} % of the matrix-multiply time; "
            f"matrix multiplication is {100 * census.matmul_time_share:.1f} % of all kernel time"
        )
        if breaks_promise(census, simulated=simulated):
            console.print(f"[bold red]this tower says {census.recipe} and computes in floating point here[/]")
        console.print(f"evidence: {census.evidence}", style="dim")


def latency_rows(timed: Mapping[str, Sequence[LatencyRecord]], reference: str | None) -> list[dict[str, Any]]:
    """Percentiles of each engine, tower and batch size, and the ratio of medians to the reference with its interval."""
    rows = []
    for label, latencies in timed.items():
        for index, latency in enumerate(latencies):
            p50, draws = percentile_estimate(latency.milliseconds, 50)
            row: dict[str, Any] = {"bundle": label, "tower": latency.tower, "batch": latency.batch, "p50": p50.value}
            row |= {f"p{q}": float(np.percentile(latency.milliseconds, q)) for q in (90, 99)}
            row["throughput"] = 1e3 * latency.batch / p50.value
            if reference is not None:
                base, base_draws = percentile_estimate(timed[reference][index].milliseconds, 50, seed=1)
                low, high = interval(draws / base_draws)
                row |= {"ratio": p50.value / base.value, "ratio_low": low, "ratio_high": high}
            rows.append(row)
    return rows


def print_latency(rows: Sequence[Mapping[str, Any]]) -> None:
    """The latency table; a ratio below 1 is faster than the reference."""
    table = Table()
    for column in ("bundle", "tower", "batch", "p50 ms", "p90 ms", "p99 ms", "samples/s", "× reference [95 %]"):
        table.add_column(
            column, justify="left" if column in ("bundle", "tower") else "right", no_wrap=column == "bundle"
        )
    for row in rows:
        ratio = f"{row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]" if "ratio" in row else ""
        table.add_row(
            row["bundle"], row["tower"], str(row["batch"]), *(f"{row[f'p{q}']:.2f}" for q in (50, 90, 99)),
            f"{row['throughput']:.0f}", ratio,
        )  # fmt: skip
    _console().print(table)


def _console() -> Console:
    # Where nobody's window gives a width, tables get room.
    return Console(width=None if Console().is_terminal else 150)
