"""What was measured of engines is kept, and measured again where what was kept is damaged."""

from __future__ import annotations

import json

import pytest
from support import DEMO_BUNDLE

from clipq.evaluate.bench import bench
from clipq.evaluate.cells.subjects import gather_cohort
from clipq.evaluate.results.record import LatencyRecord
from clipq.evaluate.settings import Settings

LATENCY = LatencyRecord(tower="image", batch=1, milliseconds=(1.25, 1e-7, 3.0))


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """What benches the demo bundle into a folder; how often that measured; the file it is kept in."""
    times = []

    def alone(subject, batch, real):
        times.append(batch)
        return bench.SubjectBench(latency=(), census=(), peak_rss_bytes={"image": 5})

    monkeypatch.setattr(bench, "_bench_alone", alone)
    monkeypatch.setattr(bench, "time_subjects", lambda subjects, *_: {one.label: [LATENCY] for one in subjects})
    subjects = gather_cohort([DEMO_BUNDLE], Settings(pixels=None)).subjects

    def measure():
        return bench.bench(subjects, bench.BenchSettings(), tmp_path, lambda what: None)

    measure()
    (path,) = tmp_path.iterdir()
    return measure, times, path


def test_what_was_kept_is_not_measured_again(measured):
    measure, times, path = measured
    data = path.read_bytes()
    (one,) = measure().values()
    assert times == [8] and one.latency == (LATENCY,) and path.read_bytes() == data


def test_every_flipped_bit_is_told_and_measured_again(measured):
    measure, times, path = measured
    data = path.read_bytes()
    for byte in range(len(data)):
        flipped = bytearray(data)
        flipped[byte] ^= 1 << byte % 8
        path.write_bytes(flipped)
        times.clear()
        assert measure() and times == [8], flipped
        assert path.read_bytes() == data


def test_other_content_is_measured_again(measured):
    measure, times, path = measured
    stored = json.loads(path.read_bytes())
    for content in ({"subjects": stored["subjects"]}, stored | {"subjects": {}}, [], None, "", stored | {"sha256": ""}):
        path.write_text(json.dumps(content))
        times.clear()
        assert measure() and times == [8]
