"""Predictions as arrays, from wherever they come: the metrics and paired statistics of a run on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from clipq.bounds import ECE_BINS, SAMPLES, SEED
from clipq.errors import DataError, NotInResults
from clipq.evaluate.axes.agreement import answers_compared
from clipq.evaluate.axes.classification import with_correct
from clipq.evaluate.axes.fairness import by_group, fairness
from clipq.evaluate.metrics.calibration import BINS
from clipq.evaluate.metrics.fairness import SMALLEST_GROUP
from clipq.evaluate.metrics.predictions import Predictions
from clipq.evaluate.metrics.statistics import bootstrap
from clipq.evaluate.metrics.table import METRICS, functions_of, metric_of, title_of
from clipq.evaluate.report.notebook import data_frame, html_table
from clipq.evaluate.results.estimates import Engine, Estimate, estimate, measurements
from clipq.evaluate.results.key import part_group, parts_complaint
from clipq.evaluate.results.numbers import delta, value
from clipq.evaluate.results.record import Measurement
from clipq.evaluate.verdicts.judgement import Verdict, judge_row
from clipq.given import as_number, as_text, shown

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Value:
    """A metric's value with its 95 % interval, from ``n`` samples."""

    value: float
    low: float
    high: float
    n: int

    def __float__(self) -> float:
        return self.value

    def __format__(self, form: str) -> str:
        return format(self.value, form) if form else str(self)


