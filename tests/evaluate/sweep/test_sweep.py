"""Sweeps in this process: the plan, what is resumed, what failed, and that numbers are those of a plain run."""

from __future__ import annotations

import csv
import json
import shutil
from importlib.metadata import version

import pytest
from support import ON_THIS_CPU, assert_refused, evaluate

from clipq.errors import DataError, ResultsError
from clipq.evaluate.cells.subjects import gather_cohort
from clipq.evaluate.settings import Settings
from clipq.evaluate.suites.plan import open_plan
from clipq.evaluate.suites.schema import Suite, ViewEntry
from clipq.evaluate.suites.suite import read_suite
from clipq.evaluate.sweep.bundles import commands
from clipq.evaluate.sweep.grid import Grid, read_grid
from clipq.evaluate.sweep.jobs import do_job, open_embeddings, plan_jobs
from clipq.evaluate.sweep.nodes import refusal, software
from clipq.evaluate.sweep.run import _groups
from clipq.evaluate.sweep.state import Failure, SweepFolder

SUITE = """
[[view]]
name = "test"
source = "demo:test"
samples = 72

[[view]]
name = "textures"
source = "demo:textures"
role = "far-ood"
samples = 72

[[view]]
name = "captions"
source = "demo:test"
role = "retrieval"
samples = 60

[[corruptions]]
of = "test"
names = ["contrast"]
severities = [1, 5]
samples = 48

[[square]]
of = "test"
epsilons = [8]
queries = 5
samples = 24
"""
# Two engines on: classes, captions, four clean sets of images, two severities, an attack.
CELLS = 18


def write_grid(folder, text="", suite=SUITE):
    folder.mkdir(exist_ok=True)
    (folder / "suite.toml").write_text(suite)
    (folder / "grid.toml").write_text(f'suite = "suite.toml"\nthreads = 1\n{text}')
    return folder / "grid.toml"


