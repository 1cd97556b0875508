"""How often a busy machine is told from a quiet one, and whether it ever passes a latency rule by chance.

Beside the timing of two bundles (FP32 first) run no process, one or two that compute without end, or one that computes
every other moment. Every try is a timing as ``run`` makes one. With --gate each try is ``clipq-eval run`` and then
``gate`` with a rule that no honest time passes. What else runs on the machine counts too: run it on an idle one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from clipq.bundle import TOWERS
from clipq.engines.latency import measure_latency
from clipq.evaluate.bench.bench import BenchSettings, plausible_feed, time_subjects
from clipq.evaluate.bench.busy import MOST_APART, MOST_OTHERS, MOST_SPREAD
from clipq.evaluate.cells.subjects import Cohort, gather_cohort
from clipq.evaluate.results.record import LatencyRecord
from clipq.evaluate.settings import Settings

SPIN = "while True: pass"
# Computes for half of the time, in parts of so many seconds.
NOW_AND_THEN = "import time\nwhile True:\n end = time.time() + {0}\n while time.time() < end: pass\n time.sleep({0})"
BESIDE = {
    "nothing": [],
    "one spinning": [SPIN],
    "two spinning": [SPIN, SPIN],
    "one, 0.3 s of 0.6": [NOW_AND_THEN.format(0.3)],
    "one, 20 ms of 40": [NOW_AND_THEN.format(0.02)],
}
EVALUATE = (sys.executable, "-m", "clipq.evaluate.cli")
# A third of what INT8 takes of FP32's time on a quiet machine.
POLICY = """[[rule]]
metric = "latency_ms.p50"
bundle = "int8*"
max_ratio = {limit}
"""


@contextmanager
def beside(programs: Sequence[str]) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", program]) for program in programs]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def one_try(cohort: Cohort) -> list[dict]:
    """A row for each engine, tower and batch: its ratio and what speaks for a busy machine."""
    found = time_subjects(cohort.subjects, TOWERS, BenchSettings(), reference=cohort.reference)
    bases = found[cohort.reference.label]
    return [
        {"label": label, "place": f"{row.tower} {row.batch}", "ratio": row.over(base)[0], **evidence(row, base)}
        for label, rows in found.items()
        for row, base in zip(rows, bases, strict=True)
    ]


def evidence(row: LatencyRecord, base: LatencyRecord) -> dict:
    ratio, low, high = base.twice()
    apart = max(low - 1, 1 / high - 1)
    spread = max(np.percentile(one.milliseconds, 90) / np.median(one.milliseconds) for one in (row, base))
    return {
        "others": max(row.load.others), "during": row.load.others[1], "apart": apart, "again": ratio,
        "spread": float(spread), "busy": row.busy, "attempts": row.attempts,
    }  # fmt: skip


def report(what: str, tries: Sequence[Sequence[dict]]) -> str:
    rows = [row for rows in tries for row in rows]
    share = {
        "others": np.mean([row["others"] > MOST_OTHERS for row in rows]),
        "apart": np.mean([row["apart"] > MOST_APART for row in rows]),
        "spread": np.mean([row["spread"] > MOST_SPREAD for row in rows]),
    }
    marked = [any(row["busy"] for row in one) for one in tries]
    all_marked = [all(row["busy"] for row in one) for one in tries]
    others = [max(row["others"] for row in one) for one in tries]
    left = [row["ratio"] for row in rows if not row["busy"] and row["label"].startswith("int8")]
    span = f"{min(left):.2f} to {max(left):.2f}" if left else ""
    cells = [
        what, str(len(tries)), f"{np.mean(all_marked):.0%}", f"{np.mean(marked):.0%}",
        f"{np.mean([bool(row['busy']) for row in rows]):.0%}", *(f"{one:.0%}" for one in share.values()),
        f"{np.median(others):.2f} [{min(others):.2f}, {max(others):.2f}]", span,
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def alone(cohort: Cohort) -> Iterator[str]:
    """The ratio of medians where each engine is timed by itself, beside that of turns: they should be one."""
    settings = BenchSettings()
    together = time_subjects(cohort.subjects, TOWERS, settings, reference=cohort.reference)
    for tower in TOWERS:
        feeds = [plausible_feed(cohort.subjects[0].bundle, tower, batch) for batch in settings.batches]
        medians = {}
        for subject in cohort.subjects:
            with subject.open(tower) as engine:
                rounds = [{"one": feed} for feed in feeds]
                timed = measure_latency({"one": engine}, rounds, warmup=settings.warmup, repeats=settings.repeats)
            medians[subject.label] = {one.batch: one.percentile(50) for one in timed["one"]}
        base = cohort.reference.label
        for label in medians.keys() - {base}:
            for row, other in zip(together[label], together[base], strict=True):
                if row.tower == tower:
                    ratio = medians[label][row.batch] / medians[base][row.batch]
                    yield f"{label}, {tower} tower, batch {row.batch}: alone {ratio:.2f}, in turns {row.over(other)[0]:.2f}"


def gated(bundles: Sequence[Path], folder: Path, limit: float) -> tuple[str, list[str]]:
    """What the gate says of one evaluation, and the ratios it saw."""
    for stored in (folder / "results" / "bench").glob("*.json"):
        stored.unlink()
    run = (
        *EVALUATE,
        "run",
        *map(str, bundles),
        "--data",
        "demo:test:n=48",
        "-o",
        str(folder / "results"),
        "--no-images",
    )
    subprocess.run(run, check=True, capture_output=True)
    policy = folder / "policy.toml"
    policy.write_text(POLICY.format(limit=limit))
    gate = (*EVALUATE, "gate", str(folder / "results"), "--policy", str(policy), "--json")
    done = subprocess.run(gate, check=False, capture_output=True, text=True)
    states = Counter(one["state"] for one in json.loads(done.stdout)["findings"])
    return {0: "pass", 1: "fail", 3: "investigate"}[done.returncode], [f"{n} {state}" for state, n in states.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path, help="the FP32 bundle and int8 ones")
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--beside", action="append", choices=BESIDE, help="repeatable; default: all")
    parser.add_argument("--gate", type=float, metavar="RATIO", help="run and gate with this max_ratio instead")
    parser.add_argument("--alone", action="store_true", help="compare with engines timed alone instead, beside nothing")
    parser.add_argument("-o", "--output", type=Path, help="JSON of every row")
    options = parser.parse_args()
    found = {}
    cohort = gather_cohort(options.bundles, Settings(pixels=None))
    chosen = options.beside or list(BESIDE)
    if options.alone:
        print("\n".join(alone(cohort)))
    elif options.gate is not None:
        with tempfile.TemporaryDirectory() as folder:
            for what in chosen:
                with beside(BESIDE[what]):
                    outcomes = [gated(options.bundles, Path(folder), options.gate) for _ in range(options.tries)]
                found[what] = outcomes
                print(
                    f"{what}: {dict(Counter(outcome for outcome, _ in outcomes))} of {options.tries} tries", flush=True
                )
    else:
        print("| beside it | tries | all marked | any marked | rows marked | by load | by A/A | by p90 ÷ p50 | cores of "
              "others | INT8 ÷ FP32, unmarked |\n" + "|---" * 10 + "|")  # fmt: skip
        for what in chosen:
            with beside(BESIDE[what]):
                found[what] = [one_try(cohort) for _ in range(options.tries)]
            print(report(what, found[what]), flush=True)
    if options.output:
        options.output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
