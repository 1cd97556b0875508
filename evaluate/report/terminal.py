"""Results as tables on the terminal."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from clipq.bundle import Manifest
from clipq.errors import one_line
from clipq.evaluate.metrics.table import metric_of
from clipq.evaluate.report.ci import figures
from clipq.evaluate.report.comparison import (
    latency_title,
    latency_verdict,
    notes_of,
    pair_title,
    shown,
    verdict_text,
)
from clipq.evaluate.results.key import Key, batch_group, tower_view
from clipq.evaluate.results.numbers import delta, number, ratio, with_interval
from clipq.evaluate.results.record import CensusRecord, LatencyRecord, Measurement, Record, SaturationRecord, ViewRecord
from clipq.evaluate.suites.schema import Suite, view_name
from clipq.evaluate.verdicts.compare import Comparison
from clipq.evaluate.verdicts.gate import Finding, outcome
from clipq.evaluate.verdicts.headline import headline, title
from clipq.evaluate.verdicts.judgement import breaks_promise
from clipq.evaluate.verdicts.reference import STATES, judge_reference
from clipq.evaluate.verdicts.saturation import in_a_clause, in_words, open_hints, percent
from clipq.hints import Hint, sentences

# Nobody reads more lines, and a table of a million takes minutes.
MOST_FINDINGS = 500
MOST_PRODUCTS = 5


def print_summary(records: Sequence[Record]) -> None:
    """Per in-distribution view the main figures with paired differences; then every axis at a glance; then engines."""
    console = _console()
    measured = [record for record in records if not record.failed]
    if measured:
        _print_measured(console, measured)
    for record in records:
        if record.failed:
            console.print(f"[bold red]{escape(record.name)} failed and was not measured:[/] {escape(record.failed)}")


def _print_measured(console: Console, measured: Sequence[Record]) -> None:
    reference = measured[0].reference
    styles = {"verified": "green", "anomalous": "bold red", "too few samples": "yellow"}
    for record in measured:
        if record.is_reference:
            found = judge_reference(record, record.name)
            said = f"reference {found.engine} {STATES[found.state]} {found.state}: {found.reason}"
            console.print(said, style=styles.get(found.state, "dim"), markup=False)
    # Of an engine that ran elsewhere a view may have no samples.
    for view in next((record for record in measured if record.is_reference), measured[0]).views:
        if view.role == "in-distribution":
            console.print(_view_table(measured, view))
    against = escape(reference) or "nothing (no FP32 bundle)"
    console.print(f"percent and points; Δ against {against}, paired, 95 % bootstrap intervals", style="dim")
    _print_axes(console, [record for record in measured if not record.twin] or measured)
    _print_engines(console, measured)
    for record in measured:
        if unlike := record.unlike_in_words:
            console.print(f"{record.name}: {unlike}", style="yellow", markup=False)
        if on_cpu := in_a_clause(record):
            console.print(f"{record.name}: {on_cpu}", style="yellow", markup=False)
        _print_hints(console, record.name, open_hints(record))


def _print_hints(console: Console, name: str, hints: Iterable[Hint]) -> None:
    for said in sentences(hints):
        console.print(f"hint: {escape(name)}, {escape(said)}", style="yellow")


def _view_table(records: Sequence[Record], view: ViewRecord) -> Table:
    title = f"{view.name}: {view.n} images, {view.classes} classes, templates {view.templates} ({view.template_count})"
    if view.skipped:
        title += f", {len(view.skipped)} skipped"
    if view.left_out_count:
        title += f", {view.left_out_count} files left out"
    if view.unverified:
        title += f", unverified files: {len(view.unverified)}"
    table = Table(title=escape(title), title_justify="left")
    for column in ("engine", "acc1", "Δ acc1", "ECE", "Δ ECE", "conf − acc", "agreement", "McNemar p"):
        table.add_column(column, justify="left" if column == "engine" else "right", no_wrap=column == "engine")
    for record in records:
        rows = {row.metric: row for row in record.measurements if row.view == view.name and not row.group}
        if "acc1" not in rows:
            table.add_row(escape(record.name), "not measured")
            continue
        accuracy = rows["acc1"]
        p_value = "" if accuracy.p_value is None else f"{accuracy.p_value:.2g}"
        table.add_row(
            escape(record.name),
            number(accuracy.value, accuracy.unit),
            delta(accuracy),
            number(rows["ece"].value, "fraction"),
            delta(rows["ece"]),
            number(rows["confidence_gap"].value, "fraction", signed=True),
            number(rows["agreement"].value, "fraction") if "agreement" in rows else "",
            p_value,
        )
    return table


def _print_axes(console: Console, records: Sequence[Record]) -> None:
    """One row per axis, one column per engine; marks where the paired interval leaves out zero."""
    columns = [(title(row), row.key) for rows in headline(records[0]).values() for row in rows]
    if not columns:
        return
    heading = "every axis: ▲ better, ▼ worse than the reference, beyond the interval"
    label = max(len(name) for name, _ in columns)
    for index, block in enumerate(_blocks(records, console.width - label - 4)):
        table = Table(title=heading if index == 0 else None, title_justify="left")
        table.add_column("", min_width=label)
        for record in block:
            table.add_column(escape(record.name), justify="right", overflow="fold")
        by_record = [{row.key: row for row in record.measurements} for record in block]
        for name, key in columns:
            table.add_row(escape(name), *(_marked(rows[key]) if key in rows else "" for rows in by_record))
        console.print(table)


def _blocks(records: Sequence[Record], width: int) -> list[list[Record]]:
    """As many engines side by side as the window holds, the others below: none is cut away."""
    blocks: list[list[Record]] = [[]]
    used = 0
    for record in records:
        needs = max(len(record.name), 8) + 3
        if blocks[-1] and used + needs > width:
            blocks.append([])
            used = 0
        blocks[-1].append(record)
        used += needs
    return blocks


def _marked(row: Measurement) -> str:
    value = number(row.value, row.unit, digits=2)
    better = metric_of(row.metric).higher_is_better
    if better is None or row.delta_low is None or row.delta_high is None or row.delta_low <= 0 <= row.delta_high:
        return value
    return f"{value} [green]▲[/]" if (row.delta_low > 0) == better else f"{value} [red]▼[/]"


def print_suite(name: str, suite: Suite) -> None:
    """What a suite asks."""
    console = _console()
    table = Table(title=escape(f"suite {name}"), title_justify="left")
    for column in ("view", "role", "source", "baseline", "groups", "samples"):
        table.add_column(column, overflow="fold")
    for entry in suite.views:
        baseline, samples = entry.baseline or "", "all" if entry.samples is None else str(entry.samples)
        cells = (view_name(entry), entry.role, entry.source, baseline, ", ".join(entry.groups), samples)
        table.add_row(*(escape(cell) for cell in cells))
    console.print(table)
    for entry_c in suite.corruptions:
        severities = ", ".join(map(str, entry_c.severities))
        console.print(
            f"corruptions of {escape(entry_c.of)}: {len(entry_c.corruptions())} kinds at severities {severities}, "
            f"{entry_c.samples or 'all'} images, mCE against {entry_c.baseline}"
        )
    for entry_t in suite.transfer:
        console.print(f"transferred attack: {escape(str(entry_t.source))}")
    for entry_s in suite.square:
        epsilons = ", ".join(map(str, entry_s.epsilons))
        console.print(
            f"Square attack on {escape(entry_s.of)}: ε = {epsilons} of 255, {entry_s.queries} queries, "
            f"{entry_s.samples or 'all'} images"
        )
    if suite.latency is not None:
        batches = ", ".join(map(str, suite.latency.batches))
        console.print(f"latency at batch {batches}, {suite.latency.repeats} repeats")


def _print_engines(console: Console, records: Sequence[Record]) -> None:
    timed = [record for record in records if record.latency]
    if not timed:
        return
    base = next((record for record in timed if record.is_reference), timed[0])
    sizes = {row.batch for row in base.latency}
    largest = max(sizes)
    table = Table(
        title=f"engines: batch {largest}, measured side by side on {escape(str(records[0].environment['cpu']))}",
        title_justify="left",
    )
    for column in ("engine", "MB", "image ms p50", "× ref", "text ms p50", "× ref", "image integer", "text integer"):
        table.add_column(column, justify="left" if column == "engine" else "right", no_wrap=column == "engine")
    for record in timed:
        cells = [escape(record.name), f"{record.bundle.file_bytes / 1e6:.1f}"]
        for tower in ("image", "text"):
            # What an earlier run timed, it may have timed at other sizes, and beside other times of the reference.
            # Of a file that takes one batch alone it is that one, which the reference was timed at beside it.
            taken = {row.batch for row in record.latency if row.tower == tower}
            batch = max(taken & sizes, default=largest)
            key = Key(tower_view(tower), batch_group(batch), "latency_ms.p50")
            row = next((one for one in record.measurements if one.key == key), None)
            note = "" if batch == largest else f" (batch {batch})"
            cells.append("" if row is None else f"{row.value:.2f}{note}")
            own = "1.00" if row is not None and record.name == record.reference else ""
            times = own if row is None or row.delta is None else f"{row.value / (row.value - row.delta):.2f}"
            cells.append("[yellow]busy[/]" if row is not None and row.busy else times)
        for census in record.census:
            share = f"{100 * census.integer_share:.0f} %"
            broken = breaks_promise(census, record.bundle, simulated=record.simulated)
            cells.append(f"[bold red]{share}, says {escape(census.recipe)}[/]" if broken else share)
        table.add_row(*cells)
    console.print(table)


def print_comparison(comparison: Comparison) -> None:
    """One table per pair of records, B − A; then the outcome."""
    console = _console()
    for pair in comparison.pairs:
        table = Table(
            title=escape(pair_title(pair)) + (" (the same engine)" if pair.same_engine else ""), title_justify="left"
        )
        for column in ("metric", "A", "B", "B − A [95 %]", "p", "n", "pairing", "verdict"):
            table.add_column(column, justify="left" if column in ("metric", "pairing", "verdict") else "right")
        for one in pair.differences:
            style = {"better": "green", "worse": "bold red", "unknown": "yellow"}.get(one.verdict)
            cells = one.title, *shown(one), f"{one.p_value:.2g}", str(one.n), one.how, verdict_text(one)
            table.add_row(*map(escape, cells), style=style)
        for row in pair.latency:
            times = f"× {ratio(row['ratio'], row['low'], row['high'])}"
            table.add_row(latency_title(row), "", "", escape(times), "", "", "unpaired", latency_verdict(row))
        console.print(table)
        for note in notes_of(pair):
            console.print(escape(note), style="yellow")
        if pair.missing:
            console.print(f"not measured in B: {escape(', '.join(pair.missing))}", style="bold red")
    for engine in comparison.failed:
        console.print(f"failed in B: {escape(engine)}", style="bold red")
    for side, alone in (("A", comparison.only_a), ("B", comparison.only_b)):
        if alone:
            console.print(f"only in {side}: {escape(', '.join(alone))}")
    console.print(
        f"[bold]{comparison.outcome}[/] (Holm over all rows; same within ±{comparison.margin:g}; "
        "latency does not decide)"
    )


def print_findings(findings: Sequence[Finding]) -> None:
    """What does not pass, line by line; how many do; the outcome."""
    console = _console()
    table = Table()
    for column in ("engine", "rule", "view", "group", "value [interval]", "result", "why"):
        table.add_column(column)
    styles = {"fail": "bold red", "investigate": "yellow"}
    shown = [one for state in styles for one in findings if one.state == state]
    for one in shown[:MOST_FINDINGS]:
        cells = (one.engine, one.rule, one.view, one.group, figures(one).rstrip(", "), one.state, one.reason)
        table.add_row(*map(escape, cells), style=styles[one.state])
    if table.row_count:
        console.print(table)
    if len(shown) > MOST_FINDINGS:
        console.print(f"and {len(shown) - MOST_FINDINGS:,} more that do not pass: --json and --junit have all")
    states = [one.state for one in findings]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("pass", "investigate", "fail"))
    console.print(f"[bold]{outcome(findings)}[/]: {counts}, of {len(findings)} checks")


def print_census(name: str, manifest: Manifest, rows: Sequence[CensusRecord], *, simulated: bool) -> None:
    """The kernels of a bundle's towers, and what its manifest hints at."""
    console = _console()
    for census in rows:
        table = Table(
            title=f"{escape(name)}, {census.tower} tower{' (simulated)' if simulated else ''}: {census.verdict}",
            title_justify="left",
        )
        for column in ("kernel", "arithmetic", "nodes", "MMAC per batch", "ms per batch"):
            table.add_column(column, justify="left" if column in ("kernel", "arithmetic") else "right")
        for kernel in census.kernels:
            style = "green" if kernel.arithmetic == "integer" else None
            table.add_row(
                escape(kernel.op),
                f"{kernel.arithmetic} {kernel.precision}".strip(),
                str(kernel.count),
                f"{kernel.macs / 1e6:.1f}" if kernel.macs else "",
                f"{kernel.milliseconds:.2f}",
                style=style,
            )
        console.print(table)
        # Runtimes on a GPU count no operations: there the share is of time alone.
        counted = any(kernel.macs for kernel in census.kernels)
        work = f"{100 * census.integer_share:.1f} % of the multiply-accumulates, " if counted else ""
        console.print(
            f"integer: {work}{100 * census.integer_time_share:.1f} % of the matrix-multiply time; "
            f"matrix multiplication is {100 * census.matmul_time_share:.1f} % of all kernel time, "
            f"reformatting {100 * census.reformat_share:.1f} %"
        )
        for ran in dict.fromkeys(one for kernel in census.kernels for one in kernel.kernels):
            console.print(f"  {ran}", style="dim", markup=False)
        if breaks_promise(census, manifest.recipe, simulated=simulated):
            console.print(f"[bold red]this tower says {escape(census.recipe)} and computes in floating point here[/]")
        console.print(f"evidence: {census.evidence}", style="dim", markup=False)
        if census.saturation is not None:
            _print_saturation(console, census.saturation)
    counted = any(census.saturation for census in rows)
    _print_hints(console, name, [one for one in manifest.hints if not (counted and one.is_counted)])


