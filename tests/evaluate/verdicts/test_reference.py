"""Is the reference right? The demo against a table in which its own accuracy is the published one."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import pytest
from support import DEMO_BUNDLE, ROOT, assert_refused, evaluate
from synthetic import predictions, record, write_results

import clipq
from clipq.data.open import open_view
from clipq.errors import DataError
from clipq.evaluate.published import table
from clipq.evaluate.report.card import write_card
from clipq.evaluate.report.formats import as_json, as_markdown
from clipq.evaluate.report.page import render
from clipq.evaluate.report.terminal import print_summary
from clipq.evaluate.results.folders import read_results
from clipq.evaluate.results.record import PublishedSetRecord, read_record, write_record
from clipq.evaluate.suites.published import published_set
from clipq.evaluate.suites.schema import ViewEntry
from clipq.evaluate.verdicts.gate import judge_policy, outcome
from clipq.evaluate.verdicts.policy import Policy
from clipq.evaluate.verdicts.reference import TOLERANCE, compare, judge_reference

sys.path.insert(0, str(ROOT))
from benchmarks.published import rates

TEMPLATES = json.loads((DEMO_BUNDLE / "prompts.json").read_text())["templates"]["imagenet-80"]
VIEW = open_view("demo:test")
NAMES = list(VIEW.classes.names)
PUBLISHED_SET = table.PublishedSet(
    "drawn", ("acc1",), len(VIEW.samples), len(NAMES), table.templates_digest(TEMPLATES), 80, frozenset(map(table.name_digest, NAMES))
)  # fmt: skip


@pytest.fixture
def published(monkeypatch):
    """Put a table in the place of the shipped one: what was published of the demo on its test set."""

    def inject(value, checkpoint="demo", **others):
        made = table.Table({checkpoint: {"drawn": value}, **others}, {"drawn": PUBLISHED_SET}, {}, "somebody")
        monkeypatch.setattr(table, "shipped", lambda: made)

    return inject


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "photos"
    for index, sample in enumerate(VIEW.samples):
        (folder / f"{sample.label:02d}").mkdir(parents=True, exist_ok=True)
        VIEW.image(index).save(folder / f"{sample.label:02d}" / f"{index:04d}.png")
    (folder / "classnames.txt").write_text("\n".join(NAMES))
    return folder


def judged(tmp_path, photos, *, bundle=DEMO_BUNDLE, names=NAMES, templates=None, **entry):
    """The verdict on the demo's FP32 engine, asked with these names and templates."""
    source = tmp_path / "photos"
    shutil.copytree(photos, source)
    (source / "classnames.txt").write_text("\n".join(names))
    if templates is not None:
        (source / "zeroshot_classification_templates.txt").write_text("\n".join(templates))
    asked = ViewEntry(source=str(source), name="test", **{"published": "drawn", **entry})
    results = clipq.evaluate([bundle], suite=clipq.Suite(view=(asked,)), output=tmp_path / "results")
    (only,) = results
    return judge_reference(only.record, only.name)


def normalized(tmp_path, mean, std):
    """The demo's bundle with another normalization in its manifest."""
    folder = shutil.copytree(DEMO_BUNDLE, tmp_path / "fp32")
    manifest = json.loads((folder / "clipq.json").read_text())
    manifest["preprocess"] |= {"mean": mean, "std": std}
    (folder / "clipq.json").write_text(json.dumps(manifest))
    return folder


# What the demo's FP32 engine answers right of its 960 images; another CPU may move the last digit of an embedding.
DEMO_TOP1 = 0.9312


def test_the_right_reference_is_verified(tmp_path, photos, published):
    published(DEMO_TOP1)
    found = judged(tmp_path, photos)
    assert found.state == "verified" and "93.1 % on all 960 images" in found.reason
    published(DEMO_TOP1 + 2 * TOLERANCE)
    (only,) = read_results([tmp_path / "results"])
    assert judge_reference(only.record, only.name).state == "anomalous"


def test_class_names_in_another_order_are_anomalous(tmp_path, photos, published):
    published(DEMO_TOP1)
    found = judged(tmp_path, photos, names=[*NAMES[1:], NAMES[0]])
    assert found.state == "anomalous" and "no better than chance" in found.checks[0].causes[0]


