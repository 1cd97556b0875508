"""Names in results: every view, corrupted view and attack has one of its own, or numbers would overwrite each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from clipq.evaluate.results.key import corrupted_view, is_reserved
from clipq.evaluate.suites.schema import Suite, view_name
from clipq.given import is_nameable


def name_complaints(suite: Suite, attacks: Sequence[str | None]) -> Iterator[tuple[tuple[Any, ...], str]]:
    """What is wrong with a suite's names, each with its place; ``attacks`` are those of the transferred ones, if known.

    CIFAR-10-C, the field's own name of a data set, is also what the corruptions of a view ``cifar10`` are called.
    """
    asked = [
        *((("view", index, "name"), view_name(entry), "a view") for index, entry in enumerate(suite.views)),
        *((("corruptions", index, "of"), corrupted_view(entry.of), f"the corruptions of {entry.of!r}")
          for index, entry in enumerate(suite.corruptions)),
        *((("transfer", index, "name"), name, "an attack") for index, name in enumerate(attacks) if name is not None),
    ]  # fmt: skip
    named: dict[str, str] = {}
    for place, name, what in asked:
        other = named.setdefault(name, "") or None
        named[name] = what
        if not is_nameable(name):
            yield place, f"{what} cannot be called {name!r}: it breaks the line or is not UTF-8; give it another name"
        elif is_reserved(name):
            yield (
                place,
                f"{what} cannot be called {name!r}: results call the towers themselves so; give it another name",
            )
        elif other == what == "a view":
            yield place, f"two views are called {name!r}; name them apart with name = ... (--data NAME=SOURCE)"
        elif other == what and what != "an attack":
            yield place, f"{what} are asked for twice; ask once, with all their names and severities"
        elif other is not None:
            yield place, f"{other} and {what} would both be called {name!r} in results; name one apart with name = ..."