def _print_saturation(console: Console, found: SaturationRecord) -> None:
    style = "yellow" if found.verdict == "differs without VNNI" else None
    console.print(f"on CPUs without VNNI: {in_words(found)}", style=style, markup=False)
    saturated = sorted((one for one in found.products if one.saturated), key=lambda one: -one.saturated / one.sums)
    for one in saturated[:MOST_PRODUCTS]:
        console.print(f"  {percent(one.saturated / one.sums)} of {one.name} ({one.op})", style="dim", markup=False)
    if len(saturated) > MOST_PRODUCTS:
        console.print(f"  and {len(saturated) - MOST_PRODUCTS} more products: --json has all", style="dim")


def latency_rows(timed: Mapping[str, Sequence[LatencyRecord]], reference: str | None) -> list[dict[str, Any]]:
    """Percentiles of each engine, tower and batch size, and the ratio of medians to the reference with its interval."""
    rows = []
    for label, latencies in timed.items():
        for latency in latencies:
            row: dict[str, Any] = {"bundle": label, "tower": latency.tower, "batch": latency.batch}
            row |= {f"p{q}": float(np.percentile(latency.milliseconds, q)) for q in (50, 90, 99)}
            row["throughput"] = 1e3 * latency.batch / row["p50"]
            place = (latency.tower, latency.batch)
            base = next((one for one in timed.get(reference or "", ()) if (one.tower, one.batch) == place), None)
            if base is not None:
                ratio, low, high = latency.over(base)
                row |= {"ratio": ratio, "ratio_low": low, "ratio_high": high}
            if (again := latency.twice()) is not None:
                row |= dict(zip(("again", "again_low", "again_high"), again, strict=True))
            row["busy"] = latency.busy
            rows.append(row)
    return rows


