"""The command ``clipq-eval``: its groups of commands, joined."""

from __future__ import annotations

import click

from clipq import __version__
from clipq.console import Group
from clipq.evaluate.cli.cells import cells
from clipq.evaluate.cli.engines import bench, inspect
from clipq.evaluate.cli.gate import gate
from clipq.evaluate.cli.results import card, compare, report
from clipq.evaluate.cli.run import demo, run
from clipq.evaluate.cli.suite import suite
from clipq.evaluate.cli.sweep import sweep

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=Group, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="clipq-eval")
def main() -> None:
    """Measure quantized CLIP engines: accuracy, calibration, OOD, robustness, fairness, retrieval, latency, kernels."""


for command in (run, demo, suite, cells, inspect, bench, report, compare, card, gate, sweep):
    main.add_command(command)
