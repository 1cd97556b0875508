"""The Square attack: within ε exactly, within its budget, and as strong as an independent implementation."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from photos import image_folder
from support import DEMO_BUNDLE

import clipq
from clipq.evaluate.cells.square import square_attack

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 32, 32, 3)).astype(np.uint8)
WEIGHTS = RNG.normal(size=(32 * 32 * 3, 3)) / 400
LABELS = (PIXELS.reshape(24, -1) / 255 @ WEIGHTS).argmax(1)


def logits(pixels):
    return pixels.reshape(len(pixels), -1) / 255 @ WEIGHTS


def margin(pixels, rows):
    values = logits(pixels)
    own = values[np.arange(len(rows)), LABELS[rows]].copy()
    values[np.arange(len(rows)), LABELS[rows]] = -np.inf
    return own - values.max(1)


def generators():
    return [np.random.default_rng([1, index]) for index in range(len(PIXELS))]


@pytest.mark.parametrize("epsilon", [1, 4, 8])
def test_epsilon_is_exact_and_the_budget_is_kept(epsilon):
    asked = []

    def counted(pixels, rows):
        assert pixels.dtype == np.uint8 and np.abs(pixels.astype(int) - PIXELS[rows]).max() <= epsilon
        asked.extend(rows.tolist())
        return margin(pixels, rows)

    done = square_attack(PIXELS, counted, epsilon=epsilon, queries=40, rngs=generators())
    assert np.abs(done.pixels.astype(int) - PIXELS).max() == epsilon
    assert (np.bincount(asked, minlength=24) == done.queries).all() and done.queries.max() <= 40
    assert done.clean.all() and (done.right == (margin(done.pixels, np.arange(24)) > 0)).all()


def test_more_queries_and_larger_epsilon_break_more():
    rates = [
        square_attack(PIXELS, margin, epsilon=epsilon, queries=queries, rngs=generators()).right.mean()
        for epsilon, queries in ((2, 2), (2, 200), (8, 200))
    ]
    assert rates[0] > rates[1] > rates[2]


def test_wrong_from_the_start_costs_one_query():
    wrong = square_attack(PIXELS, lambda pixels, rows: -np.ones(len(rows)), epsilon=4, queries=9, rngs=generators())
    assert not wrong.clean.any() and (wrong.queries == 1).all() and (wrong.pixels == PIXELS).all()


def test_neighbours_do_not_matter():
    together = square_attack(PIXELS, margin, epsilon=4, queries=30, rngs=generators())
    alone = square_attack(
        PIXELS[5:6], lambda p, rows: margin(p, rows + 5), epsilon=4, queries=30, rngs=generators()[5:6]
    )
    assert (alone.pixels[0] == together.pixels[5]).all() and alone.queries[0] == together.queries[5]


def test_as_strong_as_the_adversarial_robustness_toolbox():
    evasion = pytest.importorskip("art.attacks.evasion", reason="adversarial-robustness-toolbox is not installed")
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork

    victim = BlackBoxClassifierNeuralNetwork(
        logits, input_shape=(32, 32, 3), nb_classes=3, clip_values=(0, 255), channels_first=False
    )
    np.random.seed(0)  # noqa: NPY002
    attack = evasion.SquareAttack(victim, eps=2, max_iter=100, nb_restarts=1, batch_size=32, verbose=False)
    theirs = attack.generate(PIXELS.astype(np.float32), y=np.eye(3)[LABELS])
    their_rate = (margin(theirs, np.arange(24)) > 0).mean()
    ours = square_attack(PIXELS, margin, epsilon=2, queries=101, rngs=generators()).right.mean()
    assert ours <= their_rate + 0.1


def test_several_classes_of_one_label_are_attacked_as_they_are_predicted(tmp_path):
    """By the sum of their probabilities, and what was stored of another label map is not read."""
    bundle = tmp_path / "fp32"
    shutil.copytree(DEMO_BUNDLE, bundle)
    manifest = json.loads((bundle / "clipq.json").read_text())
    # So warm that the label of more classes has the larger sum, though all images show arrows.
    (bundle / "clipq.json").write_text(json.dumps({**manifest, "logit_scale": 0.5}))
    names = ("circle", "crescent", "cross", "arrow")
    fine, coarse, label_map = (tmp_path / name for name in ("fine", "coarse", "map.csv"))
    image_folder(fine, names, each=1)
    image_folder(coarse, ("a",), each=4)
    image_folder(coarse, ("b",), each=2)
    views = (
        clipq.View(source=str(fine)),
        clipq.View(source=str(coarse), classes_of="fine", label_map=label_map),
    )
    suite = clipq.Suite(view=views, square=[{"of": "coarse", "epsilons": (8,), "queries": 5}])
    settings = clipq.Settings(cells=str(tmp_path / "cells"))
    for labels, right in (("aaab", 4 / 6), ("abbb", 2 / 6)):
        lines = [f"{label},{name}\n" for label, name in zip(labels, names, strict=True)]
        label_map.write_text("label,class\n" + "".join(lines))
        engine = clipq.evaluate(bundle, suite=suite, settings=settings, output=tmp_path / labels)["fp32"]
        assert engine["coarse", "acc1"].value == right
        assert engine["coarse", "square/8", "clean_acc1"].value == right
