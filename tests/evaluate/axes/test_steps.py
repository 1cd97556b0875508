"""How axes are called: which is asked about what, and what it takes to add one."""

from __future__ import annotations

import csv
import typing

import pytest
from photos import image_folder
from support import DEMO_BUNDLE

from clipq.errors import ClipqError
from clipq.evaluate.axes import measure
from clipq.evaluate.axes.reading import Found, answers_of
from clipq.evaluate.results.estimates import accuracy_estimate
from clipq.evaluate.run import evaluate
from clipq.evaluate.settings import Settings
from clipq.evaluate.suites.schema import CorruptionsEntry, Role, Suite, TransferEntry, ViewEntry
from clipq.evaluate.verdicts.headline import title
from clipq.progress import Progress


def test_every_role_and_table_of_a_suite_has_an_axis():
    measured = {word for words, _ in measure.STEPS for word in words}
    assert measured == {*typing.get_args(Role), "corruptions", "transfer", "square"}


def test_an_axis_is_a_function_and_a_row(tmp_path, monkeypatch):
    """A toy axis, top-1 of what an engine is sure of, comes out in results.csv after the others."""

    def measure_sure(reading):
        predictions, view = reading.once(answers_of).predictions, reading.asked.view.name
        sure = predictions.correct[predictions.confidence > 0.5]
        return Found([accuracy_estimate(sure, metric="acc1", view=view, group="sure", seed=reading.suite.seed)])

    monkeypatch.setattr(measure, "STEPS", (*measure.STEPS, (("in-distribution",), measure_sure)))
    views = ViewEntry(source="demo:test", samples=96), ViewEntry(source="demo:textures", samples=72, role="far-ood")
    evaluate([DEMO_BUNDLE], Suite(view=views), tmp_path, Settings(), given={}, progress=Progress())
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    (row,) = (row for row in rows if row["group"] == "sure")
    assert row["view"] == "demo-test" and 0.5 < float(row["value"]) <= 1 and 0 < int(row["n"]) <= 96
    assert [row["group"] for row in rows if row["view"] == "demo-test" and row["group"] != "far"][-1] == "sure"


def test_n_counts_each_sample_that_a_number_rests_on_once(tmp_path):
    """Of averages over several sets, and of what is made of some samples alone."""
    root = tmp_path / "set"
    image_folder(root, each=8)
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    site = ["a", "b", "b", "c", "a", "b", "b", "a"]
    lines = [f"{file},{file.split('/')[0]},{site[place % 8]}\n" for place, file in enumerate(files)]
    (root / "labels.csv").write_text("file,label,site\n" + "".join(lines))
    views = (
        ViewEntry(source=str(root / "labels.csv"), name="in", groups=("site",), smallest_group=9),
        ViewEntry(source="demo:unseen-shapes", name="near", samples=6, role="near-ood"),
        ViewEntry(source="demo:textures", name="nearer", samples=5, role="near-ood"),
        ViewEntry(source="demo:textures", name="far", samples=4, role="far-ood"),
    )
    corruptions = CorruptionsEntry(of="in", names=("fog", "contrast"), severities=(5,), samples=10)
    attack = TransferEntry(source=DEMO_BUNDLE.parent / "attack")
    suite = Suite(view=views, corruptions=(corruptions,), transfer=(attack,))
    (record,) = evaluate([DEMO_BUNDLE], suite, tmp_path / "r", Settings(), given={}, progress=Progress())
    n = {row.key: row.n for row in record.measurements}
    assert n["near", "near", "auroc.mcm"] == 24 + 6 and n["in", "near", "auroc.mcm"] == 24 + 6 + 5
    # Of averages of several in-distribution sets, each says whose it is.
    (near,) = (title(row) for row in record.measurements if row.key == ("in", "near", "auroc.mcm"))
    assert near == "in, near OOD: AUROC, mcm"
    assert n["in", "far", "auroc.mcm"] == n["far", "far", "auroc.mcm"] == 24 + 4
    # Of site c there are three samples.
    assert n["in", "site", "group_gap.acc1"] == n["in", "site", "equalized_odds_difference"] == 21
    assert n["pgd", "pgd/1", "robust_acc1"] == 96
    # Of images on which it fools the model that it was made for.
    assert 0 < n["pgd", "pgd/1", "attack_success"] < n["pgd", "pgd/2", "attack_success"] < 96
    assert n["in-c", "", "corruption_ece"] == n["in-c", "", "corruption_acc1"] == 10


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"batch": 257}, {"batch": "fast"}, {"threads": -1}])
def test_settings_that_cannot_be_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ClipqError, match=f"{name} {value!r}: give"):
        Settings(**wrong)


def test_cells_lie_in_the_results_folder_unless_elsewhere(tmp_path):
    assert Settings().within(tmp_path).cells == str(tmp_path / "cells")
    assert Settings(cells="/elsewhere").within(tmp_path).cells == "/elsewhere"
    assert Settings(cells="s3://study/one").within(tmp_path).cells == "s3://study/one"
