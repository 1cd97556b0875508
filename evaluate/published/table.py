"""One published number for a checkpoint on a test set, and what was asked there.

``open_clip.csv`` has open_clip's results as they stand there; the average is over all 38 columns, and a test holds
every row to it. ``test_sets.json`` says where all of it is from, and of each test set which metric was published, how
many images and classes it has, and which templates and class names CLIP_benchmark asks with.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from clipq.files import sha256_bytes


@dataclass(frozen=True)
class PublishedSet:
    """A test set: the metric that was published of it, or the several whose mean was, and what was asked.

    ``templates`` is the SHA-256 of its templates (empty: nothing is classified), ``names`` are short digests of its
    class names (None: not known).
    """

    name: str
    metrics: tuple[str, ...]
    images: int
    classes: int = 0
    templates: str = ""
    template_count: int = 0
    names: frozenset[str] | None = None

    def other_names(self, names: Iterable[str]) -> int | None:
        """How many of these class names are none of the published ones; None where those are not known."""
        return None if self.names is None else sum(name_digest(name) not in self.names for name in names)

    def same_templates(self, templates: Iterable[str]) -> bool:
        """Whether these are the published templates."""
        return self.templates == templates_digest(templates)


@dataclass(frozen=True)
class Table:
    """Published values (0 to 1) by checkpoint (``MODEL/TAG``, open_clip's names) and test set; ``source`` is whose.

    ``aliases`` are other names of the same weights.
    """

    values: Mapping[str, Mapping[str, float]]
    sets: Mapping[str, PublishedSet]
    aliases: Mapping[str, str]
    source: str

    def checkpoint(self, name: str) -> str:
        """The table's name of a checkpoint; empty where it has none. Of ``hf-hub:ORG/NAME`` the id alone counts."""
        plain = re.sub(r"^[a-z-]+:", "", name)
        known = next((one for one in (name, plain) if one in self.aliases or one in self.values), "")
        return self.aliases.get(known, known)

    def set_name(self, name: str) -> str:
        """The table's name of a test set: CIFAR-10 is ``cifar10`` and ``vtab/cifar10``; empty where it has none."""
        plain = re.sub(r"^vtab[/-]", "", name)
        return plain if plain in self.sets else ""


def templates_digest(templates: Iterable[str]) -> str:
    """SHA-256 of templates in their order."""
    return sha256_bytes("\0".join(templates).encode())


def name_digest(name: str) -> str:
    """The start of a class name's SHA-256: of a set's names no two are alike."""
    return sha256_bytes(name.encode())[:6]


@lru_cache(maxsize=1)
def shipped() -> Table:
    """The table that comes with clipq."""
    said: dict[str, Any] = json.loads(_text("test_sets.json"))
    names = {name: frozenset(digests.split()) for name, digests in said["class_names"].items()}
    columns = {name: entry.pop("column") for name, entry in said["test_sets"].items()}
    sets = {
        name: PublishedSet(name, tuple(entry.pop("metrics")), names=names.get(entry.pop("names", "")), **entry)
        for name, entry in said["test_sets"].items()
    }
    values = {
        f"{row['name']}/{row['pretrained']}": {name: float(row[column]) for name, column in columns.items()}
        for row in csv.DictReader(io.StringIO(_text("open_clip.csv")))
    }
    return Table(values, sets, said["aliases"], "open_clip")


def _text(name: str) -> str:
    return (resources.files("clipq.evaluate.published") / name).read_text(encoding="utf-8")
