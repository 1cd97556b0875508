"""The Square attack (Andriushchenko et al., 2020): score-based, without gradients, so it can attack an integer engine.

Adversarial-robustness-toolbox has one, but it imports torch, asks the model three times per step, and works in floats;
this one asks once and moves in whole 255ths, so that ε is exact after 8-bit rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipq.evaluate.metrics.predictions import Booleans, Floats, Integers

Pixels = NDArray[np.uint8]
Margin = Callable[[Pixels, Integers], Floats]

_FIRST_SHARE = 0.8
# Fractions of the budget after which the square's share of the pixels halves (the paper's schedule for 10,000 queries).
_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True)
class Attacked:
    """What the attack reached: images, whether each is still right, and the queries spent on it (the clean one too)."""

    pixels: Pixels
    clean: Booleans
    right: Booleans
    queries: Integers


def square_attack(
    pixels: Pixels, margin: Margin, *, epsilon: int, queries: int, rngs: Sequence[np.random.Generator]
) -> Attacked:
    """Attack images (uint8, N × H × W × 3) within L∞ ``epsilon`` (255ths) and a budget of ``queries`` per image.

    ``margin(pixels, rows)`` gives, for images that are attacks on those rows, the label's logit minus the largest
    other: negative is wrong. Each image has a generator of its own, so the result does not depend on its neighbours'
    luck. An image that is wrong, from the start or by the attack, is asked about no more.
    """
    n, height, width, _ = pixels.shape
    clean_margin = margin(pixels, np.arange(n))
    used = np.ones(n, dtype=np.int64)
    best, best_margin = pixels.copy(), clean_margin.copy()
    alive = np.flatnonzero(best_margin > 0)
    for step in range(queries - 1):
        if len(alive) == 0:
            break
        if step == 0:
            proposals = [_stripes(pixels[row], epsilon, rngs[row]) for row in alive.tolist()]
        else:
            share = _FIRST_SHARE / 2 ** sum(step / queries > fraction for fraction in _HALVINGS)
            side = min(max(round(math.sqrt(share * height * width)), 1), height - 1, width - 1)
            proposals = [_with_square(pixels[row], best[row], side, epsilon, rngs[row]) for row in alive.tolist()]
        proposed = np.stack(proposals)
        found = margin(proposed, alive)
        used[alive] += 1
        better = found < best_margin[alive]
        best[alive[better]] = proposed[better]
        best_margin[alive[better]] = found[better]
        alive = alive[best_margin[alive] > 0]
    return Attacked(best, clean_margin > 0, best_margin > 0, used)


def _stripes(clean: Pixels, epsilon: int, rng: np.random.Generator) -> Pixels:
    signs = rng.choice((-epsilon, epsilon), size=(1, clean.shape[1], 3))
    return np.clip(clean.astype(np.int16) + signs, 0, 255).astype(np.uint8)


def _with_square(clean: Pixels, best: Pixels, side: int, epsilon: int, rng: np.random.Generator) -> Pixels:
    top = rng.integers(0, clean.shape[0] - side + 1)
    left = rng.integers(0, clean.shape[1] - side + 1)
    window = np.s_[top : top + side, left : left + side]
    proposed = best.copy()
    signs = rng.choice((-epsilon, epsilon), size=(1, 1, 3))
    proposed[window] = np.clip(clean[window].astype(np.int16) + signs, 0, 255).astype(np.uint8)
    return proposed
