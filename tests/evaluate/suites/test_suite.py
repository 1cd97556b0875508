"""Suite files: what they mean, and every complaint about one at once, each with its line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from photos import image_folder
from PIL import Image
from support import assert_refused, evaluate

import clipq
import clipq.demo
from clipq.errors import DataError
from clipq.evaluate.cli.run import demo
from clipq.evaluate.demo import demo_suite
from clipq.evaluate.results.record import read_records
from clipq.evaluate.suites.plan import groups_of, open_plan
from clipq.evaluate.suites.schema import Suite, ViewEntry
from clipq.evaluate.suites.suite import BUILT_IN, read_suite, suite_text

GOOD = """
seed = 3

[[view]]
name = "inside"
source = "demo:test"
samples = 96
groups = ["light", "light*size"]

[[view]]
source = "demo:textures"
role = "far-ood"
samples = 48

[[corruptions]]
of = "inside"
names = ["occlusion", "fog"]
severities = [1, 5]
samples = 24
"""


CIFAR = "[[view]]\nname = 'cifar10'\nsource = 'demo:test'\n[[corruptions]]\nof = 'cifar10'\n"
OOD = CIFAR + "\n[[view]]\nsource = 'demo:textures'\nrole = 'near-ood'\n"


def write(tmp_path, text):
    path = tmp_path / "suite.toml"
    path.write_text(text)
    return str(path)


def test_a_suite_opens_as_it_says(tmp_path):
    suite = read_suite(write(tmp_path, GOOD))
    plan = open_plan(suite, None)
    inside, textures = plan.views
    assert len(inside.view.samples) == 96 and textures.view.name == "demo-textures"
    assert textures.baseline is inside.view and textures.view.classes is None
    assert set(groups_of(inside)) == {"light", "light*size"} and len(groups_of(inside)["light*size"]) == 4
    (corruptions,) = plan.corruptions
    assert set(corruptions.corrupted) == {
        (n, s) for n in ("occlusion_random", "occlusion_centre", "fog") for s in (1, 5)
    }
    assert {len(view.samples) for view in corruptions.corrupted.values()} == {24}


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_suites_are_well_formed(name, tmp_path):
    text = suite_text(name)
    if name == "template":
        text = text.replace("photos/test", "demo:test")
    assert read_suite(write(tmp_path, text)).views


def test_everything_wrong_is_said_at_once_with_its_line(tmp_path):
    text = """[[view]]
source = "demo:test"
rolle = "shifted"

[[view]]
source = "nowhere"
role = "groups"

