"""A busy machine: told by what is injected here, marked in records and rows, and never a verdict on speed."""

from __future__ import annotations

import csv
import json
import time
from collections import namedtuple
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from support import DEMO_BUNDLE, evaluate
from synthetic import predictions, write_results

from clipq.engines.latency import Latency
from clipq.engines.machine_load import MachineLoad, load_during
from clipq.evaluate.api import compare, read_results
from clipq.evaluate.bench import bench
from clipq.evaluate.bench.busy import busy_because
from clipq.evaluate.cells.subjects import gather_cohort
from clipq.evaluate.report.data import costs
from clipq.evaluate.results.record import LatencyRecord, LoadRecord, busy_note
from clipq.evaluate.settings import Settings

RNG = np.random.default_rng(0)


def times(median, spread=0.02, n=30):
    return tuple((median * RNG.normal(1, spread, n)).tolist())


def load(*others, cores=2):
    return LoadRecord(cores=cores, others=others or (0.0, 0.1, 0.0), mhz=(0, 0), throttled=0)


def timed(milliseconds, again=()):
    return LatencyRecord(tower="text", batch=8, milliseconds=milliseconds, again=again)


Times = namedtuple("Times", ("user", "idle"))
STILL = Times(0.0, 0.0)
QUIET = timed(times(1.0), times(1.0))
# Of 30 turns five were stopped for a time slice.
STOPPED = timed((*times(0.5, n=25), *times(8.0, n=5)))


@pytest.mark.parametrize(
    ("mine", "twice", "others", "threads", "why"),
    [
        (timed(times(0.5)), QUIET, load(), 0, ""),
        (timed(times(0.5)), QUIET, load(0.0, 1.9, 0.0), 0, "1.9 while"),
        (timed(times(0.5)), QUIET, load(1.0, 0.0, 0.0), 0, "1.0 of 2 cores before"),
        (timed(times(0.5)), QUIET, load(0.0, 0.0, 1.0), 2, "1.0 after"),
        # On one of two cores there is room for one other.
        (timed(times(0.5)), QUIET, load(0.9, 0.9, 0.9), 1, ""),
        (timed(times(0.5)), QUIET, load(2.0, 2.0, 2.0), 1, "2.0 of 2 cores"),
        (timed(times(0.5)), QUIET, load(50, 50, 50, cores=64), 8, ""),
        (timed(times(0.5)), QUIET, load(60, 60, 60, cores=64), 8, "60.0 of 64 cores"),
        # More threads than cores leave none free.
        (timed(times(0.5)), QUIET, load(1.0, 1.0, 1.0), 16, "1.0 of 2 cores"),
        (timed(times(0.5)), timed(times(1.0), times(1.5)), load(), 0, "copies of the reference took 1."),
        (timed(times(0.5)), timed(times(1.5), times(1.0)), load(), 0, "copies of the reference took 0."),
        (timed(times(0.5)), timed(times(1.0), times(1.05)), load(), 0, ""),
        (STOPPED, QUIET, load(), 0, "p90 is"),
        (timed(times(0.5)), STOPPED, load(), 0, "the reference's p90 is"),
        (timed(times(0.5)), timed(times(1.0)), load(), 0, ""),
        # Where the system does not tell the load, the other signs are left.
        (timed(times(0.5)), QUIET, None, 0, ""),
        (STOPPED, QUIET, None, 0, "p90 is"),
    ],
)
def test_what_tells_a_busy_machine(mine, twice, others, threads, why):
    said = busy_because(mine, twice, others, threads)
    assert why in said and bool(why) == bool(said), said


