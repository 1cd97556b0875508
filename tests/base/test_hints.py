"""Hints in manifests: what may stand there, how it is told, and where."""

from __future__ import annotations

import json
import shutil

import pytest
from pydantic import ValidationError
from support import assert_refused, evaluate, export

from clipq.bundle import SCHEMA_VERSION, open_bundle
from clipq.hints import HINTS, Hint, sentences

SATURATES = (
    "products that can saturate on a CPU without VNNI, and with weights=7bit cannot: image tower 17, text tower 9"
)


def hint(code, tower="image", **numbers):
    return Hint(code=code, tower=tower, numbers=numbers)


@pytest.mark.parametrize("code", HINTS)
def test_every_hint_has_words(code):
    made = hint(code, **dict.fromkeys(HINTS[code].numbers, 1.5))
    (said,) = sentences([made])
    assert said.startswith(f"{HINTS[code].says}: image tower") and said.count("1.5") == len(made.numbers)
    assert made.is_about("cpu") or made.is_about("cuda")


def test_one_sentence_for_both_towers():
    made = [hint("saturating-weights", products=17), hint("idle-awq"), hint("saturating-weights", "text", products=9)]
    assert sentences(made) == [
        SATURATES,
        "algorithm=awq changes nothing, for linears alone read no LayerNorm: image tower",
    ]
    assert [one.is_about("cuda") for one in made] == [False, True, False]


def test_an_unknown_code_is_no_hint():
    with pytest.raises(ValidationError, match="unknown hint 'what'"):
        hint("what")


@pytest.mark.parametrize(
    "raw",
    [
        {"tower": "image"}, {"code": ["what"], "tower": "image"}, {"code": "idle-awq", "tower": "image", "numbers": {"relus": 1}},
        {"code": "float-relus", "tower": "image"}, {"code": "float-relus", "tower": "both", "numbers": {"relus": 1}},
        {"code": "float-relus", "tower": "image", "numbers": {"relus": "31"}},
        {"code": "float-relus", "tower": "image", "numbers": {"relus": float("inf")}},
        {"code": "float-relus", "tower": "image", "numbers": {"relus": -1}},
        {"code": "float-relus", "tower": "image", "numbers": {"relus": 1e300}},
    ],
)  # fmt: skip
def test_what_is_no_hint(bundles, tmp_path, raw):
    with pytest.raises(ValidationError):
        Hint.model_validate(raw)
    assert_refused(export("list", str(with_hints(bundles, tmp_path, raw))), "hints.0", "make the bundle again")


def with_hints(bundles, folder, *raw):
    copy = shutil.copytree(bundles / "fp32", folder / "fp32")
    manifest = open_bundle(copy).manifest.model_dump(mode="json")
    (copy / "clipq.json").write_text(json.dumps(manifest | {"schema_version": 5, "hints": raw}))
    return copy


def test_hints_of_a_newer_clipq_are_left_out(bundles, tmp_path):
    """A bundle does not become unreadable for a nicety, in whatever shape its hint is."""
    known = {"code": "float-relus", "tower": "image", "numbers": {"relus": 3}}
    newer = ({"code": "what", "tower": "image"}, {"code": "else", "tower": ["all"], "since": 9})
    assert open_bundle(with_hints(bundles, tmp_path, *newer, known)).manifest.hints == (hint("float-relus", relus=3),)


def test_manifests_have_hints_and_older_ones_none(bundles, tmp_path):
    made = open_bundle(bundles / "int8-dynamic").manifest
    assert json.loads((bundles / "int8-dynamic" / "clipq.json").read_text())["schema_version"] == SCHEMA_VERSION == 6
    assert made.hints[0] == hint("saturating-weights", products=17)
    assert [one.code for one in open_bundle(bundles / "fp16").manifest.hints] == []
    copy = shutil.copytree(bundles / "int8-dynamic", tmp_path / "older")
    raw = json.loads((copy / "clipq.json").read_text()) | {"schema_version": 4}
    del raw["hints"]
    (copy / "clipq.json").write_text(json.dumps(raw))
    assert open_bundle(copy).manifest.hints == ()


def test_where_hints_are_told(bundles, tmp_path):
    path = str(bundles / "int8-dynamic")
    told = f"hint: int8-dynamic, {SATURATES}"
    inspected = " ".join(evaluate("inspect", path).stdout.split())
    # What can saturate is counted there, where the runtime's graph is x86's.
    assert "hint: int8-dynamic, token table not quantized" in inspected
    assert (SATURATES in inspected) != ("on CPUs without VNNI: differs without VNNI" in inspected)
    rows = json.loads(export("list", path, "--json").stdout)
    assert [row["state"] for row in rows] == ["run", "hint", "hint"] and rows[1]["detail"] == SATURATES
    assert f"  hint   {'int8-dynamic':21}  {SATURATES}" in export("list", path).stdout.splitlines()
    made = export("quantize", "demo", "-o", str(tmp_path / "made"), "--recipe", "int8-dynamic")
    assert made.stderr.splitlines()[:2] == ["quantizing: int8-dynamic", told]
    done = evaluate(
        "run", str(bundles / "fp32"), path, "--data", "demo:test:n=48", "--no-bench", "-o", str(tmp_path / "results")
    )
    assert done.returncode == 0 and told in " ".join(done.stdout.split()), done.stderr
    said = evaluate("report", str(tmp_path / "results"), "--format", "json", "-o", str(tmp_path / "report.json"))
    assert said.returncode == 0 and f"; hint: {SATURATES}" in (tmp_path / "report.json").read_text()


def test_list_refuses_what_is_none(tmp_path):
    assert_refused(export("list", str(tmp_path)), "is not a bundle")
    assert export("list", str(tmp_path), "--checkpoints").returncode == 2
