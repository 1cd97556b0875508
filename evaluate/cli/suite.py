"""``clipq-eval suite``: what an evaluation asks."""

from __future__ import annotations

from pathlib import Path

import click

from clipq.console import Group, OutputFile
from clipq.errors import DataError
from clipq.evaluate.cli.options import (
    json_option,
)


@click.group(cls=Group)
def suite() -> None:
    """Suites: what an evaluation asks. Built in are demo, quick, paper and template."""


@suite.command("init")
@click.argument("name", default="template")
@click.option("-o", "--output", type=OutputFile(".toml"), default=Path("suite.toml"), show_default=True, metavar="FILE")
def suite_init(name: str, output: Path) -> None:
    """Write the built-in suite NAME [template] to a file of your own."""
    from clipq.evaluate.suites.suite import suite_text
    from clipq.files import write_atomic

    text = suite_text(name)
    if output.exists():
        raise DataError(f"{output} exists; choose another name with -o")
    write_atomic(output, text)
    click.echo(str(output))


@suite.command("check")
@click.argument("name", metavar="FILE|NAME")
@click.option("--open", "opens", is_flag=True, help="Also open every data set, as a run without --fetch would.")
def suite_check(name: str, opens: bool) -> None:
    """Say what is wrong with a suite, all at once, each with its line."""
    from clipq.evaluate.suites.plan import open_plan
    from clipq.evaluate.suites.suite import read_suite

    checked = read_suite(name)
    if opens:
        open_plan(checked, None)
    click.echo(f"{name}: good")


@suite.command("show")
@click.argument("name", metavar="FILE|NAME")
@json_option
def suite_show(name: str, as_json: bool) -> None:
    """Show what a suite asks, defaults resolved."""
    from clipq.evaluate.report.terminal import print_suite
    from clipq.evaluate.suites.suite import read_suite

    checked = read_suite(name)
    if as_json:
        click.echo(checked.model_dump_json(indent=2, by_alias=True))
    else:
        print_suite(name, checked)