[[corruptions]]
of = "demo-test"
severities = [0]
"""
    with pytest.raises(DataError) as refused:
        read_suite(write(tmp_path, text))
    message = str(refused.value)
    assert "line 3" in message and "rolle" in message and "known keys: source, role" in message
    assert "line 6" in message and "nowhere" in message
    with pytest.raises(DataError) as refused:
        read_suite(write(tmp_path, text.replace('rolle = "shifted"', "")))
    message = str(refused.value)
    for words in ("line 6: source", "line 7: role groups needs groups", "line 11: severities are numbers from 1 to 5"):
        assert words in message, message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no [[view]]"),
        ("[[view]]\nsource = 'demo:test'\n[[view]]\nsource = 'demo:test'", "two views are called 'demo-test'"),
        (CIFAR + "[[view]]\nname = 'cifar10-c'\nsource = 'demo:outline'\nrole = 'shifted'", "a view and the corruptions of 'cifar10' would both be called 'cifar10-c'"),
        (CIFAR + "[[corruptions]]\nof = 'cifar10'\nnames = ['fog']", "corruptions of 'cifar10' are asked for twice"),
        (CIFAR + "[[transfer]]\nname = 'cifar10'\nsource = 'demo'", "a view and an attack would both be called 'cifar10'"),
        ("[[view]]\nname = 'tower:image'\nsource = 'demo:test'", "cannot be called 'tower:image'"),
        ("[[view]]\nsource = 'demo:textures'\nrole = 'near-ood'", "line 3: role near-ood needs a view"),
        (OOD + "templates = 'simple-7'", "line 10: role near-ood makes nothing of templates"),
        (OOD + "classes_of = 'cifar10'", "line 10: role near-ood makes nothing of classes_of"),
        ("[[view]]\nsource = 'demo:test'\nbaseline = 'demo-test'", "role in-distribution makes nothing of baseline, which is for shifted, near-ood, far-ood"),
        ("[[view]]\nsource = 'demo:test'\n[[square]]\nof = 'other'", "line 4: of 'other' is no labelled view"),
        ("[[view]]\nsource = 'demo:test'\n[[square]]\nof = 'demo-test'\nepsilons = [0]", "line 5: epsilons are whole"),
        (
            "[[view]]\nsource = 'demo:test'\n[[square]]\nof = 'demo-test'\n[[square]]\nof = 'demo-test'\nqueries = 9",
            "line 5: demo-test is attacked twice",
        ),
        ("[[view]]\nsource = 'demo:test'\n[[corruptions]]\nof = 'demo-test'\nnames = ['haze']", "unknown corruption 'haze'"),
        ("[[view]]\nsource = 'demo:test'\n[[transfer]]\nsource = 'nothing'", "line 4: source"),
        ("[[view]]\nsource = 'demo:test'\nclasses_of = 'imagenet'", "line 3: classes_of 'imagenet'"),
        ("[[view]]\nsource = 'demo:test'\nrole = 'in-distrib'", "line 3: view.1.role"),
        ("[[view]\n", "suite.toml: "),
    ],
)  # fmt: skip
def test_one_complaint(tmp_path, text, words):
    with pytest.raises(DataError) as refused:
        read_suite(write(tmp_path, text))
    assert words in str(refused.value), str(refused.value)


def test_what_is_no_text_and_no_batch_is_refused(tmp_path):
    path = tmp_path / "suite.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        read_suite(str(path))
    for batches in ("[0]", "[]"):
        with pytest.raises(DataError, match=r"line 4: latency\.batches"):
            read_suite(write(tmp_path, f"[[view]]\nsource = 'demo:test'\n[latency]\nbatches = {batches}\n"))


def test_each_batch_size_is_timed_once(tmp_path):
    """Two numbers of one name are a damaged record, which nobody learns before a run is over."""
    found = read_suite(write(tmp_path, "[[view]]\nsource = 'demo:test'\n[latency]\nbatches = [8, 1, 8]\n"))
    made = Suite(view=[{"source": "demo:test"}], latency={"batches": [8, 1, 8]})
    assert found.latency is not None and found.latency.batches == (1, 8) and found.latency == made.latency


def test_alexnet_baseline_needs_imagenet_c_whole(tmp_path):
    text = "[[view]]\nsource='demo:test'\n[[corruptions]]\nof='demo-test'\nbaseline='alexnet'\n"
    with pytest.raises(DataError, match="ImageNet-C whole"):
        read_suite(write(tmp_path, text + "severities=[1]"))
    with pytest.raises(DataError, match="1,000 classes"):
        open_plan(read_suite(write(tmp_path, text + "samples=24")), None)


def test_an_ood_set_that_shares_images_is_refused():
    suite = Suite(views=(ViewEntry(source="demo:test:n=48"), ViewEntry(source="b=demo:test:n=72", role="far-ood")))
    with pytest.raises(DataError, match="shares 48 images with 'demo-test'"):
        open_plan(suite, None)


def test_empty_files_are_no_image_that_sets_share(tmp_path):
    inside, outside = image_folder(tmp_path / "in", each=2), image_folder(tmp_path / "out", ("heart",), each=1)
    (outside / "heart" / "0.png").write_bytes(b"")
    views = ViewEntry(source=str(inside)), ViewEntry(source=str(outside), role="far-ood")
    with pytest.raises(DataError, match="shares"):
        shutil.copy(inside / "star" / "0.png", outside / "heart" / "1.png")
        open_plan(Suite(views=views), None)
    (outside / "heart" / "1.png").unlink()
    (inside / "star" / "0.png").write_bytes(b"")
    assert open_plan(Suite(views=views), None).views


def test_a_column_of_one_value_is_refused(tmp_path):
    plan = Suite(views=(ViewEntry(source="demo:test:n=48", role="groups", groups=("weather",)),))
    with pytest.raises(DataError, match="no group column 'weather'; it has: light, size"):
        open_plan(plan, None)


def test_one_group_is_no_comparison(tmp_path):
    from clipq.demo import world

    rows = [f"{index}.png,{index % 2},day" for index in range(4)]
    for index in range(4):
        Image.fromarray(world.sample("test", index)[1]).save(tmp_path / f"{index}.png")
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,light", *rows]))
    entry = ViewEntry(source=str(tmp_path / "labels.csv"), role="groups", groups=("light",))
    with pytest.raises(DataError, match="column 'light' has a single value"):
        open_plan(Suite(views=(entry,)), None)


def test_small_groups_are_no_comparison_either():
    """Of a part of the samples, say: before any image is embedded."""
    entry = ViewEntry(source="demo:test", groups=("light",), samples=30)
    with pytest.raises(
        DataError, match=r"demo-test: column 'light' has fewer than two groups of 20 samples \(light=day"
    ):
        open_plan(Suite(views=(entry,)), None)


@pytest.mark.parametrize(
    ("header", "rows", "groups", "words"),
    [
        ("a,a=b", [("b=c", "c"), ("d", "d")], (), "'a' and 'a=b' both have a group 'a=b=c'; rename a column"),
        ("a,b", [("x * y", "z"), ("x", "y * z")], ("a*b",), r"two groups of 'a\*b' are called 'x \* y \* z'"),
        ("a,b,a*b", [("x", "z", "1"), ("y", "z", "2")], ("a*b",), r"'a\*b' is a column of it, and a crossing"),
    ],
)
def test_groups_of_one_name_are_not_taken_for_one(tmp_path, header, rows, groups, words):
    image_folder(tmp_path, each=2)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    lines = [",".join((file, file.split("/")[0], *rows[place % 2])) for place, file in enumerate(files)]
    (tmp_path / "labels.csv").write_text("\n".join([f"file,label,{header}", *lines]))
    entry = ViewEntry(source=str(tmp_path / "labels.csv"), groups=groups)
    with pytest.raises(DataError, match=words):
        open_plan(Suite(views=(entry,)), None)


def test_remote_sources_need_fetch():
    with pytest.raises(DataError, match="--fetch allows downloads"):
        open_plan(read_suite("quick"), None)


def test_command_line(tmp_path):
    path = tmp_path / "mine.toml"
    assert evaluate("suite", "init", "-o", str(path)).returncode == 0
    assert_refused(evaluate("suite", "init", "-o", str(path)), "exists")
    line = path.read_text().splitlines().index('source = "photos/test"') + 1
    assert_refused(evaluate("suite", "check", str(path)), f"line {line}: source", "photos/test", "does not exist")
    assert_refused(evaluate("suite", "init", "nothing"), "demo, quick, paper")
    assert "good" in evaluate("suite", "check", "demo").stdout
    assert "Square attack on test" in evaluate("suite", "show", "demo").stdout
    assert json.loads(evaluate("suite", "show", "paper", "--json").stdout)["view"][0]["name"] == "imagenet"
    assert_refused(evaluate("run", str(tmp_path), "--suite", "nowhere.toml", "-o", str(tmp_path / "o")), "built in are")


def test_the_fewest_samples_that_the_demo_takes_are_enough_for_its_groups():
    (samples,) = (one.type.min for one in demo.params if one.name == "samples")
    for planned in open_plan(demo_suite(samples), None).views:
        for column in planned.entry.groups:
            sizes = [members.sum() for members in groups_of(planned)[column].values()]
            assert sum(size >= planned.entry.smallest_group for size in sizes) >= 2, (column, sizes)


@pytest.mark.parametrize(
    "line",
    ["samples = true", 'samples = "48"', "[[square]]\nof = 't'\nepsilons = [true]", "[[corruptions]]\nof = 't'\nseverities = ['3']",
     "[latency]\nbatches = [true]", "[latency]\nrepeats = '9'"],
)  # fmt: skip
def test_what_is_written_as_no_number_is_none(line, tmp_path):
    path = tmp_path / "suite.toml"
    path.write_text(f"[[view]]\nsource = 'demo:test:n=48'\nname = 't'\n{line}\n")
    assert_refused(evaluate("suite", "check", str(path)), "give a number, without quotes")
    for head in ("seed = true", "tune_fraction = '0.5'", "ece_bins = true", "simulated = 1"):
        path.write_text(f"{head}\n[[view]]\nsource = 'demo:test:n=48'\nname = 't'\n")
        assert_refused(evaluate("suite", "check", str(path)), head.split()[0])


@pytest.mark.parametrize("pairs", [(("a", "a"),), (("a", "b"), ("b", "a"))])
def test_classes_of_in_a_circle_are_refused(pairs):
    views = tuple(ViewEntry(source=f"demo:{['test', 'outline'][index]}:n=24", name=name, classes_of=of)
                  for index, (name, of) in enumerate(pairs))  # fmt: skip
    with pytest.raises(DataError, match="each waits for another's classes"):
        open_plan(Suite(views=views), None)


def test_classes_of_a_later_view():
    views = (
        ViewEntry(source="demo:outline:n=24", name="first", classes_of="second"),
        ViewEntry(source="demo:test:n=24", name="second"),
    )
    assert [planned.view.name for planned in open_plan(Suite(views=views), None).views] == ["first", "second"]


def test_a_view_has_templates_of_its_own(tmp_path):
    suite = Suite(
        templates="imagenet-80",
        views=(
            ViewEntry(source="demo:test:n=24", name="a", templates="simple-7"),
            ViewEntry(source="demo:outline:n=24", name="b"),
        ),
    )
    clipq.evaluate(Path(clipq.demo.__file__).parent / "bundle", suite=suite, output=tmp_path / "out")
    (record,) = read_records(tmp_path / "out")
    assert [view.templates for view in record.views] == ["simple-7", "imagenet-80"]
    assert len({view.digests["templates"] for view in record.views}) == 2
