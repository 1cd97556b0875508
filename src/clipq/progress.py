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
def progress_bars() -> Iterator[Progress]:
    """Progress as bars on stderr, silent where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks = [bars.add_task("starting", total=None)]

        def start(what: str, total: int) -> None:
            bars.update(tasks[-1], visible=False)
            tasks.append(bars.add_task(what, total=total or None))

        yield Progress(start, lambda done: bars.advance(tasks[-1], done))


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """Silence advice that libraries write to the root logger; what goes wrong still surfaces as an exception."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
