"""Predictions alone, of an engine that runs elsewhere: measured where probabilities are enough, absent and said where not."""

from __future__ import annotations

import csv
import json
from importlib.util import find_spec

import numpy as np
import pytest
from support import DEMO_BUNDLE, assert_refused, evaluate

from clipq.bundle import open_bundle
from clipq.data.open import open_view
from clipq.engines.catalog import open_engine
from clipq.evaluate.cells.cells import BatchSize, class_embedding, run_on_pixels, unit
from clipq.evaluate.results.record import csv_text, read_records
from clipq.tokenizer import TextTokenizer

SUITE = """
[[view]]
name = "test"
source = "demo:test"
groups = ["light", "size"]
samples = 60
[[view]]
name = "outline"
source = "demo:outline"
role = "shifted"
samples = 40
[[view]]
name = "unseen-shapes"
source = "demo:unseen-shapes"
role = "near-ood"
samples = 40
[[view]]
name = "captions"
source = "demo:test"
role = "retrieval"
samples = 40
[[corruptions]]
of = "test"
names = ["occlusion_random"]
severities = [3]
samples = 30
"""


def command(*arguments):
    done = evaluate(*map(str, arguments))
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A suite exported, and FP32's own probabilities of every view, in rows and columns of another order."""
    root = tmp_path_factory.mktemp("predictions")
    (root / "suite.toml").write_text(SUITE)
    command("cells", "export", DEMO_BUNDLE, "--suite", root / "suite.toml", "-o", root / "work")
    bundle = open_bundle(DEMO_BUNDLE)
    tokenizer, templates = TextTokenizer(bundle), bundle.prompts.templates["imagenet-80"]
    pixels = np.load(root / "work" / "images.npy")
    with open_engine(bundle, "image", "ort-cpu") as engine:
        images = unit(run_on_pixels(engine, pixels, bundle.manifest.preprocess, BatchSize(1)))
    labels = open_view("demo:test", "labels").classes.names
    with open_engine(bundle, "text", "ort-cpu") as engine:
        prompts = [[template.replace("{}", name) for template in templates] for name in labels]
        classes = np.stack([class_embedding(engine, tokenizer(texts), BatchSize(1)) for texts in prompts])
    logits = bundle.manifest.logit_scale * (images @ classes.T).astype(np.float64)
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    np.savez(root / "all.npz", probabilities=probabilities, classes=np.array(labels))
    rows = list(csv.DictReader((root / "work" / "images.csv").open()))
    for view in {row["view"] for row in rows}:
        mine = [row for row in rows if row["view"] == view]
        save(root / f"{view.replace('/', '-')}.csv", labels, [row["id"] for row in mine],
             probabilities[[int(row["row"]) for row in mine]])  # fmt: skip
    return root


def save(path, labels, ids, probabilities, columns=None, extra=()):
    rng = np.random.default_rng(0)
    order, places = rng.permutation(len(ids)), rng.permutation(len(labels)) if columns is None else columns
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", *(csv_text(labels[place]) for place in places), *extra])
        writer.writerows([ids[row], *map(repr, probabilities[row, places].tolist())] for row in order)


def load(path):
    """What was saved, in the file's order: labels, ids, probabilities."""
    head, *rows = csv.reader(path.open())
    return head[1:], [row[0] for row in rows], np.array([[float(one) for one in row[1:]] for row in rows])


def imported(folder, output, *views):
    asked = [flag for one in views for flag in ("--predictions", str(one))]
    return evaluate("cells", "import", str(folder / "work"), *asked, "--ran-on", "a server", "-o", str(output))


def rows_of(results, bundle):
    rows = csv.DictReader((results / "results.csv").open())
    return {(row["view"], row["group"], row["metric"]): row for row in rows if row["bundle"] == bundle}


