"""Corrupted views: every corruption, the same pixels everywhere, stronger with severity."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from clipq.bundle import open_bundle
from clipq.data.open import open_view
from clipq.data.pixels import PixelCache, PixelReader
from clipq.data.views import choose_samples
from clipq.demo import world
from clipq.errors import DataError
from clipq.evaluate.suites.corruptions import NAMED_SETS, SEVERITIES, STANDARD, corrupt, corrupted_views

PIXELS = world.sample("test", 5)[1]


@pytest.mark.parametrize("name", NAMED_SETS["all"])
def test_every_corruption_is_seeded_and_grows(name):
    distances = []
    for severity in SEVERITIES:
        first, again = (corrupt(PIXELS, name, severity, seed=7) for _ in range(2))
        assert first.shape == PIXELS.shape and first.dtype == np.uint8 and (first == again).all()
        distances.append(np.abs(first.astype(float) - PIXELS).mean())
    # ImageNet-C's saturate takes colour away at severities 1 and 2 and adds it from 3 on.
    assert min(distances) > 0 and (name == "saturate" or distances[4] > distances[0])


def test_all_nineteen_and_two_occlusions():
    assert len(STANDARD) == 15 and len(NAMED_SETS["all"]) == 21


def test_pixels_are_the_same_on_every_machine():
    """Corruptions that are whole-number arithmetic on seeded draws; the others depend on library versions."""
    drawn = [corrupt(PIXELS, name, 3, seed=11) for name in ("occlusion_random", "impulse_noise")]
    digests = [hashlib.sha256(array.tobytes()).hexdigest()[:16] for array in drawn]
    assert digests == ["dd1e7d3993eb0215", "4a1712ce6273bec2"]


def test_the_global_generator_is_left_alone():
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    corrupt(PIXELS, "gaussian_noise", 3, seed=1)
    assert np.random.random() == expected  # noqa: NPY002


def test_an_image_does_not_depend_on_its_neighbours(config):
    view = open_view("demo:test:n=96")
    (whole,) = corrupted_views(view, "shot_noise", (3,), seed=0)
    (part,) = corrupted_views(choose_samples(view, 30, seed=0), "shot_noise", (3,), seed=0)
    for index in (0, 17):
        there = [sample.id for sample in view.samples].index(part.samples[index].id)
        assert (part.cropped(index, config) == whole.cropped(there, config)).all()
    (other,) = corrupted_views(view, "shot_noise", (3,), seed=1)
    assert other.digest != whole.digest and (other.cropped(0, config) != whole.cropped(0, config)).any()


@pytest.fixture(scope="module")
def config(bundles):
    return open_bundle(bundles / "fp32").manifest.preprocess


@pytest.fixture(scope="module")
def clean():
    return choose_samples(open_view("demo:test"), 8, 0)


@pytest.mark.parametrize("name", NAMED_SETS["all"])
def test_what_comes_from_the_pixel_cache_is_what_was_drawn(name, clean, config, tmp_path):
    """Blurs give images with exchanged axes: kept as their memory lay, an engine that came later saw other pictures."""
    (view,) = corrupted_views(clean, name, (3,), 0)
    cache = PixelCache(tmp_path, 10**9)
    first, again, never = (PixelReader(config, cache=one).read(view, 0, 8).pixels for one in (cache, cache, None))
    assert list(tmp_path.glob("*/*.safetensors"))
    assert (first == again).all() and (first == never).all()


def test_unknown_and_too_small_are_refused():
    with pytest.raises(DataError, match="unknown corruption 'haze'"):
        corrupted_views(open_view("demo:test:n=48"), "haze", (1,), seed=0)
    with pytest.raises(DataError, match="32 pixels or more"):
        corrupt(np.zeros((16, 16, 3), np.uint8), "fog", 1, seed=0)


def test_chosen_samples_are_spread_over_classes():
    view = choose_samples(open_view("demo:test"), 240, seed=0)
    assert len(view.samples) == 240 and len({sample.label for sample in view.samples}) == 24


def test_a_machine_without_opencvs_libraries_is_told_before_anything_runs(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(DataError, match="opencv-python-headless"):
        corrupted_views(open_view("demo:test:n=48"), "fog", (1,), seed=0)
    assert corrupted_views(open_view("demo:test:n=48"), "occlusion_centre", (1,), seed=0)
