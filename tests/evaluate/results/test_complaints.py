"""Records that no clipq wrote, or that lost something: refused in one line, by every command, before anything is said."""

from __future__ import annotations

import json
import shutil

import pytest
from support import assert_refused, evaluate
from synthetic import predictions, worse, write_results

from clipq.errors import ResultsError
from clipq.evaluate.results.record import read_record, read_records

BASE = predictions(200, accuracy=0.8)


@pytest.fixture
def folder(tmp_path):
    return write_results(tmp_path / "r", {"test": BASE}, {"int8": {"views": {"test": worse(BASE, 0.01)}, "milliseconds": 2.0}})  # fmt: skip


def row(**change):
    return lambda found: found["measurements"][0].update(change)


def twice(found):
    found["measurements"].append(found["measurements"][0])


WRONG = [
    (twice, "acc1 of 'test' is there twice"),
    (lambda found: found["views"].append(found["views"][0]), "two views have one name"),
    (lambda found: found["views"][0].update(n=0), "view 'test' has n = 0"),
    (row(value=1.5), "is 1.5, outside of its range"),
    (row(value=-0.2), "outside of its range"),
    (row(value=float("inf")), "outside of its range"),
    (row(metric="nll", value=float("inf")), "is infinite"),
    (row(low=0.9, high=0.1), "has an empty interval"),
    (row(delta_low=0.1, delta_high=-0.1), "has an empty difference"),
    (row(n=0), "has n = 0"),
    (row(p_value=3.0), "has p = 3"),
    (row(metric="accuracy"), "accuracy of 'test' is no metric"),
    (row(metric="acc1.x"), "acc1.x of 'test' is no metric"),
    (row(metric="latency_ms.p50", view="tower:image", group="batch=many"), "is of no tower"),
    (row(metric="file_bytes", view="tower:sound"), "is of no tower"),
    (row(metric="corruption_acc1", view="test-c", group="fog/deep"), "needs a group such as 'name/3'"),
    (row(metric="robust_acc1", group="pgd"), "needs a group such as 'name/3'"),
    (row(metric="auroc.mcm", group="middle"), "needs the group 'near' or 'far'"),
    (row(metric="group_gap.acc1"), "needs a group: a column"),
    (row(bundle="other"), "is of other on ort-cpu"),
    (lambda found: found["environment"].pop("cores"), "there is no 'cores'"),
    (lambda found: found["environment"].update(gpu="H200"), "the gpu has no name"),
    (lambda found: found["arguments_resolved"].update(corruptions=["fog"]), "corruptions are no tables"),
    (lambda found: found["latency"][0].update(milliseconds=[]), "no times above 0"),
    (lambda found: found["latency"][0]["milliseconds"].append(0), "no times above 0"),
    (lambda found: found["latency"][0].update(again=[1.0] * 29 + [0]), "no times above 0"),
    (lambda found: found["latency"][0].update(again=[1.0]), "the second copy was timed in other turns"),
    (lambda found: found["bundle"].update(file_bytes=0), "file_bytes = 0"),
    (lambda found: found["bundle"].update(calibration={"n": 3}), "calibration does not say"),
    (row(value="high"), "measurements.0.value"),
    (lambda found: found.update(measurements={}), "measurements"),
    (lambda found: found.update(extra=1), "extra"),
    (lambda found: found.update(bundle=[]), "bundle"),
    (lambda found: found.pop("views"), "views"),
]


@pytest.mark.parametrize(("change", "said"), WRONG, ids=[said for _, said in WRONG])
def test_a_record_that_cannot_be_is_refused(folder, change, said):
    path = folder / "records" / "int8__ort-cpu.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(ResultsError) as refused:
        read_record(path)
    assert said in str(refused.value) and "is damaged" in str(refused.value) and "delete it" in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"7", b'"x"', b"\xff\xfe{", b"[" * 100_000, b'{"a":' * 50_000, b'{"schema_version": "6"}'],
    ids=["empty", "cut", "list", "null", "number", "text", "utf-16", "nested", "nested objects", "no fields"],
)  # fmt: skip
def test_what_is_no_record_is_refused_by_every_command(folder, tmp_path, content):
    (folder / "records" / "int8__ort-cpu.json").write_bytes(content)
    for command in (("gate", folder, "--policy", "strict"), ("report", folder), ("compare", folder, folder)):
        assert_refused(evaluate(*map(str, command)), "int8__ort-cpu.json", "delete it")
    assert not (folder / "report.html").exists()


def test_a_number_that_has_no_value_stays_one(folder):
    path = folder / "records" / "int8__ort-cpu.json"
    found = json.loads(path.read_text())
    found["measurements"][0] |= {"value": float("nan"), "low": float("nan"), "high": float("nan")}
    path.write_text(json.dumps(found))
    assert read_record(path).measurements[0].value != 0


def test_a_record_under_anothers_name_is_refused(folder):
    shutil.copy(folder / "records" / "int8__ort-cpu.json", folder / "records" / "int8 (copy).json")
    with pytest.raises(ResultsError, match=r"int8 \(copy\).json holds what belongs into .*int8__ort-cpu.json"):
        read_records(folder)


@pytest.mark.parametrize("damage", ["metadata", "matrix", "rows", "answers"])
def test_damaged_draws_are_refused(folder, damage):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    path = folder / "pairing" / "int8__ort-cpu.safetensors"
    with safe_open(path, "np") as stored:
        metadata = stored.metadata()
        arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    if damage == "metadata":
        metadata = None
    elif damage == "matrix":
        arrays["draws"] = arrays["draws"][:, 0].copy()
    elif damage == "rows":
        metadata["rows"] = "5"
    else:
        arrays["0/label"] = arrays["0/label"][:-1].copy()
    save_file(arrays, path, metadata)
    assert_refused(
        evaluate("gate", str(folder), "--policy", "mlperf-99"),
        "int8__ort-cpu.safetensors is damaged",
        "run clipq-eval run again",
    )
