"""What engines would answer on a CPU without VNNI, and what saturates there, through the command line."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
from support import CALIBRATION, DEMO_BUNDLE, assert_refused, evaluate, export

import clipq
from clipq.cpu import cpu_level
from clipq.errors import ClipqError
from clipq.evaluate.results.record import read_records

pytestmark = pytest.mark.skipif(cpu_level().machine != "x86_64", reason="what runs on x86 is seen on x86 alone")
DATA = ("--data", "test=demo:test:n=96")


@pytest.fixture(scope="module")
def results(bundles, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    paths = [bundles / name for name in ("fp32", "int8-static-minmax", "int8-dynamic")]
    asked = ("--simulated", "--as-cpu", "avx2", "--batch", "1", "--repeats", "3")
    done = evaluate("run", *paths, *DATA, "-o", folder, *asked)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture(scope="module")
def records(results):
    return {record.name: record for record in read_records(results[0])}


def test_every_engine_with_integer_products_comes_once_more(records):
    assert list(records) == [
        "fp32",
        "int8-dynamic",
        "int8-dynamic (as on avx2)",
        "int8-static-minmax",
        "int8-static-minmax (as on avx2)",
        "int8-static-minmax (simulated)",
    ]


def test_a_prediction_says_what_it_is(records, results):
    record = records["int8-static-minmax (as on avx2)"]
    assert (record.cpu, record.predicted_for, record.simulated, record.twin) == ("avx2-predicted", "avx2", True, False)
    assert record.runtime == "ort-cpu" and record.arguments_resolved["as_cpu"] == "avx2"
    # It is not timed, and no kernel of this CPU says anything of it.
    assert record.latency == () and record.census == () and not records["fp32"].predicted_for
    with (results[0] / "results.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["cpu"] == "avx2-predicted"]
    assert {(row["bundle"], row["simulated"]) for row in rows} == {
        (n, "true") for n in ("int8-dynamic", "int8-static-minmax")
    }
    assert {row["metric"] for row in rows}.isdisjoint({"latency_ms.p50", "throughput", "integer_share"})


def test_it_is_another_engine_and_compared_with_the_reference(records):
    rows = {
        name: {row.metric: row for row in record.measurements if row.view == "test" and not row.group}
        for name, record in records.items()
    }
    mine, deployed = rows["int8-static-minmax (as on avx2)"], rows["int8-static-minmax"]
    assert mine["acc1"].reference == "fp32" and mine["acc1"].delta is not None
    if not cpu_level().saturates:
        assert mine["cosine"].value < deployed["cosine"].value - 1e-5


def test_twins_stay_twins(records):
    twin = {name: {row.reference for row in record.deployed_minus_simulated} for name, record in records.items()}
    assert twin.pop("int8-static-minmax") == {"int8-static-minmax (simulated)"}
    assert set(map(frozenset, twin.values())) == {frozenset()}


def test_the_census_is_of_what_was_evaluated(records):
    for name in ("int8-static-minmax", "int8-dynamic"):
        for census in records[name].census:
            found = census.saturation
            assert (found.verdict, found.view, found.samples) == ("differs without VNNI", "test", 32)
            assert 0 < found.share < 0.01 and sum(one.saturated for one in found.products) > 0
            sums = sum(one.sums for one in found.products)
            assert found.share == sum(one.saturated for one in found.products) / sums
    assert all(census.saturation is None for census in records["fp32"].census)
    assert all(census.saturation is None for census in records["int8-static-minmax (simulated)"].census)


def test_reports_say_so(results):
    folder, terminal = results
    said = clipq.read_results(folder)
    sentences = said.sentences()
    predicted = sentences["int8-static-minmax (as on avx2)"]
    assert predicted.startswith("predicted for a CPU without VNNI (avx2), so its speed says nothing")
    assert "simulated" not in predicted
    if not cpu_level().saturates:
        clause = "another engine on a CPU without VNNI (16-bit sums that saturate: image tower 0.0"
        assert clause in sentences["int8-static-minmax"] and clause not in predicted
        assert "int8-static-minmax: another engine on a CPU without VNNI" in terminal
    page = (folder / "report.html").read_text()
    assert "On CPUs without VNNI" in page and page.count("of the 16-bit sums of 32 samples of test saturate") == 4
    said.report(folder / "report.md")
    assert "predicted for a CPU without VNNI" in (folder / "report.md").read_text()


def test_a_gate_judges_what_was_measured(results, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text('cpu = "avx2"\n[[rule]]\nmetric = "acc1"\nmin = 0.01\n')
    found = clipq.gate(clipq.read_results(results[0]), str(policy))
    judged = {one.engine for one in found.findings}
    assert judged and not any("as on" in name for name in judged)
    level = cpu_level().name
    assert {one.state for one in found.findings if one.rule == "cpu=avx2"} == {"pass" if level == "avx2" else "fail"}


def test_what_cannot_be_predicted_is_refused(bundles, tmp_path):
    def run(*arguments, names=("fp32", "int8-static-minmax")):
        paths = [bundles / name for name in names]
        return evaluate("run", *paths, *DATA, "-o", tmp_path / "out", "--no-bench", *arguments)

    assert_refused(run("--as-cpu", "avx512-vnni"), "avx512-vnni", "avx2")
    assert_refused(run("--as-cpu", "avx3"), "there is no CPU level 'avx3'")
    assert_refused(
        run("--as-cpu", "avx2", names=("fp32", "int4-weight-only-rtn")), "none of the bundles multiplies integers"
    )
    assert_refused(run("--as-cpu", "avx2", "--cpu-precision", "exact"), "--cpu-precision exact")
    for called, flags in (("simulated", ("--simulated",)), ("as on avx2", ("--as-cpu", "avx2"))):
        name = f"int8-static-minmax ({called})"
        shutil.copytree(bundles / "int8-dynamic", tmp_path / name)
        assert_refused(run(*flags, names=("fp32", "int8-static-minmax", tmp_path / name)), name, "rename")
    assert not (tmp_path / "out" / "records").exists()
    with pytest.raises(ClipqError, match="not predicted"):
        clipq.Settings(as_cpu="neon")


def test_inspect_counts_on_plausible_inputs_or_on_data(bundles):
    bundle = bundles / "int8-dynamic"
    done = evaluate("inspect", bundle, "--json")
    found = [one["saturation"] for one in json.loads(done.stdout)]
    assert [(one["verdict"], one["view"], one["samples"]) for one in found] == [("differs without VNNI", "", 8)] * 2
    assert {one["op"] for one in found[0]["products"]} == {"DynamicQuantizeMatMul"}
    done = evaluate("inspect", bundle, *DATA)
    assert "of the 16-bit sums of 8 samples of test saturate" in " ".join(done.stdout.split())
    assert "VNNI" not in evaluate("inspect", bundles / "fp32").stdout
    assert_refused(evaluate("inspect", bundle, "--data", "nowhere"), "nowhere")


def test_seven_bits_are_proved_exact_by_the_weights(tmp_path):
    recipe = ("--recipe", "int8-static:weights=7bit", "--towers", "image")
    done = export("quantize", DEMO_BUNDLE, "--calibration-set", CALIBRATION, *recipe, "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    (bundle,) = tmp_path.iterdir()
    image, text = (one["saturation"] for one in json.loads(evaluate("inspect", bundle, "--json").stdout))
    assert image["verdict"] == "exact everywhere" and image["share"] == 0 and text is None
    assert image["products"] and not any(one["can_saturate"] for one in image["products"])
