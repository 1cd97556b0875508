"""Hugging Face datasets, from disk."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from photos import png
from support import assert_refused, evaluate

import clipq.demo
from clipq.bundle import Preprocess
from clipq.data.open import open_view
from clipq.data.pixels import PixelReader
from clipq.demo import world
from clipq.errors import DataChanged, DataError

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


def test_a_folder_opens_without_the_network(hugging_face, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "elsewhere")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("something was asked for"))
    assert len(open_view(f"hf:{hugging_face}").samples) == 9
    assert datasets.config.HF_HUB_OFFLINE is False


def test_hugging_face_refusals(hugging_face, tmp_path):
    with pytest.raises(DataError, match="no column 'pixels'"):
        open_view(f"hf:{hugging_face}:image=pixels", cache=tmp_path / "cache")
    with pytest.raises(DataError, match="datasets could not load it"):
        open_view(f"hf:{hugging_face}:split=train", cache=tmp_path / "cache")
    with pytest.raises(DataError, match="--fetch allows downloads"):
        open_view("hf:nobody/nothing")
    with pytest.raises(DataError, match="unknown option 'rows'"):
        open_view(f"hf:{hugging_face}:rows=3", cache=tmp_path / "cache")


def stored(folder, *, rows=3, label=None, **columns):
    """A table of three photos and other columns, each a feature and its values; its source."""
    datasets = pytest.importorskip("datasets", reason="needs the hf extra")
    pictures = (datasets.Image(), [{"bytes": png(index), "path": None} for index in range(rows)])
    given = {"image": pictures, **({} if label is None else {"label": label}), **columns}
    features = datasets.Features({name: feature for name, (feature, _) in given.items()})
    table = datasets.Dataset.from_dict({name: values for name, (_, values) in given.items()}, features=features)
    table.to_parquet(folder / "photos" / "test-00000-of-00001.parquet")
    return f"hf:{folder / 'photos'}"


def value(dtype):
    return pytest.importorskip("datasets").Value(dtype)


def several(feature):
    return pytest.importorskip("datasets").Sequence(feature)


def classes(*names):
    return pytest.importorskip("datasets").ClassLabel(names=list(names))


NO_CLASSES = {
    "floats": (
        lambda: (value("float32"), [0.0, 1.0, 0.0]),
        "column 'label' holds float32, no names of classes; :label=COLUMN",
    ),
    "floats with nothing": (lambda: (value("float64"), [0.0, None, 1.0]), "holds float64, no names"),
    "lists": (lambda: (several(classes("a", "b")), [[0, 1], [0], [1]]), "holds lists, but a sample has one class"),
    "lists of words": (lambda: (several(value("string")), [["a"], ["b"], ["a"]]), "holds lists"),
    "numbers": (lambda: (value("int64"), [0, 1, 0]), "holds numbers, no names of classes; :names=FILE"),
    "truth values": (lambda: (value("bool"), [True, False, True]), "holds numbers, no names of classes"),
    "fractions as words": (lambda: (value("string"), ["0.0", "1.0", "0.0"]), "holds values such as 0.0"),
    "null classes": (lambda: (classes("a", "b"), [0, None, 1]), r"rows without a label \(1 of 3, the first is 1\)"),
    "no class": (lambda: (classes("a", "b"), [-1, -1, -1]), r"rows without a label \(3 of 3"),
    "null words": (lambda: (value("string"), ["a", None, "b"]), r"rows without a label \(1 of 3"),
    "null numbers": (lambda: (value("int64"), [0, None, 1]), r"rows without a label \(1 of 3"),
    "empty words": (lambda: (value("string"), ["a", " ", "b"]), r"rows without a label \(1 of 3"),
    "dates": (lambda: (value("date32"), [None, None, None]), "holds date32, no names"),
}


@pytest.mark.parametrize("case", NO_CLASSES)
def test_a_column_that_names_no_classes_is_refused(tmp_path, case):
    column, words = NO_CLASSES[case]
    with pytest.raises(DataError, match=words):
        open_view(stored(tmp_path, label=column()), cache=tmp_path / "cache")


@pytest.mark.parametrize("feature", ["int64", "bool", "string", "ClassLabel"])
def test_class_names_by_option(tmp_path, feature):
    column = (classes("n01", "n02"), [1, 0, 1]) if feature == "ClassLabel" else (value(feature), [1, 0, 1])
    column = (value(feature), ["1", "0", "1"]) if feature == "string" else column
    source = stored(tmp_path, label=column)
    (tmp_path / "names.txt").write_text("a cat\na dog\n")
    view = open_view(f"{source}:names={tmp_path / 'names.txt'}", cache=tmp_path / "cache")
    assert view.classes.names == ("a cat", "a dog") and [sample.label for sample in view.samples] == [1, 0, 1]
    assert view.classes.keys == (("n01", "n02") if feature == "ClassLabel" else ("0", "1"))
    (tmp_path / "names.txt").write_text("a cat\n")
    with pytest.raises(DataError, match=r"has no class name for label '1'|has 2 classes, .*names 1"):
        open_view(f"{source}:names={tmp_path / 'names.txt'}", cache=tmp_path / "cache")
    with pytest.raises(DataError, match=r"none\.txt: cannot be read"):
        open_view(f"{source}:names=none.txt", cache=tmp_path / "cache")


def bad_rows(view, on_bad_image):
    config = Preprocess(
        image_size=(32, 32),
        mean=(0, 0, 0),
        std=(1, 1, 1),
        interpolation="bicubic",
        resize_mode="shortest",
        fill_color=0,
    )
    return PixelReader(config, on_bad_image).read(view, 0, len(view.samples))


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (None, "it has no image"),
        ({"bytes": None, "path": None}, "it has no image"),
        ({"bytes": b"", "path": None}, "the file is empty"),
        ({"bytes": b"no image", "path": None}, "not an image"),
    ],
)
def test_a_cell_without_an_image_is_a_bad_one(tmp_path, cell, reason):
    images = [{"bytes": png(0), "path": None}, cell, {"bytes": png(1), "path": None}]
    # As other programs write it: the library itself refuses an image that is nothing.
    feature = {"bytes": value("binary"), "path": value("string")}
    source = stored(tmp_path, label=(classes("a", "b"), [0, 1, 1]), image=(feature, images))
    view = open_view(source, cache=tmp_path / "cache")
    assert len(view.digest) == 64
    with pytest.raises(DataError, match=rf"test/0000001: {reason}.*--on-bad-image skip"):
        bad_rows(view, "error")
    batch = bad_rows(view, "skip")
    assert batch.rows.tolist() == [0, 2] and reason in batch.skipped["test/0000001"]


def test_paths_in_cells_are_seen_from_the_folder(tmp_path):
    source = stored(
        tmp_path, label=(classes("a", "b"), [0, 1, 1]), image=(value("string"), ["0.png", "1.png", "https://x/2.png"])
    )
    for number in (0, 1):
        (tmp_path / "photos" / f"{number}.png").write_bytes(png(number))
    view = open_view(source, cache=tmp_path / "cache")
    assert (np.asarray(view.image(1)) == world.sample("test", 1)[1]).all()
    (tmp_path / "photos" / "1.png").unlink()
    with pytest.raises(DataChanged, match="test/0000001: changed while it was read"):
        view.image(1)
    view = open_view(source, cache=tmp_path / "cache")
    for gone in (1, 2):
        with pytest.raises(DataError, match=f"test/000000{gone}: its image is .*, which cannot be read"):
            view.image(gone)


@pytest.mark.parametrize("column", ["numbers", "images"])
def test_a_column_without_one_image_a_row_is_refused(tmp_path, column):
    datasets = pytest.importorskip("datasets", reason="needs the hf extra")
    picture = {"bytes": png(0), "path": None}
    held = {"numbers": (value("int64"), [1, 2, 3]), "images": (several(datasets.Image()), [[picture]] * 3)}[column]
    with pytest.raises(DataError, match=r"column 'image' holds .*, not one image a row"):
        open_view(stored(tmp_path, label=(classes("a", "b"), [0, 1, 1]), image=held), cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("text", ["a cat", None, "a dog"]),
        ("text", ["a cat", "", "a dog"]),
        ("texts", [["a cat"], [], ["a dog", "dog"]]),
        ("texts", [["a cat"], None, ["a dog"]]),
        ("texts", [["a cat"], ["a", None], ["a dog"]]),
    ],
)
def test_a_row_without_a_caption_is_a_bad_one(tmp_path, dtype, values):
    feature = value("string") if dtype == "text" else several(value("string"))
    source = stored(tmp_path, caption=(feature, values))
    view = open_view(source, "captions", cache=tmp_path / "cache")
    # Else the pixels kept of one view would be those of the other.
    assert view.digest != open_view(source, "images", cache=tmp_path / "cache").digest
    with pytest.raises(DataError, match=r"test/0000001: it has no caption.*--on-bad-image skip"):
        bad_rows(view, "error")
    assert bad_rows(view, "skip").skipped == {"test/0000001": "test/0000001: it has no caption"}


def test_captions_are_texts(tmp_path):
    nested = (several(several(value("string"))), [[["a"]], [["b"]], [["c"]]])
    with pytest.raises(DataError, match=r"column 'caption' holds .*, no texts"):
        open_view(stored(tmp_path, caption=nested), "captions", cache=tmp_path / "cache")
    with pytest.raises(DataError, match="no texts"):
        open_view(stored(tmp_path / "b", caption=(value("int64"), [1, 2, 3])), "captions", cache=tmp_path / "cache")


def test_groups_without_a_value_have_a_name(tmp_path):
    source = stored(tmp_path, label=(value("string"), ["a", "b", "a"]), race=(classes("x"), [0, None, -1]),
                    age=(value("int64"), [3, None, 4]))  # fmt: skip
    groups = [sample.groups for sample in open_view(source, cache=tmp_path / "cache").samples]
    assert [group["race"] for group in groups] == ["x", "unlabelled", "unlabelled"]
    assert [group["age"] for group in groups] == ["3", "unlabelled", "4"]


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/test.parquet", "hf://datasets/org/name/test.parquet"])
def test_a_folder_that_names_addresses_fetches_nothing(tmp_path, address):
    pytest.importorskip("datasets", reason="needs the hf extra")
    (tmp_path / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: {address}\n---\n"
    )
    with pytest.raises(DataError, match=r"it names (http|hf): addresses; --fetch allows downloads"):
        open_view(f"hf:{tmp_path}")


def test_no_image_but_the_one_that_is_asked_for_is_decoded(tmp_path, monkeypatch):
    """The library would give a row as a whole, a mask in any format of Pillow's with it: PostScript, too."""
    datasets = pytest.importorskip("datasets", reason="needs the hf extra")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    features = datasets.Features(image=datasets.Image(), mask=datasets.Image(), label=datasets.Value("string"))
    rows = {
        "image": [{"bytes": png(index), "path": None} for index in range(2)],
        "mask": [{"bytes": script, "path": None}, {"bytes": b"no image", "path": None}],
        "label": ["cat", "dog"],
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "test-0.parquet")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was run"))
    view = open_view(f"hf:{tmp_path}")
    assert all(view.image(index) for index in range(2)) and len(view.digest) == 64


