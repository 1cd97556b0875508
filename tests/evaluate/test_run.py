"""The evaluation as a whole, on the demo checkpoint, through the command line."""

from __future__ import annotations

import csv
import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from support import ON_THIS_CPU, assert_refused, evaluate, export

from clipq.bundle import open_bundle, stored_file, write_manifest
from clipq.evaluate.cells.subjects import unlike
from clipq.evaluate.metrics.table import METRICS
from clipq.evaluate.results.record import CSV_COLUMNS, Record, read_records
from clipq.progress import Progress

OF_PREDICTIONS = [name for name, metric in METRICS.items() if metric.function]
OTHERS = [
    "agreement",
    "flips_lost",
    "flips_gained",
    "cosine",
    "ece_untuned",
    "ece_tuned",
    "logit_scale_tuned",
    "confidence",
    "latency_ms.p50",
    "latency_ms.p90",
    "latency_ms.p99",
    "throughput",
    "file_bytes",
    "peak_rss_bytes",
    "integer_share",
]
NAMES = ("fp32", "int8-static-minmax", "int4-weight-only-rtn", "int2-weight-only-rtn")


@pytest.fixture(scope="module")
def results(bundles, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    paths = [str(bundles / name) for name in NAMES]
    done = evaluate(
        "run",
        *paths,
        "--data",
        "test=demo:test",
        "--data",
        "demo:outline:n=240",
        "-o",
        str(folder),
        "--simulated",
        "--repeats",
        "5",
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def rows(results):
    with (results / "results.csv").open() as stream:
        reader = csv.DictReader(stream)
        assert tuple(reader.fieldnames) == CSV_COLUMNS
        return list(reader)


def pick(rows, bundle, metric, view="test", group="", simulated="false"):
    (row,) = [
        r for r in rows
        if (r["bundle"], r["metric"], r["view"], r["group"], r["simulated"]) == (bundle, metric, view, group, simulated)
    ]  # fmt: skip
    return {
        key: float(value)
        if key in ("value", "low", "high", "delta", "delta_low", "delta_high", "p_value") and value
        else value
        for key, value in row.items()
    }


def test_every_metric_is_there(rows):
    assert {row["metric"] for row in rows} == {*OF_PREDICTIONS, *OTHERS}
    keys = [(r["bundle"], r["runtime"], r["simulated"], r["view"], r["group"], r["metric"]) for r in rows]
    assert len(keys) == len(set(keys))


def test_demo_accuracy_is_where_it_was_designed(rows):
    fp32 = pick(rows, "fp32", "acc1")
    assert 0.85 <= fp32["value"] <= 0.97 and fp32["reference"] == "" and fp32["delta"] == ""
    assert abs(pick(rows, "int8-static-minmax", "acc1")["delta"]) < 0.03
    int2 = pick(rows, "int2-weight-only-rtn", "acc1")
    assert int2["delta_high"] < -0.05 and int2["p_value"] < 1e-6 and int2["reference"] == "fp32"
    assert pick(rows, "fp32", "acc1", "demo-outline")["value"] < fp32["value"]


def test_groups_differ_in_difficulty(rows):
    day, night = (pick(rows, "fp32", "acc1", group=f"light={light}") for light in ("day", "night"))
    # Over 4,800 images of the same stream the parts are 94.3 % and 90.5 %.
    assert day["value"] - night["value"] > 0.01 and int(day["n"]) + int(night["n"]) == 960


def test_intervals_hold_their_values(rows):
    for row in rows:
        if row["low"]:
            assert float(row["low"]) <= float(row["value"]) <= float(row["high"]), row
        if row["delta"]:
            assert float(row["delta_low"]) <= float(row["delta"]) <= float(row["delta_high"])
            assert row["reference"] == "fp32"


def test_flips_add_up(rows):
    for name in NAMES[1:]:
        lost, gained = pick(rows, name, "flips_lost")["value"], pick(rows, name, "flips_gained")["value"]
        assert pick(rows, name, "acc1")["delta"] == pytest.approx(gained - lost, abs=1e-9)


def test_simulated_is_another_engine(rows, results):
    deployed, simulated = (pick(rows, "int8-static-minmax", "cosine", simulated=flag) for flag in ("false", "true"))
    assert deployed["value"] != simulated["value"]
    records = {record.name: record for record in read_records(results)}
    twin = records["int8-static-minmax"].deployed_minus_simulated
    assert {row.reference for row in twin} == {"int8-static-minmax (simulated)"}
    assert not records["fp32"].deployed_minus_simulated
    assert {census.verdict for census in records["int8-static-minmax (simulated)"].census} == {"float"}
    assert all(census.integer_share > 0.85 for census in records["int8-static-minmax"].census)


def test_record_is_complete(results):
    record = json.loads((results / "records" / f"int8-static-minmax__{ON_THIS_CPU}.json").read_text())
    assert record["schema_version"] == 8 and record["arguments_given"]["command"] == "run"
    assert record["arguments_resolved"]["ece_bins"] == 15 and record["environment"]["cpu"]
    assert len(record["bundle"]["digest"]) == 64 and record["bundle"]["calibration"]["images"] == 128
    assert [len(entry["milliseconds"]) for entry in record["latency"]] == [5] * 4
    assert sum(entry["n"] for entry in record["views"][0]["reliability"]) == 960


def test_second_run_does_no_inference(results, bundles, monkeypatch):
    """Every cell and every benchmark is found again: an engine that cannot even be opened is not missed."""
    from clipq.evaluate import run as module
    from clipq.evaluate.suites.schema import LatencyEntry, Suite, ViewEntry

    monkeypatch.setattr("clipq.evaluate.cells.subjects.open_load", None)
    # Times of a busy machine would be taken again.
    monkeypatch.setattr("clipq.evaluate.bench.bench.SubjectBench.was_busy", False)
    before = (results / "results.csv").read_text()
    views = (ViewEntry(source="test=demo:test"), ViewEntry(source="demo:outline:n=240"))
    suite = Suite(views=views, simulated=True, latency=LatencyEntry(repeats=5))
    paths = [bundles / name for name in NAMES]
    module.evaluate(paths, suite, results, module.Settings(), given={"command": "run"}, progress=Progress())
    assert (results / "results.csv").read_text() == before


def test_killed_run_resumes(bundles, tmp_path):
    """SIGKILL in the middle: the chunks that were stored are kept, the result is that of an undisturbed run."""
    arguments = ["run", str(bundles / "fp32"), str(bundles / "int8-dynamic"), "--data", "demo:test:n=600", "--no-bench"]
    command = [sys.executable, "-m", "clipq.evaluate.cli", *arguments, "-o", str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cells = tmp_path / "killed" / "cells"
    deadline = time.monotonic() + 120
    while len(list(cells.glob("*/*.safetensors"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in cells.glob("*/*.safetensors")}
    assert kept and not (tmp_path / "killed" / "records").exists()
    for folder in ("killed", "calm"):
        assert evaluate(*arguments, "-o", str(tmp_path / folder)).returncode == 0
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert (tmp_path / "killed" / "results.csv").read_text() == (tmp_path / "calm" / "results.csv").read_text()


def test_predictions_are_open_clips(bundles, tmp_path):
    """FP32 through the bundle classifies as open_clip's own zero-shot code does."""
    open_clip = pytest.importorskip("open_clip", reason="needs the export extra")
    import torch
    from PIL import Image

    from clipq.demo import world
    from clipq.exporters.checkpoints import load_checkpoint, parse_checkpoint

    loaded = load_checkpoint(parse_checkpoint("demo", None))
    classifier = open_clip.build_zero_shot_classifier(
        loaded.model, loaded.tokenizer, world.CLASS_NAMES, open_clip.OPENAI_IMAGENET_TEMPLATES
    )
    samples = [world.sample("test", index) for index in range(240)]
    with torch.no_grad():
        images = torch.stack([loaded.transform(Image.fromarray(pixels)) for _, pixels in samples])
        logits = loaded.model.logit_scale.exp() * loaded.model.encode_image(images, normalize=True) @ classifier
    expected = logits.softmax(1).numpy()

    from clipq.data.open import open_view
    from clipq.evaluate.cells.embeddings import Embeddings
    from clipq.evaluate.cells.subjects import gather_cohort
    from clipq.evaluate.settings import Settings
    from clipq.evaluate.suites.schema import Suite

    (subject,) = gather_cohort([bundles / "fp32"], Settings()).subjects
    view = open_view("demo:test:n=240")
    with Embeddings(Settings(cells=str(tmp_path)), Suite()) as embeddings:
        embeddings.fill_classes(view, subject)
        assert embeddings.fill_images(view, [subject]) == {}
    answers = embeddings.answers(view, subject)
    assert np.abs(answers.predictions.probabilities - expected).max() < 1e-4


def test_terminal_output(results, bundles):
    done = evaluate("inspect", str(bundles / "int8-static-minmax"))
    assert "MatMulIntegerToFloat" in done.stdout and "evidence" in done.stdout
    rows = json.loads(evaluate("inspect", str(bundles / "fp32"), "--json").stdout)
    assert [row["verdict"] for row in rows] == ["float", "float"]
    rows = json.loads(
        evaluate(
            "bench",
            str(bundles / "fp32"),
            str(bundles / "int8-dynamic"),
            "--repeats",
            "5",
            "--json",
            "--tower",
            "image",
        ).stdout
    )
    assert {row["bundle"] for row in rows} == {"fp32", "int8-dynamic"} and all(
        row["ratio_low"] <= row["ratio"] <= row["ratio_high"] for row in rows
    )


def test_bench_takes_a_reference(bundles, tmp_path):
    """Two FP32 bundles, of which one must be chosen: by the option that the refusal names."""
    names = ("a", "b")
    both = [str(shutil.copytree(bundles / "fp32", tmp_path / name)) for name in names]
    ask = ("--repeats", "3", "--latency-batch", "1", "--tower", "image", "--json")
    assert_refused(evaluate("bench", *both, *ask), "several FP32 bundles", "choose one with --reference NAME")
    assert_refused(evaluate("bench", *both, *ask, "--reference", "c"), "'c' is not among the bundles: a, b")
    for name in names:
        rows = json.loads(evaluate("bench", *both, *ask, "--reference", name).stdout)
        ratios = {row["bundle"]: row["ratio"] for row in rows}
        assert set(ratios) == set(names) and ratios[name] == 1


def test_wrong_use_is_refused(bundles, tmp_path):
    fp32, out = str(bundles / "fp32"), str(tmp_path / "out")
    run = ["--data", "demo:test:n=48", "-o", out, "--no-bench"]
    assert_refused(evaluate("run", fp32, *run, "--runtime", "tensorflow"), "unknown runtime", "ort-cpu")
    assert_refused(evaluate("run", fp32, *run, "--simulated"), "nothing to simulate")
    assert_refused(evaluate("run", fp32, *run, "--reference", "int8"), "not among the bundles")
    assert_refused(evaluate("run", fp32, *run, "--templates", "mine"), "imagenet-80")
    assert_refused(evaluate("run", fp32, fp32, *run), "two bundles")
    assert_refused(evaluate("run", fp32, *run, "--data", "demo:test"), "two views")
    assert_refused(evaluate("report", str(tmp_path)), "holds no records")
    (tmp_path / "file").write_text("")
    assert_refused(
        evaluate("run", fp32, "--data", "demo:test:n=48", "-o", str(tmp_path / "file"), "--no-bench"), "is a file"
    )
    assert evaluate("run", fp32).returncode == 2


@pytest.mark.parametrize("output", ["/proc/x", "/dev/null/x", "", "x" * 256, "\udcff"])
def test_outputs_that_cannot_be_are_refused_before_anything_runs(tmp_path, monkeypatch, output):
    """Nothing else in these lines is right, and the output is what they complain of."""
    monkeypatch.chdir(tmp_path)
    what = {"": "empty value", "\udcff": "not UTF-8", "/dev/null/x": "is a file", "x" * 256: "too long"}
    what = what.get(output, "cannot be written")
    for words in (
        ["run", "nowhere", "--data", "nowhere", "-o"], ["demo", "-o"], ["sweep", "nowhere", "-o"],
        ["report", "nowhere", "-o"], ["card", "nowhere", "-o"], ["gate", "init", "nowhere", "-o"],
        ["gate", "nowhere", "--policy", "strict", "--junit"], ["suite", "init", "-o"],
    ):  # fmt: skip
        assert_refused(evaluate(*words, output), what)
    for words in (["onnx", "x", "-o"], ["run", "x", "-o"], ["quantize", "x", "--recipe", "fp16", "-o"],
                  ["attack", "x", "--data", "x", "-o"], ["build", "x", "--runtime", "tensorrt", "-o"]):  # fmt: skip
        assert_refused(export(*words, output), what)
    assert list(tmp_path.iterdir()) == []


def test_an_output_below_a_link_to_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("nowhere")
    for output in ("link", "link/below"):
        assert_refused(evaluate("run", "x", "--data", "x", "-o", output), "link to nothing")
        assert_refused(export("quantize", "x", "--recipe", "fp16", "-o", output), "link to nothing")
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_everything_that_is_wrong_is_told_in_one_line(bundles, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    bad = [str(tmp_path / "none"), str(tmp_path / "file")]
    fp32, out = str(bundles / "fp32"), ["-o", str(tmp_path / "out")]
    done = evaluate("run", bad[0], fp32, bad[1], "--data", "nowhere", "--data", "demo:test:m=1", *out)
    assert_refused(done, "none: the folder does not exist", "file: it is a file; give the folder", "nowhere", "'m'")
    # Data that have to be opened to be seen through.
    done = evaluate("run", fp32, "--data", str(tmp_path / "empty"), "--data", "demo:nothing", *out)
    assert_refused(done, str(tmp_path / "empty"), "nothing")
    assert not (tmp_path / "out").exists()


def test_names_that_results_cannot_hold_and_names_that_files_cannot(bundles, tmp_path):
    long = [str(shutil.copytree(bundles / "fp32", tmp_path / name)) for name in ("x" * 255, "é" * 127)]
    ask = ["--data", "v" * 255 + "=demo:test:n=96", "--reference", "x" * 255, "--no-bench", "-o", str(tmp_path / "out")]
    assert evaluate("run", *long, *ask).returncode == 0
    assert len(list((tmp_path / "out" / "records").iterdir())) == 2
    assert evaluate("report", str(tmp_path / "out")).returncode == 0
    shutil.copytree(bundles / "fp32", tmp_path / "a\nb")
    out = ["--no-bench", "-o", str(tmp_path / "other")]
    assert_refused(evaluate("run", str(tmp_path / "a\nb"), "--data", "demo:test:n=96", *out), "rename")
    (tmp_path / "suite.toml").write_text('[[view]]\nname = "a\\nb"\nsource = "demo:test:n=96"\n')
    assert_refused(evaluate("run", long[0], "--suite", str(tmp_path / "suite.toml"), *out), "line 2", "another name")


def test_bundles_of_two_checkpoints_are_paired_and_say_so(bundles, tmp_path):
    other = shutil.copytree(bundles / "int8-dynamic", tmp_path / "other")
    manifest = json.loads((other / "clipq.json").read_text())
    manifest["checkpoint"]["name"] = "another"
    (other / "clipq.json").write_text(json.dumps(manifest))
    done = evaluate(
        "run", str(bundles / "fp32"), str(other), "--data", "demo:test:n=48", "-o", str(tmp_path / "out"), "--no-bench"
    )
    assert done.returncode == 0, done.stderr
    assert "not made as the reference is: checkpoint (another and demo)" in " ".join(done.stdout.split())
    record = json.loads(next((tmp_path / "out" / "records").glob("other__*.json")).read_text())
    assert record["unlike_reference"] == ["checkpoint (another and demo)"]


@pytest.mark.parametrize(("weights", "said"), [(None, ()), ("0" * 64, ("the checkpoint's weights",))])
def test_weights_that_nobody_says_are_no_other_ones(bundles, weights, said):
    """Nobody digested the checkpoint of an engine that others made."""
    reference = open_bundle(bundles / "fp32")
    assert reference.manifest.checkpoint.weights_sha256
    checkpoint = reference.manifest.checkpoint.model_copy(update={"weights_sha256": weights})
    other = replace(reference, manifest=reference.manifest.model_copy(update={"checkpoint": checkpoint}))
    assert unlike(other, reference) == said


def test_bundles_with_templates_of_their_own_are_refused_before_the_run(bundles, tmp_path):
    other = shutil.copytree(bundles / "int8-dynamic", tmp_path / "other")
    prompts = json.loads((other / "prompts.json").read_text())
    prompts["templates"]["imagenet-80"].pop()
    (other / "prompts.json").write_text(json.dumps(prompts))
    manifest = open_bundle(bundles / "int8-dynamic").manifest
    prompts_file = manifest.prompts.model_copy(update=stored_file(other, "prompts.json"))
    write_manifest(other, manifest.model_copy(update={"prompts": prompts_file}))
    output = tmp_path / "out"
    ask = ["run", str(bundles / "fp32"), str(other), "--data", "demo:test:n=48", "-o", str(output), "--no-bench"]
    assert_refused(evaluate(*ask), "other and the reference fp32", "templates of 'demo-test'", "prompts.json")
    assert not output.exists()
    # With a set that is the same in both.
    assert evaluate(*ask, "--templates", "simple-7").returncode == 0


def test_damaged_records_are_refused(results, tmp_path):
    copy = shutil.copytree(results / "records", tmp_path / "results" / "records").parent
    path = copy / "records" / f"fp32__{ON_THIS_CPU}.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps(good | {"schema_version": 9}))
    assert_refused(evaluate("report", str(copy)), "schema version 9", "upgrade")
    path.write_text("{")
    assert_refused(evaluate("report", str(copy)), "damaged")
    assert Record.model_validate(good).reference == "fp32"


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small file system")
def test_full_disk(bundles, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no right to mount: {mounted.stderr.decode().strip()}")
    try:
        done = export("quantize", str(bundles / "fp32"), "--recipe", "int8-dynamic", "-o", str(small))
        assert_refused(done, "No space left")
        assert list(small.iterdir()) == []
        done = evaluate("run", str(bundles / "fp32"), "--data", "demo:test", "-o", str(small / "results"), "--no-bench")
        assert_refused(done, "No space left")
    finally:
        subprocess.run(["umount", str(small)], check=False)


def test_interrupt_is_one_line(bundles, tmp_path):
    command = [
        sys.executable,
        "-m",
        "clipq.evaluate.cli",
        "run",
        str(bundles / "fp32"),
        "--data",
        "demo:test",
        "-o",
        str(tmp_path),
    ]
    # Where the tests run in the background of a shell, SIGINT is ignored and children inherit that.
    wake = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=wake)
    while not list(tmp_path.glob("cells/*/*.safetensors")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in stderr and "Traceback" not in stderr