@dataclass(frozen=True)
class PredictionsCompared:
    """A candidate's predictions against a reference's, on the same samples.

    ``found["acc1"]`` is a row as in ``results.csv``, ``found["race=Black", "acc1"]`` that of a group,
    ``found["race", "group_gap.acc1"]`` the gap between a column's groups. ``of_reference`` has the reference's own.
    """

    measurements: tuple[Measurement, ...]
    of_reference: tuple[Measurement, ...]

    def __getitem__(self, key: str | tuple[str, str]) -> Measurement:
        """The row of a metric, or of a group and a metric; raises NotInResults where there is none."""
        group, metric = key if isinstance(key, tuple) and len(key) == 2 else ("", key)
        for row in self.measurements:
            if (row.group, row.metric) == (group, metric):
                return row
        known = ", ".join(repr((row.group, row.metric) if row.group else row.metric) for row in self.measurements)
        raise NotInResults(f"no {key!r} was measured; there are {known}")

    def verdicts(self) -> dict[tuple[str, str], Verdict]:
        """Better, same, worse or unknown, by group and metric; none for what has no difference or no better side."""
        return {
            (row.group, row.metric): judge_row(row)
            for row in self.measurements
            if row.delta is not None and metric_of(row.metric).higher_is_better is not None
        }

    def rows(self) -> list[dict[str, Any]]:
        """Every measurement of the candidate, by the columns of ``results.csv``."""
        return [asdict(row) for row in self.measurements]

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a data frame; raises ClipqError where pandas is not installed."""
        return data_frame(self.rows())

    def _repr_html_(self) -> str:
        said = self.verdicts()
        cells = [
            (title_of(row.metric), row.group, value(row), delta(row), said.get((row.group, row.metric), ""))
            for row in self.measurements
        ]
        legend = "fractions in percent, their differences in points, 95 % intervals"
        return html_table(("metric", "group", "candidate", "difference", "verdict"), cells, caption=legend)


def compare_predictions(
    *,
    reference: tuple[ArrayLike, ArrayLike],
    candidate: tuple[ArrayLike, ArrayLike],
    groups: Mapping[str, ArrayLike] | pd.DataFrame | None = None,
    bins: int = BINS,
    smallest_group: int = SMALLEST_GROUP,
    seed: int = 0,
) -> PredictionsCompared:
    """Compare one's own predictions as a run compares engines: every metric, paired, with intervals and p-values.

    ``reference`` and ``candidate`` are class probabilities (samples × classes, rows sum to 1) and labels (class
    indices) of the same samples in the same order. ``groups`` (a dict or a data frame) has a value per sample by
    column, none missing; groups under ``smallest_group`` are left out of gaps. Raises DataError for what is no
    probabilities or does not belong together.
    """
    bins, seed = as_number(bins, "bins", 1, ECE_BINS.most), as_number(seed, "seed", *SEED)
    smallest_group = as_number(smallest_group, "smallest_group", *SAMPLES)
    base, mine = (_pair(one, what) for one, what in ((reference, "reference"), (candidate, "candidate")))
    if len(base) != len(mine):
        raise DataError(f"the reference has {len(base)} samples and the candidate {len(mine)}: give both the same ones")
    if (base.labels != mine.labels).any():
        where = int(np.flatnonzero(base.labels != mine.labels)[0])
        raise DataError(f"the labels differ at sample {where}: both must be of the same samples in the same order")
    if base.probabilities.shape != mine.probabilities.shape:
        raise DataError("the reference and the candidate have another number of classes")
    if groups is None and smallest_group != SMALLEST_GROUP:
        raise DataError(f"smallest_group {smallest_group}: there are no groups; give them too, or leave it out")
    columns = _columns(groups, len(mine))

    def estimates(predictions: Predictions) -> list[Estimate]:
        whole = estimate(functions_of(predictions, bins), len(predictions), view="", seed=seed)
        found = with_correct(whole, predictions)
        for column, members in columns.items():
            found += by_group(predictions, members, view="", bins=bins, seed=seed)
            found += fairness(predictions, members, view="", column=column, smallest_group=smallest_group, seed=seed)
        return found

    engines = [Engine(name, "", "", False) for name in ("candidate", "reference")]
    theirs = estimates(base)
    ours = [*estimates(mine), *answers_compared(mine, base, view="", seed=seed)]
    return PredictionsCompared(
        tuple(measurements(engines[0], ours, engines[1], theirs)), tuple(measurements(engines[1], theirs, None, []))
    )


def metric_names() -> list[str]:
    """The metrics that need predictions alone."""
    return [name for name, metric in METRICS.items() if metric.function is not None]


@cache
def metric_function(name: str) -> Callable[..., Value]:
    """A metric as a function of probabilities and labels."""

    def measured(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = BINS, seed: int = 0) -> Value:
        if bins != BINS and not METRICS[name].binned:
            raise DataError(f"{name} has no bins; leave out bins={shown(bins)}")
        bins, seed = as_number(bins, "bins", 1, ECE_BINS.most), as_number(seed, "seed", *SEED)
        predictions = as_predictions(probabilities, labels, what=name)
        draws = bootstrap({name: functions_of(predictions, bins)[name]}, len(predictions), seed=seed)[name]
        return Value(draws.value, *METRICS[name].within(*draws.interval()), len(predictions))

    measured.__name__ = measured.__qualname__ = name
    # Where it is found by name, so that it can be pickled for other processes.
    measured.__module__ = "clipq.metrics"
    taken = "Takes class probabilities (samples × classes, rows sum to 1) and labels (class indices)."
    measured.__doc__ = f"{METRICS[name].function.__doc__}\n\n    {taken}"
    return measured


def as_predictions(probabilities: ArrayLike, labels: ArrayLike, *, what: str) -> Predictions:
    """Arrays as predictions; raises DataError, with ``what`` they are, for arrays that are none."""
    try:
        values, indices = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what}: give arrays of numbers ({' '.join(str(error).split())})") from error
    if np.ma.is_masked(probabilities) or np.ma.is_masked(labels):
        raise DataError(f"{what}: some values are masked, which say nothing; leave these samples out")
    if values.ndim and not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        raise DataError(f"{what}: sample {row} has a probability that is not finite; mend or leave out what is missing")
    if values.shape[1:] in ((0,), (1,)):
        raise DataError(f"{what}: fewer than two classes; give a column for each class, two at least")
    if not np.issubdtype(indices.dtype, np.integer):
        raise DataError(f"{what}: labels are {indices.dtype}; give class indices, whole numbers from 0")
    try:
        return Predictions(values, indices)
    except DataError as error:
        raise DataError(f"{what}: {error}") from error


def _pair(given: object, what: str) -> Predictions:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise DataError(f"{what} {shown(given)}: give a pair, (probabilities, labels)")
    return as_predictions(*given, what=what)


def _columns(groups: object, n: int) -> dict[str, dict[str, np.ndarray]]:
    """Members of each group by column; a mapping or a data frame of values."""
    if groups is None:
        return {}
    if not hasattr(groups, "items"):
        raise DataError(f"groups {shown(groups)}: give a value per sample by column, {{'race': [...]}}")
    found = {as_text(column, "groups column"): _members(column, values, n) for column, values in groups.items()}
    if wrong := parts_complaint(found):
        raise DataError(f"groups: {wrong}")
    return found


def _members(column: str, values: Any, n: int) -> dict[str, np.ndarray]:
    # No array of a list: a missing value among texts would become the text "nan".
    given = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise DataError(f"groups {column!r} {shown(values)}: give a value per sample")
    ones = list(given)
    if len(ones) != n:
        raise DataError(f"groups {column!r}: {len(ones)} values for {n} samples; give one per sample")
    for row, one in enumerate(ones):
        # Every library has its own nothing, and some cannot be compared.
        if not isinstance(one, str) and str(one) in ("None", "nan", "<NA>", "NaT"):
            raise DataError(
                f"groups {column!r}: sample {row} has no value ({one}); give these a name, or leave them out"
            )
        if np.ndim(one):
            raise DataError(f"groups {column!r}: sample {row} has {shown(one)}; give one value per sample")
    # By their text, which is what results call them: 1 and "1" are one group.
    texts = np.array([str(one) for one in ones])
    return {part_group(column, one): texts == one for one in dict.fromkeys(texts.tolist())}
