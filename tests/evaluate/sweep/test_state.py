"""What a sweep's folder remembers, damaged or of somebody else: one line, and nothing done."""

from __future__ import annotations

import copy
import json
import os

import pytest
from PIL import Image
from support import assert_refused, evaluate

from clipq.errors import ClipqError, ResultsError
from clipq.evaluate.sweep import bundles
from clipq.evaluate.sweep.bundles import make_bundles
from clipq.evaluate.sweep.grid import Grid, checked_grid, folder_name
from clipq.evaluate.sweep.state import Failure, SweepFolder
from clipq.evaluate.sweep.tables import print_status, status_rows
from clipq.progress import Progress

GRID = {"suite": "quick", "checkpoints": ["demo"], "recipes": ["int8-dynamic"], "threads": 1}
CELL = {"cell": "ab" * 16, "kind": "images", "group": "demo", "engine": "fp32", "view": "test", "rows": 24, "chunk": 16}
STATE = {"schema_version": 1, "grid": GRID, "cells": [CELL]}
FAILURE = {"group": "demo", "engine": "fp32", "what": "images of test", "reason": "killed", "cell": "ab" * 16}
NONSENSE = (
    None,
    True,
    -1,
    0,
    1e308,
    10**30,
    "",
    "../..",
    "/etc/passwd",
    "a\0b",
    "x" * 10**4,
    [],
    [[]],
    {},
    {"a": {}},
    "\ud800",
)


def nested(depth):
    return '{"a":' * depth + "1" + "}" * depth


def mutations(value):
    """A value with each of its parts replaced by nonsense, or left out."""
    yield from NONSENSE
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        for changed in mutations(part):
            mutated = copy.copy(value)
            mutated[key] = changed
            yield mutated
        less = copy.copy(value)
        del less[key]
        yield less


def test_a_damaged_plan_is_refused_or_read(tmp_path, capsys):
    folder, read = SweepFolder(tmp_path), 0
    for mutated in mutations(STATE):
        (tmp_path / "sweep.json").write_text(json.dumps(mutated))
        try:
            checked_grid(folder.read_plan().grid, tmp_path / "sweep.json")
            print_status(folder)
            read += 1
        except ClipqError as error:
            assert "\n" not in str(error)
    assert read > 10
    capsys.readouterr()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", "null", '"x"', "\x00", nested(60), nested(10**5), '{"cells": ' + nested(60) + "}", "NaN"],
    ids=range(11),
)
def test_state_files_that_are_none(tmp_path, text):
    (tmp_path / "failures").mkdir()
    made = tmp_path / "bundles" / "demo" / "made.json"
    made.parent.mkdir(parents=True)
    folder, grid = SweepFolder(tmp_path), Grid.model_validate(GRID)
    for path, read in (
        (tmp_path / "sweep.json", folder.read_plan),
        (tmp_path / "failures" / "x.json", folder.failures),
        (made, lambda: make_bundles(grid, tmp_path, Progress(), makes=False)),
    ):
        path.write_text(text)
        with pytest.raises(ResultsError) as raised:
            read()
        assert path.name in str(raised.value) and "\n" not in str(raised.value)


def test_state_files_that_are_no_files(tmp_path):
    (tmp_path / "failures").mkdir()
    os.mkfifo(tmp_path / "sweep.json")
    (tmp_path / "failures" / "x.json").mkdir()
    folder = SweepFolder(tmp_path)
    for read in (folder.read_plan, folder.failures):
        with pytest.raises(ResultsError, match="no regular file"):
            read()


def test_commands_on_a_damaged_folder(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps(STATE | {"schema_version": 2}))
    assert_refused(evaluate("sweep", "status", tmp_path), "newer clipq")
    (tmp_path / "sweep.json").write_text(json.dumps(STATE | {"schema_version": json.loads(nested(50))}))
    for command in ("status", "retry"):
        assert_refused(evaluate("sweep", command, tmp_path), "sweep.json is damaged", "start the sweep again")
    (tmp_path / "sweep.json").write_text(json.dumps(STATE | {"grid": GRID | {"runtimes": ["abacus"]}}))
    (tmp_path / "failures").mkdir()
    (tmp_path / "failures" / "x.json").write_text(json.dumps(FAILURE))
    assert_refused(evaluate("sweep", "retry", tmp_path), "sweep.json", "unknown runtime 'abacus'")
    # What failed is not forgotten by a command that was refused.
    assert len(SweepFolder(tmp_path).failures()) == 1
    (tmp_path / "sweep.json").write_text("{}")
    assert_refused(evaluate("sweep", "status", tmp_path / "sweep.json"), "holds no sweep")


