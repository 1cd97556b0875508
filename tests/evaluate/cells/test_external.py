"""Engines that run elsewhere: what is exported, what comes back, and that it is evaluated as the engine itself."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import time

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from safetensors.numpy import save_file
from support import DEMO_BUNDLE, assert_refused, evaluate, export

import clipq
from clipq.bundle import open_bundle
from clipq.engines.catalog import open_engine
from clipq.engines.external import pixels_of
from clipq.errors import BundleError, DataError, EngineError
from clipq.evaluate.cells.imported import parse_scheme
from clipq.evaluate.results.record import read_records
from clipq.preprocess import normalize

SUITE = """
[[view]]
name = "test"
source = "demo:test"
groups = ["light", "size"]
samples = 96
[[view]]
name = "outline"
source = "demo:outline"
role = "shifted"
samples = 48
[[view]]
name = "unseen-shapes"
source = "demo:unseen-shapes"
role = "near-ood"
samples = 48
[[view]]
name = "captions"
source = "demo:test"
role = "retrieval"
samples = 96
[[corruptions]]
of = "test"
names = ["gaussian_noise", "occlusion_random"]
severities = [3]
samples = 32
[[transfer]]
source = "builtin:demo"
[[square]]
of = "test"
queries = 10
samples = 8
[latency]
batches = [1]
repeats = 3
"""
PHONE = "QNN 2.26 on a Snapdragon 8 Gen 3, INT8"


def command(*arguments):
    done = evaluate(*map(str, arguments))
    assert done.returncode == 0, done.stderr
    return done


def answered(work, bundle):
    """What someone else's loop gives, who knows nothing but the work folder: ONNX Runtime, one row at a time."""
    said = json.loads((work / "clipq-work.json").read_text())["images"]
    mean, std = (np.array(said[name], np.float32) for name in ("mean", "std"))

    def tower(name, rows, prepare):
        session = onnxruntime.InferenceSession(bundle / f"{name}.onnx")
        (one,) = session.get_inputs()
        return np.concatenate([session.run(None, {one.name: prepare(rows[[row]])})[0] for row in range(len(rows))])

    def normal(pixels):
        scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    return tower("image", np.load(work / "images.npy"), normal), tower(
        "text", np.load(work / "tokens.npy"), lambda t: t
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A suite exported, the int8-dynamic engine of it, and what that answered."""
    root = tmp_path_factory.mktemp("external")
    (root / "suite.toml").write_text(SUITE)
    shutil.copytree(DEMO_BUNDLE, root / "fp32")
    done = export("quantize", str(root / "fp32"), "--recipe", "int8-dynamic", "-o", str(root / "here"))
    assert done.returncode == 0, done.stderr
    done = command("cells", "export", root / "fp32", "--suite", root / "suite.toml", "-o", root / "work", "--png")
    assert "left out: the Square attack" in done.stderr
    images, texts = answered(root / "work", root / "here" / "int8-dynamic")
    np.save(root / "images.npy", images)
    np.save(root / "texts.npy", texts)
    return root


def imported(folder, output, images=None, texts=None, *more):
    return evaluate(
        "cells", "import", str(folder / "work"), "--images", str(images or folder / "images.npy"),
        "--texts", str(texts or folder / "texts.npy"), "--ran-on", PHONE, *more, "-o", str(output),
    )  # fmt: skip


@pytest.fixture(scope="module")
def results(folder):
    """The engine by its answers, and the engine itself, each beside FP32 in a folder of its own."""
    done = imported(folder, folder / "there" / "int8-dynamic", None, None, "--scheme", "W8A8-integer")
    assert done.returncode == 0, done.stderr
    assert "not of unit length" in done.stderr and "cosine to fp32's 0.99" in done.stderr
    for place in ("there", "here"):
        command(
            "run", folder / "fp32", folder / place / "int8-dynamic", "--suite", folder / "suite.toml", "--batch-size", 1,
            "-o", folder / f"of-{place}", "--no-images",
        )  # fmt: skip
    return folder


def rows_of(results, bundle="int8-dynamic"):
    rows = csv.DictReader((results / "results.csv").open())
    return {(row["view"], row["group"], row["metric"]): row for row in rows if row["bundle"] == bundle}


def test_its_numbers_are_the_engines_own(results):
    """Every number but of the engine's speed and size, and of the Square attack, to the last digit."""
    there, here = rows_of(results / "of-there"), rows_of(results / "of-here")
    names = {"recipe", "runtime", "cpu"}
    for key, row in there.items():
        assert {k: v for k, v in row.items() if k not in names} == {
            k: v for k, v in here[key].items() if k not in names
        }, key
        assert (row["runtime"], row["cpu"], row["recipe"]) == ("external", "", "external")
    absent = {key for key in here if key not in there}
    assert len(there) > 100 and all(key[0] in ("", "tower:image", "tower:text") or "square" in key[1] for key in absent)


def test_nothing_of_its_speed_is_said(results):
    (one,) = (record for record in read_records(results / "of-there") if record.bundle.ran_on)
    assert one.place == f"external ({PHONE})" and one.bundle.file_bytes == 0
    assert not one.latency and not one.census and one.bundle.scheme.widths == "W8A8"
    assert one.unanswered == {"test (square)": "it asks an engine itself again and again, and this one ran elsewhere"}
    page = (results / "of-there" / "report.html").read_text()
    assert "Speed, memory and size: not measured here" in page and "Which kernels ran: not measured here" in page
    assert PHONE in page and "size and speed not measured here, for it runs elsewhere" in page
    for asked in (("bench",), ("inspect",)):
        done = evaluate(*asked, str(results / "there" / "int8-dynamic"))
        assert_refused(done, f"ran elsewhere ({PHONE})", "leave it out")


def test_it_is_judged_like_any_other(results, tmp_path):
    (tmp_path / "policy.toml").write_text('[[rule]]\nmetric = "acc1"\nview = "test"\nmin_delta = -0.5\n')
    judged = evaluate("gate", str(results / "of-there"), "--policy", str(tmp_path / "policy.toml"))
    assert judged.returncode == 0 and "pass" in judged.stdout
    compared = evaluate("compare", str(results / "of-here"), str(results / "of-there"))
    assert "int8-dynamic on external (QNN" in " ".join(compared.stdout.split()), compared.stdout
    command("card", results / "of-there", "-o", tmp_path / "CARD.md")
    assert f"run elsewhere: `{PHONE}`" in (tmp_path / "CARD.md").read_text()


def test_alone_and_as_the_reference(results, tmp_path):
    """Without FP32 beside it, and where others are compared with it."""
    engine = results / "there" / "int8-dynamic"
    command("run", engine, "--suite", results / "suite.toml", "--batch-size", 1, "-o", tmp_path / "alone")
    alone, beside = rows_of(tmp_path / "alone"), rows_of(results / "of-there")
    assert alone["test", "", "acc1"]["value"] == beside["test", "", "acc1"]["value"]
    command(
        "run", engine, results / "fp32", "--suite", results / "suite.toml", "--batch-size", 1,
        "--reference", "int8-dynamic", "-o", tmp_path / "reference",
    )  # fmt: skip
    fp32 = rows_of(tmp_path / "reference", "fp32")
    assert fp32["test", "", "acc1"]["reference"] == "int8-dynamic" and fp32["tower:image", "", "file_bytes"]["value"]


def test_each_image_comes_once_and_as_it_is(folder):
    work, pixels = folder / "work", np.load(folder / "work" / "images.npy", mmap_mode="r")
    listing = list(csv.DictReader((work / "images.csv").open()))
    of_view = {}
    for row in listing:
        of_view.setdefault(row["view"], []).append(int(row["row"]))
    # Captions are of the same images.
    assert of_view["captions"] == of_view["test"] and len(pixels) < len(listing)
    assert len({one.tobytes() for one in pixels}) == len(pixels) == max(int(row["row"]) for row in listing) + 1
    assert {"test/gaussian_noise/3", "test/occlusion_random/3", "pgd/2"} <= set(of_view)
    for row in (0, len(pixels) - 1):
        assert (np.asarray(Image.open(work / "png" / f"{row:08d}.png")) == pixels[row]).all()
    texts = json.loads((work / "texts.json").read_text())
    tokens, mask = np.load(work / "tokens.npy"), np.load(work / "attention-mask.npy")
    assert len(texts) == len(tokens) and len(set(texts)) == len(texts)
    # The built-in tokenizer pads with 0, behind the token that ends a text.
    assert (mask == (tokens != 0)).all() and mask.min() == 0
    said = json.loads((work / "clipq-work.json").read_text())
    assert said["images"]["rows"] == len(pixels) and said["bundle_digest"] == open_bundle(folder / "fp32").digest
    assert str(folder) not in json.dumps(said)


def test_what_was_never_asked_is_an_error_of_that_engine(results, tmp_path):
    done = evaluate(
        "run", str(results / "fp32"), str(results / "there" / "int8-dynamic"), "--data", "other=demo:test:n=200",
        "-o", str(tmp_path / "out"), "--no-bench",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (failed,) = (record for record in read_records(tmp_path / "out") if record.failed)
    assert "image tower on other" in failed.failed and "export the cells again with this suite" in failed.failed


def test_a_runtime_does_not_take_what_is_not_its_own(results):
    asked = ("--data", "demo:test:n=96", "-o", str(results / "none"))
    done = evaluate("run", str(results / "fp32"), "--runtime", "external", *asked)
    assert_refused(done, "holds ONNX files", "clipq-eval cells import")
    with pytest.raises(BundleError, match="holds answers of external"):
        open_engine(open_bundle(results / "there" / "int8-dynamic"), "image", "ort-cpu")
    done = export("quantize", str(results / "there" / "int8-dynamic"), "--recipe", "fp16", "-o", str(results / "none"))
    assert_refused(done, "holds answers")
    done = export("run", "demo", "--recipe", "fp16", "--runtime", "external", "-o", str(results / "none"))
    assert_refused(done, "runs elsewhere")
    grid = results / "grid.toml"
    grid.write_text('suite = "demo"\ncheckpoints = ["demo"]\nruntimes = ["external"]\n')
    assert_refused(evaluate("sweep", str(grid), "-o", str(results / "none")), "give bundles of clipq-eval cells import")
    assert not (results / "none").exists()


def test_pixels_are_found_again_whatever_mean_and_std_are():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    plain = open_bundle(DEMO_BUNDLE).manifest.preprocess
    for mean, std in (
        ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        ((0.48, 0.45, 0.4), (0.27, 0.26, 0.28)),
        ((10,) * 3, (1e4,) * 3),
    ):
        config = plain.model_copy(update={"mean": mean, "std": std})
        assert (pixels_of(normalize(pixels, config), config) == pixels).all()
    with pytest.raises(EngineError, match="no image"):
        pixels_of(np.full((1, 3, 8, 8), 0.1234, np.float32), plain)


@pytest.mark.parametrize("form", ["float16", "float64", "safetensors", "unit"])
def test_forms_that_are_taken(folder, tmp_path, form):
    images = np.load(folder / "images.npy")
    path = tmp_path / ("images.safetensors" if form == "safetensors" else "images.npy")
    if form == "safetensors":
        save_file({"image_embeds": images}, path)
    elif form == "unit":
        np.save(path, images / np.linalg.norm(images, axis=1, keepdims=True))
    else:
        np.save(path, images.astype(form))
    done = imported(folder, tmp_path / "engine", path)
    assert done.returncode == 0, done.stderr
    given = open_bundle(tmp_path / "engine").manifest.image.answers
    assert given.unit_length == (form == "unit") and given.dtype == (form if "float" in form else "float32")


BROKEN = {
    "short": (lambda a: a[:-1], ("want", "a row for each row")),
    "narrow": (lambda a: a[:, :7], ("projected embedding",)),
    "transposed": (lambda a: a.T, ("transposed",)),
    "hidden": (lambda a: a[:, None], ("pooled",)),
    "integers": (lambda a: (a * 10).astype(np.int8), ("int8", "floats")),
    "nan": (lambda a: np.where(np.arange(len(a))[:, None] == 5, np.nan, a), ("row 5 is not finite",)),
    "infinite": (lambda a: np.where(np.arange(len(a))[:, None] == 5, np.inf, a), ("row 5 is not finite",)),
    "zero": (lambda a: np.where(np.arange(len(a))[:, None] > 6, 0, a), ("row 7 is zero",)),
    "constant": (lambda a: np.where(np.arange(len(a))[:, None] == 5, 0.25, a), ("row 5 has one value all over",)),
    "same": (lambda a: np.repeat(a[:1], len(a), 0), ("are the same",)),
    "shifted": (lambda a: np.roll(a, 1, 0), ("another order", "came back as row 1 ")),
    "reversed": (lambda a: a[::-1], ("another order",)),
    "shuffled": (lambda a: np.random.default_rng(0).permutation(a), ("another order",)),
}


@pytest.mark.parametrize("how", BROKEN)
def test_embeddings_that_cannot_be_the_answers_are_refused(folder, tmp_path, how):
    change, words = BROKEN[how]
    np.save(tmp_path / "images.npy", change(np.load(folder / "images.npy")))
    assert_refused(imported(folder, tmp_path / "engine", tmp_path / "images.npy"), *words)
    assert not (tmp_path / "engine").exists()


def test_files_and_words_that_are_none_are_refused(folder, tmp_path):
    images, texts = np.load(folder / "images.npy"), folder / "texts.npy"
    save_file({"a": images, "b": images}, tmp_path / "two.safetensors")
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "two.safetensors").read_bytes()[:100])
    np.savez(tmp_path / "several.npz", a=images)
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    for name, words in (
        ("none.npy", "no such file"), ("two.safetensors", "2 tensors"), ("text.npy", "cannot be read"),
        ("half.safetensors", "cannot be read"), ("several.npy", "several arrays"),
    ):  # fmt: skip
        assert_refused(imported(folder, tmp_path / "engine", tmp_path / name, texts), words)
    assert_refused(imported(folder, tmp_path / "engine", folder / "fp32" / "image.onnx"), ".npy or .safetensors")
    work = str(folder / "work")
    for said in ("two\nlines", " ", "x" * 200):
        done = evaluate(
            "cells", "import", work, "--images", "a", "--texts", "b", "--ran-on", said, "-o", str(tmp_path / "e")
        )
        assert_refused(done)
    assert_refused(
        evaluate("cells", "import", work, "--images", "a", "--ran-on", "x", "-o", str(tmp_path / "e")), "--texts"
    )
    assert_refused(imported(folder, tmp_path / "e", None, None, "--scheme", "W8A8"), "W8A8-integer")
    done = evaluate(
        "cells", "import", str(folder), "--images", "a", "--texts", "b", "--ran-on", "x", "-o", str(tmp_path / "e")
    )
    assert_refused(done, "no work folder")
    assert not list(tmp_path.glob("e*"))


