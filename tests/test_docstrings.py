"""The examples in docstrings say what is so."""

from __future__ import annotations

import doctest
import importlib

import pytest
from test_layout import FOLDERS, sources

EXAMPLES = [
    ".".join([package, *path.relative_to(FOLDERS[package]).with_suffix("").parts]).removesuffix(".__init__")
    for package, path in sources()
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples(module):
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted > 0 and found.failed == 0
