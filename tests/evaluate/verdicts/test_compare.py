"""Two results folders against each other, through the command line, on results whose truth is known."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from support import assert_refused, evaluate
from synthetic import exact, predictions, record, worse, write_results

from clipq.evaluate.metrics.predictions import Predictions
from clipq.evaluate.results.pairing import write_pairing
from clipq.evaluate.results.record import write_record
from clipq.evaluate.verdicts.judgement import judge, samples_to_decide

BASE = predictions(3000, accuracy=0.8)


def results(folder, candidate, *, base=BASE, name="int8", milliseconds=2.0, **more):
    return write_results(
        folder, {"test": base}, {name: {"views": {"test": candidate}, "milliseconds": milliseconds, **more}}
    )


def compare(a, b, *flags):
    done = evaluate("compare", str(a), str(b), "--json", *flags)
    assert done.returncode in (0, 1, 3), done.stderr
    return done.returncode, json.loads(done.stdout)


def rows_of(found, name="int8"):
    pair = next(pair for pair in found["pairs"] if pair["b"] == name)
    return {row["metric"]: row for row in pair["differences"]}


def test_the_same_engine_is_the_same(tmp_path):
    a, b = (results(tmp_path / side, worse(BASE, 0.01)) for side in "ab")
    code, found = compare(a, b)
    assert code == 0 and found["outcome"] == "same or better"
    assert all(pair["same_engine"] for pair in found["pairs"])
    rows = rows_of(found)
    assert rows["acc1"]["delta"] == 0 and rows["acc1"]["how"] == "paired" and rows["acc1"]["verdict"] == "same"


def test_worse_is_worse_and_its_mirror_better(tmp_path):
    a, b = results(tmp_path / "a", worse(BASE, 0.001)), results(tmp_path / "b", worse(BASE, 0.1), milliseconds=6.0)
    code, found = compare(a, b)
    row = rows_of(found)["acc1"]
    assert code == 1 and row["verdict"] == "worse" and row["low"] <= row["delta"] <= row["high"] < 0
    lost = (BASE.correct & ~worse(BASE, 0.1).correct).mean() - (BASE.correct & ~worse(BASE, 0.001).correct).mean()
    assert row["delta"] == pytest.approx(-lost)
    latency = next(pair for pair in found["pairs"] if pair["b"] == "int8")["latency"][0]
    assert latency["low"] <= 3 <= latency["high"] and latency["high"] - latency["low"] < 0.2
    code, found = compare(b, a)
    assert rows_of(found)["acc1"]["verdict"] == "better"


def test_undecided_says_how_many_samples_would_decide(tmp_path):
    small = predictions(150, accuracy=0.8)
    a, b = (results(tmp_path / side, worse(small, part, seed=3), base=small) for side, part in (("a", 0), ("b", 0.02)))
    code, found = compare(a, b)
    row = rows_of(found)["acc1"]
    assert code == 3 and row["verdict"] == "unknown" and row["n_to_decide"] > 150
    # Thirty times the margin makes the same interval narrow enough.
    assert rows_of(compare(a, b, "--margin", "0.3")[1])["acc1"]["verdict"] == "same"


def test_a_common_part_is_paired_by_id(tmp_path):
    ids = [f"{i}.png" for i in range(3000)]
    one = worse(BASE, 0.05)
    a = results(tmp_path / "a", one, ids=ids)
    rows = np.arange(500, 3000)
    part = Predictions(one.probabilities[rows], one.labels[rows])
    base = Predictions(BASE.probabilities[rows], BASE.labels[rows])
    b = results(tmp_path / "b", part, base=base, ids=[ids[row] for row in rows])
    _, found = compare(a, b)
    row = rows_of(found)["acc1"]
    assert row["how"] == "paired by id" and row["n"] == 2500 and row["delta"] == row["low"] == row["high"] == 0


def test_other_samples_are_unpaired_and_wider(tmp_path):
    a = results(tmp_path / "a", worse(BASE, 0.05))
    other = predictions(2900, accuracy=0.8, seed=5, labels_seed=5)
    b = results(tmp_path / "b", worse(other, 0.05), base=other, ids=[f"x{i}" for i in range(2900)])
    row = rows_of(compare(a, b)[1])["acc1"]
    assert row["how"] == "unpaired"
    # Two independent proportions: ±1.96 · √(p(1 − p)(1/3000 + 1/2900)).
    expected = 1.96 * np.sqrt(row["a"] * (1 - row["a"]) * (1 / 3000 + 1 / 2900))
    assert (row["high"] - row["low"]) / 2 == pytest.approx(expected, rel=0.15)


def test_no_difference_is_called_worse_at_the_stated_rate(tmp_path):
    """Two engines of equal accuracy, 200 draws: Holm over both metrics keeps false alarms of either kind near 5 %."""
    from synthetic import record

    from clipq.evaluate.results.folders import gather
    from clipq.evaluate.results.pairing import write_pairing
    from clipq.evaluate.verdicts.compare import compare as compare_measured

    verdicts = []
    for draw in range(200):
        sides = []
        for side in (0, 1):
            one = predictions(300, accuracy=0.75, seed=1000 * side + draw, labels_seed=draw)
            made, found, answers = record("int8", {"test": one})
            write_pairing(tmp_path / f"{draw}{side}", made, found, answers)
            sides.append(gather([(tmp_path / f"{draw}{side}", [made])]))
        pair = compare_measured(*sides).pairs[0]
        verdicts.append(any(row.verdict in ("better", "worse") for row in pair.differences))
    # Binomial(200, 0.05) is above 19 in 0.2 % of the cases.
    assert sum(verdicts) <= 19, sum(verdicts)


def test_two_runtimes_and_two_names(tmp_path):
    a = results(tmp_path / "a", worse(BASE, 0.01))
    b = results(tmp_path / "b", worse(BASE, 0.01), runtime="tensorrt")
    code, found = compare(a, b)
    assert code == 0 and not next(pair for pair in found["pairs"] if pair["b"] == "int8")["same_engine"]
    c = results(tmp_path / "c", worse(BASE, 0.1), name="int4")
    assert [*compare(a, c)[1]["only_a"], *compare(a, c)[1]["only_b"]] == ["int8", "int4"]
    records = [folder / "records" / f"{name}__ort-cpu.json" for folder, name in ((a, "int8"), (c, "int4"))]
    code, found = compare(*records)
    assert code == 1 and len(found["pairs"]) == 1


def test_markdown(tmp_path):
    a = results(tmp_path / "a", worse(BASE, 0.01), name="in|t`8`<b>")
    b = results(tmp_path / "b", worse(BASE, 0.1), name="in|t`8`<b>")
    done = evaluate("compare", str(a), str(b), "--markdown", str(tmp_path / "c.md"))
    text = (tmp_path / "c.md").read_text()
    assert done.returncode == 1 and re.search(r"−\d", text) and not re.search(r"[\s\[|]-\d", text + done.stdout)
    assert "in\\|t\\`8\\`\\<b\\>" in text and "| test: top-1 |" in text


def test_bad_inputs_are_refused(tmp_path):
    a = results(tmp_path / "a", worse(BASE, 0.01))
    assert_refused(evaluate("compare", str(a), str(tmp_path)), "holds no records")
    (tmp_path / "x.json").write_text("{}")
    assert_refused(evaluate("compare", str(a), str(tmp_path / "x.json")), "damaged")
    lonely = write_results(tmp_path / "b", {"test": BASE}, {})
    (lonely / "records" / "fp32__ort-cpu.json").rename(tmp_path / "gone.json")
    assert_refused(evaluate("compare", str(a), str(lonely)), "holds no records")
    for path in (a / "pairing").iterdir():
        path.unlink()
    assert_refused(evaluate("compare", str(a), str(a)), "missing", "again")


@pytest.mark.parametrize(
    ("delta", "low", "high", "metric", "verdict"),
    [
        (-0.02, -0.03, -0.01, "acc1", "worse"),
        (-0.02, -0.03, -0.01, "ece", "better"),
        (0.0, -0.01, 0.01, "acc1", "same"),
        (0.0, 0.0, 0.0, "mce", "same"),
        (0.0, -0.02, 0.01, "acc1", "unknown"),
        (0.02, 0.01, 0.03, "confidence_gap", "unknown"),
        (float("nan"), float("nan"), float("nan"), "acc1", "unknown"),
        (None, None, None, "acc1", "unknown"),
        (-3.0, -4.0, -2.0, "latency_ms.p50", "better"),
    ],
)
def test_judgement(delta, low, high, metric, verdict):
    assert judge(delta, low, high, metric, n=1000) == verdict


def test_a_few_samples_without_any_change_are_not_the_same():
    assert judge(0.0, 0.0, 0.0, "acc1", n=96) == "unknown"
    n = samples_to_decide(96, 0.0, 0.0, 0.0)
    assert judge(0.0, 0.0, 0.0, "acc1", n=n) == "same" and judge(0.0, 0.0, 0.0, "acc1", n=n - 1) == "unknown"
    # So many samples all miss a change of one percent with a probability of 5 %.
    assert 0.99**n <= 0.05 < 0.99 ** (n - 1)


def test_the_promised_sample_size_decides():
    n = samples_to_decide(500, 0.004, -0.016, 0.024)
    half = 0.02 * np.sqrt(500 / n)
    assert 0.004 + half <= 0.01 + 1e-9 or 0.004 - half >= 0


def corrupted(value):
    return [exact("test-c", "", "corruption_acc1", value), exact("test-c", "", "mean_corruption_error", 1.0, "ratio"), exact("test-c", "", "clean_acc1", 0.8)]  # fmt: skip


def test_two_runs_are_not_compared_by_a_ratio_to_their_own_reference(tmp_path):
    a, b = (results(tmp_path / side, BASE, extra=corrupted(value)) for side, value in (("a", 0.698), ("b", 0.301)))
    code, found = compare(a, b)
    assert code == 1 and "mean_corruption_error" not in rows_of(found)
    assert rows_of(found)["corruption_acc1"]["verdict"] == "worse"


def test_an_engine_that_failed_is_worse_and_a_missing_one_undecided(tmp_path):
    a = results(tmp_path / "a", BASE)
    failed = write_results(tmp_path / "failed", {"test": BASE}, {"int8": {"views": {}, "failed": "it answers NaN"}})
    code, found = compare(a, failed)
    assert code == 1 and found["failed"] == ["int8: it answers NaN"]
    code, found = compare(a, write_results(tmp_path / "none", {"test": BASE}, {}))
    assert code == 3 and found["only_a"] == ["int8"]
    record = next((failed / "records").glob("int8*"))
    assert_refused(evaluate("compare", str(record), str(record)), "it answers NaN")


def test_an_engine_that_failed_is_compared_with_no_other_one_in_its_place(tmp_path):
    broken = {"views": {}, "failed": "out of memory"}
    a = write_results(tmp_path / "a", {}, {"int8": {"views": {"test": BASE}}})
    # What is left on each side is one engine, and not the same one.
    b = write_results(tmp_path / "b", {"test": BASE}, {"int8": broken})
    # Another runtime is no partner where the same one failed.
    c = write_results(tmp_path / "c", {"test": BASE}, {"int8": broken})
    other, found, answers = record("int8", {"test": BASE}, reference="fp32", runtime="ort-cuda")
    write_record(c, write_pairing(c, other, found, answers))
    # None of B's works.
    d = write_results(tmp_path / "d", {}, {"int8": broken})
    for folder in (b, c, d):
        (a / "records" / "fp32__ort-cpu.json").unlink(missing_ok=True)
        (d / "records" / "fp32__ort-cpu.json").unlink(missing_ok=True)
        code, found = compare(a, folder, "--markdown", str(tmp_path / "c.md"))
        assert code == 1 and found["failed"] == ["int8: out of memory"] and not found["pairs"]
        assert "out of memory" in evaluate("compare", str(a), str(folder)).stdout


def test_a_view_that_b_lacks_leaves_it_undecided(tmp_path):
    both = {"test": BASE, "sketch": predictions(3000, accuracy=0.7, seed=5)}
    a = write_results(tmp_path / "a", both, {"int8": {"views": both}})
    b = results(tmp_path / "b", BASE)
    code, found = compare(a, b)
    pair = next(pair for pair in found["pairs"] if pair["b"] == "int8")
    assert code == 3 and "sketch: top-1" in pair["missing"]
    done = evaluate("compare", str(a), str(b), "--markdown", str(tmp_path / "c.md"))
    assert "not measured in B" in done.stdout and "sketch: top-1" in (tmp_path / "c.md").read_text()


def test_what_holm_takes_back_promises_no_sample_size(tmp_path):
    views = {f"v{k}": predictions(600, accuracy=0.8, seed=k, labels_seed=k) for k in range(6)}
    changed = dict(views)
    changed["v0"] = worse(views["v0"], 0.011, seed=2)
    a, b = (write_results(tmp_path / side, views, {"int8": {"views": one}}) for side, one in (("a", views), ("b", changed)))  # fmt: skip
    _, found = compare(a, b)
    pair = next(pair for pair in found["pairs"] if pair["b"] == "int8")
    taken = [one for one in pair["differences"] if one["verdict"] == "unknown" and one["high"] < 0]
    assert taken and all(one["n_to_decide"] == 0 for one in taken)
    evaluate("compare", str(a), str(b), "--markdown", str(tmp_path / "c.md"))
    assert "unknown: may be chance" in (tmp_path / "c.md").read_text()


def test_two_runtimes_are_named(tmp_path):
    folder = results(tmp_path / "a", BASE)
    other, found, answers = record("int8", {"test": worse(BASE, 0.1)}, reference="fp32", runtime="ort-cuda")
    write_record(folder, other)
    write_pairing(folder, other, found, answers)
    _, found = compare(folder, folder)
    assert {pair["runtime_b"] for pair in found["pairs"]} == {"ort-cpu", "ort-cuda"}
    assert "int8 on ort-cuda" in evaluate("compare", str(folder), str(folder)).stdout


def test_one_number_of_bins_for_both(tmp_path):
    small = predictions(600, accuracy=0.8)
    folders = []
    for bins in (15, 100):
        folder = results(tmp_path / str(bins), small, base=small)
        for path in (folder / "records").iterdir():
            found = json.loads(path.read_text())
            found["arguments_resolved"]["ece_bins"] = bins
            path.write_text(json.dumps(found))
        folders.append(folder)
    _, found = compare(*folders)
    assert rows_of(found)["ece"]["delta"] == 0


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    assert_refused(evaluate("compare", str(tmp_path), str(tmp_path / "none")), "holds no records")


def test_an_engine_is_compared_with_itself_on_its_own_cpu(tmp_path):
    """Of two CPUs one would else stand for the other, which was not measured anew."""

    def on(folder, *cpus):
        for cpu in cpus:
            write_results(folder, {"test": BASE}, {"int8": {"views": {"test": worse(BASE, 0.01)}}}, cpu=cpu)
        return folder

    both, one, old = (
        on(tmp_path / "both", "avx2", "avx512-vnni"),
        on(tmp_path / "one", "avx2"),
        on(tmp_path / "old", ""),
    )
    code, found = compare(both, one)
    assert {(pair["runtime_a"], pair["runtime_b"]) for pair in found["pairs"]} == {("ort-cpu (avx2)",) * 2}
    assert code == 3 and set(found["only_a"]) == {"fp32 (avx512-vnni)", "int8 (avx512-vnni)"}
    # The only one is a partner, and it is said that the CPU was another.
    _, found = compare(one, on(tmp_path / "other", "avx512-vnni"))
    assert {pair["made_otherwise"] for pair in found["pairs"]} == {"CPU (avx512-vnni, not avx2)"}
    assert_refused(evaluate("compare", str(old), str(both)), "B has fp32 (avx2)", "name two record files")
    assert evaluate("compare", str(old), str(one)).returncode == 0


def test_engines_that_are_not_made_alike_say_so(tmp_path):
    """Of another checkpoint, or fed in another way than their own references are."""
    a, b = (results(tmp_path / side, worse(BASE, 0.01)) for side in "ab")
    for path in (b / "records").glob("*.json"):
        found = json.loads(path.read_text())
        found["bundle"]["checkpoint"] = "another"
        if found["reference"] != found["bundle"]["name"]:
            found["unlike_reference"] = ["preprocessing: mean ((0, 0, 0) and (1, 1, 1))"]
        path.write_text(json.dumps(found))
    _, found = compare(a, b)
    unlike = {pair["b"]: pair["unlike"] for pair in found["pairs"]}
    assert unlike["fp32"] == ["checkpoint (another and synthetic)"]
    assert unlike["int8"][1:] == ["B and its reference: preprocessing: mean ((0, 0, 0) and (1, 1, 1))"]
    said = evaluate("compare", str(a), str(b)).stdout
    assert "B is not made as A is: checkpoint (another and synthetic)." in " ".join(said.split())
    assert all(pair["unlike"] == [] for pair in compare(a, a)[1]["pairs"])
