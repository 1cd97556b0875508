"""Records of earlier schemas are read, with what they said."""

from __future__ import annotations

import json

import pytest
from support import evaluate
from synthetic import exact, predictions, worse, write_results

from clipq.evaluate.results.pairing import read_pairing
from clipq.evaluate.results.record import read_record, read_records

BASE = predictions(2000, accuracy=0.8)
NOW = ("test-c", "", "mean_corruption_error")


@pytest.fixture
def schema_4(tmp_path):
    """A folder of the time when ``mce`` was two metrics, told apart by the unit: 0.1 and 1.05."""
    both = [exact("test", "", "mce", 0.1), exact("test-c", "", "mce", 1.05, "ratio")]
    folder = write_results(tmp_path / "old", {"test": BASE}, {"good": {"views": {"test": worse(BASE, 0.001)}, "extra": both}})  # fmt: skip
    for path in (folder / "records").glob("*.json"):
        found = json.loads(path.read_text()) | {"schema_version": 4}
        for row in found["measurements"]:
            # Today's table would cut the interval of the one that is a ratio where a fraction ends.
            row |= {"low": row["value"], "high": row["value"]} if row["unit"] == "ratio" else {}
        path.write_text(json.dumps(found))
    return folder


def test_two_metrics_of_one_name_become_two(schema_4):
    rows = {(row.view, row.metric): row.value for record in read_records(schema_4) for row in record.measurements}
    assert rows["test", "mce"] == 0.1 and rows[NOW[0], NOW[2]] == 1.05 and ("test-c", "mce") not in rows


def test_their_draws_are_found_under_the_new_name(schema_4):
    record = read_record(schema_4 / "records" / "good__ort-cpu.json")
    draws = read_pairing(schema_4, record).draws
    assert draws[NOW].value == 1.05 and draws["test", "", "mce"].value == 0.1


def test_a_rule_judges_one_of_them(schema_4, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text('[[rule]]\nmetric = "mce"\nmax = 0.5\n')
    done = evaluate("gate", str(schema_4), "--policy", str(policy), "--json")
    found = json.loads(done.stdout)["findings"]
    assert done.returncode == 0, done.stderr
    assert [(one["view"], one["value"]) for one in found] == [("test", 0.1)]
