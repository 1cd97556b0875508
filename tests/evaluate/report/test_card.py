"""The model card, read back by Hugging Face's own parser."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image
from support import DEMO_BUNDLE, assert_refused, evaluate
from synthetic import exact, predictions, worse, write_results

from clipq.demo import world
from clipq.evaluate.results.folders import read_results

BASE = predictions(500, accuracy=0.8)
HOSTILE = 'x: |\n "y" <b>`'.replace("\n", " ")


@pytest.fixture
def results(tmp_path):
    groups = [exact(HOSTILE, "light=|<i>", "acc1", 0.5)]
    candidate = {"views": {HOSTILE: worse(BASE, 0.2)}, "extra": groups, "milliseconds": 2.0}
    fake = {"views": {HOSTILE: BASE}, "recipe": "simulated-w4a8"}
    return write_results(tmp_path / "r", {HOSTILE: BASE}, {"int8": candidate, "fake": fake})


def test_the_hub_library_reads_it(results, tmp_path):
    from huggingface_hub import ModelCard

    path = tmp_path / "CARD.md"
    done = evaluate("card", str(results), "-o", str(path))
    assert done.returncode == 0, done.stderr
    card = ModelCard.load(path)
    assert card.data.model_name == "int8"
    assert card.data.tags[2:4] == ["onnx", "quantized"]
    found = {one.metric_type: one for one in card.data.eval_results}
    right = worse(BASE, 0.2).correct.mean()
    assert found["acc1"].metric_value == pytest.approx(right, abs=1e-6) and found["acc1"].dataset_type == HOSTILE
    text = card.text
    assert "worse" in text and "integer" in text and "nothing is known" not in text
    assert "<b>" not in text.replace("\\<b\\>", "") and "<i>" not in text.replace("\\<i\\>", "")
    assert "Not measured: natural shift, near OOD" in text
    # One kind of minus sign, in the sentence and in the tables.
    assert len(re.findall(r"−\d", text)) >= 4 and not re.search(r"[\s\[|]-\d", text)


def test_no_card_calls_quantized_what_is_not(tmp_path):
    """And none gives bits that nobody knows: others' plans say them where they run."""
    folder = write_results(tmp_path / "r", {"test": BASE}, {"plan": {"views": {"test": BASE}}})
    for path in (folder / "records").glob("*.json"):
        found = json.loads(path.read_text())
        found["bundle"] |= {"adopted": {"layout": "TensorRT plans", "sources": {}}}
        if found["bundle"]["name"] == "plan":
            found["bundle"]["plans"] = {"image": {}}
            found["bundle"]["scheme"] |= {"weight_bits": 0, "activation_bits": 0, "arithmetic": "float"}
        path.write_text(json.dumps(found))
    cards = {}
    for name in ("fp32", "plan"):
        done = evaluate("card", str(folder), "--bundle", name, "-o", str(tmp_path / f"{name}.md"))
        assert done.returncode == 0, done.stderr
        cards[name] = (tmp_path / f"{name}.md").read_text()
    assert "- onnx\n" in cards["fp32"]
    assert "- quantized\n" not in cards["fp32"]
    assert "- onnx\n" not in cards["plan"]
    assert "as others made it (bits unknown), measured" in cards["plan"]


def test_what_was_found_of_an_adopted_engine_stands_where_it_is_judged(results, tmp_path):
    """It stood among the provenance alone, below all charts; one that agrees has nothing to be said of it."""
    compared = {"reference": "right", "agrees": False, "sentences": ["image tower, BGR: channels are reversed"]}
    said = "int8: answers otherwise than right, which it was compared with: image tower, BGR: channels are reversed"
    (path,) = (results / "records").glob("int8__*.json")
    found = json.loads(path.read_text())
    for agrees in (False, True):
        adopted = {"layout": "Immich", "sources": {}, "compared": compared | {"agrees": agrees}}
        found["bundle"] |= {"adopted": adopted}
        path.write_text(json.dumps(found))
        assert (said in read_results([results]).notes) != agrees


def test_simulated_is_labelled(results, tmp_path):
    path = tmp_path / "CARD.md"
    assert evaluate("card", str(results), "--bundle", "fake", "-o", str(path)).returncode == 0
    assert "**simulated**" in path.read_text() and "Not measured: latency" in path.read_text()


