"""Folders and CSV files that work, and bad ones that are refused in one line."""

from __future__ import annotations

import csv

import pytest
from photos import image_folder, png
from PIL import Image

from clipq.data.open import open_view
from clipq.errors import DataError


def test_image_folder(tmp_path):
    view = open_view(str(image_folder(tmp_path / "set")))
    assert view.name == "set" and view.classes.names == ("circle", "ring", "star")
    assert [sample.label for sample in view.samples] == [0] * 3 + [1] * 3 + [2] * 3
    assert view.samples[4].id == "ring/1.png"


@pytest.mark.parametrize("beside", [True, False])
def test_class_names_and_templates_in_or_beside(tmp_path, beside):
    root = image_folder(tmp_path / "set" / "test")
    place = root.parent if beside else root
    (place / "classnames.txt").write_text("a circle\na ring\na star\n")
    (place / "zeroshot_classification_templates.txt").write_text("drawing of {c}\n")
    view = open_view(f"mine={root}")
    assert view.name == "mine" and view.classes.names[1] == "a ring" and view.classes.templates == ("drawing of {}",)


def test_csv_with_groups(tmp_path):
    image_folder(tmp_path)
    rows = ["circle/0.png,circle,day", "ring/0.png,ring,night", "star/1.png,star,day"]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,light", *rows]))
    view = open_view(str(tmp_path / "labels.csv"))
    assert view.samples[1].groups == {"light": "night"} and view.samples[1].label == 1
    by_light = open_view(f"{tmp_path / 'labels.csv'}:label=light")
    assert by_light.classes.names == ("day", "night") and by_light.samples[0].groups == {"light": "day"}


def test_a_group_without_a_value_has_a_name(tmp_path):
    image_folder(tmp_path)
    (tmp_path / "labels.csv").write_text("file,label,light\ncircle/0.png,a,night\nring/0.png,b,\nstar/0.png,a, \n")
    view = open_view(str(tmp_path / "labels.csv"))
    assert [sample.groups["light"] for sample in view.samples] == ["night", "unlabelled", "unlabelled"]


def test_csv_with_numbers_into_classnames(tmp_path):
    image_folder(tmp_path)
    (tmp_path / "classnames.txt").write_text("circle\nring\nstar\n")
    (tmp_path / "labels.csv").write_text("file,label\ncircle/0.png,0\nstar/0.png,2\nring/1.png,1\n")
    assert [sample.label for sample in open_view(str(tmp_path / "labels.csv")).samples] == [0, 2, 1]