def test_probabilities_are_enough_for_what_takes_no_embeddings(folder, tmp_path):
    work = json.loads((folder / "work" / "clipq-work.json").read_text())
    views = [one["name"] for one in work["views"] if one["labels"]]
    done = imported(folder, tmp_path / "server", *(f"{one}={folder}/{one.replace('/', '-')}.csv" for one in views))
    assert done.returncode == 0, done.stderr
    command(
        "run", DEMO_BUNDLE, tmp_path / "server", "--suite", folder / "suite.toml", "--batch-size", 1,
        "-o", tmp_path / "out", "--no-bench",
    )  # fmt: skip
    mine, theirs = rows_of(tmp_path / "out", "server"), rows_of(tmp_path / "out", "bundle")
    for key, row in mine.items():
        if key in theirs:
            # Softmax was taken by another program.
            assert float(row["value"]) == pytest.approx(float(theirs[key]["value"]), abs=1e-6), key
    found = {metric for _, _, metric in mine}
    assert {"acc1", "ece", "nll", "agreement", "auroc.msp", "auroc.entropy", "corruption_acc1", "relative_drop.acc1",
            "group_gap.acc1"} <= found  # fmt: skip
    assert not {"cosine", "auroc.mcm", "auroc.energy", "ece_tuned", "text_retrieval_recall@1"} & found
    assert float(mine["test", "", "agreement"]["value"]) == 1
    (record,) = (one for one in read_records(tmp_path / "out") if one.bundle.ran_on)
    assert record.unanswered == {"captions (retrieval)": "it takes embeddings, and predictions alone came back"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "server: not measured: captions (retrieval)" in page
    # Whatever is not timed anew is read as it stands, with an engine that has fewer views than others.
    command(
        "run", DEMO_BUNDLE, "--suite", folder / "suite.toml", "--batch-size", 1, "-o", tmp_path / "out", "--no-bench"
    )
    assert len(read_records(tmp_path / "out")) == 2


def test_one_view_alone(folder, tmp_path):
    done = imported(folder, tmp_path / "server", f"test={folder}/test.csv")
    assert "no predictions came back: outline, unseen-shapes" in done.stderr
    command(
        "run", DEMO_BUNDLE, tmp_path / "server", "--suite", folder / "suite.toml", "-o", tmp_path / "out", "--no-bench"
    )
    assert {view for view, _, _ in rows_of(tmp_path / "out", "server")} == {"test"}
    (record,) = (one for one in read_records(tmp_path / "out") if one.bundle.ran_on)
    assert [one.partition(" (")[0] for one in record.unanswered] == ["outline", "unseen-shapes", "captions", "test"]
    # Other images, or none of it: nothing is guessed.
    done = evaluate(
        "run", str(tmp_path / "server"), "--data", "x=demo:test:n=96", "-o", str(tmp_path / "other"), "--no-bench"
    )
    assert_refused(done, "predictions came back of none of these views", "export the cells again")


def test_npz_and_parquet_and_rows_in_order(folder, tmp_path):
    labels, ids, probabilities = load(folder / "test.csv")
    listed = [row["id"] for row in csv.DictReader((folder / "work" / "images.csv").open()) if row["view"] == "test"]
    ordered = probabilities[[ids.index(one) for one in listed]]
    np.savez(tmp_path / "ids.npz", probabilities=probabilities, ids=np.array(ids), classes=np.array(labels))
    np.savez(tmp_path / "order.npz", probabilities=ordered, classes=np.array(labels),
             predicted=np.array(labels)[ordered.argmax(1)])  # fmt: skip
    files = [tmp_path / "ids.npz", tmp_path / "order.npz"]
    if find_spec("pyarrow"):
        import pandas as pd

        frame = pd.DataFrame(probabilities, columns=labels).assign(id=ids)
        frame.to_parquet(tmp_path / "p.parquet")
        files.append(tmp_path / "p.parquet")
    digests = set()
    for file in [folder / "test.csv", *files]:
        done = imported(folder, tmp_path / "server", f"test={file}")
        assert done.returncode == 0, done.stderr
        digests.add(open_bundle(tmp_path / "server").manifest.image.sha256)
    assert len(digests) == 1
    # Columns by number are in the order of the labels.
    own = json.loads((folder / "work" / "clipq-work.json").read_text())["views"][0]["labels"]
    inside = probabilities[:, [labels.index(one) for one in own]]
    np.savez(tmp_path / "n.npz", probabilities=inside, ids=np.array(ids), classes=np.arange(len(own)))
    assert imported(folder, tmp_path / "server", f"test={tmp_path}/n.npz").returncode == 0
    assert open_bundle(tmp_path / "server").manifest.image.sha256 in digests


def broken(folder, path, how):
    labels, ids, probabilities = load(folder / "test.csv")
    changed, extra = probabilities.copy(), ()
    if how == "logits":
        changed = changed * 30
    elif how == "negative":
        changed[3, :2] += (-0.5 - changed[3, 0], 0.5 + changed[3, 0])
    elif how == "sum":
        changed[4] *= 0.9
    elif how == "nan":
        changed[5, 0] = np.nan
    elif how == "missing":
        ids, changed = ids[:-1], changed[:-1]
    elif how == "unknown":
        ids = [*ids[:-1], "nobody"]
    elif how == "duplicate":
        ids, changed = [*ids, ids[0]], np.concatenate([changed, changed[:1]])
    elif how == "class":
        labels = ["unicorn", *labels[1:]]
    elif how == "fewer":
        labels, changed = labels[:-1], changed[:, :-1] / changed[:, :-1].sum(1, keepdims=True)
    elif how == "twice":
        labels = [labels[1], *labels[1:]]
    save(path, labels, ids, changed, np.arange(len(labels)), extra)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("logits", ("above 1", "softmax")),
        ("negative", ("row", "below 0")),
        ("sum", ("does not sum to 1", "0.9")),
        ("nan", ("no number",)),
        ("missing", ("has no row of sample",)),
        ("unknown", ("has no row of sample",)),
        ("duplicate", ("is there 2 times",)),
        ("class", ("knows no class 'unicorn'",)),
        ("fewer", ("has no column of class",)),
        ("twice", ("two columns are called",)),
    ],
)
def test_predictions_that_cannot_be_are_refused(folder, tmp_path, how, words):
    broken(folder, tmp_path / "p.csv", how)
    assert_refused(imported(folder, tmp_path / "server", f"test={tmp_path}/p.csv"), *words)
    assert not (tmp_path / "server").exists()