@pytest.mark.parametrize("what", ["a suffix that the library does not know", "no metadata"])
def test_images_that_the_library_passes_over_are_named(tmp_path, what):
    pytest.importorskip("datasets", reason="needs the hf extra")
    names = ["train/cat/9.png", "test/cat/0.png", "test/cat/1.png", "test/dog/2.png"]
    for index, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(index))
    if what == "no metadata":
        lines = ['{"file_name": "cat/0.png", "label": "cat"}', '{"file_name": "dog/2.png", "label": "dog"}']
        (tmp_path / "test/metadata.jsonl").write_text("\n".join(lines))
    else:
        (tmp_path / "test/cat/1.png").rename(tmp_path / "test/cat/1.avif")
    view = open_view(f"hf:{tmp_path}")
    assert len(view.samples) == 2
    assert [name.partition(".")[0] for name in view.left_out] == ["test/cat/1"]


def test_a_path_to_no_regular_file_is_a_bad_image(tmp_path):
    pytest.importorskip("datasets", reason="needs the hf extra")
    (tmp_path / "test.csv").write_text("image,label\n/dev/zero,cat\n.,dog\n")
    view = open_view(f"hf:{tmp_path}")
    for index in range(2):
        with pytest.raises(DataError, match="is no regular file"):
            view.image(index)


