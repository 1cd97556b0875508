"""OOD, fairness, robustness, retrieval and tuning metrics against independent implementations, and at their edges."""

from __future__ import annotations

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame, equalized_odds_difference
from scipy.optimize import minimize_scalar
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score, roc_curve

from clipq.errors import DataError
from clipq.evaluate.axes.fairness import fairness
from clipq.evaluate.axes.shift import shift
from clipq.evaluate.metrics import calibration, robustness
from clipq.evaluate.metrics.fairness import equalized_odds_difference as our_equalized_odds
from clipq.evaluate.metrics.ood import SCORES, Detection, outlier_scores
from clipq.evaluate.metrics.predictions import Predictions
from clipq.evaluate.metrics.retrieval import caption_ranks, image_ranks, recall

SEEDS = range(5)


def ones(n):
    return np.ones((1, n), dtype=np.float32)


def populations(seed, ties):
    rng = np.random.default_rng(seed)
    inside, outside = rng.normal(0, 1, 300), rng.normal(0.8, 1.3, 170)
    return (np.round(inside, 1), np.round(outside, 1)) if ties else (inside, outside)


def fpr95(labels, scores):
    """OpenOOD's: the false-positive rate at the first threshold whose recall reaches 95 %."""
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    return fpr[np.argmax(tpr >= 0.95)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("ties", [False, True])
def test_detection_agrees_with_scikit_learn(seed, ties):
    inside, outside = populations(seed, ties)
    is_outlier = np.r_[np.zeros(300), np.ones(170)]
    scores = np.r_[inside, outside]
    found = {name: float(f(ones(300), ones(170))[0]) for name, f in Detection(inside, outside).functions().items()}
    assert found["auroc"] == pytest.approx(roc_auc_score(is_outlier, scores))
    assert found["aupr_out"] == pytest.approx(average_precision_score(is_outlier, scores))
    assert found["aupr_in"] == pytest.approx(average_precision_score(1 - is_outlier, -scores))
    assert found["fpr95_ood_positive"] == pytest.approx(fpr95(is_outlier, scores))
    assert found["fpr95_id_positive"] == pytest.approx(fpr95(1 - is_outlier, -scores))


def test_detection_weights_are_repetitions():
    inside, outside = populations(3, ties=True)
    rng = np.random.default_rng(0)
    w_in, w_out = rng.integers(0, 4, 300), rng.integers(0, 4, 170)
    weighted = Detection(inside, outside).functions()
    repeated = Detection(np.repeat(inside, w_in), np.repeat(outside, w_out)).functions()
    for name in weighted:
        expected = repeated[name](ones(w_in.sum()), ones(w_out.sum()))[0]
        assert weighted[name](w_in[None].astype(float), w_out[None].astype(float))[0] == pytest.approx(expected), name


@pytest.mark.parametrize(("inside", "outside", "auroc"), [([0.0], [1.0], 1), ([1.0], [0.0], 0), ([1.0, 1], [1.0], 0.5)])
def test_detection_at_its_edges(inside, outside, auroc):
    detection = Detection(np.array(inside), np.array(outside))
    assert detection.auroc(ones(len(inside)), ones(len(outside)))[0] == auroc
    for name, function in detection.functions().items():
        assert 0 <= function(ones(len(inside)), ones(len(outside)))[0] <= 1, name


def test_outlier_scores_by_hand_and_orientation():
    cosines = np.array([[0.4, 0.1], [0.2, 0.2]])
    scores = outlier_scores(cosines, 10 * cosines)
    assert set(scores) == set(SCORES)
    assert scores["mcm"][0] == pytest.approx(-1 / (1 + np.exp(-0.3)))
    assert scores["msp"][0] == pytest.approx(-1 / (1 + np.exp(-3)))
    assert scores["max_logit"].tolist() == [-4, -2]
    assert scores["energy"][1] == pytest.approx(-2 - np.log(2)) and scores["entropy"][1] == pytest.approx(np.log(2))
    for name in SCORES:
        assert scores[name][1] > scores[name][0], f"{name}: the undecided sample must look more out-of-distribution"


def people(seed, classes=2):
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(0, classes, 600), rng.integers(0, 4, 600)
    right = rng.random(600) < 0.6 + 0.1 * groups
    predicted = np.where(right, labels, (labels + 1) % classes)
    return Predictions(np.eye(classes)[predicted], labels), groups


@pytest.mark.parametrize("seed", SEEDS)
def test_gaps_agree_with_fairlearn(seed):
    predictions, groups = people(seed)
    frame = MetricFrame(
        metrics=accuracy_score, y_true=predictions.labels, y_pred=predictions.predicted, sensitive_features=groups
    )
    members = {f"g={value}": groups == value for value in range(4)}
    rows = {
        row.metric: row.draws.value for row in fairness(predictions, members, view="v", column="g", smallest_group=1)
    }
    assert rows["group_gap.acc1"] == pytest.approx(frame.difference())
    assert rows["group_ratio.acc1"] == pytest.approx(frame.ratio())
    assert rows["group_worst.acc1"] == pytest.approx(frame.group_min())
    assert rows["group_std.acc1"] == pytest.approx(np.std(frame.by_group))
    theirs = equalized_odds_difference(predictions.labels, predictions.predicted, sensitive_features=groups)
    assert rows["equalized_odds_difference"] == pytest.approx(theirs)


def test_equalized_odds_of_many_classes_is_the_worst_one_against_the_rest():
    predictions, groups = people(1, classes=5)
    members = np.stack([groups == value for value in range(4)])
    theirs = max(
        equalized_odds_difference(predictions.labels == c, predictions.predicted == c, sensitive_features=groups)
        for c in range(5)
    )
    assert our_equalized_odds(predictions, members, ones(600))[0] == pytest.approx(theirs)


def test_a_group_of_one_class_has_no_false_positive_rate_and_small_groups_stay_out():
    predictions, groups = people(0)
    by_label = np.stack([predictions.labels == value for value in (0, 1)])
    assert np.isfinite(our_equalized_odds(predictions, by_label, ones(600))).all()
    members = {"a": groups == 0, "b": groups == 1, "tiny": np.arange(600) < 3}
    row = fairness(predictions, members, view="v", column="g", smallest_group=20)[0]
    pair = fairness(predictions, {k: members[k] for k in "ab"}, view="v", column="g", smallest_group=20)[0]
    assert row.draws.value == pair.draws.value
    with pytest.raises(DataError, match="fewer than two groups"):
        fairness(predictions, {"a": groups == 0, "tiny": members["tiny"]}, view="v", column="g", smallest_group=20)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_retrieval_is_clip_benchmarks(k):
    """CLIP_benchmark: top-k of the score matrix, positives by a boolean matrix, recall is any hit per query."""
    rng = np.random.default_rng(0)
    image_of = np.repeat(np.arange(40), rng.integers(1, 6, 40))
    images = rng.normal(size=(40, 16)).astype(np.float32)
    captions = images[image_of] + 1.5 * rng.normal(size=(len(image_of), 16)).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    captions /= np.linalg.norm(captions, axis=1, keepdims=True)
    scores = captions @ images.T
    positive = np.zeros(scores.shape, bool)
    positive[np.arange(len(image_of)), image_of] = True

    def any_hit(matrix, positives):
        top = np.argsort(-matrix, axis=1)[:, :k]
        return np.take_along_axis(positives, top, axis=1).any(1).mean()

    to_image = recall(image_ranks(images, captions, image_of) < k, image_of, ones(40))[0]
    to_caption = recall(caption_ranks(images, captions, image_of) < k, np.arange(40), ones(40))[0]
    assert to_image == pytest.approx(any_hit(scores, positive))
    assert to_caption == pytest.approx(any_hit(scores.T, positive.T))


def test_copies_are_as_near_as_what_they_are_copies_of():
    """Wherever they stand: float32 products of equal rows differ in the last digits."""
    rng = np.random.default_rng(0)
    images, captions = (rng.normal(size=(60, 512)).astype(np.float32) for _ in range(2))
    captions = images + captions / 2
    images, captions = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, captions))
    images, captions = np.concatenate([images, images[:41]]), np.concatenate([captions, captions[:41]])
    assert (image_ranks(images, captions, np.arange(101)) == 0).all()
    assert (caption_ranks(images, captions, np.arange(101)) == 0).all()


