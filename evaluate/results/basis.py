"""What numbers rest on, read off their record: two numbers are compared where that is the same.

A difference to a reference is taken only where both rest on the same questions and the same samples (``unlike``). What
one of two records does not say (those before schema 6 have no digests of labels, classes and templates) is not held
against it; ``unsaid`` names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from clipq.evaluate.results.key import Key, clean_view, corrupted_view
from clipq.evaluate.results.record import AttackRecord, Record, ViewRecord


@dataclass(frozen=True)
class Basis:
    """What was asked, and which samples and resamples it was asked of: each by what a sentence calls it."""

    questions: dict[str, Any]
    samples: dict[str, Any]


def unlike(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """The first thing that both know and that differs, else nothing.

    >>> unlike({"seed": 0, "labels of 'x'": "a"}, {"seed": 1}), unlike({"seed": 0}, {})
    ('seed', '')
    """
    return next((name for name, one in mine.items() if name in theirs and theirs[name] != one), "")


def differs(mine: Basis, theirs: Basis) -> str:
    """What two bases differ in, else nothing."""
    return unlike(mine.samples, theirs.samples) or unlike(mine.questions, theirs.questions)


def unsaid(record: Record) -> bool:
    """Whether a record, made before schema 6, leaves open what its engine was asked and what it was compared with."""
    without = any(view.classes and not view.digests for view in record.views)
    return not record.failed and (without or bool(record.reference and not record.reference_digest))


def made_otherwise(mine: Record, theirs: Record) -> str:
    """The first thing that took part in making both records' numbers and was another one, with what it was in each."""
    one, other = made_by(mine), made_by(theirs)
    what = unlike(one, other)
    return f"{what} ({one[what]}, not {other[what]})" if what else ""


def made_by(record: Record) -> dict[str, Any]:
    """What took part in making a record's numbers, by name: clipq's own version of them, libraries', the CPU.

    Of all of them only since schema 7; of runtimes' always.
    """
    said, packages = record.environment.get("made_by"), record.environment["packages"]
    runtimes = {name: one for name, one in packages.items() if name.startswith(("onnxruntime", "tensorrt"))}
    # A prediction is of another CPU by what it is called.
    cpu = {} if record.predicted_for or not record.cpu else {"CPU": record.cpu}
    return runtimes | cpu | (said if isinstance(said, dict) else {})


class Foundations:
    """What the numbers of a record rest on; ``renamed`` are views that were called otherwise when it was made."""

    def __init__(self, record: Record, renamed: Mapping[str, str]):
        self._views = {view.name: view for view in record.views}
        parts = (_settings(record.arguments_resolved), _views(record.views), _attacks(record.attacks))
        self._parts: _Parts = {}
        for part in (*parts, _corruptions(record, renamed)):
            self._parts |= part
        self._known: dict[tuple[str, str, bool], Basis] = {}

    @cached_property
    def whole(self) -> Basis:
        """What all of them together rest on."""
        return _joined(self._parts.values())

    def of(self, key: Key) -> Basis:
        """What one rests on: its view, the one that was shifted, corrupted or attacked, the OOD sets of an average."""
        asked = (key.view, key.distance, key.attack is not None)
        if asked not in self._known:
            view = self._views.get(key.view)
            names = [("", ""), ("view", key.view), ("corruptions", key.view), ("view", clean_view(key.view))]
            names += [] if view is None else [("view", view.baseline)]
            names += [("attack", key.view)] if key.attack is not None else []
            if key.distance:
                names += [(key.distance, key.view)]
                names += [("view", one.name) for one in self._views.values() if "-ood" in one.role]
            self._known[asked] = _joined(self._parts[name] for name in names if name in self._parts)
        return self._known[asked]


# A kind and a view (or an attack's name): "near" and "far" are averages of a view over OOD sets.
_Parts = dict[tuple[str, str], Basis]


def _settings(asked: Mapping[str, Any]) -> _Parts:
    settings = {name: asked[name] for name in ("seed", "ece_bins", "tune_fraction") if name in asked}
    return {("", ""): Basis({}, settings)}


def _views(views: Iterable[ViewRecord]) -> _Parts:
    found: _Parts = {}
    for view in views:
        of = f"of {view.name!r}"
        questions: dict[str, Any] = {}
        if view.classes:
            questions[f"number of classes {of}"] = view.classes
            questions[f"template set {of}"] = (view.templates, view.template_count)
        samples: dict[str, Any] = {f"images {of}": view.digest, f"baseline {of}": view.baseline}
        # Before a run nobody knows.
        samples |= {f"images left out {of}": sorted(view.skipped)} if view.n else {}
        samples |= {} if view.smallest_group is None else {f"smallest_group {of}": view.smallest_group}
        found["view", view.name] = _joined([Basis(questions, samples), _of_digests(view.digests, of)])
        if view.role in ("near-ood", "far-ood"):
            distance = view.role.removesuffix("-ood")
            part = found.setdefault((distance, view.baseline), Basis({}, {}))
            part.questions.setdefault(f"{distance} OOD sets of {view.baseline!r}", set()).add(view.name)
    return found


def _attacks(attacks: Iterable[AttackRecord]) -> _Parts:
    found: _Parts = {}
    for attack in attacks:
        of = f"of the {attack.method} attack on {attack.view!r}"
        options = sorted((name, str(value)) for name, value in attack.options.items())
        mine = [Basis({f"options {of}": options}, {f"images {of}": attack.digest}), _of_digests(attack.digests, of)]
        found["attack", attack.view] = _joined([found.get(("attack", attack.view), Basis({}, {})), *mine])
    return found


def _corruptions(record: Record, renamed: Mapping[str, str]) -> _Parts:
    drawn: dict[str, set[str]] = {}
    for row in record.measurements:
        # Without a group it is the mean over the conditions, which is not there before a run.
        if row.metric == "corruption_acc1" and row.group:
            drawn.setdefault(row.view, set()).add(row.group)
    found: _Parts = {}
    for entry in record.arguments_resolved.get("corruptions") or ():
        of = renamed.get(entry.get("of"), entry.get("of"))
        view, called = corrupted_view(of), f"of the corruptions of {of!r}"
        questions: dict[str, Any] = {f"baseline {called}": entry.get("baseline")}
        questions |= {f"conditions {called}": drawn[view]} if view in drawn else {}
        found["corruptions", view] = Basis(questions, {f"samples {called}": entry.get("samples")})
    return found


def _of_digests(digests: Mapping[str, str], of: str) -> Basis:
    """The same questions about other samples can be compared unpaired; answers to other questions cannot."""
    named = {name: f"{name} {of}" for name in digests}
    questions = ("classes", "templates")
    return Basis(
        {named[name]: one for name, one in digests.items() if name in questions},
        {named[name]: one for name, one in digests.items() if name not in questions},
    )


def _joined(parts: Iterable[Basis]) -> Basis:
    found = Basis({}, {})
    for part in parts:
        found.questions.update(part.questions)
        found.samples.update(part.samples)
    return found