def table(path, classes=NAMES):
    datasets = pytest.importorskip("datasets", reason="needs the hf extra")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(classes)))
    rows = {"image": [{"bytes": png(index), "path": None} for index in range(3)], "label": [0, 1, 2]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def test_a_part_that_is_missing_is_missed(tmp_path):
    # Earlier versions of the library wrote digests into the names.
    for name in (
        "test-00000-of-00003-4c1d73f0f5ad2fd1",
        "test-00002-of-00003-a2b7b3bd3ab8b1c0",
        "train-00000-of-00009",
    ):
        table(tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"test-00001-of-00003\.parquet is missing, 2 of 3 parts"):
        open_view(f"hf:{tmp_path}")
    table(tmp_path / "test-00001-of-00003-0123456789abcdef.parquet")
    assert len(open_view(f"hf:{tmp_path}").samples) == 9


def test_tables_that_the_library_passes_over_are_named(tmp_path):
    for name in ("test", "part2"):
        table(tmp_path / f"{name}.parquet")
    (tmp_path / "README.md").write_text("Photos.")
    view = open_view(f"hf:{tmp_path}")
    assert len(view.samples) == 3 and list(view.left_out) == ["part2.parquet"]


def test_class_names_in_another_order_are_refused(tmp_path):
    table(tmp_path / "test.parquet")
    (tmp_path / "names.txt").write_text("star\ncircle\nring\n")
    with pytest.raises(DataError, match="line 1 calls the class 'circle' 'star'"):
        open_view(f"hf:{tmp_path}:names={tmp_path / 'names.txt'}")


def test_a_cut_tar_is_no_shorter_one(tmp_path):
    pytest.importorskip("datasets", reason="needs the hf extra")
    starts, path = [], tmp_path / "test-0.tar"
    with tarfile.open(path, "w") as tar:
        for index in range(4):
            starts.append(tar.offset)
            for suffix, data in (("png", png(index)), ("txt", b"ab"[index % 2 : index % 2 + 1])):
                member = tarfile.TarInfo(f"{index}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    whole, spec = path.read_bytes(), f"hf:{tmp_path}:image=png,label=txt"
    assert len(open_view(spec).samples) == 4 and not open_view(spec).unverified
    path.write_bytes(whole[: starts[3] + 200])
    with pytest.raises(DataError, match="truncated inside a header"):
        open_view(spec)
    path.write_bytes(whole[: starts[3]])
    assert open_view(spec).unverified == ("test-0.tar has no end marker: a cut could not be told",)


@pytest.mark.parametrize("content", [b"PAR1 cut", b"version https://git-lfs.github.com/spec/v1\n"])
def test_what_the_library_cannot_read_is_one_line(tmp_path, content):
    pytest.importorskip("datasets", reason="needs the hf extra")
    (tmp_path / "test.parquet").write_bytes(content)
    done = evaluate(
        "run", str(Path(clipq.demo.__file__).parent / "bundle"), "--data", f"hf:{tmp_path}", "-o", str(tmp_path / "out")
    )
    assert_refused(done, "datasets could not load it")
