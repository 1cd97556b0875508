"""What pairs records: damage is told, whatever bit it is, and another record's is not taken."""

from __future__ import annotations

import shutil

import pytest
from safetensors.numpy import save
from synthetic import predictions, worse, write_results

from clipq.errors import ResultsError
from clipq.evaluate.results.pairing import read_pairing
from clipq.evaluate.results.record import read_records
from clipq.packed import packed, unpacked

BASE = predictions(40)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    views = {"views": {"test": worse(BASE, 0.2)}}
    return write_results(tmp_path_factory.mktemp("results"), {"test": BASE}, {"one": views, "two": views})


@pytest.fixture
def pairing(results, tmp_path):
    """A copy of the results: the folder, a record, the file of its pairing."""
    folder = shutil.copytree(results, tmp_path / "results")
    record = next(record for record in read_records(folder) if record.bundle.name == "one")
    (path,) = folder.glob("pairing/one__*.safetensors")
    return folder, record, path


def test_every_flipped_bit_is_told(pairing):
    folder, record, path = pairing
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for byte in (*range(0, start, 3), *range(start, len(data), len(data) // 100)):
        flipped = bytearray(data)
        flipped[byte] ^= 1 << byte % 8
        path.write_bytes(flipped)
        with pytest.raises(ResultsError, match=r"is damaged; run clipq-eval run again"):
            read_pairing(folder, record)
    path.write_bytes(data)
    assert len(read_pairing(folder, record).answers["test"]) == 40


def test_those_of_earlier_versions_are_read_and_damaged_ones_refused(pairing):
    folder, record, path = pairing
    arrays, said = unpacked(path.read_bytes())
    good = read_pairing(folder, record)
    old = {key: said[key] for key in ("rows", "views", "created")}
    path.write_bytes(save(arrays, old))
    assert read_pairing(folder, record).draws.keys() == good.draws.keys()
    for changed in (save(arrays, old | {"more": ""}), packed(arrays), packed({}, said), b"",
                    packed(arrays, said | {"rows": "[[1]]"}), packed(arrays, said | {"views": "3"}),
                    packed(arrays | {"0/label": arrays["0/label"][:3]}, said)):  # fmt: skip
        path.write_bytes(changed)
        with pytest.raises(ResultsError, match="is damaged"):
            read_pairing(folder, record)
    path.unlink()
    path.mkdir()
    with pytest.raises(ResultsError, match="is missing"):
        read_pairing(folder, record)


def test_another_records_is_not_taken(pairing):
    folder, record, path = pairing
    (other,) = folder.glob("pairing/two__*.safetensors")
    shutil.copyfile(other, path)
    with pytest.raises(ResultsError, match="belongs to another run"):
        read_pairing(folder, record)
