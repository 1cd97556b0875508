"""Hugging Face tables made wrong."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from benchmarks.fuzz import octets
from benchmarks.fuzz.case import Case, Fault
from benchmarks.fuzz.engine import CLASSES
from benchmarks.fuzz.world import COUNT, pictures, record

# What replaces a column, by name; a cell of it where it is one.
COLUMNS: dict[str, tuple[str, Any]] = {
    "valid": ("label", [CLASSES.index(name) for _, name, _ in pictures()]),
    "texts": ("label", [name for _, name, _ in pictures()]),
    "floats": ("label", [float(CLASSES.index(name)) for _, name, _ in pictures()]),
    "lists": ("label", [[0, 1]] * COUNT), "truth": ("label", [True, False] * (COUNT // 2)),
    "bytes": ("label", [b"cat", b"dog"] * (COUNT // 2)), "structs": ("label", [{"a": 0}, {"a": 1}] * (COUNT // 2)),
    "null label": ("label", [None, *[CLASSES.index(name) for _, name, _ in pictures()][1:]]),
    "minus one": ("label", [-1, *[CLASSES.index(name) for _, name, _ in pictures()][1:]]),
    "beyond": ("label", [99, *[CLASSES.index(name) for _, name, _ in pictures()][1:]]),
    "null labels": ("label", [None] * COUNT),
    "null text": ("label", [None, *[name for _, name, _ in pictures()][1:]]),
    "no image": ("image", [None, *[{"bytes": one, "path": None} for *_, one in pictures()][1:]]),
    "no bytes": ("image", [{"bytes": None, "path": None}, *[{"bytes": one, "path": None} for *_, one in pictures()][1:]]),
    "a path": ("image", [{"bytes": None, "path": "/etc/hostname"}, *[{"bytes": one, "path": None} for *_, one in pictures()][1:]]),
    "image texts": ("image", ["letter.txt"] * COUNT), "image numbers": ("image", [1] * COUNT),
    "odd names": ("label", ["a\nb", "=1+1", "", " "] * (COUNT // 4)),
    "no rows": ("", None), "no column": ("label", None),
}  # fmt: skip
# Labels that are no classes, as they stand.
REFUSED = (
    "floats",
    "lists",
    "bytes",
    "structs",
    "null labels",
    "beyond",
    "image numbers",
    "image texts",
    "no rows",
    "no column",
)


def write_tables(folder: Path) -> None:
    """Write a folder for each entry of COLUMNS; pyarrow starts threads, so that this wants a process of its own."""
    import pyarrow
    import pyarrow.parquet

    for name, (column, values) in COLUMNS.items():
        table = {"image": [{"bytes": one, "path": None} for *_, one in pictures()], "label": COLUMNS["valid"][1]}
        if values is None:
            table = {key: cells[:0] if not column else cells for key, cells in table.items() if key != column}
        else:
            table[column] = values
        features: dict[str, Any] = {"image": {"_type": "Image"}}
        if column in ("label", "image", "") and name in (
            "valid",
            "null label",
            "beyond",
            "minus one",
            "no image",
            "no bytes",
            "a path",
        ):
            features["label"] = {"names": list(CLASSES), "_type": "ClassLabel"}
            schema = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        else:
            schema = {}
        stream = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(table).replace_schema_metadata(schema), stream)
        (folder / name).mkdir(parents=True)
        (folder / name / "test-00000-of-00001.parquet").write_bytes(stream.getvalue())


def tables_of_hub(case: Case) -> None:
    """A Parquet file with other columns or its bytes changed.

    Labels that are no classes are refused. Of others, accepted, as many rows are used, skipped or left out as there are.
    """
    name = case.rng.choice(list(COLUMNS))
    root = case.copy(f"hub/{name}")
    case.mutation = name
    path = root / "test-00000-of-00001.parquet"
    if case.rng.random() < 0.3:
        content, done = octets.broken(path.read_bytes(), case.rng)
        path.write_bytes(content)
        case.mutation += f"; {done}"
    skip = case.rng.random() < 0.4
    cache = case.sandbox.path("output") / "fetched"
    options = ("--on-bad-image", "skip") if skip else ()
    found = case.evaluate("--data", f"x=hf:{root}", "--fetch", cache, *options)
    if found is None or ";" in case.mutation:
        return
    if name in REFUSED:
        raise Fault("silent", f"accepted with {name}: classes {record(case.output)['views'][0]['classes']}")
    case.counts(found, COUNT)