def cells(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.safetensors")}


def status(results):
    rows = json.loads(evaluate("sweep", "status", results, "--json").stdout)
    return {key: sum(row[key] for row in rows["engines"]) for key in ("cells", "done", "failed", "missing")}


@pytest.fixture(scope="module")
def grid(tmp_path_factory, bundles):
    folder = tmp_path_factory.mktemp("grid")
    return write_grid(folder, f'bundles = ["{bundles}/fp32", "{bundles}/int8-dynamic"]')


@pytest.fixture(scope="module")
def swept(tmp_path_factory, grid):
    results = tmp_path_factory.mktemp("sweep") / "results"
    done = evaluate("sweep", grid, "-o", results)
    assert done.returncode == 0, done.stderr
    assert f"{CELLS} cells filled" in done.stdout and "0 failures" in done.stdout
    return results


def test_a_sweep_gives_the_cells_and_records_of_a_run(swept, grid, bundles, tmp_path):
    done = evaluate(
        "run", bundles / "fp32", bundles / "int8-dynamic", "--suite", grid.parent / "suite.toml", "-o", tmp_path,
        "--no-bench", "--threads", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert cells(swept / "cells") == cells(tmp_path / "cells")
    assert (swept / "results" / "demo" / "results.csv").read_text() == (tmp_path / "results.csv").read_text()
    assert (swept / "report.html").stat().st_size > 100_000


def test_the_plan_alone_does_nothing(grid, tmp_path):
    done = evaluate("sweep", "--dry-run", grid, "-o", tmp_path / "results")
    assert done.returncode == 0, done.stderr
    assert f"{CELLS} cells to fill in this process: about" in done.stdout and "free" in done.stdout
    assert not (tmp_path / "results").exists()


def test_what_is_there_is_kept(swept, grid, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(swept, results)
    before = {path: path.stat().st_mtime_ns for path in (results / "cells").rglob("*.safetensors")}
    # Of three cells: one can have several chunks.
    lost = sorted({path.parent: path for path in before}.values())[:3]
    for path in lost:
        path.unlink()
    assert status(results) == {"cells": CELLS, "done": CELLS - 3, "failed": 0, "missing": 3}
    done = evaluate("sweep", grid, "-o", results)
    assert done.returncode == 0 and "3 cells filled" in done.stdout, done.stdout + done.stderr
    assert cells(results / "cells") == cells(swept / "cells")
    assert all(path.stat().st_mtime_ns == before[path] for path in before if path not in lost)


def test_failures_are_left_alone_until_they_are_retried(swept, grid, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(swept, results)
    plan = json.loads((results / "sweep.json").read_text())
    failing = next(c for c in plan["cells"] if c["engine"] == "int8-dynamic" and c["view"] == "textures")
    shutil.rmtree(results / "cells" / failing["cell"])
    failure = {
        "group": "demo",
        "engine": "int8-dynamic",
        "what": "images of textures",
        "reason": "the worker was killed",
    }
    (results / "failures").mkdir()
    (results / "failures" / f"{failing['cell']}.json").write_text(json.dumps(failure | {"cell": failing["cell"]}))
    done = evaluate("sweep", grid, "-o", results)
    assert done.returncode == 3 and "the worker was killed" in done.stdout and "0 cells filled" in done.stdout
    record = json.loads((results / "results" / "demo" / "records" / f"int8-dynamic__{ON_THIS_CPU}.json").read_text())
    assert "the worker was killed" in record["failed"] and record["measurements"] == []
    assert status(results) == {"cells": CELLS, "done": CELLS - 1, "failed": 1, "missing": 0}
    assert "the worker was killed" in evaluate("sweep", "status", results).stdout
    done = evaluate("sweep", "retry", results)
    assert done.returncode == 0 and "1 cells filled" in done.stdout, done.stdout + done.stderr
    assert cells(results / "cells") == cells(swept / "cells")


def test_a_recipe_that_fails_is_named_and_the_rest_goes_on(tmp_path):
    suite = '[[view]]\nname = "test"\nsource = "demo:test"\nsamples = 72\n'
    recipes = '["int8-dynamic", "int4-weight-only:form=qdq,block_size=48"]'
    grid = write_grid(tmp_path / "grid", f'checkpoints = ["demo"]\nrecipes = {recipes}\n', suite)
    results = tmp_path / "results"
    dry = evaluate("sweep", grid, "-o", results, "--dry-run")
    assert dry.returncode == 0 and "not made yet" in dry.stdout and not results.exists(), dry.stdout + dry.stderr
    done = evaluate("sweep", grid, "-o", results)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "int4-weight-only:form=qdq,block_size=48: making the engine:" in done.stdout
    assert status(results) == {"cells": 4, "done": 4, "failed": 0, "missing": 0}
    assert len(list((results / "results" / "demo" / "records").glob("*.json"))) == 2
    made = {path: path.stat().st_mtime_ns for path in (results / "bundles").rglob("image.onnx")}
    # What failed once and is made now, is no failure any more.
    SweepFolder(results).record_failure(
        Failure(group="demo", engine="int8-dynamic", what="making it", reason="no disk")
    )
    # Nor is a cell that nobody asks for now.
    old = Failure(group="demo", engine="fp32", what="images of test", reason="old runtime", cell="0" * 16)
    SweepFolder(results).record_failure(old)
    dry = evaluate("sweep", grid, "-o", results, "--dry-run")
    assert dry.returncode == 0 and len(SweepFolder(results).failures()) == 3
    again = evaluate("sweep", grid, "-o", results)
    assert again.returncode == 3 and "0 cells filled" in again.stdout, again.stdout + again.stderr
    assert "no disk" not in again.stdout and "old runtime" not in again.stdout
    assert len(list((results / "results" / "demo" / "records").glob("*.json"))) == 2
    assert {path: path.stat().st_mtime_ns for path in (results / "bundles").rglob("image.onnx")} == made
    (results / "bundles" / "demo" / "made.json").write_text("{")
    assert_refused(evaluate("sweep", grid, "-o", results), "made.json is damaged", "delete it")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["no checkpoints and no bundles"]),
        ('checkpoints = ["demo"]\nrecepies = ["int8"]', ["recepies", "known keys"]),
        ('checkpoints = ["demo", "demo"]\nruntimes = ["ort-tpu"]', ["comes twice", "unknown runtime 'ort-tpu'"]),
        ('bundles = ["nowhere/*"]\nrecipes = ["int8-dynamic"]', ["recipes need checkpoints"]),
        ('checkpoints = ["demo"]\ncalibration_set = "nowhere"', ["calibration_set", "no such folder"]),
        ('checkpoints = ["demo"]\nbatch_size = 0', ["batch_size"]),
        ("checkpoints = [", ["is no TOML"]),
    ],
)
def test_what_is_wrong_with_a_grid_is_said(tmp_path, text, words):
    with pytest.raises(DataError) as raised:
        read_grid(write_grid(tmp_path / "grid", text))
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(("reference", "groups"), [(None, 2), ("fp32", 1), ("none", 2)])
def test_engines_of_unknown_checkpoints_join_the_reference(bundles, tmp_path, reference, groups):
    """What others made says of what seldom; alone it would be compared with nothing."""
    copy = shutil.copytree(bundles / "int8-dynamic", tmp_path / "theirs")
    manifest = json.loads((copy / "clipq.json").read_text())
    manifest["checkpoint"] = {"name": "adopted:theirs"}
    (copy / "clipq.json").write_text(json.dumps(manifest))
    suite = Suite(view=(ViewEntry(source="demo:test:n=48"),), reference=reference)

    def grouped():
        return _groups([bundles / "fp32", copy], {}, ["ort-cpu"], suite, Settings())

    if reference == "none":
        with pytest.raises(ResultsError, match="is not among the bundles"):
            grouped()
    else:
        assert len(grouped()) == groups


def test_wrong_use_is_refused(tmp_path):
    assert_refused(evaluate("sweep", "nowhere.toml", "-o", tmp_path), "nowhere.toml")
    assert_refused(evaluate("sweep", "status", tmp_path), "holds no sweep")
    grid = write_grid(tmp_path / "grid", 'bundles = ["nowhere/*"]')
    assert_refused(evaluate("sweep", grid, "-o", tmp_path / "results"), "matches no bundle")
    assert not (tmp_path / "results").exists()


def test_a_machine_that_differs_fills_no_cell(bundles, tmp_path, monkeypatch):
    """What a worker does with a job that was planned elsewhere: it says what it has and what it should have."""
    (tmp_path / "suite.toml").write_text(SUITE)
    plan = open_plan(read_suite(tmp_path / "suite.toml"), None)
    settings = Settings(cells=str(tmp_path / "cells"), threads=1)
    embeddings = open_embeddings(settings, plan.suite)
    subjects = gather_cohort([bundles / "fp32"], settings).subjects
    jobs, targets = plan_jobs(plan, {"demo": subjects}, embeddings)
    by_kind = {job.kind: job for job in jobs}
    corrupted = next(job for job in jobs if "contrast" in job.view)
    with monkeypatch.context() as changes:
        changes.setattr("clipq.made_by.NUMBERS", 99)
        changes.setattr("numpy.__version__", "9.9")
        for job in by_kind.values():
            said = do_job(job, targets, embeddings)
            assert "this machine would give other numbers than planned, with numbers 99 in place of 1" in said
            assert f"numpy 9.9 in place of {version('numpy')}" in said
    with monkeypatch.context() as changes:
        changes.setattr("clipq.evaluate.suites.corruptions.drawing_versions", lambda: {"scikit-image": "0.1"})
        assert "other numbers than planned" in do_job(corrupted, targets, embeddings)
        here = software(["ort-cpu"])
    assert not (tmp_path / "cells").exists()
    assert do_job(by_kind["classes"], targets, embeddings) == ""
    assert refusal(here, here) == ""
    assert "scikit-image nothing in place of 0.1" in refusal({"scikit-image": "0.1"}, {}, "a node")


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ("file://cells", ["give the whole path of a folder"]),
        ("s3:/bucket", ["neither a folder nor a store"]),
        ("https://host/cells", ["nothing can be kept there"]),
        ("nothing://bucket", ["nothing://bucket", "Protocol not known"]),
        ("suite.toml", ["suite.toml", "cells cannot be kept there"]),
        ("suite.toml/below", ["suite.toml/below", "Not a directory"]),
        ("/proc/nowhere/cells", ["/proc/nowhere/cells", "cells cannot be kept there"]),
    ],
)
def test_cells_that_can_lie_nowhere_are_refused_before_engines_are_made(tmp_path, cells, words):
    grid = write_grid(tmp_path / "grid", f'checkpoints = ["demo"]\nrecipes = ["int8-dynamic"]\ncells = "{cells}"\n')
    assert_refused(evaluate("sweep", grid, "-o", tmp_path / "results"), *words)
    assert not (tmp_path / "results").exists() and len(list((tmp_path / "grid").iterdir())) == 2