def print_latency(rows: Sequence[Mapping[str, Any]]) -> None:
    """The latency table; a ratio below 1 is faster than the reference, whose second copy is beside itself."""
    table = Table()
    for column in ("bundle", "tower", "batch", "p50 ms", "p90 ms", "p99 ms", "samples/s", "× reference [95 %]"):
        table.add_column(
            column, justify="left" if column in ("bundle", "tower") else "right", no_wrap=column == "bundle"
        )
    for row in rows:
        times = with_interval(row["ratio"], row["ratio_low"], row["ratio_high"]) if "ratio" in row else ""
        if "again" in row:
            times = "again " + with_interval(row["again"], row["again_low"], row["again_high"])
        times = "machine was busy" if row["busy"] else times
        table.add_row(
            escape(row["bundle"]), row["tower"], str(row["batch"]), *(f"{row[f'p{q}']:.2f}" for q in (50, 90, 99)),
            f"{row['throughput']:.0f}", times,
        )  # fmt: skip
    _console().print(table)


class _Plain(Console):
    """A console on which no name steers the terminal, or becomes an emoji."""

    def render_str(self, text: str, **how: Any) -> Text:
        """A string as rich shows it."""
        return super().render_str("\n".join(map(one_line, text.split("\n"))), **how | {"emoji": False})


def _console() -> Console:
    # Where neither a window nor COLUMNS gives a width, tables get room.
    return _Plain(width=None if Console().is_terminal or "COLUMNS" in os.environ else 150)
