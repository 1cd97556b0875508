"""What two numbers rest on: a difference is taken where it is the same, and refused with what differs where not."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
from support import CALIBRATION, ON_THIS_CPU, assert_refused, evaluate
from synthetic import predictions, worse, write_results

from clipq.errors import ResultsError
from clipq.evaluate.results.folders import read_results
from clipq.evaluate.results.pairing import read_pairing
from clipq.evaluate.results.record import read_record

BASE = predictions(400, accuracy=0.8)
DIGESTS = {"labels": "l", "classes": "c", "templates": "t", "column 'race'": "r"}
ATTACK = {"view": "pgd", "kind": "transfer", "method": "pgd", "epsilons": [4], "n": 400, "options": {"steps": 3}, "digest": "a"}  # fmt: skip


def edit(folder, change, names=("fp32", "int8")):
    for name in names:
        path = folder / "records" / f"{name}__ort-cpu.json"
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))
    return folder


def know_all(found):
    found["reference_digest"] = f"{'fp32':0<64}"
    found["views"][0]["digests"] = dict(DIGESTS)
    found["attacks"] = [ATTACK]
    found["arguments_resolved"] |= {"tune_fraction": 0.5, "corruptions": [{"of": "test", "samples": 9, "baseline": "reference"}]}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    made = write_results(tmp_path / "r", {"test": BASE}, {"int8": {"views": {"test": worse(BASE, 0.01)}}})
    return edit(made, know_all)


def of_view(**change):
    return lambda found: found["views"][0].update(change)


def asked(**change):
    return lambda found: found["arguments_resolved"].update(change)


OTHER = [
    (of_view(digest="other"), "images of 'test'"),
    (of_view(skipped={"a.png": "broken"}), "images left out of 'test'"),
    (of_view(classes=7), "number of classes of 'test'"),
    (of_view(templates="mine"), "template set of 'test'"),
    (of_view(digests=DIGESTS | {"labels": "x"}), "labels of 'test'"),
    (of_view(digests=DIGESTS | {"classes": "x"}), "classes of 'test'"),
    (of_view(digests=DIGESTS | {"templates": "x"}), "templates of 'test'"),
    (of_view(digests=DIGESTS | {"column 'race'": "x"}), "column 'race' of 'test'"),
    (asked(seed=1), "seed"),
    (asked(ece_bins=10), "ece_bins"),
    (asked(tune_fraction=0.4), "tune_fraction"),
    (
        asked(corruptions=[{"of": "test", "samples": 8, "baseline": "reference"}]),
        "samples of the corruptions of 'test'",
    ),
    (asked(corruptions=[{"of": "test", "samples": 9, "baseline": "alexnet"}]), "baseline of the corruptions"),
    (lambda found: found.update(attacks=[ATTACK | {"digest": "b"}]), "images of the pgd attack on 'pgd'"),
    (lambda found: found.update(attacks=[ATTACK | {"options": {"steps": 4}}]), "options of the pgd attack on 'pgd'"),
    (lambda found: found.update(reference_digest="another"), "bundle 'fp32' that is the reference"),
]


@pytest.mark.parametrize(("change", "what"), OTHER, ids=[what for _, what in OTHER])
def test_an_engine_beside_another_basis_is_refused(folder, change, what):
    read_results([folder])
    edit(folder, change, ("int8",))
    with pytest.raises(ResultsError) as refused:
        read_results([folder])
    said = str(refused.value)
    assert f"they differ in the {what}" in said and said.startswith(f"{folder}: int8 and fp32"), said
    assert f"delete {folder}/records/int8__ort-cpu.json" in said and "\n" not in said


def test_every_command_refuses(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    edit(folder, of_view(digest="other"), ("int8",))
    for command in (
        ("gate", str(folder), "--policy", "mlperf-99"), ("gate", "init", str(folder), "-o", str(tmp_path / "p.toml")),
        ("compare", str(folder), str(other)), ("compare", str(other), str(folder)),
        ("report", str(folder), "--format", "md"), ("report", str(folder), str(other), "-o", str(tmp_path / "x.html")),
        ("card", str(folder), "-o", str(tmp_path / "c.md")),
    ):  # fmt: skip
        assert_refused(evaluate(*command), "they differ in the images of", f"delete {folder}/records/int8")
    assert {path.name for path in tmp_path.iterdir()} == {"r", "other"} and not (folder / "report.md").exists()
    # Another engine of that folder is none of its business.
    alone = folder / "records" / "fp32__ort-cpu.json"
    assert evaluate("compare", str(alone), str(other / "records" / "fp32__ort-cpu.json")).returncode in (0, 3)


@pytest.mark.parametrize("what", ["labels", "classes", "templates"])
def test_a_record_says_all_that_it_was_asked_or_is_damaged(folder, what):
    assert not read_results([folder]).notes
    edit(folder, lambda found: found["views"][0]["digests"].pop(what), ("int8",))
    with pytest.raises(ResultsError, match=f"there is none of its {what}"):
        read_results([folder])


def test_an_earlier_clipqs_records_are_read_and_said_to_be_unsure(folder, tmp_path):
    def forget(found):
        found |= {"schema_version": 5}
        found.pop("reference_digest")
        found["views"][0].pop("digests")

    edit(folder, forget, ("int8",))
    for command in (("gate", folder, "--policy", "mlperf-99"), ("compare", folder, folder)):
        done = evaluate(*map(str, command))
        assert done.returncode in (0, 1, 3) and "note: int8: recorded by an earlier clipq" in done.stderr, done.stderr
    for form, words in (("html", "recorded by an earlier clipq"), ("md", "recorded by an earlier clipq"), ("json", '"notes"')):  # fmt: skip
        target = tmp_path / f"report.{form}"
        assert evaluate("report", str(folder), "--format", form, "-o", str(target)).returncode == 0
        assert words in target.read_text()
    edit(folder, of_view(digest="other"), ("int8",))
    assert_refused(evaluate("gate", str(folder), "--policy", "mlperf-99"), "images of 'test'")


def test_an_engine_without_a_reference_is_of_the_same_basis_too(folder, tmp_path):
    def alone(found):
        found |= {"reference": "", "reference_digest": ""}

    assert len(read_results([edit(folder, alone, ("int8",))])) == 2
    edit(folder, asked(ece_bins=9), ("int8",))
    assert_refused(evaluate("report", str(folder)), "int8 and fp32 were not evaluated on the same", "ece_bins")
    for name in ("records/fp32__ort-cpu.json", "pairing/fp32__ort-cpu.safetensors"):
        (folder / name).unlink()
    assert len(read_results([folder])) == 1


def test_other_libraries_than_the_references_are_said(folder):
    def with_libraries(**libraries):
        return lambda found: found["environment"].update(libraries)

    edit(folder, with_libraries(made_by={"pillow": "12.0", "numpy": "2.3"}, packages={"onnxruntime": "1.27"}))
    assert not read_results([folder]).notes
    edit(folder, with_libraries(made_by={"pillow": "12.1", "numpy": "2.3"}), ("int8",))
    done = evaluate("gate", str(folder), "--policy", "mlperf-99")
    assert "note: int8: measured with another pillow (12.1, not 12.0) than the reference" in done.stderr
    # Records before schema 6 name runtimes alone.
    edit(folder, lambda found: found["environment"].pop("made_by"), ("int8",))
    assert not read_results([folder]).notes
    edit(folder, with_libraries(packages={"onnxruntime": "1.26"}), ("int8",))
    assert "another onnxruntime (1.26, not 1.27)" in read_results([folder]).notes[0]


def test_other_libraries_between_two_folders_are_said(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    for one, version in ((folder, "2.2"), (other, "2.3")):
        edit(one, lambda found, version=version: found["environment"].update(made_by={"numpy": version}))
    said, markdown = "Measured in B with another numpy (2.3, not 2.2)", tmp_path / "compared.md"
    assert said in " ".join(evaluate("compare", str(folder), str(other), "--markdown", str(markdown)).stdout.split())
    assert markdown.read_text().count(said) == 2
    assert "with another" not in evaluate("compare", str(folder), str(folder)).stdout


@pytest.mark.parametrize("version", [9, "9", 9.0, True, 0, -1, None, "new", [6]])
def test_a_record_of_no_known_schema_is_refused(folder, version):
    edit(folder, lambda found: found.update(schema_version=version), ("int8",))
    assert_refused(evaluate("gate", str(folder), "--policy", "mlperf-99"), "int8__ort-cpu.json", "schema")


def test_two_folders_are_compared_where_they_were_asked_the_same(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    edit(other, of_view(digests=DIGESTS | {"labels": "x"}, digest="y"))
    found = json.loads(evaluate("compare", str(folder), str(other), "--json").stdout)
    assert {row["how"] for pair in found["pairs"] for row in pair["differences"]} == {"paired by id"}
    for change, what in ((of_view(digests=DIGESTS | {"classes": "x"}), "classes of 'test'"),
                         (of_view(digests=DIGESTS | {"templates": "x"}), "templates of 'test'"),
                         (of_view(classes=9), "number of classes of 'test'")):  # fmt: skip
        again = edit(shutil.copytree(folder, tmp_path / what), change)
        assert_refused(evaluate("compare", str(folder), str(again)), "in A and", "not asked the same", what)


def test_one_name_for_other_labels_stays_two_views(folder, tmp_path):
    other = edit(shutil.copytree(folder, tmp_path / "other"), of_view(digests=DIGESTS | {"labels": "x"}))
    names = {view for entry in read_results([folder, other]) for view, _, metric in entry.rows if metric == "acc1"}
    assert names == {"r/test", "other/test"}


def test_what_two_folders_were_asked_otherwise_is_said_where_they_stand_in_one_table(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    assert not read_results([folder, other]).notes
    edit(other, asked(ece_bins=9))
    target = tmp_path / "report.md"
    assert evaluate("report", str(folder), str(other), "--format", "md", "-o", str(target)).returncode == 0
    assert "differ in the ece_bins: what rests on it is not the same number" in target.read_text().replace("\\", "")


def copy_pairing(folder):
    shutil.copy(folder / "pairing" / "fp32__ort-cpu.safetensors", folder / "pairing" / "int8__ort-cpu.safetensors")


def test_anothers_draws_are_refused(folder):
    copy_pairing(folder)
    assert_refused(evaluate("gate", str(folder), "--policy", "mlperf-99"), "belongs to another run", "int8")


def test_anothers_draws_of_an_earlier_clipq_are_refused(folder):
    """Files that do not say whose they are, made in the same second: the values tell."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    for name in ("fp32", "int8"):
        path = folder / "pairing" / f"{name}__ort-cpu.safetensors"
        with safe_open(path, "np") as stored:
            metadata = {key: value for key, value in stored.metadata().items() if key not in ("record", "sha256")}
            save_file({key: stored.get_tensor(key) for key in stored.keys()}, path, metadata)  # noqa: SIM118
    assert evaluate("gate", str(folder), "--policy", "mlperf-99").returncode in (0, 1, 3)
    copy_pairing(folder)
    assert_refused(evaluate("gate", str(folder), "--policy", "mlperf-99"), "belongs to another engine", "int8")


