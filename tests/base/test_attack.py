"""Stored attacks that are damaged, or whole and nonsense: refused in one line when they are opened."""

from __future__ import annotations

import copy
import json
import os

import numpy as np
import pytest
from support import assert_refused, evaluate

from clipq.data.attack import MANIFEST, PIXELS, open_attack, tensor_name, write_attack
from clipq.errors import DataError
from clipq.files import sha256_bytes
from clipq.packed import packed

PREPROCESS = {
    "image_size": [6, 4], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic",
    "resize_mode": "shortest",
}  # fmt: skip
CLEAN = np.random.default_rng(0).integers(8, 248, (3, 6, 4, 3)).astype(np.uint8)
STORED = {0: CLEAN, 1: CLEAN + np.uint8(1), 4: CLEAN - np.uint8(4)}


def made(folder, pixels=STORED):
    folder.mkdir(exist_ok=True)
    described = {
        "method": "pgd", "options": {"steps": 10}, "epsilons": (1, 4), "checkpoint": "demo", "preprocess": PREPROCESS,
        "source": "demo:test", "ids": ("a", "b", "c"), "labels": (0, 1, 1), "class_names": ("cat", "dog"),
        "class_keys": ("n1", "n2"), "templates_name": "own", "templates": ("a {}",),
        "fooled": {"1": (True, False, False), "4": (True, True, True)},
    }  # fmt: skip
    write_attack(folder, described, pixels)
    return folder


def changed(folder, **changes):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema_version": 2}, "schema version 2, this clipq reads up to 1"),
        ({"schema_version": 0}, "schema_version"),
        ({"schema_version": "1"}, "schema_version"),
        ({"epsilons": []}, "epsilons"),
        ({"epsilons": [0, 4]}, "epsilons.0"),
        ({"epsilons": [-1, 4]}, "epsilons.0"),
        ({"epsilons": [1, 256]}, "epsilons.1"),
        ({"epsilons": [1, 4, 4]}, "epsilons: one comes twice"),
        ({"epsilons": [1, 2]}, "fooled"),
        ({"epsilons": [1, 2], "fooled": {"1": [True] * 3, "2": [True] * 3}}, "holds clean, epsilon_1, epsilon_4"),
        ({"ids": ["a", "b"]}, "labels: there must be 2"),
        ({"ids": ["a", "b", "b"]}, "ids: one comes twice"),
        ({"ids": [], "labels": []}, "ids"),
        ({"ids": list("abcd"), "labels": [0] * 4}, "fooled: there must be 4"),
        ({"labels": [0, 1, 2]}, "from 0 to 1"),
        ({"labels": [0, -1, 1]}, "from 0 to 1"),
        ({"labels": [0, 10**30, 1]}, "labels"),
        ({"labels": [0, 0.5, 1]}, "labels"),
        ({"class_names": []}, "class_names"),
        ({"class_names": ["", "dog"]}, "class_names.0"),
        ({"class_keys": ["n1"]}, "class_keys"),
        ({"templates": []}, "templates"),
        ({"templates": ["a cat"]}, "no {} for the class name"),
        ({"fooled": {}}, "fooled"),
        ({"fooled": {"1": [True] * 3, "4": [True]}}, "fooled"),
        ({"fooled": {"1": [True] * 3, "04": [True] * 3}}, "fooled"),
        ({"preprocess": PREPROCESS | {"image_size": [4, 6]}}, "not uint8"),
        ({"preprocess": PREPROCESS | {"image_size": [-1, 4]}}, "preprocess.image_size"),
        ({"preprocess": PREPROCESS | {"std": [0.25, 0, 0.25]}}, "preprocess.std"),
        ({"pixels_sha256": "0" * 64}, "does not match the digest"),
        ({"pixels_sha256": "x"}, "pixels_sha256"),
        ({"method": ""}, "method"),
        ({"and": "more"}, "and"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else None,
)
def test_a_manifest_that_makes_no_sense_is_refused(tmp_path, changes, words):
    assert open_attack(made(tmp_path)).view(4, "pgd").image_digests
    with pytest.raises(DataError) as raised:
        open_attack(changed(tmp_path, **changes))
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        ({0: CLEAN, 1: STORED[1]}, "holds clean, epsilon_1, not clean, epsilon_1, epsilon_4"),
        (STORED | {2: CLEAN}, "holds clean, epsilon_1, epsilon_2"),
        (STORED | {4: CLEAN[:2]}, "epsilon_4 is uint8 [2, 6, 4, 3]"),
        (STORED | {4: CLEAN.transpose(0, 2, 1, 3)}, "epsilon_4 is uint8 [3, 4, 6, 3]"),
        (STORED | {4: CLEAN.astype(np.float32)}, "epsilon_4 is float32"),
        (STORED | {0: CLEAN[..., :1]}, "clean is uint8 [3, 6, 4, 1]"),
        (STORED | {0: np.uint8(3)}, "clean is uint8 [1]"),
        (STORED | {1: CLEAN + np.uint8(2)}, "epsilon_1 is farther than 1 from the clean images"),
        (STORED | {4: 255 - CLEAN}, "epsilon_4 is farther than 4"),
    ],
)
def test_pixels_that_are_not_the_manifests_are_refused(tmp_path, pixels, words):
    data = packed({tensor_name(epsilon): array for epsilon, array in pixels.items()})
    (made(tmp_path) / PIXELS).write_bytes(data)
    with pytest.raises(DataError) as raised:
        open_attack(changed(tmp_path, pixels_sha256=sha256_bytes(data)))
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b"\xff\xfe{}", b'{"a":' * 10**5, b'{"schema_version": ' + b'{"a":' * 60, b"null", b"7"]
)
def test_a_manifest_that_is_none_is_refused(tmp_path, data):
    (made(tmp_path) / MANIFEST).write_bytes(data)
    with pytest.raises(DataError, match="is damaged"):
        open_attack(tmp_path)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no clipq-attack"):
        open_attack(tmp_path / "nowhere")
    (made(tmp_path) / MANIFEST).unlink()
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(DataError, match="no regular file"):
        open_attack(tmp_path)


def test_every_part_replaced_by_nonsense(tmp_path):
    """Whatever stands in a part's place, opening is refused in a line or what was opened can be looked at."""
    manifest = json.loads((made(tmp_path) / MANIFEST).read_text())
    for key in manifest:
        for nonsense in (None, True, -1, 0, 10**30, "", "x", "a\0b", [], [[]], [None], {}, {"1": {}}, [1, 4], ["{}"]):
            mutated = copy.deepcopy(manifest) | {key: nonsense}
            (tmp_path / MANIFEST).write_text(json.dumps(mutated))
            try:
                attack = open_attack(tmp_path)
                assert [len(attack.view(epsilon, "x").image_digests) for epsilon in (0, 1, 4)] == [3, 3, 3]
            except DataError as error:
                assert "\n" not in str(error)


def test_a_run_on_nonsense_is_refused_at_once(bundles, tmp_path):
    changed(made(tmp_path / "attack"), labels=[0, 1, 7])
    (tmp_path / "suite.toml").write_text(
        '[[view]]\nsource = "demo:test:n=24"\n[[transfer]]\nname = "moved"\nsource = "attack"\n'
    )
    done = evaluate("run", bundles / "fp32", "--suite", tmp_path / "suite.toml", "-o", tmp_path / "out")
    assert_refused(done, "clipq-attack.json", "labels", "make the attack again")
    assert not (tmp_path / "out").exists()