class FakeEngine:
    """An engine that nothing is asked of, for times are injected."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture
def injected(monkeypatch):
    """Times two engines on a machine of which each attempt finds what is given next; returns how."""

    def time_them(*attempts):
        left, opened = list(attempts), []
        cohort = gather_cohort([DEMO_BUNDLE], Settings(pixels=None))
        (one,) = cohort.subjects
        names = ("fp32", "int8")
        subjects = [
            SimpleNamespace(
                label=name, bundle=one.bundle, threads=0, device="cpu",
                open=lambda tower, name=name: opened.append(name) or FakeEngine(),
            )
            for name in names
        ]  # fmt: skip

        def measured(engines, feeds, *, warmup, repeats):
            ratio = left[0][1]
            assert opened == [*names, "fp32"] and len(engines) == 3
            of = {"fp32": times(1.0), "int8": times(ratio)}
            return {name: [Latency(1, of.get(name, times(1.0)))] for name in engines}

        def watched(work):
            result = work()
            return result, MachineLoad(2, (left[0][0],) * 3, (0.0, 0.0), 0.0), left.pop(0)

        monkeypatch.setattr(bench, "measure_latency", measured)
        monkeypatch.setattr(bench, "load_during", lambda work: watched(work)[:2])
        return bench.time_subjects(subjects, ["text"], bench.BenchSettings(batches=(1,))), left

    return time_them


def test_a_busy_tower_is_timed_once_more_and_says_so(injected):
    found, left = injected((2.0, 0.03), (0.1, 0.5))
    (one,), (base,) = found["int8"], found["fp32"]
    assert not left and (one.busy, one.attempts) == ("", 2) and one.over(base)[0] == pytest.approx(0.5, rel=0.05)
    assert one.load.others == (0.1, 0.1, 0.1) and len(base.again) == 30 and not one.again
    found, left = injected((0.1, 0.5), (0.1, 0.5))
    assert len(left) == 1 and found["int8"][0].attempts == 1, "a quiet machine times once"


def test_a_machine_that_stays_busy_never_passes(injected):
    """Whatever ratio it gives: twenty tries, all marked."""
    for ratio in np.linspace(0.03, 2, 20):
        found, left = injected((1.5, ratio), (1.8, ratio))
        assert not left and all(one.busy and one.attempts == 2 for rows in found.values() for one in rows)


def test_what_was_timed_on_a_busy_machine_is_timed_again_by_the_next_run(tmp_path, monkeypatch):
    busy, calls = ["others"], []

    def times_them(subjects, *_):
        calls.append(1)
        row = LatencyRecord(tower="image", batch=1, milliseconds=(1.0,), busy=busy[0])
        return {one.label: [row] for one in subjects}

    monkeypatch.setattr(bench, "_bench_alone", lambda *_: bench.SubjectBench(latency=(), census=()))
    monkeypatch.setattr(bench, "time_subjects", times_them)
    subjects = gather_cohort([DEMO_BUNDLE], Settings(pixels=None)).subjects
    for busy[0], expected in (("others", 1), ("", 2), ("others", 2)):
        bench.bench(subjects, bench.BenchSettings(), tmp_path, lambda what: None)
        assert len(calls) == expected


def test_load_is_of_others():
    """This process computes and others may, but never more than there are cores."""
    result, found = load_during(lambda: sum(range(3_000_000)))
    assert result == sum(range(3_000_000)) and found.cores >= 1 and found.throttled >= 0
    assert all(0 <= one <= found.cores + 1 for one in found.others)


def missing(percpu):
    raise FileNotFoundError(2, "No such file or directory", "/proc/stat")


@pytest.mark.parametrize("told", [missing, lambda percpu: [], lambda percpu: [STILL, STILL]])
def test_a_load_that_the_system_does_not_tell_is_not_known(monkeypatch, told):
    """Of a sandbox: no table, an empty one, or (gVisor) one that stands still."""
    monkeypatch.setattr("psutil.cpu_times", told)
    assert load_during(lambda: 7) == (7, None)


def test_cores_are_all_listed_ones_where_their_places_are_not_their_numbers(monkeypatch):
    """A container on cores 4 and 5 of its host, whose system lists two: nobody else's."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 5}, raising=False)
    monkeypatch.setattr("psutil.cpu_times", lambda percpu: [Times(time.time(), time.time())] * 2)
    _, found = load_during(lambda: None)
    assert found.cores == 2 and found.others[0] == pytest.approx(2, abs=0.5)


def test_what_the_references_times_say_nothing_of_says_nothing_beside_them(monkeypatch):
    """An engine on a GPU wants one core, its reference on the CPU all: a ratio of the two is no better than the worse."""

    @contextmanager
    def opened(tower):
        yield FakeEngine()

    (one,) = gather_cohort([DEMO_BUNDLE], Settings(pixels=None)).subjects
    subjects = [
        SimpleNamespace(label=name, device=device, threads=0, bundle=one.bundle, open=opened)
        for name, device in (("fp32", "cpu"), ("plan", "cuda"))
    ]
    monkeypatch.setattr(bench, "measure_latency", lambda engines, *_, **__: {
        name: [Latency(1, times(1.0))] for name in engines
    })  # fmt: skip
    monkeypatch.setattr(bench, "load_during", lambda work: (work(), MachineLoad(2, (0.8,) * 3, (0.0, 0.0), 0.0)))
    found = bench.time_subjects(subjects, ["text"], bench.BenchSettings(batches=(1,)))
    assert [one.busy[:18] for (one,) in found.values()] == ["other processes us"] * 2


