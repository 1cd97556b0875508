"""What ``NUMBERS`` stands for: digests of what clipq makes of fixed inputs, by its own code."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support import DEMO_BUNDLE

from clipq import made_by
from clipq.bundle import Preprocess, open_bundle
from clipq.data.pixels import PixelCache
from clipq.demo import world
from clipq.evaluate.cells.cells import BatchSize, class_embedding, run_on_pixels, unit
from clipq.evaluate.cells.embeddings import Embeddings
from clipq.evaluate.cells.square import square_attack
from clipq.evaluate.cells.subjects import gather_cohort
from clipq.evaluate.settings import Settings
from clipq.evaluate.suites.corruptions import OCCLUSIONS, corrupt
from clipq.evaluate.suites.plan import open_plan
from clipq.evaluate.suites.suite import read_suite
from clipq.evaluate.sweep.jobs import plan_jobs
from clipq.preprocess import normalize, resize_and_crop
from clipq.tokenizer import TextTokenizer

# What NUMBERS is where these are made. Raise NUMBERS in src/clipq/made_by.py when one of them changes, then hold the new
# ones here: with the old number, what was kept by the old code would be taken for what the new code makes.
HELD = 1
DIGESTS = {
    "pixels, shortest, bicubic": "a8d503091eea4227",
    "pixels, shortest, bilinear": "d0ab074764458f0e",
    "pixels, longest, bicubic": "919ecb004aff0923",
    "pixels, longest, bilinear": "d1b34985d04e274a",
    "pixels, squash, bicubic": "366ede78ea050862",
    "pixels, squash, bilinear": "f554a0187abd2b32",
    "pixels, not square": "eb9441a340de030d",
    "normalized": "0afe9de9dcc95cd5",
    "occluded": "9ca6b1c78de82592",
    "token ids": "7827cfc0e8a385c7",
    "image embeddings": "076e322effaec962",
    "class embedding": "69399c4388661c1a",
    "attacked": "a55c65496839f120",
    "demo world": "2f50112ee277bfac",
}

TEXTS = ["a photo of a cat", "  Caf&eacute;  &amp;amp; BAR ", "naïve façade 猫 🐈", "x" * 400, "two\nlines", ""]


def digest(*arrays):
    state = hashlib.sha256()
    for array in arrays:
        state.update(f"{array.dtype.str} {array.shape}".encode())
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()[:16]


def preprocess(resize_mode, interpolation="bicubic", size=(40, 40)):
    return Preprocess(
        image_size=size, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28), interpolation=interpolation,
        resize_mode=resize_mode,
    )  # fmt: skip


def image(mode="RGB", size=(67, 51)):
    levels = np.random.default_rng(7).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    return Image.fromarray(levels).convert(mode)


class Whole:
    """An engine whose numbers are whole, so that no library's order of sums is in them."""

    inputs = (SimpleNamespace(name="x"),)
    outputs = (SimpleNamespace(name="y"),)

    def run_ahead(self, feeds):
        for feed in feeds:
            flat = feed["x"].reshape(len(feed["x"]), -1)[:, :64].astype(np.float64)
            yield {"y": np.round(flat * 8).astype(np.float32) + np.arange(1, 65, dtype=np.float32)}


def margin(pixels, rows):
    return pixels.reshape(len(pixels), -1)[:, ::7].astype(np.int64).sum(1) - 61_000.0


def made():
    """Digests by what they are of."""
    found = {}
    for mode in ("shortest", "longest", "squash"):
        for interpolation in ("bicubic", "bilinear"):
            config = preprocess(mode, interpolation)
            cropped = [np.asarray(resize_and_crop(image(kind), config)) for kind in ("RGB", "L", "P", "RGBA")]
            found[f"pixels, {mode}, {interpolation}"] = digest(*cropped)
    pixels = np.stack([np.asarray(resize_and_crop(image(), preprocess("shortest", size=(33, 40))))] * 3)
    found["pixels, not square"] = digest(pixels)
    found["normalized"] = digest(normalize(pixels, preprocess("shortest")))
    found["occluded"] = digest(*(corrupt(pixels[0], name, 3, seed=5) for name in OCCLUSIONS))
    found["token ids"] = digest(TextTokenizer(open_bundle(DEMO_BUNDLE))(TEXTS))
    found["image embeddings"] = digest(unit(run_on_pixels(Whole(), pixels, preprocess("shortest"), BatchSize(2))))
    found["class embedding"] = digest(class_embedding(Whole(), pixels[..., 0], BatchSize(2)))
    rngs = [np.random.default_rng([3, row]) for row in range(len(pixels))]
    attacked = square_attack(pixels, margin, epsilon=8, queries=30, rngs=rngs)
    found["attacked"] = digest(attacked.pixels, attacked.queries)
    found["demo world"] = digest(*(world.sample(name, 3)[1] for name in sorted(world.SETS)))
    return found


