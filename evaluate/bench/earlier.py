"""Speeds that an earlier run into the same folder measured of the same engine: a run that times nothing keeps them."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from clipq.errors import ResultsError
from clipq.evaluate.results.record import Record, read_record, record_path


def with_earlier_speeds(record: Record, folder: Path) -> Record:
    """A record that has no speeds, with those that the folder has of the same engine; ``timed`` says from when.

    They stay what they were: beside the reference of their own run, and of no other.
    """
    earlier, path = None, record_path(folder, record)
    if not record.failed and path.is_file():
        # A damaged one is written anew, as ever.
        with suppress(ResultsError):
            earlier = read_record(path)
    if earlier is None or not earlier.latency or _engine(earlier) != _engine(record):
        return record
    rows = tuple(row for row in earlier.measurements if row.key.tower or not row.view)
    kept: dict[str, Any] = {name: getattr(earlier, name) for name in ("latency", "census", "gpu")}
    kept |= {"timed": earlier.timed or earlier.created, "measurements": (*record.measurements, *rows)}
    return record.model_copy(update=kept)


def _engine(record: Record) -> str:
    """What speeds belong to: the bundle, how it ran, and the machine with its libraries."""
    how = {name: record.arguments_resolved.get(name) for name in ("threads", "cuda_graphs")}
    return json.dumps([record.bundle.digest, record.runtime, record.twin, how, record.environment], sort_keys=True)
