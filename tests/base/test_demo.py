"""The demo world and its checkpoint keep what they promise."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from support import CALIBRATION, DEMO_BUNDLE

from clipq.demo import world
from clipq.files import sha256_file


def test_images_depend_on_set_and_index_alone():
    first = [world.sample("test", index)[1] for index in range(5)]
    again = [world.sample("test", index)[1] for index in reversed(range(5))][::-1]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not (world.sample("test", 0)[1] == world.sample("train", 0)[1]).all()


@pytest.mark.parametrize("name", ["test", "outline", "palette", "background", "unseen-shapes"])
def test_sets_are_balanced(name):
    definition = world.SETS[name]
    shapes = Counter(world.sample(name, index)[0].shape for index in range(2 * len(definition.shapes)))
    assert set(shapes.values()) == {2} and set(shapes) == set(definition.shapes)


def test_out_of_distribution_sets_share_no_class():
    assert not set(world.UNSEEN_SHAPES) & set(world.SHAPES)
    assert not set(world.UNSEEN_COLOURS) & set(world.COLOURS)
    assert not set(world.UNSEEN_BACKGROUNDS) & set(world.BACKGROUNDS)
    assert world.sample("textures", 0)[0].shape is None


def test_captions_say_what_is_shown():
    scene, _ = world.sample("test", 4)
    for word in (scene.shape, scene.colour, scene.size, scene.background, scene.background_colour):
        assert word in scene.caption()


def test_calibration_set_matches_its_manifest():
    manifest = json.loads((CALIBRATION / "manifest.json").read_text())
    on_disk = {path.relative_to(CALIBRATION).as_posix() for path in CALIBRATION.rglob("*") if path.is_file()}
    assert on_disk - {"manifest.json", "README.md"} == set(manifest)
    for file, entry in manifest.items():
        assert sha256_file(CALIBRATION / file) == entry["sha256"]


def test_calibration_set_is_what_the_world_draws():
    from PIL import Image

    for index in (0, 77, 127):
        stored = np.asarray(Image.open(CALIBRATION / "images" / f"{index:04d}.png"))
        drawn = world.sample("calibration", index)[1].astype(int)
        # Another numpy or Pillow may round a few pixels differently.
        assert np.abs(stored - drawn).max() <= 2


def test_weights_are_small():
    assert sum(path.stat().st_size for path in DEMO_BUNDLE.glob("*.onnx")) < 8e6
