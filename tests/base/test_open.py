"""What is known of a source before it is opened: its kind, name and path, and what is wrong with it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from clipq.data import open as opening
from clipq.data.open import SCHEMES, complaint, describe_sources, find_source, open_view, seen_from
from clipq.errors import DataError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of sources, which the process stands in."""
    for name in ("photos/test", "org/name", "shards", "odd=name"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "photos" / "labels.csv").touch()
    (tmp_path / "photos.zip").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("photos/test", "test"),
        ("./photos/test/", "test"),
        (".", None),
        ("photos/labels.csv:label=gender", "photos"),
        ("photos/LABELS.CSV", "photos"),
        ("mine=photos/labels.csv", "mine"),
        ("odd=name", "odd=name"),
        ("demo:test:n=48", "demo-test"),
        ("wds:shards", "shards"),
        ("wds:https://somewhere/data/wds_cars/resolve/main", "wds_cars"),
        ("wds:https://somewhere/data/wds_cars/tree/main/", "wds_cars"),
        ("hf:org/name:split=val", "name"),
        ("utkface:photos/test", "test"),
    ],
)
def test_names(folder, spec, name):
    assert find_source(spec)[1].name == (name or folder.name)


@pytest.mark.parametrize(
    ("spec", "seen"),
    [
        ("photos/test", "{}/photos/test"),
        ("mine=photos/labels.csv:label=gender", "mine={}/photos/labels.csv:label=gender"),
        ("odd=name", "{}/odd=name"),
        ("demo:test:n=48", "demo:test:n=48"),
        ("few=demo:test", "few=demo:test"),
        ("wds:shards:split=val", "wds:{}/shards:split=val"),
        ("wds:https://somewhere/set", "wds:https://somewhere/set"),
        ("hf:org/name", "hf:{}/org/name"),
        ("hf:nobody/nothing", "hf:nobody/nothing"),
        ("hf:nobody/nothing:names=a.txt,split=val", "hf:nobody/nothing:names={}/a.txt,split=val"),
        ("hf:org/name:split=val,names=/a.txt", "hf:{}/org/name:split=val,names=/a.txt"),
        ("utkface:faces", "utkface:{}/faces"),
    ],
)
def test_paths_seen_from_a_folder(folder, spec, seen, monkeypatch):
    monkeypatch.chdir(os.sep)
    assert seen_from(spec, folder) == seen.format(folder)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nowhere", "nowhere: does not exist: neither a folder, nor a .csv file, nor demo:SET"),
        ("webds:shards", "webds:shards: does not exist: neither"),
        ("photos.zip", "photos.zip: is neither a folder"),
        ("none.csv", "none.csv: does not exist"),
        ("wds:nowhere", "wds:nowhere: does not exist"),
        ("utkface:photos.zip", "utkface:photos.zip: is no folder"),
        ("demo:test:rows=3", "demo:test: unknown option 'rows'; known: n"),
        ("photos/test:n=3", "photos/test: unknown option 'n'; known: none"),
    ],
)
def test_what_is_wrong_is_known_before_it_is_opened(folder, spec, words):
    assert words in complaint(spec)
    with pytest.raises(DataError) as refused:
        open_view(spec)
    assert words in str(refused.value)


@pytest.mark.parametrize("spec", ["photos/test", "photos/labels.csv", "wds:https://somewhere/set", "hf:org/else"])
def test_nothing_is_wrong_with_what_may_open(folder, spec):
    assert complaint(spec) is None


def test_a_package_that_is_not_there_is_named(folder, monkeypatch):
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"needs the package datasets: pip install 'clip-quant\[hf\]'"):
        open_view("hf:org/name")


def test_captions_take_no_label(folder):
    with pytest.raises(DataError, match="captions have no labels"):
        open_view("photos/labels.csv:label=gender", "captions")


def test_help_names_every_kind_and_loads_nothing_heavy():
    for scheme in SCHEMES.values():
        assert f"{scheme.form} ({scheme.help})" in describe_sources()
    code = (
        "import sys, clipq.data.open; print([m for m in ('numpy', 'PIL', 'pydantic', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
