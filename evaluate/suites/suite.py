"""Suites: which data play which role, and what is asked of them; a TOML file or a built-in one.

Everything that is wrong with a file is reported together, each complaint with its line.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel, ValidationError

import clipq.demo
from clipq.bounds import EPSILON
from clipq.data.open import complaint, describe_sources, seen_from
from clipq.data.source import split_source
from clipq.errors import DataError
from clipq.evaluate.suites.corruptions import NAMED_SETS, SEVERITIES, STANDARD
from clipq.evaluate.suites.names import name_complaints
from clipq.evaluate.suites.published import published_complaint
from clipq.evaluate.suites.schema import (
    LABELLED,
    ROLES_OF,
    CorruptionsEntry,
    LatencyEntry,
    SquareEntry,
    Suite,
    TransferEntry,
    ViewEntry,
    view_name,
)
from clipq.given import hint, without_folders
from clipq.text_files import parse_toml, read_text

BUILT_IN = ("demo", "quick", "paper", "template")

# What is wrong, with the keys that lead to it: ("view", 0, "role").
Complaint: TypeAlias = tuple[tuple[Any, ...], str]


def read_suite(path_or_name: str) -> Suite:
    """Read and check a suite file, or a built-in suite by name; raises DataError with every complaint and its line."""
    if path_or_name in BUILT_IN:
        return _parse(suite_text(path_or_name), path_or_name, Path.cwd())
    path = Path(path_or_name)
    try:
        text = read_text(path, DataError)
    except DataError as error:
        known = f"{', '.join(BUILT_IN)}{hint(path_or_name, BUILT_IN)}"
        raise DataError(f"--suite {error}; built in are {known}") from error
    return _parse(text, str(path), path.resolve().parent)


def written_down(suite: Suite) -> dict[str, Any]:
    """A suite as it was resolved; its paths without the folders of this machine."""
    asked = suite.model_dump(mode="json", by_alias=True)
    for entry in asked["view"]:
        before, path, after = split_source(entry["source"])
        entry["source"] = f"{before}{without_folders(path)}{after}"
        entry["label_map"] = entry["label_map"] and without_folders(entry["label_map"])
    for entry in asked["transfer"]:
        entry["source"] = without_folders(entry["source"])
    return asked


def check_suite(suite: Suite) -> Suite:
    """A suite made in Python, checked as a file is; raises DataError with every complaint."""
    complaints = [f"{_spell(place)}: {what}".removeprefix(": ") for place, what in _check(suite)]
    if complaints:
        raise DataError("suite: " + "; ".join(complaints))
    return suite


def built_in_attack(name: str) -> Path:
    """The folder of a stored attack that ships with clipq."""
    if name != "demo":
        raise DataError(f"no built-in attack {name!r}; there is demo")
    return Path(clipq.demo.__file__).parent / "attack"


def suite_text(name: str) -> str:
    """The text of a built-in suite."""
    if name not in BUILT_IN:
        raise DataError(f"no built-in suite {name!r}; there are {', '.join(BUILT_IN)}{hint(name, BUILT_IN)}")
    text = (files("clipq.evaluate.suites") / f"{name}.toml").read_text("utf-8")
    said = f"A source is {describe_sources()}."
    comment = textwrap.fill(said, 120, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    return text.replace("# {sources}", comment)


def _parse(text: str, where: str, folder: Path) -> Suite:
    raw = parse_toml(text, where, DataError)
    line_of = _line_numbers(text)
    complaints: list[tuple[int, str]] = []
    suite = None
    try:
        suite = Suite.model_validate(_resolve_paths(raw, folder))
    except ValidationError as error:
        for one in error.errors():
            place = tuple(part for part in one["loc"] if part != "views")
            complaints.append((line_of(place), f"{_spell(place)}: {one['msg'].lower()}{_known(one, place)}"))
    found = _check_sense(raw) if suite is None else _check(suite)
    complaints += [(line_of(place), what) for place, what in found]
    if complaints:
        lines = [f"line {line}: {what}" for line, what in sorted(set(complaints))]
        raise DataError(f"{where}: " + "; ".join(lines))
    assert suite is not None
    return suite


def _known(error: Mapping[str, Any], place: tuple[Any, ...]) -> str:
    if error["type"] != "extra_forbidden":
        return ""
    model: type[BaseModel] = Suite
    entries: dict[Any, type[BaseModel]] = {
        "view": ViewEntry, "corruptions": CorruptionsEntry, "transfer": TransferEntry, "square": SquareEntry,
        "latency": LatencyEntry,
    }  # fmt: skip
    if len(place) > 1:
        model = entries[place[0]]
    names = [field.alias or name for name, field in model.model_fields.items()]
    return f" (known keys: {', '.join(names)}{hint(place[-1], names)})"


def _spell(place: tuple[Any, ...]) -> str:
    return ".".join(str(part + 1) if isinstance(part, int) else str(part) for part in place)


def _resolve_paths(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Relative paths in a suite file are meant from the file's folder."""

    def attack(value: str) -> str:
        scheme, _, rest = value.partition(":")
        return str(built_in_attack(rest) if scheme == "builtin" else folder / value)

    resolve: dict[tuple[str, str], Callable[[str], str]] = {
        ("view", "source"): lambda value: seen_from(value, folder),
        ("view", "label_map"): lambda value: str(folder / value),
        ("transfer", "source"): attack,
    }
    copied = {key: [dict(entry) for entry in value] if _is_tables(value) else value for key, value in raw.items()}
    for (key, name), resolved in resolve.items():
        for entry in copied.get(key, []) if _is_tables(copied.get(key)) else []:
            if isinstance(entry.get(name), str):
                entry[name] = resolved(entry[name])
    return copied


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _check_sense(raw: dict[str, Any]) -> list[Complaint]:
    """What can still be said about a file whose keys are wrong: sources that do not exist."""
    complaints = []
    for index, entry in enumerate(raw.get("view", []) if _is_tables(raw.get("view")) else []):
        source = entry.get("source")
        wrong = complaint(source) if isinstance(source, str) else None
        if wrong is not None:
            complaints.append((("view", index, "source"), f"source {wrong}"))
    return complaints


