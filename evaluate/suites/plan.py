"""A suite opened: every view with its role, and the corrupted, attacked and subset views made of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clipq.data.attack import AttackedView, StoredAttack, open_attack
from clipq.data.open import open_view
from clipq.data.relabel import join_columns, restrict_classes
from clipq.data.views import View, choose_samples
from clipq.errors import ClipqError, DataError, raise_together
from clipq.evaluate.metrics.fairness import large_groups
from clipq.evaluate.metrics.predictions import Booleans
from clipq.evaluate.results.key import part_group, parts_complaint
from clipq.evaluate.suites.corruptions import corrupted_views
from clipq.evaluate.suites.names import name_complaints
from clipq.evaluate.suites.schema import LABELLED, ROLES_OF, CorruptionsEntry, SquareEntry, Suite, ViewEntry, view_name
from clipq.files import sha256_bytes

MOST_GROUPS = 40


@dataclass(frozen=True)
class PlannedView:
    """A view with its entry in the suite; ``baseline`` is the in-distribution view of a shifted or OOD one."""

    entry: ViewEntry
    view: View
    baseline: View | None = None

    @property
    def name(self) -> str:
        """What the view is called."""
        return self.view.name

    @property
    def is_labelled(self) -> bool:
        """Whether it is classified."""
        return self.entry.role in LABELLED


@dataclass(frozen=True)
class PlannedCorruptions:
    """Corrupted views by corruption and severity, and the clean view of the same samples."""

    entry: CorruptionsEntry
    clean: View
    corrupted: dict[tuple[str, int], View]

    @property
    def name(self) -> str:
        """What the clean view is called."""
        return self.clean.name


@dataclass(frozen=True)
class PlannedTransfer:
    """A stored attack: its clean view and one view per strength."""

    name: str
    attack: StoredAttack
    clean: AttackedView
    attacked: dict[int, View]


@dataclass(frozen=True)
class PlannedSquare:
    """Images to attack on each engine."""

    entry: SquareEntry
    view: View

    @property
    def name(self) -> str:
        """What the view is called."""
        return self.view.name


@dataclass(frozen=True)
class Plan:
    """Everything that is going to be evaluated."""

    suite: Suite
    views: tuple[PlannedView, ...]
    corruptions: tuple[PlannedCorruptions, ...]
    transfers: tuple[PlannedTransfer, ...]
    squares: tuple[PlannedSquare, ...]

    def image_views(self) -> Iterator[View]:
        """Every view whose images are embedded."""
        for planned in self.views:
            yield planned.view
        for corruptions in self.corruptions:
            yield corruptions.clean
            yield from corruptions.corrupted.values()
        for transfer in self.transfers:
            yield transfer.clean
            yield from transfer.attacked.values()

    def captioned_views(self) -> Iterator[View]:
        """Views whose captions are embedded."""
        return (planned.view for planned in self.views if planned.entry.role == "retrieval")

    def classified_views(self) -> Iterator[View]:
        """Views whose class prompts are needed, at least one per set of classes."""
        for planned in self.views:
            if planned.is_labelled:
                yield planned.view
        for transfer in self.transfers:
            yield transfer.clean

    def attacks(self) -> Iterator[tuple[PlannedSquare, int]]:
        """The attacks that are made on each engine, with their strengths in 255ths."""
        return ((planned, epsilon) for planned in self.squares for epsilon in planned.entry.epsilons)

    def asked(self) -> Iterator[tuple[str, PlannedView | PlannedCorruptions | PlannedTransfer | PlannedSquare]]:
        """All that is measured, in order, each with the suite's word for it: a view's role, or its table's name."""
        yield from ((planned.entry.role, planned) for planned in self.views)
        yield from (("corruptions", planned) for planned in self.corruptions)
        yield from (("transfer", planned) for planned in self.transfers)
        yield from (("square", planned) for planned in self.squares)


