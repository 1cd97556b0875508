"""Results as an object: engines by name, measurements by view, group and metric, each beside its run's reference."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import assert_refused, evaluate
from synthetic import exact, predictions, record, worse, write_results

from clipq.errors import ClipqError, NotInResults, ResultsError
from clipq.evaluate.results.estimates import Engine
from clipq.evaluate.results.folders import gather, read_results
from clipq.evaluate.results.key import Key
from clipq.evaluate.results.pairing import write_pairing
from clipq.evaluate.results.record import engine_name, read_records, write_record
from clipq.evaluate.verdicts.by_axis import findings, sentence
from clipq.evaluate.verdicts.compare import compare
from clipq.evaluate.verdicts.gate import judge_policy
from clipq.evaluate.verdicts.policy import Policy

BASE = predictions(1000, accuracy=0.8)
GROUPS = [exact("test", "race=Black", "acc1", 0.7), exact("test", "near", "auroc.mcm", 0.9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_results(
        tmp_path_factory.mktemp("results") / "results",
        {"test": BASE},
        {
            "int8-static-minmax": {"views": {"test": worse(BASE, 0.05)}, "milliseconds": 2.0, "extra": GROUPS},
            "int4": {"views": {}, "failed": "out of memory"},
            "int2": {"views": {"test": worse(BASE, 0.3)}},
        },
    )
    made, found, answers = record("int2", {"test": worse(BASE, 0.3)}, reference="fp32")
    twin = made.model_copy(update={"twin": True, "simulated": True})
    write_record(folder, twin)
    write_pairing(folder, twin, found, answers)
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return read_results([folder])


def test_engines_by_name_and_one_after_the_other(results):
    names = ["fp32", "int2", "int2 (simulated)", "int8-static-minmax"]
    assert [entry.name for entry in results] == names and len(results) == 4
    assert all(name in results and results[name].name == name for name in names)
    assert "int4" not in results and [entry.name for entry in results.failed] == ["int4"]


def test_a_measurement_is_the_row_of_results_csv(results, folder):
    entry = results["int8-static-minmax"]
    row = entry["test", "acc1"]
    with (folder / "results.csv").open() as stream:
        rows = [
            one for one in csv.DictReader(stream) if one["bundle"] == "int8-static-minmax" and one["view"] == "test"
        ]
    (written,) = (one for one in rows if one["metric"] == "acc1" and not one["group"])
    for column in ("value", "low", "high", "delta", "delta_low", "delta_high", "p_value", "n"):
        assert getattr(row, column) == float(written[column])
    assert row.value == worse(BASE, 0.05).correct.mean() and entry["test", "", "acc1"] is row
    assert entry["test", "race=Black", "acc1"].value == 0.7
    assert entry["", "file_bytes"].value == 1_000_000


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda it: it["int8-static-minmix"], "no engine is called 'int8-static-minmix'; did you mean 'int8-static-minmax'?"),
        (lambda it: it["?"], "no engine is called '?'; there is 'fp32', 'int2', 'int2 (simulated)', 'int4', 'int8-static-minmax'"),
        (lambda it: it["int4"], "int4 failed and has no measurements: out of memory"),
        (lambda it: it["int2"]["tests", "acc1"], "int2 has no view 'tests'; did you mean 'test'?"),
        (lambda it: it["int2"]["x", "acc1"], "int2 has no view 'x'; there is 'test', '', 'tower:image'"),
        (lambda it: it["int2"]["test", "acc"], "int2 has no 'acc' on test; did you mean 'acc1'?"),
        (lambda it: it["int2"]["test", "mAP"], "int2 has no 'mAP' on test; there is 'acc1', 'ece', 'confidence_gap'"),
        (lambda it: it["int8-static-minmax"]["test", "race=black", "acc1"],
         "int8-static-minmax has no group 'race=black' of acc1 on test; did you mean 'race=Black'?"),
        (lambda it: it["int8-static-minmax"]["test", "auroc.mcm"],
         "int8-static-minmax has no group '' of auroc.mcm on test; there is 'near'"),
        (lambda it: it["int2"]["acc1"], "a measurement of int2 is asked for by [view, metric] or [view, group, metric]"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused_with_what_is(results, ask, said):
    with pytest.raises(NotInResults) as refused:
        ask(results)
    assert str(refused.value) == said
    assert isinstance(refused.value, ClipqError) and isinstance(refused.value, KeyError)


def test_each_engine_stands_beside_the_reference_of_its_own_runtime(folder, tmp_path):
    made = [record(name, {"test": BASE}, reference="fp32", runtime=runtime)[0] for name in ("fp32", "int8") for runtime in ("ort-cpu", "ort-cuda")]  # fmt: skip
    alone = record("other", {"test": BASE}, reference="gone")[0]
    results = gather([(tmp_path, [*made, alone])])
    for runtime in ("ort-cpu", "ort-cuda"):
        base, engine = results[f"fp32 ({runtime})"], results[f"int8 ({runtime})"]
        assert engine.reference is base and base.reference is base
        assert engine.is_candidate and not base.is_candidate and base.is_reference and not base.is_judged
    assert results["other"].reference is None
    assert results["other"].is_judged and not results["other"].is_candidate


def test_twins_are_not_judged_and_failed_engines_are(results):
    assert [entry.name for entry in results.engines if entry.is_judged] == ["int2", "int4", "int8-static-minmax"]
    assert [entry.name for entry in results.candidates] == ["int2", "int8-static-minmax"]
    assert results["int2 (simulated)"].reference is results["fp32"]


def test_a_view_that_is_renamed_keeps_its_draws_and_answers(folder, tmp_path):
    """Of two folders with other data under one name: without its draws a number would pass for exact."""
    small = predictions(300)
    other = write_results(tmp_path / "other", {"test": small}, {"int8": {"views": {"test": worse(small, 0.1)}}})
    entry = read_results([folder, other])["other/int8"]
    key = Key("other/test", "", "acc1")
    assert entry.draws(key).value == entry[key].value and len(np.unique(entry.draws(key).resampled)) > 10
    assert len(entry.pairing.answers["other/test"]) == 300
    assert entry.reference is not None and entry.rests_on(key) == entry.reference.rests_on(key)


def test_one_record_of_a_folder_has_its_reference(folder):
    results = read_results([folder / "records" / "int8-static-minmax__ort-cpu.json"])
    (entry,) = results
    assert entry.name == "int8-static-minmax" and entry.reference is not None and entry.reference.name == "fp32"
    with pytest.raises(ClipqError, match="int4 failed and has nothing to compare: out of memory"):
        read_results([folder / "records" / "int4__ort-cpu.json"])


@pytest.mark.parametrize("here", [".", "records", "records/deeper"])
def test_one_record_wherever_the_process_is(folder, tmp_path, monkeypatch, here):
    results = shutil.copytree(folder, tmp_path / "r")
    (results / "records" / "deeper").mkdir()
    monkeypatch.chdir(results / here)
    path = Path(os.path.relpath(results / "records" / "int8-static-minmax__ort-cpu.json"))
    (entry,) = read_results([path]).engines
    assert entry.reference.record.name == "fp32"
    assert entry.draws(Key("test", "", "acc1")).n == entry["test", "acc1"].n


def test_a_policy_is_not_made_of_engines_without_a_reference(tmp_path):
    made, found, answers = record("int8", {"test": BASE}, reference="gone")
    write_record(tmp_path / "r", made)
    write_pairing(tmp_path / "r", made, found, answers)
    done = evaluate("gate", "init", str(tmp_path / "r"), "-o", str(tmp_path / "policy.toml"))
    assert_refused(done, "no deployed candidate with a reference")
    assert not (tmp_path / "policy.toml").exists()


@pytest.mark.parametrize(
    ("bundle", "simulated", "twin", "name"),
    [
        ("int8-static", False, False, "int8-static"),
        ("int8-static", True, True, "int8-static (simulated)"),
        ("simulated-w4a8", True, False, "simulated-w4a8"),
        ("mine", True, False, "mine (simulated)"),
        ("not-simulated", True, True, "not-simulated (simulated)"),
    ],
)
def test_what_an_engine_is_called(bundle, simulated, twin, name):
    assert engine_name(bundle, simulated=simulated, twin=twin) == name
    assert Engine(bundle, "a recipe", "ort-cpu", simulated, twin).label == name


READING = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ftfy", "tokenizers", "onnxruntime", "onnx", "torch", "cv2", "imagecorruptions"):
            raise ImportError(f"{name} is asked for")
sys.meta_path.insert(0, Refuse())
from clipq.evaluate.cli import main
main(sys.argv[1:], prog_name="clipq-eval")
"""


