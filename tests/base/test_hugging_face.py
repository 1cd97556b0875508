"""Hugging Face datasets, from disk."""

from __future__ import annotations

import numpy as np
import pytest
from photos import png

from clipq.data.open import open_view
from clipq.demo import world
from clipq.errors import DataError

NAMES = ("circle", "ring", "star")


@pytest.fixture
def hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the hf extra")
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(NAMES)), words=datasets.Sequence(datasets.Value("string")),
        race=datasets.ClassLabel(names=["East Asian", "White"]), age=datasets.Value("string"),
    )  # fmt: skip
    rows = {
        "image": [{"bytes": png(index), "path": None} for index in range(9)],
        "label": [index % 3 for index in range(9)],
        "words": [[f"{index} once", f"{index} twice"] for index in range(9)],
        "race": [index % 2 for index in range(9)],
        "age": ["20-29"] * 9,
    }
    folder = tmp_path / "photos_hf"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


def test_hugging_face_dataset(hugging_face, tmp_path):
    view = open_view(f"hf:{hugging_face}", cache=tmp_path / "cache")
    assert view.name == "photos_hf" and view.classes.names == NAMES
    assert [sample.label for sample in view.samples] == [0, 1, 2] * 3
    assert (np.asarray(view.image(4)) == world.sample("test", 4)[1]).all()
    assert view.samples[1].groups == {"race": "White", "age": "20-29"}
    by_race = open_view(f"hf:{hugging_face}:label=race", cache=tmp_path / "cache")
    assert by_race.classes.names == ("East Asian", "White") and by_race.samples[2].groups["race"] == "East Asian"
    captions = open_view(f"hf:{hugging_face}:caption=words", "captions", cache=tmp_path / "cache")
    assert captions.samples[2].captions == ("2 once", "2 twice")


def test_hugging_face_refusals(hugging_face, tmp_path):
    with pytest.raises(DataError, match="no column 'pixels'"):
        open_view(f"hf:{hugging_face}:image=pixels", cache=tmp_path / "cache")
    with pytest.raises(DataError, match="datasets could not load it"):
        open_view(f"hf:{hugging_face}:split=train", cache=tmp_path / "cache")
    with pytest.raises(DataError, match="--fetch allows downloads"):
        open_view("hf:nobody/nothing")
    with pytest.raises(DataError, match="unknown option 'rows'"):
        open_view(f"hf:{hugging_face}:rows=3", cache=tmp_path / "cache")