@pytest.fixture
def marked(tmp_path):
    """A results folder in which INT8 took 0.03 of FP32 while the machine was busy."""
    base = predictions(400)
    folder = write_results(tmp_path / "r", {"test": base}, {"int8": {"views": {"test": base}, "milliseconds": 0.12}})
    for path in (folder / "records").glob("*.json"):
        found = json.loads(path.read_text())
        found["latency"][0]["busy"] = "other processes used 2.0 of 2 cores"
        for row in found["measurements"]:
            row["busy"] = row["metric"].startswith(("latency_ms", "throughput"))
        path.write_text(json.dumps(found))
    return folder


@pytest.mark.parametrize(
    "rule",
    [
        'metric = "latency_ms.p50"\nmax_ratio = 0.1', 'metric = "latency_ms.p50"\nmax_ratio = 0.01',
        'metric = "latency_ms.*"\nmax = 1000', 'metric = "throughput"\nmin_delta = 1\nconfidence = 0',
    ],
)  # fmt: skip
def test_the_gate_investigates_whatever_the_times_are(marked, tmp_path, rule):
    (tmp_path / "p.toml").write_text(f"[[rule]]\n{rule}\n")
    done = evaluate("gate", str(marked), "--policy", str(tmp_path / "p.toml"), "--json")
    findings = json.loads(done.stdout)["findings"]
    assert done.returncode == 3 and {one["state"] for one in findings} == {"investigate"}
    assert "machine was busy" in findings[0]["reason"] and "note: " in done.stderr
    # What is no time is judged as ever.
    (tmp_path / "p.toml").write_text('[[rule]]\nmetric = "file_bytes"\nview = "tower:image"\nmax = 1e9\n')
    assert evaluate("gate", str(marked), "--policy", str(tmp_path / "p.toml")).returncode == 0


def test_no_sentence_front_or_comparison_speaks_of_it(marked, tmp_path):
    results = read_results(marked)
    said = results.sentences()["int8"]
    assert "speed not known: the machine was busy" in said and "faster" not in said and "slower" not in said
    assert not any("p50" in cost["title"] for cost in costs(results.entries)) and costs(results.entries)
    note = next(one for one in results.notes if "busy" in one)
    assert note.startswith("fp32, int8: the machine was busy") and "time them again when nothing else runs" in note
    page, markdown = (results.report(tmp_path / name).read_text() for name in ("report.html", "report.md"))
    assert page.count("<td>machine was busy</td>") == 2 and all(
        "the machine was busy while" in one for one in (page, markdown)
    )
    compared = compare(results, results)._repr_markdown_()
    assert "unpaired | machine was busy |" in compared and "not judged" not in compared
    card = evaluate("card", str(marked), "-o", str(tmp_path / "card.md"))
    assert card.returncode == 0 and "machine was busy" in (tmp_path / "card.md").read_text(), card.stderr


def test_results_csv_has_a_column(tmp_path):
    done = evaluate(
        "run", str(DEMO_BUNDLE), "--data", "demo:test:n=96", "-o", str(tmp_path), "--repeats", "3", "--no-images"
    )
    assert done.returncode == 0, done.stderr
    (entry,) = read_results(tmp_path).entries
    busy = {(f"tower:{one.tower}", f"batch={one.batch}"): bool(one.busy) for one in entry.record.latency}
    assert all(len(one.again) == 3 and one.load is not None for one in entry.record.latency)
    with (tmp_path / "results.csv").open() as file:
        for row in csv.DictReader(file):
            timing = row["metric"].startswith(("latency_ms", "throughput"))
            assert row["busy"] == str(timing and busy[row["view"], row["group"]]).lower(), row
    assert ("the machine was busy" in done.stderr) == any(busy.values())


def test_records_without_evidence_are_not_marked():
    old = LatencyRecord(tower="image", batch=1, milliseconds=(1.0, 9.0, 1.0))
    assert old.busy == "" and old.load is None and old.twice() is None and busy_note({"int8": [old]}) == ""
