"""How long jobs say how far they are, without knowing who listens; and how to keep chatty libraries quiet."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from importlib import import_module
from typing import Any

from clipq.errors import one_line


@dataclass(frozen=True)
class Progress:
    """Where a long job reports to: ``start(what, total)`` opens a bar, ``advance(done)`` moves it."""

    start: Callable[[str, int], None] = lambda what, total: None
    advance: Callable[[int], None] = lambda done: None


@contextlib.contextmanager
def progress_bars() -> Iterator[Progress]:
    """Progress where someone looks: on stderr if it is a terminal, below the cell of a notebook; else silent.

    CLIPQ_PROGRESS=0 shows none anywhere.
    """
    if os.environ.get("CLIPQ_PROGRESS") == "0":
        yield Progress()
    elif _in_notebook():
        bar = _NotebookBar()
        try:
            yield Progress(bar.start, bar.advance)
        finally:
            bar.clear()
    else:
        with _terminal_bars() as progress:
            yield progress


@contextlib.contextmanager
def _terminal_bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks = [bars.add_task("starting", total=None)]

        def start(what: str, total: int) -> None:
            bars.update(tasks[-1], visible=False)
            tasks.append(bars.add_task(one_line(what), total=total or None))

        yield Progress(start, lambda done: bars.advance(tasks[-1], done))


def _in_notebook() -> bool:
    """Whether IPython runs in a kernel, which Jupyter, VS Code and Colab talk to."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class _NotebookBar:
    """A line of HTML that is drawn anew a few times a second; widgets would be one more package, often not there."""

    def __init__(self) -> None:
        display = import_module("IPython.display").display
        self._handle: Any = display(_both("", ""), raw=True, display_id=True)
        self.start("starting", 0)

    def start(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._draw()

    def advance(self, done: int) -> None:
        self._done += done
        if time.monotonic() - self._drawn > 0.2:
            self._draw()

    def clear(self) -> None:
        self._handle.update(_both("", ""), raw=True)

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        share, count = f'value="{self._done}" max="{self._total}"', f" {self._done}/{self._total}"
        said = self._what + (count if self._total else "")
        bar = f"<progress {share if self._total else ''}></progress> {escape(said)}"
        self._handle.update(_both(bar, said), raw=True)


def _both(html: str, plain: str) -> dict[str, str]:
    return {"text/html": html, "text/plain": plain}


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """Silence advice that libraries write to the root logger; what goes wrong still surfaces as an exception."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Silence what libraries write to stderr by themselves, such as Rust's panics, whose exceptions say the same.

    For a moment only: other threads are silenced too.
    """
    if sys.stderr is None:
        # It was closed when Python began, and its number may be another file's by now.
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 (no path of ours)
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
