"""A process that tries cases one after the other, in a world of its own."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from benchmarks.fuzz.case import Outcome, attempt
from benchmarks.fuzz.command import import_all
from benchmarks.fuzz.kinds import KINDS, kind_of
from benchmarks.fuzz.world import World

# Seed, number, where worlds are made, and where the inputs of failures are kept.
Task = tuple[int, int, Path, Path]


def tried(task: Task) -> Outcome:
    """Try one case."""
    seed, number, root, keep = task
    name = kind_of(number)
    return attempt(number, seed, name, KINDS[name], _world(root), keep)


@cache
def _world(root: Path) -> World:
    import_all()
    return World(root / str(os.getpid())).make()