def test_a_scheme_is_what_is_said_or_nothing():
    assert parse_scheme("").weight_bits == 0 and parse_scheme("w4a16-FLOAT").arithmetic == "float"
    for wrong in ("W8", "8", "W8A8-int", "W0A8-integer", "W64A8-float", "W8A8-integer "):
        with pytest.raises(DataError, match="W8A8-integer or W4A16-float"):
            parse_scheme(wrong)


def test_a_damaged_work_folder_is_refused(folder, tmp_path):
    for name in ("asked.safetensors", "images.csv", "bundle/tokenizer.json"):
        work = tmp_path / name.replace("/", "-")
        shutil.copytree(folder / "work", work)
        (work / name).write_bytes((work / name).read_bytes()[:-1] + b"?")
        done = evaluate(
            "cells", "import", str(work), "--images", str(folder / "images.npy"), "--texts", str(folder / "texts.npy"),
            "--ran-on", PHONE, "-o", str(tmp_path / "engine"),
        )  # fmt: skip
        assert_refused(done, name, "export the cells again")


def test_a_work_folder_comes_whole_and_takes_nothing_away(tmp_path):
    photos = tmp_path / "photos"
    for name, pixels in (("a/1.png", 10), ("a/2.png", 20), ("b/1.png", 30), ("b/2.png", 40)):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 60), (pixels, 0, 0)).save(photos / name)
    asked = ("cells", "export", str(DEMO_BUNDLE), "--data", str(photos), "-o", str(tmp_path / "work"))
    assert evaluate(*asked).returncode == 0
    (photos / "a" / "1.png").write_text("no image")
    before = (tmp_path / "work" / "images.npy").read_bytes()
    assert_refused(evaluate(*asked), "1.png")
    assert (tmp_path / "work" / "images.npy").read_bytes() == before
    assert evaluate(*asked, "--on-bad-image", "skip").returncode == 0
    (view,) = json.loads((tmp_path / "work" / "clipq-work.json").read_text())["views"]
    assert view["samples"] == 3 and len(view["skipped"]) == 1 and len(np.load(tmp_path / "work" / "images.npy")) == 3
    # Hours of somebody's phone must not be deleted.
    np.save(tmp_path / "work" / "image-embeddings.npy", np.zeros(3))
    assert_refused(evaluate(*asked, "--on-bad-image", "skip"), "image-embeddings.npy", "another folder")
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "work"}


