"""``clipq-eval report``, ``compare`` and ``card``: what a results folder says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from clipq.console import Command, OutputFile
from clipq.errors import DataError, one_line
from clipq.evaluate.cli.options import (
    json_option,
)
from clipq.evaluate.report import FORMATS
from clipq.evaluate.results import strict_json


@click.command(cls=Command)
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=OutputFile(), help="File to write [default: RESULTS/report.FORMAT].")
@click.option(
    "--format", "form", type=click.Choice(FORMATS), show_default="by the file's ending, else html",
    help="html: one page that needs no network; pdf: that page, printed by a headless Chromium.",
)  # fmt: skip
@click.option("--no-images", is_flag=True, help="Show no photo.")
def report(results: Sequence[Path], output: Path | None, form: str | None, no_images: bool) -> None:
    """Write the report of one or more results folders: verdicts, trade-offs, evidence, provenance."""
    from clipq.evaluate.api import read_results
    from clipq.evaluate.report.formats import write

    if output is None and len(results) > 1:
        raise click.UsageError("several results: say where the report goes with -o")
    ending = "" if output is None else output.suffix.removeprefix(".").lower()
    if form is not None and ending in FORMATS and ending != form:
        raise DataError(f"-o {output}: --format {form} says otherwise; leave one of them out")
    form = form or (ending if ending in FORMATS else "html")
    target = output or results[0] / f"report.{form}"
    if target.exists() and target.suffix.lower() != f".{form}":
        raise DataError(f"{target} exists and is no .{form} file; choose another name with -o")
    click.echo(str(write(read_results(*results), form, target, images=not no_images)))


@click.command(cls=Command)
@click.argument("a", type=click.Path(path_type=Path), metavar="A")
@click.argument("b", type=click.Path(path_type=Path), metavar="B")
@click.option(
    "--margin", default=0.01, show_default=True, type=click.FloatRange(min=0, min_open=True),
    help="Engines are the same where the whole interval lies within ± this (0.01: one point).",
)  # fmt: skip
@click.option(
    "--markdown", type=OutputFile(".md"), metavar="FILE", help="Also write tables for a pull request."
)  # fmt: skip
@json_option
def compare(a: Path, b: Path, margin: float, markdown: Path | None, as_json: bool) -> None:
    """Compare B with A: two results folders, or two records (RESULTS/records/*.json).

    Paired where the samples are the same. Exit code 0: same or better, 1: worse beyond chance, 3: undecided.
    """
    from clipq.evaluate import api
    from clipq.evaluate.report.comparison import as_markdown
    from clipq.evaluate.report.terminal import print_comparison
    from clipq.evaluate.verdicts.compare import EXIT_CODES
    from clipq.files import write_atomic

    sides = [api.read_results(side) for side in (a, b)]
    found = api.compare(*sides, margin=margin)
    for note in dict.fromkeys(note for side in sides for note in side.notes):
        click.echo(f"note: {one_line(note)}", err=True)
    if markdown is not None:
        write_atomic(markdown, as_markdown(found))
    if as_json:
        click.echo(strict_json.dumps(found.as_json()))
    else:
        print_comparison(found)
    click.get_current_context().exit(EXIT_CODES[found.outcome])


@click.command(cls=Command)
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--bundle", metavar="NAME", help="Engine to describe [default: the only deployed candidate].")
@click.option("-o", "--output", type=OutputFile(".md"), default=Path("CARD.md"), show_default=True, metavar="FILE")
def card(results: Path, bundle: str | None, output: Path) -> None:
    """Write a Hugging Face model card: evaluation block, differences to FP32, fairness, limitations, provenance."""
    from clipq.evaluate.api import read_results
    from clipq.evaluate.report.card import choose_engine, write_card

    click.echo(str(write_card(choose_engine(read_results(results), bundle), output)))
