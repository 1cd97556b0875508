"""Names of bundles, data sets, columns and classes are others' text: nowhere do they become a command or a formula."""

from __future__ import annotations

import csv
import io

import pytest
from support import evaluate
from synthetic import exact, predictions, record, worse, write_results

from clipq.evaluate.report.ci import as_annotations
from clipq.evaluate.report.terminal import print_summary
from clipq.evaluate.results.folders import read_results
from clipq.evaluate.results.record import csv_name, csv_text
from clipq.evaluate.verdicts.gate import Finding

BASE = predictions(200, accuracy=0.8)
FORMULAS = ["=1+1", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1", "'=1", "''=1", "=cmd|' /C calc'!A0"]
STEERING = "\x1b[2J\x1b]0;mine\x07\x9b31m\u202e:boom:[/x]"


@pytest.mark.parametrize("name", FORMULAS)
def test_a_name_is_no_formula_and_is_read_back(name):
    cell = csv_text(name)
    assert cell[0] == "'" and csv_name(cell) == name


@pytest.mark.parametrize("name", ["int8", "light=day", "it's", "'tis", "''", "", "1.5", "a-b"])
def test_other_names_stay_as_they_are(name):
    assert csv_text(name) == name == csv_name(name)


def test_cells_of_results_csv(tmp_path):
    names = ["=1+1", "@SUM(A1)"]
    group = [exact("-view", "+col=x", "acc1", 0.5)]
    folder = write_results(tmp_path / "r", {"-view": BASE}, {name: {"views": {"-view": worse(BASE, 0.1)}, "extra": group} for name in names})  # fmt: skip
    done = evaluate("report", str(folder), "--format", "csv", "-o", str(tmp_path / "x.csv"))
    assert done.returncode == 0, done.stderr
    for path in (folder / "results.csv", tmp_path / "x.csv"):
        rows = list(csv.DictReader(path.open(newline="")))
        known = {(row.bundle, row.view, row.group) for entry in read_results([folder]) for row in entry.rows.values()}
        assert {(csv_name(row["bundle"]), csv_name(row["view"]), csv_name(row["group"])) for row in rows} == known
        assert not any(row[column][:1] in tuple("=+-@") for row in rows for column in ("bundle", "view", "group"))
        # Numbers are numbers, whatever they begin with.
        assert any(float(row["delta"]) < 0 for row in rows if row["delta"])


def test_no_name_steers_the_terminal(tmp_path):
    group = [exact(STEERING, "race=x", "acc1", 0.5)]
    name = STEERING.replace("/", "")
    folder = write_results(tmp_path / "r", {STEERING: BASE}, {name: {"views": {STEERING: worse(BASE, 0.1)}, "extra": group, "milliseconds": 2.0}})  # fmt: skip
    policy = tmp_path / "policy.toml"
    policy.write_text('[[rule]]\nmetric = "acc1"\nmin = 0.99\n')
    for command in (("gate", folder, "--policy", policy, "--github"), ("compare", folder, folder)):
        done = evaluate(*map(str, command))
        said = done.stdout + done.stderr
        assert done.returncode in (0, 1, 3) and "[2J" in said, said
        assert not set(said) & set("\x1b\x07\x9b\u202e\r"), said
    assert ":boom:" in evaluate("compare", str(folder), str(folder)).stdout


def test_a_name_makes_no_annotation_of_its_own():
    (line, _) = as_annotations([Finding("a\n::error::b\u2028c", "r", "fail", "x\r::set-output::y")])
    assert len(line.splitlines()) == 1


def test_a_summary_where_every_engine_failed(capsys):
    print_summary([record(f"[bold]{STEERING}", {}, reference="fp32", failed=STEERING)[0]])
    said = capsys.readouterr().out
    assert "failed and was not measured" in said and "\x1b" not in said
    print_summary([])


def test_a_summary_shows_names_as_they_are(capsys):
    base = record("[/x]fp32", {"[/v]": BASE}, recipe="fp32")[0]
    print_summary([base.model_copy(update={"environment": {"cpu": "[/cpu]"}})])
    said = capsys.readouterr().out
    assert "[/x]fp32" in said and "[/v]: 200 images" in said and "Δ against [/x]fp32" in said


def test_a_bar_shows_a_name_as_it_is(monkeypatch):
    from rich.console import Console

    from clipq import progress

    stream = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda **_: Console(file=stream, force_terminal=True, width=200))
    with progress._terminal_bars() as bars:
        bars.start(f"[/x]{STEERING}", 10)
        bars.advance(10)
    assert "[/x]" in stream.getvalue() and "\x1b]0" not in stream.getvalue()
