"""Sets of the built-in world."""

from __future__ import annotations

import pytest

from clipq.data.open import open_view
from clipq.errors import DataError


def test_demo_views_are_prefixes():
    short, long = open_view("demo:test:n=48"), open_view("demo:test")
    assert long.samples[:48] == short.samples and len(long.samples) == 960
    assert {sample.groups["light"] for sample in short.samples} == {"day", "night"}


def test_unknown_demo_sets_and_options():
    with pytest.raises(DataError, match="fitting ones: test"):
        open_view("demo:textures")
    with pytest.raises(DataError, match="not a number"):
        open_view("demo:test:n=x")
    with pytest.raises(DataError, match="fewer than"):
        open_view("demo:test:n=5")
