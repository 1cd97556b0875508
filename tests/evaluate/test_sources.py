"""Webdataset tars (from disk and over real HTTP), Hugging Face datasets, UTKFace, captions, label maps."""

from __future__ import annotations

import csv
import functools
import http.server
import io
import tarfile
import threading

import numpy as np
import pytest
from PIL import Image

from clipq.data import archives
from clipq.data.open import open_view
from clipq.data.relabel import restrict_classes
from clipq.demo import world
from clipq.errors import DataError

NAMES = ("circle", "ring", "star")


def png(index):
    stream = io.BytesIO()
    Image.fromarray(world.sample("test", index)[1]).save(stream, "PNG")
    return stream.getvalue()


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def shards(root, label=".cls", count=2):
    (root / "test").mkdir(parents=True)
    (root / "test" / "nshards.txt").write_text(f"{count}\n")
    (root / "classnames.txt").write_text("\n".join(NAMES))
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    for shard in range(count):
        with tarfile.open(root / "test" / f"{shard}.tar", "w") as tar:
            for index in range(6):
                add(tar, f"s{shard}{index}.png", png(6 * shard + index))
                text = str(index % 3) if label == ".cls" else f"first of {index}\nsecond of {index}\n"
                add(tar, f"s{shard}{index}{label}", text.encode())
    return root


