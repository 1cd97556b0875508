"""Sweeps on real Ray clusters of several nodes on this machine, which lose nodes, workers and their head on the way.

What a sweep leaves behind is compared with a sweep in one process, byte by byte.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import RECIPES, assert_refused, evaluate, export

ray = pytest.importorskip("ray", reason="needs the ray extra")
pytest.importorskip("moto", reason="needs the test extra")

# 8 engines on 25 cells each: 23 sets of images, classes, captions.
CELLS = 200
ENGINES = ("fp16", "int8-static-minmax", "int8-dynamic", "int8-weight-only-rtn", "int4-weight-only-rtn",
           "int4-weight-only-hqq", "int2-weight-only-rtn")  # fmt: skip
VIEWS = {"test": "in-distribution", "outline": "shifted", "palette": "shifted", "background": "shifted",
         "unseen-shapes": "near-ood", "textures": "far-ood"}  # fmt: skip


def suite():
    text = [
        f'[[view]]\nname = "{name}"\nsource = "demo:{name}"\nrole = "{role}"\nsamples = 160\n'
        for name, role in VIEWS.items()
    ]
    text.append('[[view]]\nname = "captions"\nsource = "demo:test"\nrole = "retrieval"\nsamples = 60\n')
    names = '["gaussian_noise", "motion_blur", "contrast", "jpeg_compression", "occlusion_centre"]'
    text.append(f'[[corruptions]]\nof = "test"\nnames = {names}\nseverities = [1, 3, 5]\nsamples = 72\n')
    return "\n".join(text)


@pytest.fixture(scope="module")
def grid(tmp_path_factory, bundles):
    folder = tmp_path_factory.mktemp("grid")
    assert set(ENGINES) <= set(RECIPES)
    (folder / "suite.toml").write_text(suite())
    engines = ", ".join(f'"{bundles}/{name}"' for name in ("fp32", *ENGINES))
    (folder / "grid.toml").write_text(f'suite = "suite.toml"\nthreads = 1\nbundles = [{engines}]\n')
    return folder / "grid.toml"


@pytest.fixture(scope="module")
def alone(tmp_path_factory, grid):
    """The same sweep in one process."""
    results = tmp_path_factory.mktemp("alone") / "results"
    done = evaluate("sweep", grid, "-o", results)
    assert done.returncode == 0 and f"{CELLS} cells filled" in done.stdout, done.stdout + done.stderr
    return results


@pytest.fixture
def cluster(tmp_path):
    """Starts nodes of one CPU; whatever is left of them ends with the test."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    started = []

    def start(nodes, **variables):
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        started.append(made)
        for number in range(1, nodes):
            made.add_node(num_cpus=1, env_vars={"CLIPQ_PIXEL_CACHE": str(tmp_path / f"pixels-{number}"), **variables})
        return made

    yield start
    for made in started:
        made.shutdown()


def begin(grid, results, cluster, **environment):
    """A sweep on a cluster, in a process of its own."""
    command = [sys.executable, "-m", "clipq.evaluate.cli", "sweep", grid, "-o", results, "--ray", cluster.address]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def whole(path):
    return not path.name.startswith(".") and path.suffix == ".safetensors"


def cells(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if whole(path)}


