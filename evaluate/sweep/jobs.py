"""A sweep as a list of jobs, one per cell, and how a job is done, by this process or by another."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

from clipq.bundle import TOWERS, TowerName
from clipq.data.views import View
from clipq.errors import ClipqError
from clipq.evaluate.cells.cells import Cell
from clipq.evaluate.cells.embeddings import Embeddings
from clipq.evaluate.cells.square_cells import attack_cell, fill_attack
from clipq.evaluate.cells.subjects import Subject, numbers_of
from clipq.evaluate.settings import Settings
from clipq.evaluate.suites.plan import Plan, PlannedSquare
from clipq.evaluate.suites.schema import Suite
from clipq.evaluate.sweep.nodes import refusal

OTHER_NUMBERS = "this machine would give other numbers than planned: it has other data, or draws others"

# Image engines that a process keeps open.
MOST_ENGINES = 8

Kind = Literal["classes", "captions", "images", "attack"]
# A view, or an attack on one at a strength in 255ths.
Target = View | tuple[PlannedSquare, int]


@dataclass(frozen=True)
class Job:
    """One cell to fill: its name, the engine, what the engine is run on, and the cell that must be there before.

    ``target`` is an index into the plan's targets, which are large and go to another process once. ``numbers`` is what
    determines the engine's numbers where this was planned.
    """

    kind: Kind
    cell: str
    subject: Subject
    group: str
    view: str
    target: int
    rows: int
    chunk: int
    numbers: Mapping[str, Any]
    after: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job: the reason of its failure, or nothing; where and how long it ran."""

    job: Job
    failure: str
    seconds: float = 0.0
    node: str = ""


def open_embeddings(settings: Settings, suite: Suite) -> Embeddings:
    """Cells, pixels and engines of a process that fills cells of many engines."""
    return Embeddings(settings, suite, most_engines=MOST_ENGINES)


def plan_jobs(
    plan: Plan, groups: dict[str, Sequence[Subject]], embeddings: Embeddings
) -> tuple[list[Job], tuple[Target, ...]]:
    """Every cell once, and what the engines are run on: texts first, then images view by view, then attacks.

    View by view, for then all engines want the same pixels at about the same time.
    """
    targets: list[Target] = []
    jobs: dict[str, Job] = {}
    numbers_by_tower = {
        (subject.label, group, tower): numbers_of(subject, tower)
        for group, subjects in groups.items()
        for subject in subjects
        for tower in TOWERS
    }

    def add(kind: Kind, target: Target, name: str, after: Kind | None = None) -> None:
        targets.append(target)
        for group, subjects in groups.items():
            # Only an engine that runs here can be attacked, and of one that has predictions alone nothing is embedded.
            able = [one for one in subjects if one.has_embeddings and (kind != "attack" or one.runs_here)]
            for subject in able:
                cell = cell_of(kind, target, subject, embeddings)
                before = None if after is None else cell_of(after, target, subject, embeddings).name
                numbers = numbers_by_tower[subject.label, group, tower_of(kind)]
                job = Job(
                    kind, cell.name, subject, group, name, len(targets) - 1, cell.rows, cell.chunk, numbers, before
                )
                jobs.setdefault(cell.name, job)

    for view in plan.classified_views():
        add("classes", view, view.name)
    for view in plan.captioned_views():
        add("captions", view, view.name)
    for view in plan.image_views():
        add("images", view, view.name)
    for planned, epsilon in plan.attacks():
        add("attack", (planned, epsilon), f"{planned.view.name}: Square ε={epsilon}/255", after="classes")
    return list(jobs.values()), tuple(targets)


def tower_of(kind: Kind) -> TowerName:
    """The tower that a job of a kind runs."""
    return "image" if kind in ("images", "attack") else "text"


def cell_of(kind: Kind, target: Target, subject: Subject, embeddings: Embeddings) -> Cell:
    """The cell that an engine's run on a target fills."""
    if isinstance(target, tuple):
        planned, epsilon = target
        if kind == "attack":
            return attack_cell(planned, epsilon, subject, embeddings)
        target = planned.view
    cells = {
        "classes": embeddings.class_cell,
        "captions": embeddings.caption_cell,
        "images": embeddings.image_cell,
    }
    return cells[kind](target, subject)


def do_job(job: Job, targets: Sequence[Target], embeddings: Embeddings) -> str:
    """Fill a job's cell, going on where another process stopped; the reason why it could not be, or nothing."""
    target = targets[job.target]
    try:
        if refused := refusal(job.numbers, numbers_of(job.subject, tower_of(job.kind))):
            return refused
        cell = cell_of(job.kind, target, job.subject, embeddings)
        if cell.name != job.cell:
            return OTHER_NUMBERS
        if isinstance(target, tuple):
            fill_attack(*target, job.subject, embeddings)
        elif job.kind == "images":
            if failed := embeddings.fill_images(target, [job.subject]):
                return failed[job.subject.label]
        else:
            {"classes": embeddings.fill_classes, "captions": embeddings.fill_captions}[job.kind](target, job.subject)
    except ClipqError as error:
        return str(error)
    except Exception as error:  # one cell's surprise must not end thousands of others
        return f"{type(error).__name__}: {error}"
    return "the cell is not whole" if cell.missing() else ""


def run_here(jobs: Sequence[Job], targets: Sequence[Target], settings: Settings, suite: Suite) -> Iterator[Outcome]:
    """Do the jobs in this process and in order; each outcome as it comes."""
    with open_embeddings(settings, suite) as embeddings:
        for job in jobs:
            started = perf_counter()
            failure = do_job(job, targets, embeddings)
            yield Outcome(job, failure, perf_counter() - started, platform.node())
