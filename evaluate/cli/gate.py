"""``clipq-eval gate``: results judged by a policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import click

from clipq.console import Group, OutputFile
from clipq.errors import DataError, one_line
from clipq.evaluate.cli.options import (
    json_option,
)
from clipq.evaluate.results import strict_json


class _GateGroup(Group):
    """``gate RESULTS --policy …`` judges; ``gate init RESULTS`` writes a policy."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["check", *args]
        return super().parse_args(context, args)


@click.group(
    cls=_GateGroup, options_metavar="RESULTS --policy FILE|NAME [OPTIONS]", subcommand_metavar="| init RESULTS"
)
def gate() -> None:
    """Judge results by a policy, for CI. Exit code 0: pass, 1: fail, 3: investigate. See `gate check -h`."""


@gate.command("check")
@click.argument("results", type=click.Path(path_type=Path))
@click.option(
    "--policy", required=True, metavar="FILE|NAME",
    help="TOML with [[rule]] tables, or strict, mlperf-99, mlperf-99.9, demo.",
)  # fmt: skip
@click.option("--junit", type=OutputFile(".xml"), metavar="FILE", help="Also write JUnit XML.")
@click.option("--github", is_flag=True, help="Also print GitHub annotations.")
@json_option
def gate_check(results: Path, policy: str, junit: Path | None, github: bool, as_json: bool) -> None:
    """Judge RESULTS by a policy, on intervals; `gate RESULTS` is short for it.

    Exit code 0: pass, 1: fail, 3: investigate (an interval holds its limit: more samples would decide).
    """
    from clipq.evaluate import api
    from clipq.evaluate.report import ci
    from clipq.evaluate.report.terminal import print_findings
    from clipq.evaluate.verdicts.gate import EXIT_CODES
    from clipq.evaluate.verdicts.policy import read_policy
    from clipq.files import write_atomic

    # First, for it is read in no time.
    rules = read_policy(policy)
    read = api.read_results(results)
    judged = api.gate(read, rules)
    unlike = [f"{one.name}: {words}" for one in read.engines if one.is_judged and (words := one.record.unlike_in_words)]
    for note in (*read.notes, *unlike):
        click.echo(f"note: {one_line(note)}", err=True)
    findings = judged.findings
    if junit is not None:
        write_atomic(junit, ci.as_junit(findings))
    if as_json:
        click.echo(strict_json.dumps(ci.as_json(findings)))
    else:
        print_findings(findings)
    if github:
        # Beside JSON on stdout they would break it; the runner reads both streams.
        for line in ci.as_annotations(findings):
            click.echo(line, err=as_json)
    click.get_current_context().exit(EXIT_CODES[judged.state])


@gate.command("init")
@click.argument("results", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=OutputFile(".toml"), default=Path("policy.toml"), show_default=True, metavar="FILE"
)
@click.option("--bundle", "bundles", multiple=True, metavar="NAME", help="Engines to take; repeatable [default: all].")
@click.option(
    "--margin", default=0.01, show_default=True, type=click.FloatRange(min=0), help="To spare beyond the intervals."
)
def gate_init(results: Path, output: Path, bundles: Sequence[str], margin: float) -> None:
    """Write a policy that the engines in RESULTS pass, with a margin: today's figures as tomorrow's limits."""
    from clipq.evaluate.api import read_results
    from clipq.evaluate.verdicts.gate import policy_from
    from clipq.files import write_atomic
    from clipq.given import hint

    if not margin < math.inf:
        raise DataError(f"--margin {margin}: give a number from 0 on")
    if output.exists():
        raise DataError(f"{output} exists; choose another name with -o")
    engines = read_results(results).engines
    names = [one.record.bundle.name for one in engines]
    for name in bundles:
        if name not in names:
            raise DataError(f"--bundle {name}: the results have {', '.join(names)}{hint(name, names)}")
    chosen = [one for one in engines if not bundles or one.record.bundle.name in bundles]
    write_atomic(output, policy_from(chosen, margin))
    click.echo(str(output))
