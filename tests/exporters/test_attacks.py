"""Stored attacks: ε exact in 8 bits, stronger with ε, the same again, and refused where they do not fit."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file
from support import assert_refused, evaluate, export

from clipq.bundle import Preprocess, open_bundle
from clipq.data.attack import open_attack
from clipq.errors import DataError
from clipq.evaluate.suites.suite import built_in_attack
from clipq.exporters.cli import main

pytest.importorskip("torch", reason="needs the export extra")


def make(folder, *options, **process):
    words = ("attack", "demo", "--data", "demo:test:n=48", "--templates", "simple-7", "-o", str(folder), *options)
    done = export(*words, **process)
    assert done.returncode == 0, done.stderr
    return open_attack(folder), load_file(folder / "pixels.safetensors")


@pytest.fixture(scope="module")
def pgd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacks") / "pgd"
    return folder, *make(folder, "--epsilon", "1", "--epsilon", "4", "--steps", "4", "--restarts", "2")


def distance(pixels, epsilon):
    return np.abs(pixels[f"epsilon_{epsilon}"].astype(int) - pixels["clean"]).max()


def test_epsilon_is_exact_after_rounding(pgd):
    _, attack, pixels = pgd
    assert attack.manifest.epsilons == (1, 4) and pixels["clean"].shape == (48, 48, 48, 3)
    assert distance(pixels, 1) == 1 and distance(pixels, 4) == 4


def test_larger_epsilon_fools_more_and_fgsm_less_than_pgd(pgd, tmp_path):
    _, attack, _ = pgd
    fooled = {epsilon: sum(turned) for epsilon, turned in attack.manifest.fooled.items()}
    assert fooled["4"] > fooled["1"] > 0
    fgsm, pixels = make(tmp_path / "fgsm", "--method", "fgsm", "--epsilon", "4")
    assert distance(pixels, 4) == 4 and sum(fgsm.manifest.fooled["4"]) <= fooled["4"]


def test_the_same_attack_again(pgd, tmp_path):
    _, attack, _ = pgd
    options = ("--epsilon", "1", "--epsilon", "4", "--steps", "4", "--restarts", "2")
    again, _ = make(tmp_path / "again", *options, env=os.environ | {"PYTHONHASHSEED": "1"})
    assert again.manifest == attack.manifest


def test_the_engine_is_fooled_as_the_checkpoint_was(pgd, bundles, tmp_path):
    """On the FP32 engine the transfer rate is 1, up to samples on the decision's edge."""
    folder, _, _ = pgd
    suite = tmp_path / "suite.toml"
    suite.write_text(
        f'templates = "simple-7"\n[[view]]\nsource = "demo:test:n=48"\n[[transfer]]\nname = "moved"\nsource = "{folder}"\n'
    )
    done = evaluate("run", str(bundles / "fp32"), "--suite", str(suite), "-o", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    rows = {(row["group"], row["metric"]): row for row in json.loads(done.stdout) if row["view"] == "moved"}
    assert rows["pgd/4", "attack_success"]["value"] > 0.95
    assert (
        rows["pgd/4", "robust_acc1"]["value"]
        < rows["pgd/1", "robust_acc1"]["value"]
        < rows["pgd/1", "clean_acc1"]["value"]
    )


def test_damage_and_misfit_are_refused(pgd, tmp_path, bundles):
    folder, _, _ = pgd
    with pytest.raises(DataError, match="clipq-export attack makes one"):
        open_attack(tmp_path)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "pixels.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="does not match the digest"):
        open_attack(copy)
    view = open_attack(folder).view(1, "pgd")
    config = open_bundle(bundles / "fp32").manifest.preprocess
    assert (view.cropped(0, config) == view.stored[0]).all()
    other = Preprocess.model_validate(config.model_dump() | {"image_size": (32, 32)})
    with pytest.raises(DataError, match="another preprocessing"):
        view.cropped(0, other)


def test_wrong_use_is_refused(tmp_path):
    out = ["-o", str(tmp_path / "out")]
    assert export("attack", "demo", "--data", "demo:test:n=48", "--epsilon", "0", *out).returncode == 2
    assert_refused(export("attack", "demo", "--data", "nowhere", *out), "neither a folder")
    assert_refused(export("attack", "demo", "--data", "demo:test:n=48", "--templates", "x", *out), "imagenet-80")
    assert not (tmp_path / "out").exists()


def test_remote_images_are_fetched_only_on_leave(tmp_path, monkeypatch):
    monkeypatch.setattr("clipq.data.downloads.time.sleep", lambda seconds: None)
    words = ["attack", "demo", "--data", "wds:http://127.0.0.1:9/set", "-o", str(tmp_path / "out")]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2 and "--fetch allows downloads" in refused.output
    tried = CliRunner().invoke(main, [*words, "--fetch", str(tmp_path / "cache")])
    assert tried.exit_code == 2 and "could not be fetched in 4 attempts" in tried.output


def test_the_built_in_attack_is_whole():
    attack = open_attack(built_in_attack("demo"))
    assert attack.manifest.epsilons == (1, 2, 4) and len(attack.manifest.ids) == 96
    assert attack.manifest.preprocess == open_bundle(built_in_attack("demo").parent / "bundle").manifest.preprocess
