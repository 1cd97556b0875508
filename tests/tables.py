"""Tables of the documents that are made of the code's own: ``python tests/tables.py`` writes them, a test compares.

``docs/formats.md`` has the table of metrics, ``docs/commands.md`` every command with its options.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from clipq.evaluate.cli import main as evaluate
from clipq.evaluate.metrics.table import METRICS, Metric
from clipq.exporters.cli import main as export

DOCS = Path(__file__).resolve().parent.parent / "docs"
METRICS_BEGIN, METRICS_END = "| metric | unit | range | better | what |\n", "\n\n"
INTRODUCTION = """# Commands

`clipq-export` makes engines, `clipq-eval` measures them. `-h` shows the same. Exit codes: 0 done, 1 worse (`compare`), failed
(`gate`) or refused by the parser (`check`), 2 wrong use or bad input, 3 undecided (`compare`), to investigate (`gate`) or
partly failed (`sweep`), 130 interrupted. *This page is made of the commands themselves.*
"""


def metrics_table() -> str:
    """The table of metrics, a row each."""
    rows = [METRICS_BEGIN, "|---|---|---|---|---|\n"]
    rows += [
        f"| {_names(one)} | {one.unit} | {_range(one)} | {_better(one)} | {_what(one)} |\n" for one in METRICS.values()
    ]
    return "".join(rows).rstrip("\n")


def _names(metric: Metric) -> str:
    return " ".join(f"`{metric.name}{form}`" if number == 0 else f"`{form}`" for number, form in enumerate(metric.forms or ("",)))  # fmt: skip


def _range(metric: Metric) -> str:
    low, high = ("" if bound is None else f"{bound:g}".replace("-", "−") for bound in (metric.low, metric.high))
    return f"{low} to {high}" if low and high else f"from {low}" if low else f"to {high}" if high else "any"


def _better(metric: Metric) -> str:
    return {True: "high", False: "low", None: ""}[metric.higher_is_better]


def _what(metric: Metric) -> str:
    return f"{metric.title}; {metric.note}" if metric.note else metric.title


def commands_page() -> str:
    """Every command with its arguments and options."""
    parts = [INTRODUCTION]
    for name, command in (("clipq-export", export), ("clipq-eval", evaluate)):
        for path, one in _leaves(name, command):
            arguments = "".join(f" {_argument(two)}" for two in one.params if isinstance(two, click.Argument))
            parts.append(f"\n## {path}\n\n`{path}{arguments}`\n\n{_paragraphs(one.help or '')}\n")
            options = [two for two in one.params if isinstance(two, click.Option)]
            parts.append("\n| option | |\n|---|---|\n" if options else "")
            parts += [f"| `{_cell(_option(two))}` | {_cell(_meaning(two))} |\n" for two in options]
    return "".join(parts)


def _argument(one: click.Argument) -> str:
    return (one.metavar or (one.name or "").upper()) + ("..." if one.nargs == -1 else "")


def _option(one: click.Option) -> str:
    """Its names and what it takes; made here, for click writes it differently from version to version."""
    choices = "|".join(one.type.choices) if isinstance(one.type, click.Choice) else ""
    takes = "" if one.is_flag else one.metavar or choices or one.type.name.upper().removesuffix(" RANGE")
    return " ".join([", ".join([*one.opts, *one.secondary_opts]), takes]).strip()


def _meaning(one: click.Option) -> str:
    default = one.show_default if isinstance(one.show_default, str) else one.default
    if isinstance(default, list | tuple):
        default = ", ".join(map(str, default))
    said = [one.help or "", f"Default: {default}." if one.show_default and not one.is_flag else "", "Required." if one.required else ""]  # fmt: skip
    return " ".join(part for part in said if part)


def _leaves(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, one in command.commands.items():
            yield from _leaves(f"{path} {name}", one)
    else:
        yield path, command


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text.strip()))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def write() -> None:
    """Write both tables where they belong."""
    formats = (DOCS / "formats.md").read_text("utf-8")
    begin = formats.index(METRICS_BEGIN)
    end = formats.index(METRICS_END, begin)
    (DOCS / "formats.md").write_text(formats[:begin] + metrics_table() + formats[end:], "utf-8")
    (DOCS / "commands.md").write_text(commands_page(), "utf-8")


if __name__ == "__main__":
    write()
