"""Flips: samples that a candidate newly gets wrong or right, and small pictures of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from clipq.data.views import Classes, View
from clipq.evaluate.axes.reading import Found, Reading, answers_of
from clipq.evaluate.metrics.zeroshot import Answers, GivenAnswers
from clipq.evaluate.results.record import FlipRecord
from clipq.evaluate.suites.plan import PlannedView
from clipq.files import write_atomic

# A gallery is looked at, not counted: flips_lost and flips_gained have the counts.
MOST = 12
SIDE = 96


def measure(reading: Reading[PlannedView]) -> Found:
    """Flips against the reference on a labelled view; of twins and predictions nobody looks at them."""
    reference, view = reading.reference, reading.asked.view
    if reference is None or reference is reading or reading.subject.is_side:
        return Found()

    def thumbnail(index: int) -> str:
        return "" if reading.pictures is None else write_thumbnail(view, index, reading.pictures)

    flips = find_flips(reading.once(answers_of), reference.once(answers_of), view, thumbnail)
    return Found(view={"flips": flips})


def find_flips(
    answers: Answers | GivenAnswers,
    reference: Answers | GivenAnswers,
    view: View,
    thumbnail: Callable[[int], str],
) -> tuple[FlipRecord, ...]:
    """Up to 12 lost and 12 gained samples, the candidate's most confident first.

    Both answers are on the same samples; ``thumbnail`` is asked for the picture of a sample, by its place in the view.
    """
    assert view.classes is not None
    mine, theirs = answers.predictions, reference.predictions
    names = _names(view.classes)
    place = {sample.id: index for index, sample in enumerate(view.samples)}
    found = []
    for gained, flipped in ((False, theirs.correct & ~mine.correct), (True, ~theirs.correct & mine.correct)):
        rows = np.flatnonzero(flipped)
        for row in rows[np.argsort(-mine.confidence[rows], kind="stable")][:MOST]:
            found.append(
                FlipRecord(
                    sample=answers.ids[row],
                    label=names[mine.labels[row]],
                    reference=names[theirs.predicted[row]],
                    reference_confidence=float(theirs.confidence[row]),
                    candidate=names[mine.predicted[row]],
                    confidence=float(mine.confidence[row]),
                    gained=gained,
                    thumbnail=thumbnail(place[answers.ids[row]]),
                )
            )
    return tuple(found)


def write_thumbnail(view: View, index: int, results: Path) -> str:
    """Store a small WebP of a sample, named by its content's digest; returns its path within the results folder."""
    name = f"thumbnails/{view.image_digest(index)[:32]}.webp"
    path = results / name
    if not path.is_file():
        # The pixels alone: no EXIF, so no place and no owner.
        picture = Image.fromarray(np.asarray(view.image(index).convert("RGB")))
        picture.thumbnail((SIDE, SIDE))
        stream = io.BytesIO()
        picture.save(stream, "WEBP", quality=60)
        write_atomic(path, stream.getvalue())
    return name


def _names(classes: Classes) -> tuple[str, ...]:
    """What a label is called: its class's name; where several classes share a label, the data set's own key."""
    return classes.names if classes.is_plain else classes.keys