def test_captions_of_an_image_belong_together(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    with (tmp_path / "captions.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["file", "caption"], *[[f"{n % 3}.png", f"caption, {n}"] for n in range(7)]])
    view = open_view(str(tmp_path / "captions.csv"), "captions")
    assert [len(sample.captions) for sample in view.samples] == [3, 2, 2]
    assert view.samples[1].captions == ("caption, 1", "caption, 4")


def test_digest_follows_the_content_not_the_place(tmp_path):
    first, second = image_folder(tmp_path / "a" / "x"), image_folder(tmp_path / "b" / "y")
    assert open_view(str(first)).digest == open_view(str(second)).digest
    Image.new("RGB", (48, 48)).save(second / "ring" / "0.png")
    assert open_view(str(first)).digest != open_view(str(second)).digest


def bad(tmp_path, case):
    root = tmp_path / "set"
    if case == "missing":
        return root, "neither a folder"
    image_folder(root, each=0 if case == "no images" else 3)
    if case == "no classes":
        root = root / "circle"
        return root, "no class folders"
    if case == "no images":
        return root, "no images"
    if case == "too few class names":
        (root / "classnames.txt").write_text("one\ntwo\n")
        return root, "names 2 classes"
    if case == "duplicate class names":
        (root / "classnames.txt").write_text("one\none\ntwo\n")
        return root, "more than one class"
    if case == "bad template":
        (root / "zeroshot_classification_templates.txt").write_text("a photo\n")
        return root, "exactly once"
    if case == "fewer samples than classes":
        for index in range(9):
            (root / f"empty{index}").mkdir()
        return root, "fewer than"
    csv = root / "labels.csv"
    rows = {
        "csv without label": ("file,class\ncircle/0.png,x\n", "no column 'label'"),
        "csv unknown file": ("file,label\nnone.png,x\ncircle/0.png,y\n", "does not exist"),
        "csv twice": ("file,label\ncircle/0.png,x\ncircle/0.png,y\n", "more than once"),
        "csv one class": ("file,label\ncircle/0.png,x\ncircle/1.png,x\n", "only one class"),
        "csv empty": ("file,label\n", "no rows"),
    }
    csv.write_text(rows[case][0])
    return csv, rows[case][1]


CASES = [
    "missing", "no classes", "no images", "too few class names", "duplicate class names", "bad template",
    "fewer samples than classes", "csv without label", "csv unknown file", "csv twice", "csv one class", "csv empty",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_data_is_refused(tmp_path, case):
    source, words = bad(tmp_path, case)
    with pytest.raises(DataError, match=words):
        open_view(str(source))


def with_classes(root, *keys):
    """A folder with one image in each class folder."""
    for index, key in enumerate(keys):
        (root / key).mkdir(parents=True)
        (root / key / "0.png").write_bytes(png(index))
    return str(root)


@pytest.mark.parametrize(
    "keys",
    [
        ("hot_dog", "hot dog"),
        ("hot  dog", "hot dog"),
        ("dog", "dog "),
        ("caf\u00e9", "cafe\u0301"),
        ("a\u00a0b", "a b"),
    ],
)
def test_names_that_are_the_same_to_a_tokenizer_are_one_class(tmp_path, keys):
    with pytest.raises(DataError, match="stands for more than one class"):
        open_view(with_classes(tmp_path, *keys, "star"))


def thousand_classes(root, *twice):
    """A table of a thousand classes, of which the last are called as the first are."""
    names = [*twice, *(f"name {number}" for number in range(1000 - 2 * len(twice))), *twice]
    (root / "photos.csv").write_text("file,label\n" + "".join(f"{one}.png,{one}\n" for one in range(1000)))
    (root / "classnames.txt").write_text("\n".join(names))
    for number in range(1000):
        (root / f"{number}.png").write_bytes(png(number % 200))
    return str(root / "photos.csv"), names


def test_imagenets_own_names_are_read_though_two_stand_for_two_classes_each(tmp_path, caplog):
    source, names = thousand_classes(tmp_path, "missile", "sunglasses")
    assert open_view(source).classes.names == tuple(names)
    assert caplog.text.count("stand for two classes each") == 1 and "more than one class" not in caplog.text


@pytest.mark.parametrize("twice", [("missile", "maillot"), ("missile",), ("missile", "sunglasses", "maillot")])
def test_other_names_of_a_thousand_are_told_apart(tmp_path, twice):
    with pytest.raises(DataError, match="'missile' stands for more than one class"):
        open_view(thousand_classes(tmp_path, *twice)[0])


def test_names_that_differ_in_capitals_are_said(tmp_path, caplog):
    assert len(open_view(with_classes(tmp_path, "Cat", "cat")).classes.names) == 2
    assert "'cat' (as 'Cat')" in caplog.text


@pytest.mark.parametrize("name", ["0\tcat", "c\0t", "\x1b[31mcat", "c\x0bt"])
def test_class_names_without_control_letters(tmp_path, name):
    root = with_classes(tmp_path, "a", "b")
    (tmp_path / "classnames.txt").write_text(f"{name}\ndog\n")
    with pytest.raises(DataError, match="control letter"):
        open_view(root)


@pytest.mark.parametrize("keys", [("train", "val"), ("Test", "Train", "validation")])
def test_splits_are_no_classes(tmp_path, keys):
    with pytest.raises(DataError, match=f"are splits .*give .*{keys[-1]}"):
        open_view(with_classes(tmp_path, *keys))
    assert len(open_view(with_classes(tmp_path / "vehicles", "train", "car")).samples) == 2


def test_numbers_as_folders_are_in_one_order(tmp_path):
    """Line 3 is class 2 to one, and folder 10 to another."""
    names = "\n".join(f"name {number}" for number in range(11))
    root = with_classes(tmp_path / "plain", *map(str, range(11)))
    assert open_view(root).classes.names[:3] == ("0", "1", "10")
    (tmp_path / "plain/classnames.txt").write_text(names)
    with pytest.raises(DataError, match="leading zeros"):
        open_view(root)
    padded = with_classes(tmp_path / "padded", *(f"{number:02d}" for number in range(11)))
    (tmp_path / "padded/classnames.txt").write_text(names)
    assert open_view(padded).classes.names[2] == "name 2"


def test_class_names_beside_a_link(tmp_path):
    real = with_classes(tmp_path / "disk/photos", "a", "b")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/test").symlink_to(real)
    (tmp_path / "data/classnames.txt").write_text("cat\ndog\n")
    assert open_view(str(tmp_path / "data/test")).classes.names == ("cat", "dog")
    assert open_view(real).classes.names == ("a", "b")


def test_a_file_of_templates_without_any_is_refused(tmp_path):
    root = with_classes(tmp_path, "a", "b")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("\n\n")
    with pytest.raises(DataError, match="holds no template"):
        open_view(root)


@pytest.mark.parametrize("names", ["star\ncircle\nring", "Circle\nStar\nring", "circle\nstar \nr i n g"])
def test_class_names_in_another_order_are_refused(tmp_path, names):
    root = with_classes(tmp_path, "circle", "ring", "star")
    (tmp_path / "classnames.txt").write_text(names)
    with pytest.raises(DataError, match=r"calls the class .* in the order of the classes"):
        open_view(root)


def test_class_names_of_their_own_are_in_any_words(tmp_path):
    root = with_classes(tmp_path, "circle", "ring", "star")
    (tmp_path / "classnames.txt").write_text("round thing\nRing!\nfive rays\n")
    assert open_view(root).classes.names[1] == "Ring!"


def test_counted_folders_are_in_one_order(tmp_path):
    keys = [f"class_{number}" for number in range(11)]
    root = with_classes(tmp_path, *keys)
    (tmp_path / "classnames.txt").write_text("\n".join(f"name {number}" for number in range(11)))
    with pytest.raises(DataError, match="leading zeros"):
        open_view(root)
    (tmp_path / "classnames.txt").write_text("\n".join(sorted(keys)))
    assert open_view(root).classes.names[2] == "class_10"


@pytest.mark.parametrize(
    "keys",
    [("train2017", "val2017"), ("test_set", "training_set"), ("images-test", "images-train"), ("fold1", "fold2"),
     ("test", "train", "unlabeled"), ("gallery", "query", "train")],
)  # fmt: skip
def test_splits_by_other_names_are_no_classes(tmp_path, keys):
    with pytest.raises(DataError, match="are splits"):
        open_view(with_classes(tmp_path, *keys))


def test_split_like_names_beside_others_are_classes(tmp_path):
    assert len(open_view(with_classes(tmp_path, "train", "trainer", "test tube")).classes.names) == 3


@pytest.mark.parametrize("keys", [("0", "1"), ("False", "True")])
def test_classes_without_words_are_said(tmp_path, keys, caplog):
    assert open_view(with_classes(tmp_path, *keys)).classes.names == keys
    assert f"its classes are called {keys[0]}, {keys[1]}" in caplog.text