@pytest.mark.parametrize("asked", [["report"], ["report", "--format", "md"], ["compare", "RESULTS"], ["gate", "--policy", "strict"]])  # fmt: skip
def test_reading_results_needs_no_engine_and_nothing_that_engines_need(asked, tmp_path):
    base = predictions(200)
    folder = write_results(tmp_path / "r", {"test": base}, {"int8": {"views": {"test": base}}})
    words = [asked[0], str(folder), *(str(folder) if word == "RESULTS" else word for word in asked[1:])]
    done = subprocess.run([sys.executable, "-c", READING, *words], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1, 3) and "is asked for" not in done.stderr, done.stderr


def test_times_of_another_run_than_the_references_are_not_compared_with_it(tmp_path):
    """An engine of an earlier run in the same folder: its row says what the reference's time then was."""
    made = {"int8": {"views": {"test": BASE}, "milliseconds": 2.0}, "int4": {"views": {"test": BASE}, "milliseconds": 2.0}}  # fmt: skip
    folder = write_results(tmp_path / "r", {"test": BASE}, made)
    reference = read_results([folder])["fp32"]
    for name, then in (("int8", 1.0), ("int4", 1.1)):
        path = folder / "records" / f"{name}__ort-cpu.json"
        found = json.loads(path.read_text())
        for row in found["measurements"]:
            if row["metric"].startswith("latency_ms"):
                theirs = reference[row["view"], row["group"], row["metric"]].value
                row |= {"reference": "fp32", "delta": row["value"] - then * theirs}
        path.write_text(json.dumps(found))
    results = read_results([folder])
    (times,) = results["int4"].record.latency
    assert results["int8"].timed_beside(times) is not None and results["int4"].timed_beside(times) is None
    assert "2.0× faster" in findings(results["int8"])
    assert "speed not measured beside the reference" in findings(results["int4"])
    for metric in ("latency_ms.p50", "throughput", "file_bytes"):
        rule = {"metric": metric, "view": "tower:image", "min_ratio": 0.1}
        found = {one.engine: one for one in judge_policy(results, Policy.model_validate({"rule": [rule]}))}
        assert found["int8"].state == "pass"
        assert ("another run" in found["int4"].reason) == (found["int4"].state == "fail") == (metric != "file_bytes")
    pairs = {pair.a: pair for pair in compare(results, results).pairs}
    assert pairs["int8"].latency and not pairs["int4"].latency