def test_nonsense_prompts_are_anomalous(tmp_path, photos, published):
    published(DEMO_TOP1)
    found = judged(tmp_path, photos, templates=[f"{NAMES[0]} {NAMES[3]} {NAMES[7]} but never a {{}}"])
    assert found.state == "anomalous" and found.checks[0].causes[0].startswith("the templates differ (1 here, 80 publ")


def test_sensible_other_prompts_have_no_published_value(tmp_path, photos, published):
    published(DEMO_TOP1)
    found = judged(tmp_path, photos, templates=["a photo of a {}."])
    assert found.state == "no published value" and "the templates differ" in found.reason


def test_other_class_names_have_no_published_value(tmp_path, photos, published):
    published(DEMO_TOP1)
    found = judged(tmp_path, photos, names=[f"the {name}" for name in NAMES])
    assert found.state == "no published value" and "24 of 24 class names differ" in found.reason


@pytest.mark.parametrize(("mean", "std"), [([0.5] * 3, [0.5] * 3), ([0.0] * 3, [1.0] * 3)], ids=["std", "none"])
def test_wrong_normalization_is_anomalous(tmp_path, photos, published, mean, std):
    published(DEMO_TOP1)
    found = judged(tmp_path, photos, bundle=normalized(tmp_path, mean, std))
    assert found.state == "anomalous" and found.checks[0].causes[0].startswith("preprocessing: mean and std")


def test_a_part_is_judged_by_its_interval(tmp_path, photos, published):
    published(DEMO_TOP1)
    found = judged(tmp_path, photos, samples=200)
    assert (
        found.state == "too few samples"
        and "on 200 of 960 images" in found.reason
        and "images would do" in found.reason
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"checkpoint": "another/one"}, "somebody published nothing of demo"),
        ({"of": None}, "neither its source nor the suite calls it"),
        ({"images": 48}, "is of 48 images, the test set of drawn of 960"),
    ],
)
def test_no_published_value(tmp_path, photos, published, change, words):
    published(DEMO_TOP1, checkpoint=change.get("checkpoint", "demo"))
    source = (
        {"source": "demo:test:n=48", "published": change.get("of", "drawn")}
        if "checkpoint" not in change
        else {"source": "demo:test"}
    )
    results = clipq.evaluate([DEMO_BUNDLE], suite=clipq.Suite(view=(ViewEntry(**source),)), output=tmp_path / "r")
    (only,) = results
    found = judge_reference(only.record, only.name)
    assert found.state == "no published value" and words in found.reason


# Records alone: what the record says decides.
def of_record(value, *, checkpoint="demo", n=4000, recipe="fp32", published_set=None, **changes):
    made = record("fp32", {"test": predictions(n, accuracy=value)}, recipe=recipe)[0]
    said = (
        PublishedSetRecord(name="drawn", images=960, other_names=0, same_templates=True)
        if published_set is None
        else published_set
    )
    view = made.views[0].model_copy(update={"n": 960, "classes": 24, "published": said, **changes})
    bundle = made.bundle.model_copy(update={"checkpoint": checkpoint})
    return made.model_copy(update={"views": (view,), "bundle": bundle})


def test_a_quantized_reference_is_not_compared(published):
    published(0.8)
    found = judge_reference(of_record(0.8, recipe="int8-static"), "int8")
    assert found.state == "no published value" and "quantized" in found.reason
    assert judge_reference(of_record(0.8, n=40_000), "fp32").state == "verified"


def test_skipped_images_are_no_part_drawn_at_random(published):
    published(0.8)
    found = judge_reference(of_record(0.8, n=40_000, skipped={str(i): "bad" for i in range(60)}), "fp32")
    assert found.state == "no published value" and "60 of its images could not be decoded" in found.reason


def test_the_other_gelu_is_named_first(published):
    twin = {"M-quickgelu/tag": {"drawn": 0.83}}
    published(0.8, "M/tag", **twin)
    found = judge_reference(of_record(0.7, checkpoint="M/tag"), "fp32")
    assert found.checks[0].causes[0] == "GELU and QuickGELU exchanged (the twin is M-quickgelu/tag, published 83.0 %)"
    published(0.8, "M/other", **twin)
    assert "GELU" not in judge_reference(of_record(0.7, checkpoint="M/other"), "fp32").reason