class Flaky(http.server.SimpleHTTPRequestHandler):
    """Fails the first requests for a file, then serves it; counts what was asked."""

    failures = 0
    asked: list[str]

    def do_GET(self):
        type(self).asked.append(self.path)
        if type(self).failures:
            type(self).failures -= 1
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(archives.time, "sleep", lambda seconds: None)
    Flaky.failures, Flaky.asked = 0, []
    handler = functools.partial(Flaky, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_webdataset_from_a_folder(tmp_path):
    view = open_view(f"wds:{shards(tmp_path / 'wds_set')}")
    assert view.name == "wds_set" and len(view.samples) == 12 and view.classes.names == NAMES
    assert [sample.label for sample in view.samples] == [0, 1, 2] * 4
    assert view.classes.templates == ("a photo of a {}.",)
    assert (np.asarray(view.image(7)) == world.sample("test", 7)[1]).all()
    assert len(set(view.image_digests)) == 12


def test_webdataset_over_http_is_kept(tmp_path, server):
    shards(tmp_path / "set")
    Flaky.failures = 2
    view = open_view(f"wds:{server}/set", cache=tmp_path / "cache")
    local = open_view(f"wds:{tmp_path / 'set'}")
    assert view.digest == local.digest and view.classes == local.classes
    before = len(Flaky.asked)
    again = open_view(f"wds:{server}/set", cache=tmp_path / "cache")
    assert again.digest == view.digest and len(Flaky.asked) == before


def test_dead_and_wrong_addresses(tmp_path, server):
    with pytest.raises(DataError, match="--fetch allows downloads"):
        open_view(f"wds:{server}/set")
    Flaky.failures = 99
    with pytest.raises(DataError, match=r"could not be fetched in 4 attempts \(503"):
        open_view(f"wds:{server}/set", cache=tmp_path / "cache")
    assert len(Flaky.asked) == 4
    Flaky.failures = 0
    with pytest.raises(DataError, match=r"has no test/nshards.txt"):
        open_view(f"wds:{server}/nothing", cache=tmp_path / "cache")
    with pytest.raises(DataError, match="could not be fetched in 4 attempts"):
        open_view("wds:http://127.0.0.1:9/set", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.tar"))


def test_hostile_and_broken_tars(tmp_path):
    root = shards(tmp_path / "set")
    good = (root / "test" / "1.tar").read_bytes()
    with tarfile.open(root / "test" / "1.tar", "w") as tar:
        add(tar, "../../escape.png", png(0))
    with pytest.raises(DataError, match="points outside the archive"):
        open_view(f"wds:{root}")
    for length in (700, len(good) // 2, 100):
        (root / "test" / "1.tar").write_bytes(good[:length])
        with pytest.raises(DataError, match=r"1\.tar: is (truncated|no readable tar)"):
            open_view(f"wds:{root}")
    (root / "test" / "1.tar").unlink()
    with pytest.raises(DataError, match=r"test/1\.tar is missing"):
        open_view(f"wds:{root}")


def test_webdataset_labels_and_captions(tmp_path):
    root = shards(tmp_path / "set", label=".txt")
    with pytest.raises(DataError, match=r"no \.cls with a class index"):
        open_view(f"wds:{root}")
    view = open_view(f"wds:{root}", "captions")
    assert view.samples[1].captions == ("first of 1", "second of 1") and view.classes is None
    other = shards(tmp_path / "other")
    (other / "classnames.txt").write_text("circle\nring\n")
    with pytest.raises(DataError, match="has class 2"):
        open_view(f"wds:{other}")


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


def test_utkface(tmp_path):
    for number, name in enumerate(("23_0_1_201701", "41_1_0_201702", "8_1_4_201703", "67_0_3_201704")):
        (tmp_path / f"{name}.jpg").write_bytes(png(number))
    view = open_view(f"utkface:{tmp_path}")
    assert view.classes.names == ("male", "female") and [sample.label for sample in view.samples] == [0, 1, 0, 1]
    assert view.samples[0].groups == {"gender": "male", "race": "Black", "age": "20-29"}
    assert open_view(f"utkface:{tmp_path}", "images").classes is None
    (tmp_path / "odd.jpg").write_bytes(png(0))
    with pytest.raises(DataError, match="AGE_GENDER_RACE"):
        open_view(f"utkface:{tmp_path}")


def test_captions_of_an_image_belong_together(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    with (tmp_path / "captions.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["file", "caption"], *[[f"{n % 3}.png", f"caption, {n}"] for n in range(7)]])
    view = open_view(str(tmp_path / "captions.csv"), "captions")
    assert [len(sample.captions) for sample in view.samples] == [3, 2, 2]
    assert view.samples[1].captions == ("caption, 1", "caption, 4")


def folders(root, names):
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for index in range(2):
            (root / name / f"{index}.png").write_bytes(png(24 * index + number))
    return root


def test_classes_of_another_view_by_key_and_by_map(tmp_path):
    inside = folders(tmp_path / "imagenet", ("n01", "n02", "n03", "n04"))
    (inside / "classnames.txt").write_text("tench\ngoldfish\nshark\nray\n")
    inside = open_view(str(inside))
    subset = restrict_classes(open_view(str(folders(tmp_path / "a", ("n02", "n04")))), inside, None)
    assert subset.classes.names == ("goldfish", "ray") and subset.classes.label_of_class == (0, 1)
    other = open_view(str(folders(tmp_path / "objects", ("fish", "flat"))))
    with pytest.raises(DataError, match="'fish' is no class of"):
        restrict_classes(other, inside, None)
    (tmp_path / "map.csv").write_text("label,class\nfish,tench\nfish,n02\nflat,ray\n")
    joined = restrict_classes(other, inside, tmp_path / "map.csv")
    assert joined.classes.names == ("tench", "goldfish", "ray") and joined.classes.label_of_class == (0, 0, 1)
    (tmp_path / "map.csv").write_text("label,class\nfish,tench\n")
    with pytest.raises(DataError, match="says nothing about label 'flat'"):
        restrict_classes(other, inside, tmp_path / "map.csv")


def test_joined_classes_add_their_probabilities():
    from clipq.evaluate.zeroshot import Classifier

    cosines = np.array([[0.3, 0.2, 0.31]], np.float32)
    joined = Classifier(np.eye(3, dtype=np.float32), np.array([0, 0, 1]), 10.0, None)
    predictions = joined.predict(cosines, np.array([0]))
    expected = np.exp(10 * cosines[0]) / np.exp(10 * cosines[0]).sum()
    assert predictions.probabilities[0] == pytest.approx([expected[:2].sum(), expected[2]], abs=1e-6)
    assert predictions.correct[0]