def _check(suite: Suite) -> list[Complaint]:
    """What pydantic cannot see: names that refer to nothing, roles without what they need, missing folders."""
    complaints: list[Complaint] = []

    def complain(place: tuple[Any, ...], what: str) -> None:
        complaints.append((place, what))

    names = [view_name(entry) for entry in suite.views]
    labelled = [name for name, entry in zip(names, suite.views, strict=True) if entry.role in LABELLED]
    inside = [name for name, entry in zip(names, suite.views, strict=True) if entry.role == "in-distribution"]
    if not suite.views:
        complain((), "no [[view]]: there is nothing to evaluate on")
    for index, entry in enumerate(suite.views):
        here = ("view", index)
        wrong = complaint(entry.source)
        if wrong is not None:
            complain((*here, "source"), f"source {wrong}")
        if entry.role == "groups" and not entry.groups:
            complain((*here, "role"), "role groups needs groups = [column, ...]")
        if entry.role in ("near-ood", "far-ood") and not inside:
            complain((*here, "role"), f"role {entry.role} needs a view with role in-distribution")
        if entry.label_map is not None and not entry.label_map.is_file():
            complain((*here, "label_map"), f"label_map {entry.label_map}: no such file")
        if entry.label_map is not None and entry.classes_of is None:
            complain((*here, "label_map"), "label_map needs classes_of, the view whose classes it speaks of")
        if entry.role in ROLES_OF["published"] and (said := published_complaint(entry)):
            complain((*here, "published"), said)
        for key in ("baseline", "classes_of"):
            wanted = getattr(entry, key)
            if wanted is not None and wanted not in inside:
                complain((*here, key), f"{key} {wanted!r} is no in-distribution view ({', '.join(inside) or 'none'})")
    for place, what in name_complaints(suite, [entry.name for entry in suite.transfer]):
        complain(place, what)
    for kind in ("corruptions", "square"):
        for index, asked in enumerate(getattr(suite, kind)):
            if asked.of not in labelled:
                complain((kind, index, "of"), f"of {asked.of!r} is no labelled view ({', '.join(labelled) or 'none'})")
    for index, entry_c in enumerate(suite.corruptions):
        here = ("corruptions", index)
        for name in entry_c.corruptions():
            if name not in NAMED_SETS["all"]:
                known = ", ".join((*NAMED_SETS, *NAMED_SETS["all"]))
                complain(
                    (*here, "names"), f"unknown corruption {name!r}; known: {known}{hint(name, NAMED_SETS['all'])}"
                )
        if not entry_c.names:
            complain((*here, "names"), f"names is empty; known: {', '.join(NAMED_SETS)}")
        if not entry_c.severities or any(severity not in SEVERITIES for severity in entry_c.severities):
            complain((*here, "severities"), "severities are numbers from 1 to 5")
        if entry_c.baseline == "alexnet" and (
            entry_c.severities != SEVERITIES or not set(STANDARD) <= set(entry_c.corruptions())
        ):
            complain(
                (*here, "baseline"), "AlexNet's errors are for ImageNet-C whole: all 15 corruptions, severities 1-5"
            )
    _check_idle(suite, complain)
    _check_attacks(suite, complain)
    return complaints


