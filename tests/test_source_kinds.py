"""Every kind of source stands in help, list, template and docs; a new kind takes an opener and a row of SCHEMES."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from photos import image_folder
from support import DEMO_BUNDLE, ROOT

from clipq.data.open import SCHEMES, Scheme, describe_sources, open_view
from clipq.data.views import Classes, FileView, Sample
from clipq.errors import DataError
from clipq.evaluate.cli import main as evaluate
from clipq.evaluate.suites.plan import open_plan
from clipq.evaluate.suites.suite import read_suite, suite_text
from clipq.exporters.catalog import overview
from clipq.exporters.cli import main as export


def words(text):
    """The text without white space and comment marks: lines break anywhere."""
    return re.sub(r"[\s#]", "", text)


@pytest.mark.parametrize("command", [(evaluate, "run"), (export, "attack")])
def test_help_of_data_is_made_of_the_table(command):
    shown = CliRunner().invoke(command[0], [command[1], "--help"])
    assert words(describe_sources()) in words(shown.output)


def test_list_has_a_row_for_each():
    rows = {row["name"]: row for row in overview() if row["kind"] == "source"}
    assert list(rows) == [scheme.form for scheme in SCHEMES.values()]
    for scheme in SCHEMES.values():
        assert scheme.help in rows[scheme.form]["detail"]
        assert all(f"{name}={value}" in rows[scheme.form]["detail"] for name, value in scheme.options.items())


def test_docs_have_a_row_for_each():
    text = (ROOT / "docs" / "formats.md").read_text()
    table = re.search(r"\| source \| options \|.*?\n\n", text, re.S).group(0)
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")[:2]] for line in table.strip().splitlines()[2:]]
    written = [",".join(f"{name}={value}" for name, value in scheme.options.items()) for scheme in SCHEMES.values()]
    assert rows == [[scheme.form, options] for scheme, options in zip(SCHEMES.values(), written, strict=True)]


def open_letters(source, want, cache):
    """Classes by the first letters of files that lie in one folder."""
    files = sorted(Path(source.place).glob(f"*{source.options['suffix']}"))
    letters = sorted({path.name[0] for path in files})
    samples = tuple(Sample(path.name, letters.index(path.name[0])) for path in files)
    return FileView(
        source.name, source.path, samples, Classes.plain(letters) if want == "labels" else None, tuple(files)
    )


@pytest.fixture
def letters(tmp_path, monkeypatch):
    """A new kind of source, and a folder of it."""
    row = Scheme("letters:FOLDER", "classes by first letters", open_letters, options={"suffix": ".png"})
    monkeypatch.setitem(SCHEMES, "letters:", row)
    (tmp_path / "letters").mkdir()
    for path in image_folder(tmp_path / "photos").rglob("*.png"):
        path.rename(tmp_path / "letters" / f"{path.parent.name}{path.name}")
    return tmp_path / "letters"


def test_a_new_kind_opens(letters):
    view = open_view(f"letters:{letters}")
    assert view.name == "letters" and view.classes.names == ("c", "r", "s") and len(view.samples) == 9
    assert open_view(f"mine=letters:{letters}", "images").name == "mine"
    with pytest.raises(DataError, match="no images in it"):
        open_view(f"letters:{letters}:suffix=.jpg", "images")
    with pytest.raises(DataError, match="unknown option 'n'; known: suffix"):
        open_view(f"letters:{letters}:n=3")


def test_a_new_kind_in_a_suite(letters):
    suite = letters.parent / "suite.toml"
    suite.write_text("[[view]]\nsource = 'letters:letters'\n")
    (planned,) = open_plan(read_suite(str(suite)), None).views
    assert planned.view.name == "letters" and planned.view.source == f"letters:{letters}"
    suite.write_text("[[view]]\nsource = 'letters:nothing'\n")
    with pytest.raises(DataError, match=r"line 2: source letters:.*/nothing: does not exist"):
        read_suite(str(suite))


def test_a_new_kind_is_measured(letters, tmp_path):
    results = tmp_path / "results"
    done = CliRunner().invoke(
        evaluate, ["run", str(DEMO_BUNDLE), "--data", f"letters:{letters}", "-o", str(results), "--no-bench"]
    )
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((results / "results.csv").open()))
    assert {row["view"] for row in rows if row["metric"] == "acc1"} == {"letters"}
    assert "letters" in (results / "report.html").read_text()


def test_a_new_kind_is_shown(letters):
    assert "letters:FOLDER (classes by first letters)" in describe_sources()
    (row,) = [row for row in overview() if row["name"] == "letters:FOLDER"]
    assert row["state"] == "run" and "suffix=.png" in row["detail"]
    assert words("letters:FOLDER (classes by first letters)") in words(suite_text("template"))
    with pytest.raises(DataError, match="nor letters:FOLDER"):
        open_view("lettres:photos")