def test_two_bundles_of_one_name_are_said(folder, tmp_path):
    """Of folders that an earlier clipq wrote, or a run that was killed between their records."""
    copy = shutil.copytree(folder, tmp_path / "r")
    assert not any("one name" in note for note in read_results([copy]).notes)
    path = copy / "records" / "int2__ort-cpu__simulated.json"
    found = json.loads(path.read_text())
    found["bundle"]["digest"] = "0" * 64
    path.write_text(json.dumps(found))
    (note,) = [note for note in read_results([copy]).notes if "one name" in note]
    assert "int2 and int2 (simulated) are of two bundles" in note


def test_who_gives_another_folder_is_told_which_holds_records(folder, tmp_path):
    made = tmp_path / "sweep" / "results" / "demo"
    shutil.copytree(folder, made)
    for given in (made / "records", made.parent.parent):
        with pytest.raises(ResultsError, match=f"holds no records; did you mean {made}\\?$"):
            read_results([given])
    with pytest.raises(ResultsError, match="is a file and no record"):
        read_results([made / "results.csv"])
    with pytest.raises(ResultsError, match="clipq-eval run -o"):
        read_results([tmp_path / "nothing"])


@pytest.fixture(scope="module")
def two_cpus(tmp_path_factory):
    """One folder that a run on each of two CPUs wrote: the same files, other numbers."""
    folder = tmp_path_factory.mktemp("two") / "results"
    for cpu, share in (("avx512-vnni", 0.0), ("avx2", 0.3)):
        base = predictions(400) if share == 0.0 else worse(predictions(400), 0.01)
        write_results(folder, {"test": base}, {"int8": {"views": {"test": worse(base, share)}}}, cpu=cpu)
    return folder