def _check_idle(suite: Suite, complain: Callable[[tuple[Any, ...], str], None]) -> None:
    """Keys that were given and beside the others would change nothing."""
    for index, entry in enumerate(suite.views):
        given = [key for key in sorted(entry.model_fields_set) if getattr(entry, key) not in (None, ())]
        for key in given:
            if entry.role not in (roles := ROLES_OF.get(key, (entry.role,))):
                wrong = f"role {entry.role} makes nothing of {key}, which is for {', '.join(roles)}"
                complain(("view", index, key), wrong)
        if "smallest_group" in given and not entry.groups:
            complain(("view", index, "smallest_group"), "smallest_group needs groups = [column, ...]: it is about gaps")
    asked = [entry for entry in suite.views if entry.role in LABELLED and entry.templates is None]
    if suite.templates is not None and not asked and not suite.transfer:
        complain(("templates",), f"templates {suite.templates!r}: no view is left for them; leave them out")


def _check_attacks(suite: Suite, complain: Callable[[tuple[Any, ...], str], None]) -> None:
    attacked: set[tuple[str, int]] = set()
    for index, entry_s in enumerate(suite.square):
        twice = sorted(epsilon for epsilon in set(entry_s.epsilons) if (entry_s.of, epsilon) in attacked)
        if twice or len(set(entry_s.epsilons)) < len(entry_s.epsilons):
            complain(("square", index, "epsilons"), f"{entry_s.of} is attacked twice with an epsilon; once is enough")
        attacked |= {(entry_s.of, epsilon) for epsilon in entry_s.epsilons}
        if not entry_s.epsilons or any(not EPSILON.least <= epsilon <= EPSILON.most for epsilon in entry_s.epsilons):
            complain(("square", index, "epsilons"), "epsilons are whole 255ths from 1 to 255 (0 is no attack)")
    for index, entry_t in enumerate(suite.transfer):
        if not entry_t.source.is_dir():
            complain(("transfer", index, "source"), f"source {entry_t.source}: no such folder (clipq-export attack)")


def _line_numbers(text: str) -> Callable[[tuple[Any, ...]], int]:
    """The line of a key, given its place in the parsed file: of the key, else of its table, else 1."""
    lines: dict[tuple[Any, ...], int] = {}
    seen: dict[str, int] = {}
    table: tuple[Any, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if found := re.match(r"\s*\[\[\s*([\w-]+)\s*\]\]", line):
            seen[found.group(1)] = seen.get(found.group(1), -1) + 1
            table = (found.group(1), seen[found.group(1)])
            lines[table] = number
        elif found := re.match(r"\s*\[\s*([\w-]+)\s*\]", line):
            table = (found.group(1),)
            lines[table] = number
        elif found := re.match(r"\s*([\w-]+)\s*=", line):
            lines.setdefault((*table, found.group(1)), number)

    def line_of(place: tuple[Any, ...]) -> int:
        while place and place not in lines:
            place = place[:-1]
        return lines.get(place, 1)

    return line_of
