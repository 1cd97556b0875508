"""Predictions that an engine gave elsewhere: a bundle of them in place of towers, written and read by view."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipq.bundle import Bundle
from clipq.data.views import View
from clipq.errors import BundleError, NotAnswered
from clipq.evaluate.cells.work import Listed, labels_of
from clipq.evaluate.metrics.predictions import Floats
from clipq.packed import Damaged, packed, unpacked


@dataclass(frozen=True)
class GivenView:
    """Label probabilities (samples × labels) of a view's samples, by their ids and in the view's order."""

    digest: str
    labels: tuple[str, ...]
    skipped: dict[str, str]
    ids: tuple[str, ...]
    probabilities: Floats

    def rows(self, view: View) -> NDArray[np.int64]:
        """The places of the samples in the view."""
        place = {sample.id: row for row, sample in enumerate(view.samples)}
        return np.array([place[name] for name in self.ids], dtype=np.int64)


def packed_predictions(found: Sequence[tuple[Listed, Sequence[str], Floats]]) -> bytes:
    """What is stored of predictions: of each view what was listed, the ids, the probabilities."""
    arrays: dict[str, NDArray[Any]] = {}
    said = []
    for index, (listed, ids, probabilities) in enumerate(found):
        arrays[f"{index}/ids"] = np.frombuffer(json.dumps(ids).encode(), np.uint8)
        arrays[f"{index}/probabilities"] = probabilities
        said.append([listed.digest, listed.labels, listed.skipped])
    return packed(arrays, {"views": json.dumps(said)})


def predictions_of(bundle: Bundle, view: View, classes_of: View) -> GivenView:
    """The predictions of a view, with the classes of that view or another.

    Raises NotAnswered for a view that no predictions came back for.
    """
    assert classes_of.classes is not None
    labels = labels_of(classes_of.classes)
    named = [
        one for one in _read(bundle.tower_path("image"), bundle.manifest.image.sha256) if one.digest == view.digest
    ]
    found = next((one for one in named if one.labels == labels), None)
    if found is None:
        other = ", but with other classes" if named else ""
        raise NotAnswered(f"no predictions came back{other}")
    return found


@lru_cache(maxsize=4)
def _read(path: Path, sha256: str) -> tuple[GivenView, ...]:
    """Every view of a file, which has this digest."""
    try:
        arrays, said = unpacked(path.read_bytes())
        return tuple(
            GivenView(
                digest,
                tuple(labels),
                skipped,
                tuple(json.loads(arrays[f"{index}/ids"].tobytes())),
                arrays[f"{index}/probabilities"],
            )
            for index, (digest, labels, skipped) in enumerate(json.loads(said["views"]))
        )
    except (Damaged, KeyError, ValueError) as error:
        raise BundleError(f"{path} is damaged ({error}); import the predictions again") from error