def open_plan(suite: Suite, cache: Path | None) -> Plan:
    """Open all views of a suite; raises DataError for what does not fit, before any engine runs."""
    transfers = tuple(_transfer(entry.source, entry.name) for entry in suite.transfer)
    for _, complaint in name_complaints(suite, [planned.name for planned in transfers]):
        raise DataError(complaint)
    opened: dict[str, View] = {}
    wrong: list[ClipqError] = []
    # Each after the one whose classes it has.
    waiting = list(suite.views)
    while ready := [entry for entry in waiting if entry.classes_of in (None, *opened)]:
        waiting = [entry for entry in waiting if entry.classes_of not in (None, *opened)]
        for entry in ready:
            try:
                opened[view_name(entry)] = _open(entry, opened, suite.seed, cache)
            except ClipqError as error:
                wrong.append(error)
    raise_together(wrong)
    if waiting:
        names = ", ".join(repr(view_name(entry)) for entry in waiting)
        raise DataError(f"classes_of of {names}: each waits for another's classes; leave it out of one")
    inside = [view_name(entry) for entry in suite.views if entry.role == "in-distribution"]
    planned = []
    for entry in suite.views:
        view = opened[view_name(entry)]
        baseline = None
        if entry.role in ROLES_OF["baseline"] and inside:
            baseline = opened[entry.baseline or inside[0]]
        if entry.role in ("near-ood", "far-ood") and baseline is not None:
            _refuse_overlap(view, baseline)
        planned.append(PlannedView(entry, view, baseline))
        if planned[-1].is_labelled:
            _check_groups(planned[-1])
    return Plan(
        suite,
        tuple(planned),
        tuple(_corrupted(entry, opened, suite.seed) for entry in suite.corruptions),
        transfers,
        tuple(PlannedSquare(e, choose_samples(opened[e.of], e.samples, suite.seed)) for e in suite.square),
    )


def groups_of(planned: PlannedView, rows: np.ndarray | None = None) -> dict[str, dict[str, Booleans]]:
    """Which samples belong to each ``column=value``, by column; ``rows`` are the samples that could be decoded.

    Without columns in the suite, every column with at most MOST_GROUPS values counts.
    """
    samples = planned.view.samples if rows is None else [planned.view.samples[row] for row in rows]
    members: dict[str, dict[str, Booleans]] = {}
    for column in planned.entry.groups or tuple(samples[0].groups):
        values = np.array([sample.groups[column] for sample in samples])
        distinct = sorted(set(values.tolist()))
        if len(distinct) <= MOST_GROUPS or planned.entry.groups:
            members[column] = {part_group(column, value): values == value for value in distinct}
    return members


def _check_groups(planned: PlannedView) -> None:
    """Raise DataError for groups that results could not tell apart, and for columns without groups to compare."""
    columns, entry, view = groups_of(planned), planned.entry, planned.view
    if wrong := parts_complaint(columns):
        raise DataError(f"{view.source}: {wrong}")
    for column in columns if entry.groups else ():
        # Before hours of images; that some cannot be decoded shows later.
        large_groups(columns[column], entry.smallest_group, column=column, view=view.name)


def _open(entry: ViewEntry, opened: dict[str, View], seed: int, cache: Path | None) -> View:
    want = "labels" if entry.role in LABELLED else "captions" if entry.role == "retrieval" else "images"
    view = replace(open_view(entry.source, want, cache), name=view_name(entry))  # type: ignore[arg-type]
    if entry.classes_of is not None and want == "labels":
        view = restrict_classes(view, opened[entry.classes_of], entry.label_map)
    for columns in dict.fromkeys(entry.groups):
        view = join_columns(view, columns)
        if len({sample.groups[columns] for sample in view.samples}) < 2:
            raise DataError(f"{view.source}: column {columns!r} has a single value; a gap needs two groups")
    return choose_samples(view, entry.samples, seed)


def _refuse_overlap(view: View, inside: View) -> None:
    known = dict(zip(inside.image_digests, inside.samples, strict=True))
    # Samples without an image are bad ones, and none is another's.
    known.pop(sha256_bytes(b""), None)
    shared = [(sample.id, known[digest].id) for sample, digest in zip(view.samples, view.image_digests, strict=True)
              if digest in known]  # fmt: skip
    if shared:
        first, second = shared[0]
        raise DataError(
            f"out-of-distribution view {view.name!r} shares {len(shared)} images with {inside.name!r} "
            f"({first} is {second}); take them out of one of the two"
        )


def _corrupted(entry: CorruptionsEntry, opened: dict[str, View], seed: int) -> PlannedCorruptions:
    clean = choose_samples(opened[entry.of], entry.samples, seed)
    views = {
        (view.corruption, view.severity): view
        for name in entry.corruptions()
        for view in corrupted_views(clean, name, entry.severities, seed)
    }
    if entry.baseline == "alexnet" and len(clean.classes.names if clean.classes else ()) != 1000:
        raise DataError(f"corruptions of {entry.of!r}: AlexNet's errors are about ImageNet's 1,000 classes")
    return PlannedCorruptions(entry, clean, dict(views))


def _transfer(source: Path, name: str | None) -> PlannedTransfer:
    attack = open_attack(source)
    named = name or attack.manifest.method
    attacked: dict[int, View] = {epsilon: attack.view(epsilon, named) for epsilon in attack.manifest.epsilons}
    return PlannedTransfer(named, attack, attack.view(0, named), attacked)
