"""A record written line by line: a run that is cut off keeps every figure it had.

A line is a JSON object; ``kind`` says what of: ``machine``, ``check``, ``speed``, ``proof``, ``state``,
``reliability`` or ``failure``.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

Found = TypeVar("Found")


class Record:
    """A file of lines that grows."""

    def __init__(self, path: Path):
        self.path = path

    def add(self, kind: str, **fields: Any) -> None:
        """Append a line; what it says is on the disk when this returns."""
        line = json.dumps({"kind": kind, **fields}, default=_plain)
        print(line[:300], flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as stream:
            stream.write(line + "\n")

    def attempt(self, what: str, function: Callable[[], Found]) -> Found | None:
        """What a function gives; None where it fails, with its words and its place in the record.

        Any error: a machine that is lent for minutes has better uses than to end at the first.
        """
        started = time.perf_counter()
        try:
            return function()
        except Exception as error:
            place = traceback.format_exc(limit=-3)[-800:]
            self.add("failure", what=what, error=f"{type(error).__name__}: {error}"[:600], place=place)
            return None
        finally:
            print(f"   {what}: {time.perf_counter() - started:.1f} s", flush=True)


def read_lines(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The lines of records, in order; a last one that was cut off is left out."""
    lines = []
    for path in paths:
        for text in path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
    return lines


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value.item() if isinstance(value, np.generic) else str(value)
