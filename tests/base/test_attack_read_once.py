"""Stored attacks: what is damaged or does not fit together is refused, and nothing is read a second time."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save

from clipq.bundle import Preprocess
from clipq.data.attack import open_attack, write_attack
from clipq.errors import DataError
from clipq.files import sha256_bytes
from clipq.packed import packed

CONFIG = Preprocess(
    image_size=(4, 4), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic", resize_mode="squash"
)
MANIFEST = {
    "method": "pgd",
    "options": {"steps": 10, "seed": 0},
    "epsilons": (2, 4),
    "checkpoint": "demo",
    "preprocess": CONFIG,
    "source": "photos",
    "ids": ("a", "b", "c"),
    "labels": (0, 1, 1),
    "class_names": ("cat", "dog"),
    "class_keys": ("cat", "dog"),
    "templates_name": "own",
    "templates": ("a {}",),
    "fooled": {"2": (True, False, False), "4": (True, True, False)},
}
PIXELS = {epsilon: np.full((3, 4, 4, 3), 100 + epsilon, np.uint8) for epsilon in (0, 2, 4)}


@pytest.fixture
def folder(tmp_path):
    write_attack(tmp_path / "attack", MANIFEST, PIXELS)
    return tmp_path / "attack"


def changed(folder, data=None, **fields):
    """Other fields in the manifest; other pixels under a digest that fits."""
    raw = json.loads((folder / "clipq-attack.json").read_bytes()) | fields
    if data is not None:
        (folder / "pixels.safetensors").write_bytes(data)
        raw["pixels_sha256"] = sha256_bytes(data)
    (folder / "clipq-attack.json").write_text(json.dumps(raw))


def old(pixels=PIXELS):
    """As earlier versions wrote pixels: without a checksum of their own."""
    return save({f"epsilon_{epsilon}" if epsilon else "clean": array for epsilon, array in pixels.items()})


def test_pixels_are_those_that_were_checked(folder):
    attack = open_attack(folder)
    shutil.rmtree(folder)
    view = attack.view(4, "pgd")
    assert (view.cropped(1, CONFIG) == 104).all() and view.digest


def test_attacks_of_earlier_versions_are_read(folder):
    changed(folder, old())
    assert (open_attack(folder).view(0, "pgd").cropped(2, CONFIG) == 100).all()


@pytest.mark.parametrize("name", ["clipq-attack.json", "pixels.safetensors"])
def test_no_flipped_bit_gives_another_attack(folder, name):
    good = (folder / name).read_bytes()
    manifest = open_attack(folder).manifest
    for bit in range(0, 8 * len(good), 7):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(flipped)
        try:
            found = open_attack(folder)
        except DataError as error:
            assert "\n" not in str(error)
        else:
            # Only white space differs.
            assert found.manifest == manifest


@pytest.mark.parametrize(
    "fields",
    [
        {"ids": ["a", "b"]},
        {"ids": ["a", "b", "b"]},
        {"labels": [0, 1]},
        {"labels": [0, 1, 2]},
        {"labels": [0, 1, -1]},
        {"class_keys": ["cat"]},
        {"class_names": ["cat"], "class_keys": ["cat"], "labels": [0, 0, 0]},
        {"epsilons": []},
        {"epsilons": [2, 8]},
        {"epsilons": [2, 0]},
        {"fooled": {"2": [True]}},
        {"templates": []},
        {"templates": ["a cat"]},
        {"labels": [1, 0, 1]},
    ],
)
def test_what_does_not_fit_together_is_refused(folder, fields):
    changed(folder, **fields)
    with pytest.raises(DataError, match=r"damaged.*make the attack again"):
        open_attack(folder)


@pytest.mark.parametrize(
    "pixels",
    [
        {0: PIXELS[0], 2: PIXELS[2]},
        PIXELS | {4: PIXELS[4][:2]},
        PIXELS | {4: PIXELS[4].astype(np.float32)},
        PIXELS | {4: PIXELS[4][:, :2]},
        PIXELS | {8: PIXELS[4]},
    ],
)
def test_other_arrays_are_refused(folder, pixels):
    changed(folder, old(pixels))
    with pytest.raises(DataError, match=r"(holds clean|is uint8|is float32).*make the attack again"):
        open_attack(folder)


@pytest.mark.parametrize("text", ["", "[]", "[" * 5000, "null", '{"schema_version": "x"}', "\udcff"])
def test_what_is_no_manifest_is_refused(folder, text):
    (folder / "clipq-attack.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match="make the attack again"):
        open_attack(folder)


def test_pixels_that_are_none_are_refused(folder):
    for data in (b"", b"nothing", packed({})):
        changed(folder, data)
        with pytest.raises(DataError, match="make the attack again"):
            open_attack(folder)