def wait_for_cells(results, count, process):
    deadline = time.monotonic() + 180
    while len(list((results / "cells").glob("*/cell.json"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the sweep does not go on"
        time.sleep(0.05)


def figures(results):
    """All numbers of a results folder, by group."""
    return {path.parent.name: path.read_text() for path in (results / "results").glob("*/results.csv")}


def test_a_node_and_a_writing_worker_die(grid, alone, cluster, tmp_path):
    marker = tmp_path / "killed"
    helper = {"KILL_ONCE": str(marker), "PYTHONPATH": str(Path(__file__).parent)}
    nodes = cluster(3, **helper)
    results = tmp_path / "results"
    process = begin(grid, results, nodes)
    wait_for_cells(results, 60, process)
    nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stdout + stderr
    assert f"{CELLS} cells filled" in stdout and "0 failures" in stdout
    assert marker.exists(), "no worker was killed while writing"
    # Nothing lost, nothing twice, nothing different; what the killed worker was writing is no cell.
    assert cells(results / "cells") == cells(alone / "cells")
    assert figures(results) == figures(alone)
    rows = json.loads(evaluate("sweep", "status", results, "--json").stdout)["engines"]
    assert sum(row["done"] for row in rows) == sum(row["cells"] for row in rows) == CELLS


def test_the_head_dies_and_another_cluster_goes_on(grid, alone, cluster, tmp_path):
    results = tmp_path / "results"
    first = cluster(2)
    process = begin(grid, results, first, RAY_gcs_rpc_server_reconnect_timeout_s="5")
    wait_for_cells(results, 40, process)
    first.head_node.kill_gcs_server(check_alive=False)
    first.head_node.kill_raylet(check_alive=False)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode != 0, stdout
    assert 0 < len(cells(results / "cells")) < len(cells(alone / "cells"))
    first.shutdown()
    second = begin(grid, results, cluster(2))
    stdout, stderr = second.communicate(timeout=300)
    assert second.returncode == 0, stdout + stderr
    assert f"{CELLS} cells filled" not in stdout and "0 failures" in stdout
    assert cells(results / "cells") == cells(alone / "cells")


@pytest.fixture
def bucket(monkeypatch):
    """A real S3 server on this machine, with one empty bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="study")
    yield client
    server.stop()


def test_cells_in_an_object_store(bundles, cluster, bucket, tmp_path):
    folder = tmp_path / "grid"
    folder.mkdir()
    (folder / "suite.toml").write_text('[[view]]\nname = "test"\nsource = "demo:test"\nsamples = 300\n')
    # Two checkpoints, by their names: two groups, measured on two workers.
    engines = [bundles / "fp32", bundles / "int8-dynamic"]
    for name in ("fp32", "int8-dynamic"):
        engines.append(shutil.copytree(bundles / name, tmp_path / "second" / name))
        manifest = json.loads((engines[-1] / "clipq.json").read_text())
        manifest["checkpoint"]["name"] = "second"
        (engines[-1] / "clipq.json").write_text(json.dumps(manifest))
    text = f'suite = "suite.toml"\nthreads = 1\nbundles = {json.dumps(list(map(str, engines)))}\n'
    (folder / "local.toml").write_text(text)
    (folder / "s3.toml").write_text(f'{text}cells = "s3://study/one"\n')
    alone = evaluate("sweep", folder / "local.toml", "-o", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    process = begin(folder / "s3.toml", tmp_path / "results", cluster(2))
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stdout + stderr
    stored = {
        entry["Key"].removeprefix("one/"): bucket.get_object(Bucket="study", Key=entry["Key"])["Body"].read()
        for entry in bucket.list_objects_v2(Bucket="study", Prefix="one/")["Contents"]
    }
    expected = {str(path): content for path, content in cells(tmp_path / "alone" / "cells").items()}
    assert {name: content for name, content in stored.items() if name.endswith(".safetensors")} == expected
    assert len([name for name in stored if name.startswith("bundles/") and name.endswith("clipq.json")]) == 4
    assert figures(tmp_path / "results") == figures(tmp_path / "alone") and len(figures(tmp_path / "alone")) == 2
    again = evaluate("sweep", folder / "s3.toml", "-o", tmp_path / "results")
    assert "0 cells filled" in again.stdout and again.returncode == 0, again.stdout + again.stderr
    lost = next(name for name in stored if name.endswith(".safetensors"))
    bucket.delete_object(Bucket="study", Key=f"one/{lost}")
    again = evaluate("sweep", folder / "s3.toml", "-o", tmp_path / "results")
    assert "1 cells filled" in again.stdout, again.stdout + again.stderr


def test_a_node_without_the_bundles_fetches_them(bundles, bucket, tmp_path, monkeypatch):
    from clipq.errors import BundleError
    from clipq.evaluate.cells.storage import Storage
    from clipq.evaluate.cells.subjects import gather_cohort
    from clipq.evaluate.settings import Settings
    from clipq.evaluate.sweep import shipping

    done = export("quantize", "demo", "-o", str(tmp_path / "made"), "--recipe", "int8-dynamic")
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(shipping, "FETCHED", tmp_path / "fetched")
    (subject,) = gather_cohort([tmp_path / "made" / "int8-dynamic"], Settings(threads=1)).subjects
    storage = Storage("s3://study/two")
    shipping.ship(subject.bundle, storage)
    assert shipping.fetched(subject, storage) is subject
    (tmp_path / "made").rename(tmp_path / "elsewhere")
    there = shipping.fetched(subject, storage)
    assert there.bundle.path.is_relative_to(tmp_path / "fetched")
    assert (there.label, there.bundle.digest, there.identity("image")) == (
        subject.label, subject.bundle.digest, subject.identity("image"),
    )  # fmt: skip
    with there.open("image") as engine:
        assert engine.outputs
    with pytest.raises(BundleError, match="does not see"):
        shipping.fetched(subject, Storage(str(tmp_path / "cells")))


def test_a_node_with_another_clipq_is_refused(grid, cluster, tmp_path):
    """An installation that is upgraded on one node alone, and makes other pixels of the same image."""
    root = Path(__file__).resolve().parents[2]
    shutil.copytree(root / "src" / "clipq", tmp_path / "other" / "clipq")
    for part in ("engines", "evaluate", "exporters"):
        shutil.copytree(root / part, tmp_path / "other" / "clipq" / part)
    changed = tmp_path / "other" / "clipq" / "preprocess.py"
    changed.write_text(changed.read_text().replace("np.float32(255)", "np.float32(256)"))
    nodes = cluster(2, PYTHONPATH=str(tmp_path / "other"))
    for dry in ([], ["--dry-run"]):
        command = [sys.executable, "-m", "clipq.evaluate.cli", "sweep", grid, "-o", tmp_path / "r", *dry, "--ray"]
        done = subprocess.run([*map(str, command), nodes.address], capture_output=True, text=True, check=False)
        assert_refused(
            done, "Ray node", "other numbers than planned, with clipq 0.1.0 (code", "in place of 0.1.0 (code"
        )
        assert not (tmp_path / "r").exists()


def test_memory_is_no_place_for_workers(grid, cluster, tmp_path):
    (grid.parent / "memory.toml").write_text(grid.read_text() + 'cells = "memory://cells"\n')
    process = begin(grid.parent / "memory.toml", tmp_path / "results", cluster(1))
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2 and "workers on Ray do not see this process's memory" in stderr, stderr
    assert not (tmp_path / "results").exists()


def test_nobody_answers(grid, tmp_path):
    done = evaluate("sweep", grid, "-o", tmp_path / "results", "--ray", "127.0.0.1:1", "--dry-run")
    assert done.returncode == 2 and "error: --ray 127.0.0.1:1: nobody answers there" in done.stderr, done.stderr


def test_a_node_that_differs_measures_nothing(bundles, tmp_path, monkeypatch):
    """What a worker does with a group whose engines would give other numbers on it, or whose data it does not have."""
    from clipq.evaluate.cells.subjects import gather_cohort
    from clipq.evaluate.settings import Settings
    from clipq.evaluate.suites.plan import open_plan
    from clipq.evaluate.suites.suite import read_suite
    from clipq.evaluate.sweep.cluster import measure_on_worker
    from clipq.evaluate.sweep.groups import Group

    (tmp_path / "suite.toml").write_text('[[view]]\nname = "test"\nsource = "demo:test"\nsamples = 60\n')
    plan = open_plan(read_suite(tmp_path / "suite.toml"), None)
    settings = Settings(threads=1, cells=str(tmp_path / "cells"))
    group = Group("demo", "ort-cpu", gather_cohort([bundles / "fp32"], settings), simulated=False)
    reason, files = measure_on_worker(group, [{"runtime": "another"}], (plan, settings, {}))
    assert "other numbers than planned" in reason and files == {} and not (tmp_path / "cells").exists()
    reason, files = measure_on_worker(group, group.identities(), (plan, settings, {}))
    assert reason == "" and "results.csv" in files
    monkeypatch.setattr("clipq.evaluate.sweep.cluster.measure_group", lambda *arguments: 1 / 0)
    assert measure_on_worker(group, group.identities(), (plan, settings, {})) == (
        "ZeroDivisionError: division by zero", {},
    )  # fmt: skip