def test_retrieval_is_compared_by_the_mean_of_both_directions():
    flickr = table.shipped().sets["flickr30k"]
    made = of_record(0.8, checkpoint="ViT-B-32/openai")
    value = table.shipped().values["ViT-B-32/openai"]["flickr30k"]
    row = made.measurements[0]
    rows = [
        replace(row, metric=metric, value=value + off, low=None, high=None, n=1000)
        for metric, off in zip(flickr.metrics, (0.1, -0.1), strict=True)
    ]
    view = made.views[0].model_copy(
        update={
            "n": 1000,
            "classes": 0,
            "captions": 5000,
            "role": "retrieval",
            "published": PublishedSetRecord(name="flickr30k", images=1000),
        }
    )
    found = judge_reference(made.model_copy(update={"measurements": tuple(rows), "views": (view,)}), "fp32")
    assert found.state == "verified" and "on all 1,000 images of flickr30k, published 68.8 %" in found.reason


def test_views_of_which_the_same_is_said_are_named_together(published):
    published(0.8)
    made = of_record(0.8, n=40_000)
    (view,) = made.views
    mine = [view.model_copy(update={"name": name, "published": None}) for name in ("a", "b")]
    found = judge_reference(made.model_copy(update={"views": (*mine, view)}), "fp32")
    assert [(views, one.state) for views, one in found.said] == [("test", "verified"), ("a, b", "no published value")]
    assert [one.view for one in found.checks] == ["test", "a", "b"] and found.state == "verified"


def test_rates_of_the_rule():
    """At most 5 % of right references are anomalous; of those that are 3 points off next to none is verified."""
    for n in (200, 2000, 10_000, 50_000):
        right, wrong = (rates(0.63, 50_000, n, worse, 1500) for worse in (0.0, 0.03))
        assert right["anomalous"] <= 0.05 and wrong["verified"] <= 0.02, n
    assert rates(0.63, 50_000, 10_000, 0.0, 1500)["verified"] > 0.95
    assert rates(0.63, 50_000, 10_000, 0.03, 1500)["anomalous"] > 0.95


def test_several_parts_hold_together():
    # A lone part would be anomalous, one of twenty is not.
    assert compare(0.60, (0.585, 0.615), 0.626) == "anomalous"
    assert compare(0.60, (0.585, 0.615), 0.626, parts=20) == "too few samples"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("wds:https://huggingface.co/datasets/clip-benchmark/wds_imagenet1k/resolve/main", "imagenet1k"),
        ("inet=wds:https://huggingface.co/datasets/clip-benchmark/wds_imagenet-a/resolve/main", "imagenet-a"),
        ("hf:clip-benchmark/wds_vtab-cifar10", "cifar10"),
        ("hf:djghosh/wds_vtab-pets_test", "pets"),
        ("wds:data/wds_vtab-dtd", "dtd"),
        ("hf:clip-benchmark/wds_fer2013", ""),
        # A folder is called as its owner likes.
        ("data/imagenet1k", ""),
        ("cifar10=data/x", ""),
        # Captions are no classes.
        ("hf:clip-benchmark/wds_flickr30k", ""),
    ],
)
def test_sources_that_say_which_test_set_they_are(source, name):
    assert published_set(ViewEntry(source=source)) == name
    assert published_set(ViewEntry(source="hf:clip-benchmark/wds_flickr30k", role="retrieval")) == "flickr30k"


