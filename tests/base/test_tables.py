"""CSV files: read whole, or refused in one line with the line that does not fit."""

from __future__ import annotations

import pytest
from photos import image_folder

from clipq.data.open import open_view
from clipq.data.tables import file_beside, read_csv
from clipq.errors import DataError

ROWS = "a.png,cat\nb.png,dog\n"

REFUSED = {
    "Windows-1252": (b"file,label\na.png,cat\nb.png,caf\xe9\n", "line 3 is not UTF-8"),
    "UTF-16": (f"file,label\n{ROWS}".encode("utf-16"), "line 1 is not UTF-8"),
    "UTF-16 without a mark": (f"file,label\n{ROWS}".encode("utf-16-le"), "line 1 holds a NUL"),
    "NUL": (b"file,label\na.png,cat\nb.png,d\0g\n", "line 3 holds a NUL"),
    "short row": (b"file,label,light\na.png,cat,day\nb.png,dog\n", "line 3 has 2 cells, the header 3"),
    "comma in a caption": (b"file,label\na.png,a cat, white\n", "line 2 has 3 cells, the header 2"),
    "stray quote": (f'file,label\nx.png,"fish\n{ROWS}'.encode(), "line 2 is no CSV"),
    "two stray quotes": (f'file,label\nx.png,"fish\n{ROWS}c.png,bird"\n'.encode(), "line 2 begins a cell of several"),
    "stray quote in a group": (b'file,label,note\na.png,cat,"x\nb.png,dog,y"\n', r"line 2 begins .* \(note\)"),
    "letters after a quote": (b'file,label\na.png,"cat" white\n', "line 2 is no CSV"),
    "long field": (b"file,label\na.png," + b"x" * 140_000 + b"\n", "line 2 is no CSV.*limit"),
    "semicolons": (b"file;label\na.png;cat\n", "separated by semicolons"),
    "tabs": (b"file\tlabel\na.png\tcat\n", "separated by tabs"),
    "column twice": (b"file,label,label\na.png,cat,dog\n", "has 2 columns 'label'"),
    "column without a name": (b",file,label\n0,a.png,cat\n", "column 1 has no name"),
    "no label": (b"file,label\na.png,cat\n\nb.png, \n", "line 4 has an empty label"),
    "no file": (b"file,label\n,cat\n", "line 2 has an empty file"),
    "nothing": (b"", "has no column 'file'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_read_wrongly_is_refused_with_its_line(tmp_path, case):
    content, words = REFUSED[case]
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=words) as refused:
        read_csv(tmp_path / "labels.csv", ("file", "label"))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_what_is_csv_is_read(tmp_path, ends):
    lines = [
        "file,label",
        'a.png,"a ""red"", round thing"',
        "",
        "b.png,5' 11\" tall",
        "c.png,cr\u00e8me\u2028br\u00fbl\u00e9e",
    ]
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbf" + ends.join(lines).encode())
    rows = read_csv(tmp_path / "labels.csv", ("file", "label"))
    assert [row["label"] for row in rows] == [
        'a "red", round thing',
        "5' 11\" tall",
        "cr\u00e8me\u2028br\u00fbl\u00e9e",
    ]


def test_files_are_files(tmp_path):
    (tmp_path / "folder.png").mkdir()
    for name in ("folder.png", "none.png", "x" * 5000):
        with pytest.raises(DataError, match="is no file or does not exist"):
            file_beside(tmp_path / "labels.csv", name)


def test_one_file_by_two_names_is_named_twice(tmp_path):
    image_folder(tmp_path)
    (tmp_path / "labels.csv").write_text("file,label\ncircle/0.png,a\ncircle/../circle/0.png,b\n")
    with pytest.raises(DataError, match=r"names circle/0\.png more than once"):
        open_view(str(tmp_path / "labels.csv"))


@pytest.mark.parametrize(
    "labels",
    [
        ("0.0", "1.0"),
        ("-.5", "1e-3"),
        ("[0, 1]", "[0]"),
        ("2.", "nan"),
        ("0.0", "1"),
        ("-1", "0"),
        ("cat", "nan"),
        ("cat", "['dog']"),
        ("{}", "cat"),
        ("(0,)", "(0, 1)"),
        ("inf", "-inf"),
        ("0,5", "1"),
        ("cat", "None"),
        ("cat", "NULL"),
        ("cat", "null"),
        ("cat", "#N/A"),
        ("cat", "NA"),
        ("cat", "('dog', 'cat')"),
        ("cat", "tensor(3)"),
        ("cat", "array([0, 1])"),
        ("Infinity", "1.5"),
    ],
)
def test_what_is_no_class_name_is_refused(tmp_path, labels):
    image_folder(tmp_path)
    (tmp_path / "labels.csv").write_text('file,label\ncircle/0.png,"{}"\nring/0.png,"{}"\n'.format(*labels))
    with pytest.raises(DataError, match=r"column 'label' holds values such as .*, no names of classes"):
        open_view(str(tmp_path / "labels.csv"))


def test_a_small_part_of_many_classes_is_tried_with_a_warning(tmp_path, caplog):
    image_folder(tmp_path)
    (tmp_path / "classnames.txt").write_text("".join(f"thing {number}\n" for number in range(1000)))
    (tmp_path / "labels.csv").write_text("file,label\ncircle/0.png,0\nring/0.png,999\n")
    view = open_view(str(tmp_path / "labels.csv"))
    assert len(view.classes.names) == 1000
    assert "2 samples are fewer than the 1000 classes" in caplog.text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("circle\n\nring\nstar\n", "line 2 is empty"),
        ("\ncircle\nring\nstar\n", "line 1 is empty"),
        ("circle\nring\nring\n", "more than one class"),
        ("circle\nring\n", "has no class name for label '2'"),
        ("caf\u00e9\nring\nstar\n".encode("cp1252"), "line 1 is not UTF-8"),
    ],
)
def test_class_names_that_would_shift_are_refused(tmp_path, content, words):
    image_folder(tmp_path)
    (tmp_path / "classnames.txt").write_bytes(content.encode() if isinstance(content, str) else content)
    (tmp_path / "labels.csv").write_text("file,label\ncircle/0.png,0\nstar/0.png,2\nring/1.png,1\n")
    with pytest.raises(DataError, match=words):
        open_view(str(tmp_path / "labels.csv"))