def test_a_plan_of_more_chunks_than_memory_has_names_for(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps(STATE | {"cells": [CELL | {"rows": 10**18, "chunk": 1}]}))
    (row,) = status_rows(SweepFolder(tmp_path))
    assert (row["done"], row["missing"]) == (0, 1)


def test_names_with_brackets(tmp_path, capsys):
    named = CELL | {"engine": "int8 [/red] [0, 1]", "group": "[bold]"}
    (tmp_path / "sweep.json").write_text(json.dumps(STATE | {"cells": [named]}))
    folder = SweepFolder(tmp_path)
    folder.record_failure(Failure(group="demo", engine="[1]", what="making the engine", reason="[/no]"))
    print_status(folder)
    said = capsys.readouterr().out
    assert "[/red]" in said and "[bold]" in said and "[/no]" in said


@pytest.mark.parametrize("name", ["..", ".", "-", "/", "../..", "a/../..", ""])
def test_a_checkpoints_folder_lies_in_the_results(name):
    assert folder_name(name) not in ("", ".", "..") and "/" not in folder_name(name)


def test_two_checkpoints_of_one_folder_are_refused(tmp_path):
    with pytest.raises(ClipqError, match="share the folder ViT-B-32--openai"):
        checked_grid(Grid(suite="quick", checkpoints=("ViT-B-32/openai", "ViT-B-32--openai")), tmp_path)


def test_engines_are_made_anew_where_others_lie_in_their_place_or_their_files_changed(tmp_path, monkeypatch):
    sets = [tmp_path / name for name in "ab"]
    for index, folder in enumerate(sets):
        (folder / "cat").mkdir(parents=True)
        Image.new("RGB", (32, 32), (90 * index, 9, 200)).save(folder / "cat" / "1.png")
    asked = []

    def export(command, step, found):
        """What the real one does with the manifest alone: another set is another manifest in the same folder."""
        asked.append(command)
        made = found.folder / step
        made.mkdir(parents=True, exist_ok=True)
        (made / "clipq.json").write_text(f"{command} {len(asked)}")
        return [str(made)]

    monkeypatch.setattr(bundles, "_export", export)

    def made_by(folder, results=tmp_path / "r", **more):
        grid = Grid.model_validate(GRID | {"recipes": ["int8-static"], "calibration_set": folder} | more)
        before = len(asked)
        make_bundles(grid, results, Progress())
        return len(asked) - before

    assert [made_by(sets[0]), made_by(sets[0])] == [1, 0]
    # The engines of one set are not those of another one, whatever was made before.
    assert [made_by(sets[1]), made_by(sets[0]), made_by(sets[0])] == [1, 1, 0]
    Image.new("RGB", (32, 32), (7, 7, 7)).save(sets[0] / "cat" / "1.png")
    assert [made_by(sets[0]), made_by(sets[0])] == [1, 0]
    (sets[0] / "captions.csv").write_text("file,caption\ncat/1.png,a cat\n")
    assert [made_by(sets[0]), made_by(sets[0])] == [1, 0]
    # What an earlier clipq remembered does not say whose engines they are.
    record = tmp_path / "r" / "bundles" / "demo" / "made.json"
    record.write_text(json.dumps({key: list(paths) for key, paths in json.loads(record.read_text()).items()}))
    assert [made_by(sets[0]), made_by(sets[0])] == [1, 0]
    (tmp_path / "w").mkdir()
    (weights := tmp_path / "w" / "open_clip_model.safetensors").write_bytes(b"1")
    for name in (f"local-dir:{weights.parent}", f"transformers:{weights.parent}", f"ViT-B-32/{weights}"):
        assert [made_by(sets[0], checkpoints=[name]), made_by(sets[0], checkpoints=[name])] == [2, 0]
        weights.write_bytes(weights.read_bytes() + b"2")
        assert [made_by(sets[0], checkpoints=[name]), made_by(sets[0], checkpoints=[name])] == [2, 0]
