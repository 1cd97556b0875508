"""A JSON file made wrong in one of several ways."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.fuzz import octets, trees
from benchmarks.fuzz.case import Case


def rewrite(case: Case, path: Path, way: str) -> trees.Path:
    """Write the file anew: a place of its ``tree``, its ``octets``, a key ``twice``, another ``encoding``, or the ``same``.

    Returns the place in the tree that was changed, where one was.
    """
    place: trees.Path = ()
    tree = json.loads(path.read_text())
    if way == "tree":
        mutated, place, case.mutation = trees.changed(tree, case.rng)
        path.write_text(trees.as_json(mutated))
    elif way == "octets":
        content, case.mutation = octets.broken(path.read_bytes(), case.rng)
        path.write_bytes(content)
    elif way == "twice":
        path.write_text(trees.with_twice(path.read_text(), case.rng))
        case.mutation = "a key twice"
    elif way == "encoding":
        content, case.mutation = octets.reencoded(path.read_text(), case.rng)
        path.write_bytes(content)
    else:
        text, case.mutation = trees.neutral(tree, case.rng)
        path.write_text(text)
    return place
