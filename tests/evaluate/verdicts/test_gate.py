"""The gate on results whose truth is known, through its command line."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from support import ROOT, assert_refused, evaluate
from synthetic import exact, predictions, record, worse, write_results

from clipq.evaluate.metrics.statistics import Draws
from clipq.evaluate.report.terminal import MOST_FINDINGS, print_findings
from clipq.evaluate.results.folders import read_results
from clipq.evaluate.results.pairing import read_pairing, write_pairing
from clipq.evaluate.results.record import write_record
from clipq.evaluate.verdicts.gate import Finding, judge_policy
from clipq.evaluate.verdicts.limits import LIMITS, Limit, Quantity
from clipq.evaluate.verdicts.policy import Policy, Rule, read_policy

BASE = predictions(4000, accuracy=0.8)
GOOD = worse(BASE, 0.001)
BAD = worse(BASE, 0.1)
EDGE = worse(BASE, 0.012, seed=4)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate") / "results"
    fair = [exact("test", "light=day", "acc1", 0.9), exact("test", "light=night", "acc1", 0.6)]
    broken = [exact("test", "", "nll", math.nan, "nats")]
    return write_results(
        folder,
        {"test": BASE},
        {
            "good": {"views": {"test": GOOD}, "milliseconds": 2.0, "extra": fair},
            "bad": {"views": {"test": BAD}, "milliseconds": 8.0, "integer_share": 0.1},
            "edge": {"views": {"test": EDGE}, "recipe": "int8-dynamic"},
            "nan": {"views": {"test": GOOD}, "extra": broken},
            "dead": {"views": {"test": GOOD}, "failed": "out of memory"},
            "fake": {"views": {"test": GOOD}, "recipe": "simulated-w4a8"},
        },
    )


def gate(results, tmp_path, policy, *flags):
    path = tmp_path / "policy.toml"
    path.write_text(policy)
    done = evaluate("gate", str(results), "--policy", str(path), "--json", *flags)
    assert done.returncode in (0, 1, 3), done.stderr
    return done.returncode, json.loads(done.stdout)["findings"], done


def test_a_gate_says_what_is_not_made_as_the_reference_is(results, tmp_path):
    """A difference may be of that; whoever decides by a gate reads no report."""
    folder = shutil.copytree(results, tmp_path / "unlike")
    (path,) = (folder / "records").glob("good__*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unlike_reference": ["tokenizer: 77 and 64 tokens"]}))
    rule = '[[rule]]\nmetric = "acc1"\nmin = 0.1\n'
    _, _, done = gate(folder, tmp_path, rule)
    assert "note: good: not made as the reference is: tokenizer: 77 and 64 tokens" in done.stderr
    assert done.stderr.count("not made as") == 1


@pytest.mark.parametrize(
    ("repeats", "more", "state"), [(5, "", "investigate"), (6, "", "pass"), (5, "\nconfidence = 0", "pass")]
)
def test_too_few_times_bound_no_median(results, tmp_path, repeats, more, state):
    """All of five lie on one side of it in 6 % of all cases: whatever is drawn of them, the rest is not within."""
    folder = shutil.copytree(results, tmp_path / "few")
    for path in (folder / "records").glob("*.json"):
        found = json.loads(path.read_text())
        found["measurements"] = [
            one | {"n": repeats} if one["group"] == "batch=8" else one for one in found["measurements"]
        ]
        path.write_text(json.dumps(found))
    rule = RULE.format("good", 'metric = "latency_ms.p50"\nmax_ratio = 0.6' + more)
    (only,) = [one for one in gate(folder, tmp_path, rule)[1] if one["engine"] == "good"]
    assert only["state"] == state and ("--repeats" in only["reason"]) == (state == "investigate")


RULE = '[[rule]]\nbundle = "{}"\n{}\n'
CASES = [
    ("good", 'metric = "acc1"\nmin = 0.7', 0, "pass"),
    ("good", 'metric = "acc1"\nmin = 0.95', 1, "fail"),
    ("good", 'metric = "acc1"\nmin = 0.8', 3, "investigate"),
    ("good", 'metric = "acc1"\nmin = 0.8\nconfidence = 0', None, None),
    ("good", 'metric = "ece"\nmax = 0.06', 0, "pass"),
    ("good", 'metric = "acc1"\nmin_delta = -0.01', 0, "pass"),
    ("bad", 'metric = "acc1"\nmin_delta = -0.01', 1, "fail"),
    ("edge", 'metric = "acc1"\nmin_delta = -0.01', 3, "investigate"),
    ("good", 'metric = "acc1"\nmin_ratio = 0.99', 0, "pass"),
    ("bad", 'metric = "acc1"\nmin_ratio = 0.99', 1, "fail"),
    ("good", 'metric = "latency_ms.p50"\nmax_ratio = 0.6', 0, "pass"),
    ("bad", 'metric = "latency_ms.p50"\nmax_ratio = 0.6', 1, "fail"),
    ("good", 'metric = "integer_share"\nmin = 0.5', 0, "pass"),
    ("bad", 'metric = "integer_share"\nmin = 0.5', 1, "fail"),
    ("good", 'metric = "file_bytes"\nview = ""\nmax_ratio = 0.25', 0, "pass"),
    ("good", 'metric = "file_bytes"\nview = ""\nmax_delta = -3100000', 1, "fail"),
    ("good", 'metric = "acc1"\ngroup = "light=*"\nmin = 0.7', 1, "fail"),
    ("good", 'metric = "acc1"\ngroup = "light=day"\nmin = 0.7', 0, "pass"),
    ("good", 'metric = "acc1"\ngroup = "light=dusk"\nmin = 0.7', 1, "fail"),  # no such group
    ("good", 'metric = "auroc.mcm"\nmin = 0.7', 1, "fail"),  # not measured
    ("good", 'metric = "auroc.mcm"\nmin = 0.7\noptional = true\n[[rule]]\nmetric = "acc1"\nmin = 0\nbundle = "good"', 0, "pass"),
    ("good", 'metric = "auroc.mcm"\nmin = 0.7\noptional = "engine"', 1, "fail"),
    ("nobody", 'metric = "acc1"\nmin = 0', 1, "fail"),
    ("nan", 'metric = "nll"\nmax = 100', 1, "fail"),
    ("nan", 'metric = "nll"\nmax_delta = 100', 1, "fail"),  # the reference has none
    ("fake", 'metric = "acc1"\nmin = 0.1', 1, "fail"),
    ("fake", 'metric = "acc1"\nmin = 0.1\ndeployed = false', 0, "pass"),
]  # fmt: skip


@pytest.mark.parametrize(("bundle", "rule", "code", "state"), CASES)
def test_cases(results, tmp_path, bundle, rule, code, state):
    from clipq.evaluate.results.folders import gather
    from clipq.evaluate.results.record import read_records
    from clipq.evaluate.verdicts.gate import judge_policy, outcome

    path = tmp_path / "policy.toml"
    path.write_text(RULE.format(bundle, rule))
    names = ("fp32", "good" if bundle == "nobody" else bundle)
    records = [one for one in read_records(results) if one.bundle.name in names]
    findings = judge_policy(gather([(results, records)]), read_policy(str(path)))
    assert findings
    if state is None:
        assert all(one.low == one.high for one in findings) and outcome(findings) in ("pass", "fail")
        return
    assert outcome(findings) == state, findings
    for one in findings:
        if one.value is not None and one.low != one.high:
            assert one.low <= one.value <= one.high


def test_a_failed_engine_fails_whatever_is_asked(results, tmp_path):
    code, findings, _ = gate(results, tmp_path, RULE.format("good", 'metric = "acc1"\nmin = 0.1'))
    assert code == 1
    assert [one["engine"] for one in findings if one["state"] == "fail"] == ["dead"]
    assert any("out of memory" in one["reason"] for one in findings)


def test_no_change_among_a_few_samples_is_no_pass(tmp_path):
    """96 images on which both engines agree do not show that fewer than 1 % would differ; 3,000 do."""
    rule = RULE.format("same", 'metric = "acc1"\nmin_delta = -0.01')
    for n, code in ((96, 3), (3000, 0)):
        base = predictions(n, accuracy=0.8)
        folder = write_results(tmp_path / str(n), {"test": base}, {"same": {"views": {"test": base}}})
        assert gate(folder, tmp_path, rule)[0] == code
    policy = tmp_path / "init.toml"
    assert evaluate("gate", "init", str(tmp_path / "96"), "-o", str(policy)).returncode == 0
    assert evaluate("gate", str(tmp_path / "96"), "--policy", str(policy)).returncode == 0


def test_no_change_counts_for_more_where_the_reference_is_small(tmp_path):
    """300 of 300 the same: a change of 1 point is not excluded, and at 17 % accuracy that is 6 % of it."""
    base = predictions(300, accuracy=0.17)
    folder = write_results(tmp_path / "r", {"test": base}, {"same": {"views": {"test": base}}})
    done = evaluate("gate", str(folder), "--policy", "mlperf-99", "--json")
    (found,) = json.loads(done.stdout)["findings"]
    assert done.returncode == 3 and found["low"] == pytest.approx(1 - 0.00994 / base.correct.mean(), abs=1e-4)


def test_a_policy_of_which_nothing_applies_is_refused(results, tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(RULE.format("good", 'metric = "auroc.mcm"\nmin_delta = -0.01\noptional = true'))
    folder = write_results(tmp_path / "r", {"test": BASE}, {"good": {"views": {"test": GOOD}}})
    assert_refused(evaluate("gate", str(folder), "--policy", str(path)), "no rule of this policy applies")


def test_two_runtimes_of_a_bundle_are_told_apart(tmp_path):
    folder = write_results(tmp_path / "r", {"test": BASE}, {"int8": {"views": {"test": GOOD}}})
    other, found, answers = record("int8", {"test": BAD}, reference="fp32", runtime="ort-cuda")
    write_record(folder, other)
    write_pairing(folder, other, found, answers)
    junit = tmp_path / "gate.xml"
    code, findings, _ = gate(folder, tmp_path, RULE.format("int8", 'metric = "acc1"\nmin_delta = -0.01'), "--junit", str(junit))  # fmt: skip
    assert code == 1 and {one["engine"] for one in findings} == {"int8 (ort-cpu)", "int8 (ort-cuda)"}
    assert 'name="int8 (ort-cuda)"' in junit.read_text()


def test_required_views(tmp_path):
    folder = write_results(tmp_path / "r", {"test": BASE}, {"good": {"views": {"test": GOOD}}})
    assert gate(folder, tmp_path, 'required = ["test"]')[0] == 0
    code, findings, _ = gate(folder, tmp_path, 'required = ["test", "night"]')
    assert code == 1 and [one["view"] for one in findings if one["state"] == "fail"] == ["night"]


def test_more_confidence_is_harder_to_pass(tmp_path):
    folder = write_results(tmp_path / "r", {"test": BASE}, {"edge": {"views": {"test": worse(BASE, 0.007, seed=4)}}})
    rule = '[[rule]]\nmetric = "acc1"\nmin_delta = {}\nconfidence = {}'
    low = gate(folder, tmp_path, rule.format(-1, 0.95))[1][0]["low"]
    codes = [gate(folder, tmp_path, rule.format(low - 1e-4, level))[0] for level in (0, 0.95, 0.9999)]
    assert codes == [0, 0, 3]


def test_outputs(results, tmp_path):
    from junitparser import JUnitXml

    policy = "".join(RULE.format(name, 'metric = "acc1"\nmin_delta = -0.01') for name in ("good", "bad", "edge"))
    junit = tmp_path / "gate.xml"
    code, findings, done = gate(results, tmp_path, policy, "--junit", str(junit), "--github")
    assert code == 1
    parsed = JUnitXml.fromfile(str(junit))
    assert (parsed.tests, parsed.failures, parsed.errors) == (len(findings), 2, 1)
    assert {suite.name for suite in parsed} == {"good", "bad", "edge", "dead"}
    lines = done.stderr.splitlines()
    assert sum(line.startswith("::error ") for line in lines) == 2
    assert sum(line.startswith("::warning ") for line in lines) == 1 and lines[-1].startswith("::notice ")
    assert all("%25" in line for line in lines if "at 95" in line)


def test_hostile_names_stay_in_their_place(tmp_path):
    from junitparser import JUnitXml

    name = 'a"]]><x>\u202e'
    folder = write_results(tmp_path / "r", {name: BASE}, {"bad": {"views": {name: BAD}}})
    junit = tmp_path / "gate.xml"
    code, findings, _ = gate(folder, tmp_path, '[[rule]]\nmetric = "acc1"\nmin_delta = -0.01', "--junit", str(junit))
    assert code == 1 and findings[0]["view"] == name
    assert name in next(iter(next(iter(JUnitXml.fromfile(str(junit)))))).name


def test_init_writes_a_policy_that_passes_and_still_stops(results, tmp_path):
    policy = tmp_path / "policy.toml"
    done = evaluate("gate", "init", str(results), "--bundle", "good", "--margin", "0.005", "-o", str(policy))
    assert done.returncode == 0, done.stderr
    alone = write_results(tmp_path / "same", {"test": BASE}, {"good": {"views": {"test": GOOD}}})
    assert evaluate("gate", str(alone), "--policy", str(policy)).returncode == 0
    later = write_results(tmp_path / "later", {"test": BASE}, {"good": {"views": {"test": BAD}}})
    assert evaluate("gate", str(later), "--policy", str(policy)).returncode == 1
    assert_refused(evaluate("gate", "init", str(results), "-o", str(policy)), "exists")
    assert_refused(
        evaluate("gate", "init", str(results), "--bundle", "x", "-o", str(tmp_path / "n.toml")), "--bundle x"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["cannot fail"]),
        ("[[rule]]\nmetric = 'acc1'", ["needs a limit"]),
        ("[[rule]]\nmetric = 'acc1'\nmin = 'a'", ["rule.0.min"]),
        ("[[rule]]\nmetric = 'acc1'\nminimum = 1", ["minimum"]),
        ("[[rule]]\nmetric = 'acc1'\nmin = true", ["rule.0.min"]),
        ("[[rule]]\nmetric = 'acc1'\nmin = '0.1'", ["rule.0.min"]),
        ("[[rule]]\nmetric = 'acc1'\nmin = 0\nconfidence = false", ["rule.0.confidence"]),
        ("[[rule]]\nmetric = 'acc1'\nmin = 0\ndeployed = 'no'", ["rule.0.deployed"]),
        ("[[rule]]\nmetric = 'acc1'\nmin = 0\nbundle = []", ["rule.0.bundle"]),
        ("[[rule]]\nmetric = 'acc1'\nmin = 0\nrecipe = []", ["rule.0.recipe"]),
        ("[[rule]]\nmetric = 'acc1'\nmin = nan", ["not finite"]),
        ("[[rule]]\nmetric = 'acc1'\nmin = 1\nconfidence = 95", ["confidence"]),
        ("[[rule", ["no TOML"]),
        ("required = ['test', '']", ["required.1"]),
        ("[[rule]]\nmetric = 'accuracy1'\nmin = 0.5", ["there is no metric 'accuracy1'"]),
        ("[[rule]]\nmetric = 'auroc.mcm'\nmin_detla = 0.5", ["unknown key", "did you mean min_delta?"]),
        ("max = 1\n[[rule]]\nmetric = 'acc1'\nmin = 0.5", ["max: it belongs into a [[rule]]"]),
        ("[[rule]]\nmetric = 'latency_ms'\nmax = 5", ["there is latency_ms.p50, latency_ms.p90"]),
        ("[[rule]]\nmetric = 'acc1.ratio'\nmin = 0.99", ["there is no metric 'acc1.ratio'; there is acc1"]),
        ("[[rule]]\nmetric = 'acc1'\nmin = 0.9\nmax = 0.5", ["min 0.9 is above its max 0.5"]),
    ],
)
def test_bad_policies_are_refused(results, tmp_path, text, words):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    assert_refused(evaluate("gate", str(results), "--policy", str(path)), *words)


def test_bad_folders_are_refused(results, tmp_path):
    assert_refused(evaluate("gate", str(tmp_path), "--policy", "strict"), "holds no records")
    assert_refused(evaluate("gate", str(results), "--policy", "stricter"), "stricter", "mlperf-99")
    alone = write_results(tmp_path / "alone", {"test": BASE}, {})
    assert_refused(evaluate("gate", str(alone), "--policy", "strict"), "no candidate")
    for path in (alone / "pairing").iterdir():
        path.write_bytes(b"x")
    damaged = write_results(tmp_path / "damaged", {"test": BASE}, {"good": {"views": {"test": GOOD}}})
    (damaged / "pairing" / "good__ort-cpu.safetensors").write_bytes(b"x")
    assert_refused(evaluate("gate", str(damaged), "--policy", "mlperf-99"), "damaged", "again")


@pytest.mark.parametrize("name", ["strict", "mlperf-99", "mlperf-99.9", "demo"])
def test_built_in_policies_are_read(name):
    assert read_policy(name).rule


def test_every_limit_is_a_key_of_a_rule_and_every_number_of_a_rule_a_limit():
    numbers = [name for name, field in Rule.model_fields.items() if field.annotation == (float | None)]
    assert sorted(numbers) == sorted([*LIMITS, "confidence"])
    assert all(f"`{name}`" in (ROOT / "docs" / "formats.md").read_text() for name in LIMITS)


def test_a_new_quantity_is_a_row(results, monkeypatch):
    """Half of the difference: whatever a row says is judged, and nothing in its place."""
    half = Quantity("delta", lambda mine, theirs: Draws((mine.value - theirs.value) / 2, (mine.resampled - theirs.resampled) / 2, mine.n))  # fmt: skip
    rule = Policy.model_validate({"rule": [{"metric": "acc1", "bundle": "bad", "min_delta": -1}]})
    (whole,) = [one for one in judge_policy(read_results([results]), rule) if one.engine == "bad"]
    monkeypatch.setitem(LIMITS, "min_delta", Limit("min_delta", True, half))
    (found,) = [one for one in judge_policy(read_results([results]), rule) if one.engine == "bad"]
    assert found.value == pytest.approx(whole.value / 2) and found.low == pytest.approx(whole.low / 2)


def test_many_engines_are_judged_in_turn_and_few_lines_are_shown(tmp_path, monkeypatch):
    """Rule by rule in what is said, engine by engine in what is read: each file of draws once, whatever the rules."""
    from clipq.evaluate.results import entry

    names = [f"e{number}" for number in range(12)]
    folder = write_results(tmp_path / "r", {"test": BASE}, {name: {"views": {"test": BAD}} for name in names})
    read = []
    monkeypatch.setattr(entry, "read_pairing", lambda *asked: read.append(asked[1].name) or read_pairing(*asked))
    rules = [{"metric": metric, "min_delta": -0.01} for metric in ("acc1", "ece", "confidence_gap")]
    findings = judge_policy(read_results([folder]), Policy.model_validate({"rule": rules}))
    assert sorted(read) == sorted(["fp32", *names])
    assert [(one.rule.split(".")[0], one.engine) for one in findings] == [(rule["metric"], name) for rule in rules for name in sorted(names)]  # fmt: skip


def test_of_many_lines_the_first_are_shown(capsys):
    findings = [Finding(f"e{number}", "acc1 >= 1", "fail", "fails") for number in range(MOST_FINDINGS + 7)]
    print_findings(findings)
    said = capsys.readouterr().out
    assert "and 7 more that do not pass" in said and f"{MOST_FINDINGS + 7} fail" in said


@pytest.fixture(scope="module")
def two_cpus(tmp_path_factory):
    """One folder of two CPUs: the engine is good on the one, and bad on the other."""
    folder = tmp_path_factory.mktemp("two") / "results"
    for cpu, candidate in (("avx512-vnni", GOOD), ("avx2", BAD)):
        write_results(folder, {"test": BASE}, {"int8": {"views": {"test": candidate}}}, cpu=cpu)
    return folder


ON_ACCURACY = "[[rule]]\nmetric = 'acc1'\nmin_delta = -0.05\n"


@pytest.mark.parametrize(
    ("policy", "states"),
    [
        (ON_ACCURACY, {("int8 (avx512-vnni)", "pass"), ("int8 (avx2)", "fail")}),
        (ON_ACCURACY + "cpu = 'vnni'", {("int8 (avx512-vnni)", "pass")}),
        (ON_ACCURACY + "cpu = 'avx2'", {("int8 (avx2)", "fail")}),
        (ON_ACCURACY + "cpu = ['avx512-vnni', 'avx2']", {("int8 (avx512-vnni)", "pass"), ("int8 (avx2)", "fail")}),
        (ON_ACCURACY + "cpu = 'amx'", {("int8 (avx512-vnni)", "fail"), ("int8 (avx2)", "fail")}),
        (ON_ACCURACY + "cpu = 'amx'\nrecipe = 'fp16'\noptional = true\n[[rule]]\nmetric = 'acc1'\nmin = 0\ncpu = 'avx2'", {("int8 (avx2)", "pass")}),
        ("cpu = 'vnni'", {("int8 (avx512-vnni)", "pass"), ("int8 (avx2)", "fail")}),
        ("cpu = 'exact'", {("int8 (avx512-vnni)", "fail"), ("int8 (avx2)", "fail")}),
    ],
)  # fmt: skip
def test_a_verdict_on_one_cpu_never_stands_for_another(two_cpus, tmp_path, policy, states):
    (tmp_path / "policy.toml").write_text(policy)
    found = judge_policy(read_results([two_cpus]), read_policy(str(tmp_path / "policy.toml")))
    assert {(one.engine, one.state) for one in found} == states
    done = evaluate("gate", str(two_cpus), "--policy", str(tmp_path / "policy.toml"))
    assert done.returncode == (1 if any(state == "fail" for _, state in states) else 0)


def test_what_says_no_cpu_is_measured_on_none(results, tmp_path):
    """A GPU's engines, and records of an earlier clipq."""
    (tmp_path / "policy.toml").write_text("cpu = 'vnni'")
    found = judge_policy(read_results([results]), read_policy(str(tmp_path / "policy.toml")))
    assert {(one.state, one.reason) for one in found if one.rule.startswith("cpu")} == {
        ("fail", "measured on ort-cpu, which tells no CPU level")
    }  # fmt: skip