@pytest.mark.parametrize(
    ("key", "role", "words"),
    [
        ("vtab/cifr10", "in-distribution", ("'vtab/cifr10' is no published test set", "did you mean cifar10?")),
        ("flickr30k", "in-distribution", ("is of role retrieval, not in-distribution",)),
        ("cifar10", "far-ood", ("role far-ood makes nothing of published",)),
    ],
)
def test_a_mistyped_key_is_refused(tmp_path, key, role, words):
    suite = tmp_path / "suite.toml"
    suite.write_text(
        f'[[view]]\nsource = "demo:outline"\n[[view]]\nsource = "demo:test"\nrole = "{role}"\npublished = "{key}"\n'
    )
    assert_refused(evaluate("suite", "check", str(suite)), "line 6", *words)
    with pytest.raises(DataError, match="published"):
        clipq.evaluate(
            [DEMO_BUNDLE],
            suite=clipq.Suite(
                view=(ViewEntry(source="demo:outline"), ViewEntry(source="demo:test", role=role, published=key))
            ),
            output=tmp_path / "r",
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    base = predictions(40_000, accuracy=0.8)
    return write_results(tmp_path_factory.mktemp("made") / "r", {"test": base}, {"good": {"views": {"test": base}}})


@pytest.fixture
def folder(made, tmp_path):
    """Results of a reference that answers 80 % of 40,000 images right, so that its interval is narrow."""
    return shutil.copytree(made, tmp_path / "results")


def mark(folder, **said):
    for path in (folder / "records").glob("fp32*"):
        made = read_record(path)
        view = made.views[0].model_copy(
            update={"classes": 24, "n": 960, "published": PublishedSetRecord(name="drawn", **{"images": 960, **said})}
        )
        write_record(
            folder,
            made.model_copy(update={"views": (view,), "bundle": made.bundle.model_copy(update={"checkpoint": "demo"})}),
        )
    for path in (folder / "records").glob("good*"):
        made = read_record(path)
        view = made.views[0].model_copy(update={"classes": 24, "n": 960})
        write_record(folder, made.model_copy(update={"views": (view,)}))
    return read_results([folder])


@pytest.mark.parametrize(
    ("value", "asked", "state"),
    [
        (0.8, "verified", "pass"),
        (0.85, "verified", "fail"),
        (0.85, "not anomalous", "fail"),
        (0.8, "not anomalous", "pass"),
        (None, "verified", "fail"),
        (None, "not anomalous", "pass"),
    ],
)
def test_gate(folder, published, value, asked, state):
    published(value or 0.8, checkpoint="demo" if value else "other")
    found = judge_policy(mark(folder), Policy(reference=asked))
    assert outcome(found) == state and [(one.engine, one.rule) for one in found] == [("fp32", f"reference={asked}")]


def test_gate_investigates_too_few_samples(folder, published):
    published(0.8)
    results = mark(folder)
    made = next(entry for entry in results if entry.is_reference).record
    rows = tuple(
        replace(row, low=row.value - 0.04, high=row.value + 0.04) if row.metric == "acc1" else row
        for row in made.measurements
    )
    view = made.views[0].model_copy(update={"n": 150})
    write_record(folder, made.model_copy(update={"measurements": rows, "views": (view,)}))
    found = judge_policy(read_results([folder]), Policy(reference="verified"))
    assert outcome(found) == "investigate"


def test_a_policy_may_ask_for_the_reference_alone_and_no_other_word(folder, tmp_path):
    policy = tmp_path / "p.toml"
    policy.write_text('reference = "right"\n')
    assert_refused(evaluate("gate", str(folder), "--policy", str(policy)), "reference", "verified")
    policy.write_text('reference = "verified"\n')
    done = evaluate("gate", str(folder), "--policy", str(policy), "--json")
    assert done.returncode == 1 and "no published value" in json.loads(done.stdout)["findings"][0]["reason"]


def test_every_report_says_it_first(folder, published, capsys, tmp_path):
    published(0.85)
    results = mark(folder)
    page = render(results)
    assert page.index('id="reference"') < page.index('id="verdict"') and "5.0 points below" in page
    assert '<b class="worse">anomalous</b>' in page
    text = as_markdown(results)
    assert text.splitlines()[2].startswith("- Reference fp32 is **anomalous**: test: ")
    (said,) = json.loads(as_json(results))["references"]
    assert said["state"] == "anomalous" and said["checks"][0]["published"] == 0.85 and said["checks"][0]["causes"]
    card = write_card(results["good"], tmp_path / "card.md").read_text()
    assert card.index("## Is the reference right?") < card.index("## What changed") and "**anomalous**" in card
    print_summary([entry.record for entry in results])
    assert capsys.readouterr().out.startswith("reference fp32 is anomalous: test: 80.")


def test_records_from_before_are_read(folder):
    path = next((folder / "records").glob("fp32*"))
    old = json.loads(path.read_text()) | {"schema_version": 7}
    for view in old["views"]:
        view.pop("published")
    path.write_text(json.dumps(old))
    found = judge_reference(read_record(path), "fp32")
    assert found.state == "no published value"
