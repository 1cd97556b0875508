"""What pairs a record with another, made today or next year: its resamples, and each sample's answer.

A metric's draws on the same samples and seed are draws on the same resamples, so their difference is a paired one
whatever the metric is. Where only a part of the samples is common, the answers pair by sample id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clipq.errors import ResultsError
from clipq.evaluate.metrics.predictions import Booleans, Floats, Integers, Predictions
from clipq.evaluate.metrics.statistics import Draws
from clipq.evaluate.results.estimates import Estimate
from clipq.evaluate.results.key import Key
from clipq.evaluate.results.record import RENAMED, Record, record_stem
from clipq.files import write_atomic
from clipq.packed import packed, unpacked


@dataclass(frozen=True)
class SampleAnswers:
    """Answer to every sample of a view, by its id: label, predicted label, and the probabilities of both."""

    ids: tuple[str, ...]
    label: Integers
    predicted: Integers
    confidence: Floats
    of_label: Floats

    @classmethod
    def of(cls, ids: Sequence[str], predictions: Predictions) -> SampleAnswers:
        """The answers behind predictions."""
        return cls(
            ids=tuple(ids),
            label=predictions.labels.astype(np.int32),
            predicted=predictions.predicted.astype(np.int32),
            confidence=predictions.confidence.astype(np.float32),
            of_label=predictions.of_label.astype(np.float32),
        )

    @property
    def correct(self) -> Booleans:
        """Whether the predicted label is the label."""
        return self.predicted == self.label

    def __len__(self) -> int:
        return len(self.ids)

    def common(self, other: SampleAnswers) -> tuple[SampleAnswers, SampleAnswers]:
        """Both on the samples that they share: same id, same label."""
        where = {(name, int(label)): row for row, (name, label) in enumerate(zip(other.ids, other.label, strict=True))}
        pairs = [
            (row, where[key]) for row, key in enumerate(zip(self.ids, self.label.tolist(), strict=True)) if key in where
        ]
        mine, theirs = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return self._rows(mine), other._rows(theirs)

    def _rows(self, rows: Integers) -> SampleAnswers:
        return SampleAnswers(
            tuple(self.ids[row] for row in rows),
            self.label[rows],
            self.predicted[rows],
            self.confidence[rows],
            self.of_label[rows],
        )


_ARRAYS = ("label", "predicted", "confidence", "of_label")


@dataclass(frozen=True)
class Pairing:
    """The draws of a record's measurements, by view, group and metric, and the answers of its classified views."""

    draws: Mapping[Key, Draws]
    answers: Mapping[str, SampleAnswers] = field(default_factory=dict)


def write_pairing(
    folder: Path, record: Record, estimates: Sequence[Estimate], answers: Mapping[str, SampleAnswers]
) -> Path:
    """Store them beside the record, as ``RESULTS/pairing/*.safetensors``."""
    arrays: dict[str, Any] = {}
    if estimates:
        arrays["draws"] = np.stack([one.draws.resampled for one in estimates]).astype(np.float32)
        arrays["values"] = np.array([one.draws.value for one in estimates])
    for index, one in enumerate(answers.values()):
        arrays[f"{index}/ids"] = np.frombuffer(json.dumps(one.ids).encode(), dtype=np.uint8)
        arrays |= {f"{index}/{name}": getattr(one, name) for name in _ARRAYS}
    rows = [[one.view, one.group, one.metric, one.draws.n] for one in estimates]
    said = {"rows": json.dumps(rows), "views": json.dumps(list(answers)), "created": record.created}
    path = _path(folder, record)
    write_atomic(path, packed(arrays, said | {"record": path.stem}))
    return path


def read_pairing(folder: Path, record: Record) -> Pairing:
    """What was stored of a record; raises ResultsError where it is missing, damaged or of another run."""
    path = _path(folder, record)
    again = "run clipq-eval run again into this folder (embeddings are kept)"
    if not path.is_file():
        raise ResultsError(f"{path} is missing, without which nothing is paired; {again}")
    try:
        arrays, said = unpacked(path.read_bytes(), unsealed={"rows", "views", "created"})
        if said["created"] != record.created or said.get("record", path.stem) != path.stem:
            raise ResultsError(f"{path} belongs to another run than the record of {record.name}; {again}")
        draws: dict[Key, Draws] = {}
        rows = json.loads(said["rows"])
        if rows:
            known = {row.key for row in record.measurements}
            for (view, group, metric, n), value, row in zip(rows, arrays["values"], arrays["draws"], strict=True):
                key = Key(view, group, metric)
                now = key._replace(metric=RENAMED.get(metric, metric))
                draws[now if key not in known and now in known else key] = Draws(float(value), row, n)
        answers = {}
        for index, view in enumerate(json.loads(said["views"])):
            ids = tuple(json.loads(arrays[f"{index}/ids"].tobytes()))
            columns = [arrays[f"{index}/{name}"] for name in _ARRAYS]
            if any(column.shape != (len(ids),) for column in columns):
                raise ValueError(f"the answers on {view} are not of its samples")
            answers[view] = SampleAnswers(ids, *columns)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ResultsError(f"{path} is damaged; {again}") from error
    return Pairing(draws, answers)


def _path(folder: Path, record: Record) -> Path:
    return folder / "pairing" / f"{record_stem(record)}.safetensors"


def unpaired(draws: Draws) -> Draws:
    """The same draws in another order: two runs of a generator with one seed must not pose as pairs."""
    return Draws(draws.value, np.random.default_rng(1).permutation(draws.resampled), draws.n)