def test_cells_by_the_url_of_a_folder(swept, bundles, tmp_path):
    grid = write_grid(
        tmp_path / "grid",
        f'bundles = ["{bundles}/fp32", "{bundles}/int8-dynamic"]\ncells = "file://{tmp_path}/some cells/"\n',
    )
    done = evaluate("sweep", grid, "-o", tmp_path / "results")
    assert done.returncode == 0, done.stderr
    assert cells(tmp_path / "some cells") == cells(swept / "cells")
    assert not (tmp_path / "results" / "cells").exists()
    assert status(tmp_path / "results") == {"cells": CELLS, "done": CELLS, "failed": 0, "missing": 0}


def test_a_grid_of_which_nothing_can_be_made_leaves_nothing(tmp_path):
    grid = write_grid(
        tmp_path / "grid", 'checkpoints = ["demo"]\nrecipes = ["int4-weight-only:form=qdq,block_size=48"]\n'
    )
    assert_refused(evaluate("sweep", grid, "-o", tmp_path / "results"), "no engine could be made", "block_size")
    assert not (tmp_path / "results").exists()


def test_what_workers_measure_stands_beside_engines_of_earlier_sweeps(bundles, tmp_path):
    """Workers do not see the folder that their results come into."""
    from clipq.evaluate.settings import Settings
    from clipq.evaluate.sweep.cluster import measure_on_worker
    from clipq.evaluate.sweep.grid import read_grid
    from clipq.evaluate.sweep.groups import Measured
    from clipq.evaluate.sweep.run import fill, measure, plan_sweep
    from clipq.evaluate.sweep.state import SweepFolder
    from clipq.progress import Progress

    class Workers:
        def measure(self, groups, plan, settings, given):
            for group in groups:
                yield Measured(group, *measure_on_worker(group, group.identities(), (plan, settings, given)))

    def swept(name, samples):
        suite = f"[[view]]\nname = 'test'\nsource = 'demo:test:n={samples}'\n"
        grid = write_grid(tmp_path, f'bundles = ["{bundles}/fp32", "{bundles}/{name}"]', suite)
        settings, folder = Settings(thumbnails=False), SweepFolder(tmp_path / "results")
        planned = plan_sweep(read_grid(grid), folder, settings, Progress(), cluster=None)
        fill(planned, folder, None, lambda outcome: None)
        measure(planned, folder, Workers(), {}, Progress())
        with (folder.results("demo") / "results.csv").open() as stream:
            return list(dict.fromkeys(row["bundle"] for row in csv.DictReader(stream))), folder.failures()

    assert swept("int8-dynamic", 48) == (["fp32", "int8-dynamic"], [])
    assert swept("int4-weight-only-rtn", 48) == (["fp32", "int4-weight-only-rtn", "int8-dynamic"], [])
    names, (failure,) = swept("int4-weight-only-rtn", 60)
    assert names[-1] == "int8-dynamic" and "holds int8-dynamic, evaluated on another 'test'" in failure.reason


def test_a_recipes_defaults_are_of_the_grids_runtime(tmp_path):
    """A sweep in one runtime measured engines with the defaults of another."""
    for runtimes, expected in (
        (("ort-cuda",), ["--runtime", "ort-cuda"]),
        (("ort-cpu",), []),
        (("ort-cpu", "ort-cuda"), []),
    ):
        grid = Grid(suite="s.toml", checkpoints=("demo",), recipes=("int8-static",), runtimes=runtimes)
        (command,) = commands(grid, "demo", tmp_path).values()
        assert command == ["quantize", "demo", "-o", str(tmp_path), "--recipe", "int8-static", *expected]