@pytest.mark.parametrize("text", [ON_ACCURACY + "cpu = 'vnn'", "cpu = ['avx3']", "cpu = []", ON_ACCURACY + "cpu = 3"])
def test_a_cpu_that_there_is_not_is_refused(two_cpus, tmp_path, text):
    (tmp_path / "policy.toml").write_text(text)
    assert_refused(evaluate("gate", str(two_cpus), "--policy", str(tmp_path / "policy.toml")), "cpu")


def test_a_policy_that_is_made_holds_on_the_cpus_that_it_was_made_of(two_cpus, results, tmp_path):
    made = evaluate("gate", "init", str(two_cpus), "-o", str(tmp_path / "made.toml"))
    assert made.returncode == 0, made.stderr
    assert set(read_policy(str(tmp_path / "made.toml")).cpu) == {"avx2", "avx512-vnni"}
    assert evaluate("gate", str(two_cpus), "--policy", str(tmp_path / "made.toml")).returncode == 0
    evaluate("gate", "init", str(results), "-o", str(tmp_path / "unknown.toml"))
    assert read_policy(str(tmp_path / "unknown.toml")).cpu is None


def test_a_policy_that_is_made_where_nobody_knows_the_cpu_can_be_read(tmp_path):
    folder = write_results(tmp_path / "r", {"test": BASE}, {"int8": {"views": {"test": GOOD}}}, cpu="riscv64")
    evaluate("gate", "init", str(folder), "-o", str(tmp_path / "made.toml"))
    assert evaluate("gate", str(folder), "--policy", str(tmp_path / "made.toml")).returncode == 0


def test_two_engines_of_one_name_are_refused(two_cpus, tmp_path):
    folder = shutil.copytree(two_cpus, tmp_path / "r")
    write_results(folder, {"test": BASE}, {"int8 (avx2)": {"views": {"test": GOOD}}}, cpu="avx512-vnni")
    assert_refused(evaluate("gate", str(folder), "--policy", "strict"), "two engines are called 'int8 (avx2)'")
