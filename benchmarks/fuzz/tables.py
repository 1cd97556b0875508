"""CSV files made wrong."""

from __future__ import annotations

import csv
import io
import os

from benchmarks.fuzz import octets
from benchmarks.fuzz.case import Case, Fault
from benchmarks.fuzz.world import COUNT, table, write_table

# Forms that say the same.
SAME = ("quoted", "crlf", "bom", "blank lines", "columns")


def tables(case: Case) -> None:
    """``labels.csv`` in another form, with other cells, or with its bytes changed.

    The same table in another form gives the valid numbers. Of any other, accepted, there are as many samples used, skipped
    or left out as a strict reader of UTF-8 CSV finds rows, all of one length; a table that it refuses is refused.
    """
    case.copy("photos")
    path = case.folder / "labels.csv"
    rows = table()
    write_table(path, rows)
    way = case.rng.choice(("same",) * 2 + ("cells",) * 5 + ("octets",) * 3 + ("encoding",))
    if way == "same":
        _same(case, rows)
    elif way == "cells":
        _cells(case, rows)
    elif way == "encoding":
        content, case.mutation = octets.reencoded(path.read_text(), case.rng)
        path.write_bytes(content)
    else:
        content, case.mutation = octets.broken(path.read_bytes(), case.rng)
        path.write_bytes(content)
    skip = ("--on-bad-image", "skip") if case.rng.random() < 0.3 else ()
    found = case.evaluate("--data", f"x={path}", *skip)
    if way == "same":
        if found is None:
            raise Fault("silent", f"the same table in another form was refused: {case.commands[-1]}")
        case.equal(found, "labels.csv")
    elif found is not None:
        counted = strictly(path.read_bytes())
        if counted is None:
            raise Fault("silent", "accepted; a strict reader finds rows of different lengths or no UTF-8")
        case.counts(found, counted)


def strictly(content: bytes) -> int | None:
    """How many rows a CSV file has below its header; None where it is not UTF-8, or rows differ in length."""
    try:
        text = content.decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
        rows = [row for row in ([cell.strip() for cell in cells] for cells in reader) if any(row)]
    except (UnicodeDecodeError, csv.Error):
        return None
    if (
        not rows
        or any(len(row) != len(rows[0]) for row in rows)
        or any("\n" in cell or "\0" in cell for row in rows for cell in row)
    ):
        return None
    return len(rows) - 1


def _same(case: Case, rows: list[list[str]]) -> None:
    path = case.folder / "labels.csv"
    case.mutation = way = case.rng.choice(SAME)
    if way == "quoted":
        write_table(path, rows, quoting=csv.QUOTE_ALL)
    elif way == "crlf":
        write_table(path, rows, lineterminator="\r\n")
    elif way == "bom":
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    elif way == "blank lines":
        path.write_bytes(path.read_bytes() + b"\n\n")
    else:
        write_table(path, [[row[1], row[2], row[0]] for row in rows])


def _cells(case: Case, rows: list[list[str]]) -> None:
    rng = case.rng
    row, column = rng.randrange(len(rows)), rng.randrange(3)
    odd = (
        "", " ", "a,b", 'a"b', "a\nb", "é", "=1+1", "0.0", "nan", "None", "x" * 200, "x" * 140_000, "../../letter.txt", "/etc/hostname",
        "\x1b[31m", "\0", "photos", "photos/cat", "photos/cat/0.png", "http://127.0.0.1:9/x.png", "file",
    )  # fmt: skip
    way = rng.choice(
        (
            "cell",
            "cell",
            "cell",
            "short",
            "long",
            "twice",
            "missing file",
            "header",
            "quote",
            "escape",
            "many",
            "separator",
        )
    )
    form = {}
    if way == "cell":
        rows[row][column] = rng.choice(odd)
    elif way == "short":
        rows[row] = rows[row][: rng.randrange(3)]
    elif way == "long":
        rows[row] = [*rows[row], *rng.choice((["round thing"], [""], ["a", "b"]))]
    elif way == "twice":
        rows.append(rng.choice(rows))
    elif way == "missing file":
        (case.folder / rows[-1][0]).unlink()
    elif way == "header":
        rows[0] = rng.choice(
            (
                ["file", "label", "label"],
                ["file", "label", ""],
                ["image", "label", "light"],
                [" file", "label ", "light"],
            )
        )
    elif way == "many":
        # Each of another class: columns and rows were exchanged, or labels are numbers.
        rows[1:] = [[one[0], f"{number}", one[2]] for number, one in enumerate(rows[1:])]
    elif way == "separator":
        form = {"delimiter": rng.choice((";", "\t"))}
    path = case.folder / "labels.csv"
    try:
        write_table(path, rows, **form)
    except csv.Error:
        path.write_bytes(b"\n".join(b",".join(os.fsencode(one) for one in row) for row in rows))
    if way == "quote":
        lines = path.read_text().splitlines(keepends=True)
        lines[row] = rng.choice(('"' + lines[row], lines[row].replace(",", ',"', 1), lines[row].rstrip("\n") + '"\n'))
        path.write_text("".join(lines))
    elif way == "escape":
        path.write_text(path.read_text().replace(",", "\\,", 1))
    case.mutation = f"{way} in row {row}, column {column}: {rows[min(row, len(rows) - 1)]!r}"[:200]


assert strictly("\n".join(map(",".join, table())).encode()) == COUNT