def test_from_python(folder, tmp_path):
    views = (clipq.View(source="demo:test", name="test", samples=48),)
    work = clipq.export_cells(folder / "fp32", tmp_path / "work", suite=clipq.Suite(views=views))
    images, texts = answered(work, folder / "here" / "int8-dynamic")
    np.save(tmp_path / "i.npy", images)
    np.save(tmp_path / "t.npy", texts)
    files = (tmp_path / "i.npy", tmp_path / "t.npy")
    engine = clipq.import_cells(work, tmp_path / "phone", embeddings=files, ran_on=PHONE)
    found = clipq.evaluate([folder / "fp32", engine], suite=clipq.Suite(views=views), output=tmp_path / "out")
    assert found["phone"]["test", "agreement"].value > 0.9
    with pytest.raises(DataError, match="or predictions by view"):
        clipq.import_cells(work, tmp_path / "other", ran_on=PHONE)


def test_an_export_that_is_killed_leaves_nothing_that_looks_whole(tmp_path):
    """At any moment; the next one finds no remainder in its way."""
    command = [sys.executable, "-m", "clipq.evaluate.cli", "cells", "export", str(DEMO_BUNDLE), "--data", "demo:test"]
    process = subprocess.Popen([*command, "-o", str(tmp_path / "work")], stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob(".clipq-making-*/images.npy")):
        time.sleep(0.005)
    process.kill()
    process.wait()
    if not (tmp_path / "work" / "clipq-work.json").is_file():
        assert not (tmp_path / "work").exists()
    done = evaluate(*command[3:], "-o", str(tmp_path / "work"))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"work"}
