"""How long jobs say how far they are, without knowing who listens; and how to keep chatty libraries quiet."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Where a long job reports to: ``start(what, total)`` opens a bar, ``advance(done)`` moves it."""

    start: Callable[[str, int], None] = lambda what, total: None
    advance: Callable[[int], None] = lambda done: None


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """Silence advice that libraries write to the root logger; what goes wrong still surfaces as an exception."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