def test_corruption_errors_by_hand():
    # Two corruptions of two severities: errors .2 .4 and .5 .5; baseline .4 .8 and .5 .5; clean .1 and .2.
    mine, base = [np.array([[0.2, 0.4]]), np.array([[0.5, 0.5]])], [np.array([[0.4, 0.8]]), np.array([[0.5, 0.5]])]
    assert robustness.mean_corruption_error(mine, base)[0] == pytest.approx((0.5 + 1) / 2)
    relative = robustness.relative_mean_corruption_error(mine, np.array([0.1]), base, np.array([0.2]))
    assert relative[0] == pytest.approx(((0.1 + 0.3) / (0.2 + 0.6) + (0.4 + 0.4) / (0.3 + 0.3)) / 2)
    assert np.isnan(robustness.mean_corruption_error(mine, [np.zeros((1, 2)), base[1]])[0])


def test_shift_by_hand():
    inside, shifted = np.arange(10) < 8, np.arange(10) < 4
    rows = {row.metric: row.draws.value for row in shift(inside, shifted, (inside, shifted), view="v")}
    assert rows["relative_drop.acc1"] == pytest.approx(0.5)
    assert rows["effective_robustness.acc1"] == pytest.approx(0, abs=1e-12)
    better = {row.metric: row.draws.value for row in shift(inside, inside, (inside, shifted), view="v")}
    assert better["effective_robustness.acc1"] == pytest.approx(0.4)


def test_fitted_logit_scale_is_the_minimum():
    rng = np.random.default_rng(0)
    cosines = rng.normal(0, 0.1, (500, 10))
    labels = np.array([rng.choice(10, p=np.exp(30 * row) / np.exp(30 * row).sum()) for row in cosines])

    def loss(scale):
        logits = scale * cosines
        return np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(500), labels])

    expected = minimize_scalar(loss, bounds=(1, 200), method="bounded").x
    found = calibration.fit_logit_scale(cosines, labels)
    assert found == pytest.approx(expected, rel=1e-3) and 20 < found < 45


@pytest.mark.parametrize("bins", [10, 15])
def test_classwise_ece_by_definition(bins):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (400, 7))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = rng.integers(0, 7, 400)
    weights = rng.integers(0, 3, 400)
    expected = 0.0
    for c in range(7):
        index = calibration.bin_of(probabilities[:, c], bins)
        for b in range(bins):
            inside = index == b
            gap = (weights * (probabilities[:, c] - (labels == c)))[inside].sum()
            expected += abs(gap) / weights.sum() / 7
    found = calibration.ece_classwise(Predictions(probabilities, labels), weights[None].astype(np.float32), bins)
    assert found[0] == pytest.approx(expected, abs=1e-6)
