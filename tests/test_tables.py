"""What the documents say of metrics and commands is what the code has."""

from __future__ import annotations

import re

import tables
from support import ROOT

DOCS = ROOT / "docs"
AGAIN = "run: python tests/tables.py"


def test_the_table_of_metrics_is_the_codes():
    assert tables.metrics_table() + "\n\n" in (DOCS / "formats.md").read_text(), AGAIN


def test_every_command_stands_with_every_option():
    page = tables.commands_page()
    assert page == (DOCS / "commands.md").read_text(), AGAIN
    # The page itself leaves nothing out.
    for path, command in (leaf for name, one in (("clipq-export", tables.export), ("clipq-eval", tables.evaluate)) for leaf in tables._leaves(name, one)):  # fmt: skip
        section = page.partition(f"## {path}\n")[2].partition("\n## ")[0]
        for option in (name for one in command.params for name in one.opts if name.startswith("--")):
            assert re.search(rf"`[^`\n]*{option}\b", section), (path, option)
