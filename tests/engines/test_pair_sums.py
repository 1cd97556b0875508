"""Products that saturate in 16 bits, against a loop over them in plain Python."""

from __future__ import annotations

import numpy as np
import pytest

from clipq.engines.pair_sums import Weights


def by_hand(rows, weights):
    """What vpmaddubsw, vpmaddwd and vpaddd make of it, and how many pairs saturated."""
    products = np.zeros((len(rows), weights.shape[1]), np.int64)
    saturated = 0
    for row in range(len(rows)):
        for output in range(weights.shape[1]):
            for first in range(0, rows.shape[1], 2):
                pair = range(first, min(first + 2, rows.shape[1]))
                total = sum(int(rows[row, one]) * int(weights[one, output]) for one in pair)
                held = max(-(2**15), min(2**15 - 1, total))
                products[row, output] += held
                saturated += held != total
    return products, saturated


@pytest.mark.parametrize("inner", [1, 2, 7, 64, 1031])
def test_saturated_products_are_those_of_a_loop(inner):
    rng = np.random.default_rng(inner)
    rows = rng.integers(0, 256, (5, inner)).astype(np.uint8)
    weights = rng.integers(-128, 128, (inner, 4)).astype(np.int8)
    expected, saturated = by_hand(rows, weights)
    found = Weights(weights)
    assert (found.saturated(rows) == expected).all()
    assert (found.exact(rows) == rows.astype(np.int64) @ weights.astype(np.int64)).all()
    assert found.excess(rows)[1] == saturated and (saturated > 0 or inner < 7)


def test_rows_by_blocks(monkeypatch):
    monkeypatch.setattr("clipq.engines.pair_sums._ROWS", 3)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (10, 6)).astype(np.uint8)
    weights = rng.integers(-128, 128, (6, 3)).astype(np.int8)
    assert (Weights(weights).saturated(rows) == by_hand(rows, weights)[0]).all()


@pytest.mark.parametrize(
    ("pair", "can"),
    [
        ((127, 1), False),
        ((127, 2), True),
        ((-128, 0), False),
        ((-128, -1), True),
        ((-127, -1), False),
        ((-127, -2), True),
        ((127, -127), False),
        ((63, 63), False),
        ((64, 64), False),
        ((64, 65), True),
    ],
)
def test_weights_alone_say_whether_a_sum_can_saturate(pair, can):
    weights = Weights(np.array(pair, np.int8).reshape(2, 1))
    assert weights.can_saturate is can
    largest = np.full((1, 2), 255, np.uint8)
    # 255 is the worst of all activations where both weights have one sign.
    assert (weights.excess(largest)[1] == 1) is can


def test_how_many_sums_a_row_takes():
    assert Weights(np.zeros((7, 3), np.int8)).pair_sums == 4 * 3