def test_other_numbers_have_another_number():
    changed = {what: now for what, now in made().items() if DIGESTS.get(what) != now}
    assert made_by.NUMBERS == HELD and not changed, (
        f"NUMBERS is {made_by.NUMBERS}, and clipq makes other numbers of the same inputs than those held as {HELD}: "
        "raise NUMBERS in src/clipq/made_by.py (not where a library changed: its version is in the keys), and hold "
        f"these here: {json.dumps(changed, indent=4)}"
    )


SUITE = """
[[view]]
name = "test"
source = "demo:test"
samples = 8

[[view]]
name = "captions"
source = "demo:test"
role = "retrieval"
samples = 8

[[corruptions]]
of = "test"
names = ["contrast"]
severities = [1]

[[square]]
of = "test"
epsilons = [8]
queries = 3
samples = 4
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A function that names every cell, and every chunk of pixels, of a suite with one of each kind."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "suite.toml").write_text(SUITE)
    plan = open_plan(read_suite(folder / "suite.toml"), None)
    settings = Settings(cells=str(folder / "cells"), threads=1)
    (subject,) = gather_cohort([DEMO_BUNDLE], settings).subjects
    cache = PixelCache(folder / "pixels", 10**9)

    def named():
        # As it comes to another node, which is where keys are checked.
        sent = pickle.loads(pickle.dumps(plan))
        embeddings = Embeddings(settings, sent.suite)
        jobs, _ = plan_jobs(sent, {"demo": [subject]}, embeddings)
        names = {(job.kind, job.view): job.cell for job in jobs}
        views = {view.name: view for view in sent.image_views()}
        names |= {
            ("pixels", name): str(cache.path(view, 0, 8, subject.bundle.manifest.preprocess))
            for name, view in views.items()
        }
        return names

    return named


# What is changed, and of which kinds of keys it must change all; the attack's classes are part of it.
TEXTS_CHANGE, IMAGES_CHANGE = {"classes", "captions", "attack"}, {"images", "attack", "pixels"}


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ("clipq.made_by.NUMBERS", TEXTS_CHANGE | IMAGES_CHANGE),
        ("numpy.__version__", TEXTS_CHANGE | IMAGES_CHANGE),
        ("PIL.__version__", IMAGES_CHANGE),
        ("clipq.made_by._decoders", IMAGES_CHANGE),
        ("tokenizers.__version__", TEXTS_CHANGE),
        ("ftfy.__version__", TEXTS_CHANGE),
        ("unicodedata.unidata_version", TEXTS_CHANGE),
        ("clipq.engines.ort_rows.onnxruntime_package", {"classes", "captions", "images", "attack"}),
    ],
)
def test_a_key_names_what_can_change_its_numbers(keys, monkeypatch, changes, kinds):
    before = keys()
    assert {kind for kind, _ in before} == TEXTS_CHANGE | IMAGES_CHANGE
    another = {"_decoders": lambda: "jpg 9", "onnxruntime_package": lambda: ("onnxruntime", "0.1"), "NUMBERS": 99}
    monkeypatch.setattr(changes, another.get(changes.rpartition(".")[2], "0.0.1"))
    after = keys()
    assert {key for key in before if before[key] != after[key]} == {key for key in before if key[0] in kinds}


def test_the_libraries_of_this_machine_are_in_a_corruptions_key(keys, monkeypatch):
    """A plan travels to other nodes, with the digests of its data; what draws there is that node's."""
    before = keys()
    monkeypatch.setattr("clipq.evaluate.suites.corruptions.drawing_versions", lambda: {"scikit-image": "0.1"})
    after = keys()
    assert {name for kind, name in before if before[kind, name] != after[kind, name]} == {"test-c/contrast/1"}


def test_texts_with_line_breaks_have_keys_of_their_own(keys):
    embeddings = Embeddings(Settings(cells="nowhere", threads=1), read_suite("quick"))
    (subject,) = gather_cohort([DEMO_BUNDLE], embeddings.settings).subjects
    one, other = (embeddings._text_identity(subject, texts) for texts in (["a\nb", "c"], ["a", "b\nc"]))
    assert one != other


def test_threads_of_a_cpu_are_in_an_engines_key():
    (subject,) = gather_cohort([DEMO_BUNDLE], Settings(threads=1)).subjects
    keys = [replace(subject, threads=threads).identity("text") for threads in (1, 2, os.cpu_count(), 0)]
    assert keys[0] != keys[1] and keys[2] == keys[3]