def test_choices_are_refused(tmp_path):
    two = write_results(tmp_path / "r", {"test": BASE}, {name: {"views": {"test": BASE}} for name in ("a", "b")})
    assert_refused(evaluate("card", str(two), "-o", str(tmp_path / "c.md")), "--bundle", "a, b")
    assert_refused(evaluate("card", str(two), "--bundle", "z", "-o", str(tmp_path / "c.md")), "--bundle z")
    assert not (tmp_path / "c.md").exists()


def test_one_of_two_cpus_is_chosen_by_the_engines_name(tmp_path):
    for cpu in ("avx2", "avx512-vnni"):
        two = write_results(tmp_path / "r", {"test": BASE}, {"int8": {"views": {"test": BASE}}}, cpu=cpu)
    path, names = tmp_path / "c.md", ("int8 (avx2)", "int8 (avx512-vnni)")
    assert_refused(evaluate("card", str(two), "-o", str(path)), *names)
    assert_refused(evaluate("card", str(two), "--bundle", "int8", "-o", str(path)), *names)
    done = evaluate("card", str(two), "--bundle", names[0], "-o", str(path))
    assert done.returncode == 0 and "measured in `ort-cpu (avx2)`" in path.read_text()


def test_no_name_of_a_record_breaks_out(results, tmp_path):
    hostile = "ck\n\n<img src=x onerror=alert(1)>\n\n# Forged `heading`"
    for path in (results / "records").glob("*.json"):
        found = json.loads(path.read_text())
        found["bundle"] |= {"checkpoint": hostile, "digest": "`<script>" + hostile}
        found["views"][0]["digest"] = hostile
        for census in found["census"]:
            census["tower"] = hostile
        path.write_text(json.dumps(found))
    path = tmp_path / "CARD.md"
    assert evaluate("card", str(results), "--bundle", "int8", "-o", str(path)).returncode == 0
    body = path.read_text().split("---", 2)[2]
    assert not any(line.startswith(("# Forged", "<img", "<script")) for line in body.splitlines())
    # What stands in code is text; outside of it every bracket is escaped.
    assert "<" not in re.sub(r"`[^`\n]*`", "", re.sub(r"\\.", "", body))


def test_a_file_that_is_no_card_is_kept(results, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("mine")
    assert_refused(evaluate("card", str(results), "--bundle", "int8", "-o", str(path)), "no card that clipq wrote")
    assert path.read_text() == "mine"
    path.unlink()
    for _ in range(2):
        assert evaluate("card", str(results), "--bundle", "int8", "-o", str(path)).returncode == 0
    assert "faster" in path.read_text() and "Recipe `int8-static" in path.read_text()


def test_no_path_of_the_machine_is_shown(results, tmp_path):
    for path in (results / "records").glob("*.json"):
        found = json.loads(path.read_text())
        found["bundle"] |= {"checkpoint": "local-dir:/home/me/secret/ck"}
        for view, source in zip(found["views"], ("/home/me/secret/photos", "wds:/home/me/secret/tars"), strict=False):
            view["source"] = source
        path.write_text(json.dumps(found))
    for words in (["card", str(results), "--bundle", "int8", "-o"], ["report", str(results), "-o"]):
        path = tmp_path / ("card.md" if words[0] == "card" else "report.html")
        assert evaluate(*words, str(path)).returncode == 0
        assert "secret" not in path.read_text() and "local-dir:ck" in path.read_text()


def test_a_record_holds_paths_only_as_they_were_typed(tmp_path, monkeypatch):
    photos = tmp_path / "secret" / "photos"
    for index, (sample, image) in enumerate((s, world.sample("test", i)[1]) for i, s in enumerate("aabb" * 24)):
        (photos / sample).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(photos / sample / f"{index}.png")
    suite = tmp_path / "secret" / "suite.toml"
    suite.write_text('[[view]]\nsource = "photos"\n[[transfer]]\nsource = "builtin:demo"\n')
    monkeypatch.chdir(suite.parent)
    done = evaluate("run", str(DEMO_BUNDLE), "--suite", "suite.toml", "--no-bench", "-o", "out")
    assert done.returncode == 0, done.stderr
    (record,) = (suite.parent / "out" / "records").iterdir()
    asked = json.loads(record.read_text())["arguments_resolved"]
    assert asked["view"][0]["source"] == "photos" and asked["transfer"][0]["source"] == "attack"
    assert "secret" not in record.read_text().replace(json.dumps(str(DEMO_BUNDLE)), "")
