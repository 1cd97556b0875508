"""A run that times nothing keeps the speeds that the folder has of the same engine, and of no other."""

from __future__ import annotations

import csv

from support import DEMO_BUNDLE, evaluate

from clipq.evaluate.results.record import read_records


def test_speeds_are_kept_while_they_are_of_the_same_engine(tmp_path):
    def run(*options):
        done = evaluate("run", DEMO_BUNDLE, "--data", "demo:test:n=48", "-o", tmp_path, "--no-images", *options)
        assert done.returncode == 0, done.stderr
        (record,) = read_records(tmp_path)
        with (tmp_path / "results.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["view"].startswith("tower:") or not row["view"]]
        return done.stderr, record, rows

    _, timed, rows = run("--repeats", "3")
    assert timed.timed == "" and len(timed.latency) == 4 and any(row["metric"] == "latency_ms.p50" for row in rows)
    for _ in range(2):
        said, kept, same = run("--no-bench")
        assert (kept.latency, kept.census, same) == (timed.latency, timed.census, rows)
        assert (
            kept.timed == timed.created and f"bundle: latency, memory and kernels are kept from {timed.created}" in said
        )
    said, other, none = run("--no-bench", "--threads", "1")
    assert not (other.latency or other.census or other.timed or none) and "are kept from" not in said