def test_blanks_around_cells_and_empty_rows_do_not_count(tmp_path):
    """People write ``a, "b, c"``, and spreadsheets leave rows of nothing."""
    (tmp_path / "labels.csv").write_text(
        'file, label ,light\na.png, cat,day\nb.png,cat ,  "dim, red"\n"c.png","dog\n",\t\n , ,\n   \n,,,\n'
    )
    rows = read_csv(tmp_path / "labels.csv", ("file", "label"))
    assert [(row["file"], row["label"], row["light"]) for row in rows] == [
        ("a.png", "cat", "day"),
        ("b.png", "cat", "dim, red"),
        ("c.png", "dog", ""),
    ]


def test_windows_folders_have_a_way_out(tmp_path):
    with pytest.raises(DataError, match="write / between folders"):
        file_beside(tmp_path / "labels.csv", r"test\a.png")


@pytest.mark.parametrize("both", ["cat|dog", "dog; cat", "cat, dog"])
def test_several_classes_in_a_cell_are_no_class(tmp_path, both):
    image_folder(tmp_path)
    rows = ["file,label", "circle/0.png,cat", "circle/1.png,dog", f'circle/2.png,"{both}"']
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    with pytest.raises(DataError, match=r"holds values such as .*, no names of classes"):
        open_view(str(tmp_path / "labels.csv"))
    (tmp_path / "classnames.txt").write_text(f"cat\ndog\n{both}\n")
    assert open_view(str(tmp_path / "labels.csv")).classes.names[2] == both


@pytest.mark.parametrize("name", ["crane, bird", "none", "(other)", "salt; pepper", "Nan"])
def test_names_with_marks_are_classes(tmp_path, name):
    image_folder(tmp_path)
    (tmp_path / "labels.csv").write_text(f'file,label\ncircle/0.png,"{name}"\nring/0.png,crane\n')
    assert name in open_view(str(tmp_path / "labels.csv")).classes.names


def test_names_that_are_numbers_are_themselves(tmp_path):
    image_folder(tmp_path)
    (tmp_path / "labels.csv").write_text("file,label\ncircle/0.png,1991\nring/0.png,1990\n")
    (tmp_path / "classnames.txt").write_text("1990\n1991\n")
    assert [sample.label for sample in open_view(str(tmp_path / "labels.csv")).samples] == [1, 0]
    (tmp_path / "labels.csv").write_text("file,label\ncircle/0.png,1\nring/0.png,0\n")
    (tmp_path / "classnames.txt").write_text("1\n0\n")
    with pytest.raises(DataError, match="numbers in another order"):
        open_view(str(tmp_path / "labels.csv"))


def test_one_file_by_its_whole_path_is_named_twice(tmp_path, monkeypatch):
    image_folder(tmp_path)
    (tmp_path / "labels.csv").write_text(f"file,label\ncircle/0.png,a\n{tmp_path}/circle/0.png,b\n")
    monkeypatch.chdir(tmp_path)
    for table in ("labels.csv", str(tmp_path / "labels.csv")):
        with pytest.raises(DataError, match=r"names circle/0\.png more than once"):
            open_view(table)


def test_a_list_of_captions_is_no_caption(tmp_path):
    image_folder(tmp_path)
    (tmp_path / "c.csv").write_text("file,caption\ncircle/0.png,\"['a cat', 'a dog']\"\n")
    with pytest.raises(DataError, match="is a list of captions"):
        open_view(str(tmp_path / "c.csv"), "captions")
    (tmp_path / "c.csv").write_text("file,caption\ncircle/0.png,[laughs] 'hi'\n")
    assert open_view(str(tmp_path / "c.csv"), "captions").samples[0].captions == ("[laughs] 'hi'",)
