"""What a sweep's folder remembers: the grid, the jobs, and the failures. What is done is read off the cells alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clipq.errors import ResultsError
from clipq.evaluate.cells.cells import chunk_names
from clipq.evaluate.cells.storage import Storage
from clipq.evaluate.sweep.grid import Grid
from clipq.evaluate.sweep.jobs import Job, Outcome
from clipq.files import file_stem, write_atomic
from clipq.given import as_store
from clipq.text_files import read_bytes

SCHEMA_VERSION: Literal[1] = 1
PLAN = "sweep.json"
FAILURES = "failures"

# Of sweep.json: a plan of a million cells has 250 MB.
_MOST_BYTES = 2**30

Name = Annotated[str, Field(pattern="^[0-9a-f]+$", max_length=64)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlannedCell(_Model):
    """A cell of the plan: its name, what it is of, and how many rows in chunks of how many."""

    cell: Name
    kind: str
    group: str
    engine: str
    view: str
    rows: int = Field(ge=0)
    chunk: int = Field(ge=1)


class Failure(_Model):
    """A cell that could not be filled, or an engine (no cell) that could not be made, and why."""

    group: str
    engine: str
    what: str
    reason: str
    cell: str = ""
    node: str = ""


class SweepState(_Model):
    """The content of ``sweep.json``."""

    schema_version: Literal[1] = SCHEMA_VERSION
    grid: Grid
    cells: tuple[PlannedCell, ...]


@dataclass(frozen=True)
class SweepFolder:
    """A sweep's results folder."""

    path: Path

    def storage(self, grid: Grid) -> Storage:
        """Where the cells are."""
        return Storage(as_store(grid.cells or "cells", self.path))

    def results(self, group: str) -> Path:
        """The results folder of a group."""
        return self.path / "results" / group

    def write_plan(self, grid: Grid, jobs: Sequence[Job]) -> None:
        """Remember what is going to be done."""
        cells = tuple(
            PlannedCell(
                cell=job.cell, kind=job.kind, group=job.group, engine=job.subject.label, view=job.view, rows=job.rows,
                chunk=job.chunk,
            )
            for job in jobs
        )  # fmt: skip
        write_atomic(self.path / PLAN, SweepState(grid=grid, cells=cells).model_dump_json(indent=1))

    def read_plan(self) -> SweepState:
        """What is being done; raises ResultsError where there is no sweep or it cannot be read."""
        path = self.path / PLAN
        if not path.exists():
            raise ResultsError(f"{self.path} holds no sweep; clipq-eval sweep GRID -o {self.path} starts one")
        try:
            return SweepState.model_validate_json(read_bytes(path, ResultsError, _MOST_BYTES))
        except ValidationError as error:
            versions = [one["input"] for one in error.errors() if one["loc"] == ("schema_version",)]
            if any(isinstance(version, int) and version > SCHEMA_VERSION for version in versions):
                raise ResultsError(f"{path} is of a newer clipq; upgrade clip-quant") from error
            raise ResultsError(f"{path} is damaged; start the sweep again, finished cells are kept") from error

    def failures(self) -> list[Failure]:
        """What has failed so far."""
        found = []
        for path in sorted((self.path / FAILURES).glob("*.json")):
            try:
                found.append(Failure.model_validate_json(read_bytes(path, ResultsError)))
            except ValidationError as error:
                raise ResultsError(f"{path} is damaged; delete it and run again") from error
        return found

    def record_failure(self, failure: Failure) -> None:
        """Remember a failure."""
        write_atomic(self._failure(failure), failure.model_dump_json(indent=1))

    def keep_failures(self, unfilled: set[str], not_made: Mapping[str, set[str]]) -> None:
        """Forget failures of what is there now, is not asked for any more, or is about to be tried again.

        What stays: cells among ``unfilled``, and engines that could not be made, by their checkpoint's folder.
        """
        for failure in self.failures():
            stays = failure.cell in unfilled if failure.cell else failure.engine in not_made.get(failure.group, ())
            if not stays:
                self._failure(failure).unlink(missing_ok=True)

    def forget_failures(self) -> int:
        """Forget all failures, so that they are tried again; how many there were."""
        paths = list((self.path / FAILURES).glob("*.json"))
        for path in paths:
            path.unlink()
        return len(paths)

    def _failure(self, failure: Failure) -> Path:
        name = failure.cell or f"{failure.group}--{failure.engine}"
        safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
        return self.path / FAILURES / f"{file_stem(safe)}.json"


def failure_of(outcome: Outcome) -> Failure:
    """An outcome that went wrong, as it is remembered."""
    job = outcome.job
    return Failure(
        group=job.group, engine=job.subject.label, what=f"{job.kind} of {job.view}", reason=outcome.failure,
        cell=job.cell, node=outcome.node,
    )  # fmt: skip


def whole(names: dict[str, set[str]], cell: str, rows: int, chunk: int) -> bool:
    """Whether every chunk of a cell is among the names that a storage has, by folder."""
    there = names.get(cell, set())
    # Counted first: a damaged plan may ask for more chunks than memory has names for.
    return len(there) >= -(-rows // chunk) and chunk_names(rows, chunk) <= there