def run(bundles, names, data, output, *more):
    return evaluate("run", *(str(bundles / name) for name in names), "--data", f"photos={data}", "-o", str(output), "--no-bench", *more)  # fmt: skip


def test_a_run_refuses_what_another_run_was_asked_otherwise(bundles, tmp_path):
    """On the same images, so that no digest of images tells: other labels, class names, templates, seed, bins, reference."""
    photos = tmp_path / "photos"
    for number, path in enumerate(sorted((CALIBRATION / "images").glob("*.png"))[:24]):
        (photos / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, photos / "ab"[number % 2] / path.name)
    rows = [f"{path.relative_to(photos)},{path.parent.name}" for path in sorted(photos.rglob("*.png"))]
    table = photos / "labels.csv"
    table.write_text("\n".join(["file,label", *rows]))
    out = tmp_path / "out"
    assert run(bundles, ("fp32", "int8-static-minmax"), table, out).returncode == 0
    found = {path.name: path.read_bytes() for path in (out / "records").iterdir()}
    changed = photos / "changed.csv"
    for old, new in ((",b", ",c"), (rows[0], rows[0].replace(",a", ",b"))):
        changed.write_text("\n".join(["file,label", *rows]).replace(old, new))
        done = run(bundles, ("fp32", "int2-weight-only-rtn"), changed, out)
        assert_refused(done, "holds int8-static-minmax", "with a difference in the labels of 'photos'")
    for more, what in ((("--seed", "1"), "seed"), (("--ece-bins", "9"), "ece_bins"), (("--templates", "simple-7"), "templates of 'photos'")):  # fmt: skip
        done = run(bundles, ("fp32", "int2-weight-only-rtn"), table, out, *more)
        assert_refused(done, "holds int8-static-minmax", f"with a difference in the {what}", "another folder")
    assert found == {path.name: path.read_bytes() for path in (out / "records").iterdir()}
    assert run(bundles, ("fp32", "int2-weight-only-rtn"), table, out).returncode == 0
    with (out / "results.csv").open() as stream:
        seen = {row["bundle"] for row in csv.DictReader(stream)}
    assert seen == {entry.record.bundle.name for entry in read_results([out])} == {"fp32", "int8-static-minmax", "int2-weight-only-rtn"}  # fmt: skip
    record = read_record(out / "records" / f"int8-static-minmax__{ON_THIS_CPU}.json")
    assert set(record.views[0].digests) == {"labels", "classes", "templates"} and len(record.reference_digest) == 64
    read_pairing(out, record)
    path = out / "pairing" / f"int8-static-minmax__{ON_THIS_CPU}.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    with pytest.raises(ResultsError, match="not what belongs to the record"):
        read_pairing(out, record)


def test_a_run_refuses_a_bundle_that_was_exchanged_beside_its_twin(bundles, tmp_path):
    """The twin of the weights from before would stand beside the new ones, under one name."""
    out, name = tmp_path / "out", "int8-static-minmax"
    photos = tmp_path / "photos"
    for number, path in enumerate(sorted((CALIBRATION / "images").glob("*.png"))[:24]):
        (photos / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, photos / "ab"[number % 2] / path.name)
    mine = tmp_path / "bundles"
    for one in ("fp32", name):
        shutil.copytree(bundles / one, mine / one)
    assert run(mine, ("fp32", name), photos, out, "--simulated").returncode == 0
    assert run(mine, ("fp32", name), photos, out).returncode == 0
    manifest = json.loads((mine / name / "clipq.json").read_text())
    manifest["recipe"]["calibration"]["digest"] = "0" * 64
    (mine / name / "clipq.json").write_text(json.dumps(manifest))
    assert_refused(run(mine, ("fp32", name), photos, out), "(simulated)", f"another bundle '{name}'", "or delete")
    assert run(mine, ("fp32", name), photos, out, "--simulated").returncode == 0
    assert len({read_record(path).bundle.digest for path in (out / "records").glob(f"{name}*")}) == 1