def test_one_bundle_on_two_cpus_is_two_engines_each_with_its_own_reference(two_cpus):
    results = read_results([two_cpus])
    assert {entry.name for entry in results} == {
        "fp32 (avx512-vnni)", "fp32 (avx2)", "int8 (avx512-vnni)", "int8 (avx2)"
    }  # fmt: skip
    for cpu in ("avx512-vnni", "avx2"):
        assert results[f"int8 ({cpu})"].reference.name == f"fp32 ({cpu})"
        assert sentence(results[f"int8 ({cpu})"]).startswith(f"int8 ({cpu}) on ort-cpu: ")
    assert "8-bit products saturate on this CPU" in sentence(results["int8 (avx2)"])
    assert "saturate" not in sentence(results["int8 (avx512-vnni)"])
    rows = list(csv.DictReader((two_cpus / "results.csv").open()))
    assert {row["cpu"] for row in rows} == {"avx2"}


def test_a_reference_of_another_cpu_is_none(two_cpus, tmp_path):
    copy = shutil.copytree(two_cpus, tmp_path / "r")
    (copy / "records" / "fp32__ort-cpu__avx2.json").unlink()
    results = read_results([copy])
    assert results["int8 (avx2)"].reference is None
    assert results["int8 (avx512-vnni)"].reference.name == "fp32"
    (note,) = [one for one in results.notes if "no verdict" in one]
    assert note.startswith("int8 (avx2): its reference fp32 is not here as measured on a CPU of level avx2")


def test_a_prediction_is_compared_with_the_reference_of_the_cpu_that_it_was_made_on(two_cpus):
    records = read_records(two_cpus)
    for cpu in ("avx2", "avx512-vnni"):
        made_on = {**records[0].environment, "cpu_level": cpu}
        deployed = next(one for one in records if one.bundle.name == "int8" and one.cpu == cpu)
        made = deployed.model_copy(update={"cpu": "avx2-predicted", "simulated": True, "environment": made_on})
        found = gather([(two_cpus, [*records, made])])
        assert found["int8 (as on avx2)"].reference.name == f"fp32 ({cpu})"


@pytest.mark.parametrize(
    ("options", "verdict", "said"),
    [({}, "", True), ({"weights": "7bit"}, "", False), ({}, "exact everywhere", False), ({}, "none saturated", True)],
)
def test_products_are_not_said_to_saturate_where_they_cannot(tmp_path, options, verdict, said):
    base = predictions(400)
    engine = {"views": {"test": base}, "options": options, "milliseconds": 2.0 if verdict else None}
    folder = write_results(tmp_path, {"test": base}, {"int8": engine}, cpu="avx2")
    path = folder / "records" / "int8__ort-cpu__avx2.json"
    found = json.loads(path.read_text())
    found["bundle"]["scheme"]["weight_bits"] = 7 if options else 8
    for census in found["census"]:
        census["saturation"] = {"verdict": verdict, "share": 0.0, "samples": 8}
    path.write_text(json.dumps(found))
    assert ("saturate on this CPU" in sentence(read_results([folder])["int8"])) == said


def test_engines_of_two_cpus_are_compared_with_themselves_first(two_cpus, tmp_path):
    pairs = compare(read_results([two_cpus]), read_results([two_cpus])).pairs
    assert {(pair.runtime_a, pair.runtime_b, pair.same_engine) for pair in pairs} == {
        ("ort-cpu (avx2)", "ort-cpu (avx2)", True), ("ort-cpu (avx512-vnni)", "ort-cpu (avx512-vnni)", True)
    }  # fmt: skip
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, cpu in ((one, "avx512-vnni"), (other, "avx2")):
        for path in two_cpus.rglob(f"*__ort-cpu__{cpu}.*"):
            (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.parent.name)
    pair = next(pair for pair in compare(read_results([one]), read_results([other])).pairs if pair.a == "int8")
    assert not pair.same_engine and pair.made_otherwise == "CPU (avx2, not avx512-vnni)" and pair.outcome == "worse"