def test_files_that_are_none_are_refused(folder, tmp_path):
    labels, ids, probabilities = load(folder / "test.csv")
    np.savez(tmp_path / "names.npz", p=probabilities)
    np.savez(tmp_path / "short.npz", probabilities=probabilities[:-1], classes=np.array(labels))
    np.savez(tmp_path / "objects.npz", probabilities=np.array([{}, {}], dtype=object))
    np.savez(tmp_path / "wrong.npz", probabilities=probabilities, ids=np.array(ids), classes=np.array(labels),
             predicted=np.array(labels)[probabilities.argmin(1)])  # fmt: skip
    (tmp_path / "cell.csv").write_text((folder / "test.csv").read_text().replace("0.", "zero.", 1))
    (tmp_path / "short.csv").write_text("id,a\nx\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "none.parquet").write_text("no table")
    for view, file, words in (
        ("tset", folder / "test.csv", ("no such view", "did you mean test?")),
        ("captions", folder / "test.csv", ("is not classified",)),
        ("test", tmp_path / "gone.csv", ("no such file",)),
        ("test", folder / "suite.toml", (".csv, .npz, .parquet",)),
        ("test", tmp_path / "names.npz", ("call the array probabilities",)),
        ("test", tmp_path / "short.npz", ("has 59 rows", "60 samples")),
        ("test", tmp_path / "objects.npz", ("cannot be read as npz",)),
        ("test", tmp_path / "wrong.npz", ("the columns in another order",)),
        ("test", tmp_path / "cell.csv", ("holds what is no number",)),
        ("test", tmp_path / "short.csv", ("has 1 cells, the header 2",)),
        ("test", tmp_path / "empty.csv", ("has no rows",)),
        ("test", tmp_path / "none.parquet", ("parquet",)),
    ):
        assert_refused(imported(folder, tmp_path / "server", f"{view}={file}"), *words)
    test = f"test={folder}/test.csv"
    assert_refused(imported(folder, tmp_path / "server", test, test), "given twice")
    assert_refused(imported(folder, tmp_path / "server", "test"), "VIEW=FILE")
    both = ("cells", "import", str(folder / "work"), "--predictions", test, "--images", "a", "--ran-on", "x")
    assert_refused(evaluate(*both, "-o", str(tmp_path / "server")), "--images", "leave one out")
    assert not (tmp_path / "server").exists()
