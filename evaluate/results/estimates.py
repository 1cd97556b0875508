"""Estimates of one engine, and the rows of ``results.csv`` that they become beside a reference's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from clipq.evaluate.metrics.accuracy import weighted_mean
from clipq.evaluate.metrics.agreement import mcnemar_p
from clipq.evaluate.metrics.predictions import Booleans
from clipq.evaluate.metrics.statistics import Draws, Statistic, bootstrap
from clipq.evaluate.metrics.table import metric_of
from clipq.evaluate.results.record import Measurement, engine_name


@dataclass(frozen=True)
class Engine:
    """Whose measurements these are: the first columns of ``results.csv``.

    ``cpu`` is empty on a GPU. Simulated are bundles whose recipe only simulates, and the twins of Q/DQ bundles: integer
    kernels off; and what is predicted for another CPU.
    """

    bundle: str
    recipe: str
    runtime: str
    simulated: bool
    is_twin: bool = False
    cpu: str = ""

    @property
    def label(self) -> str:
        """What the column ``reference`` says when others are compared with this one."""
        return engine_name(self.bundle, self.cpu, simulated=self.simulated, twin=self.is_twin)

    @property
    def twin(self) -> Engine:
        """The same bundle with integer kernels off."""
        return replace(self, simulated=True, is_twin=True)

    def row(self, **values: Any) -> Measurement:
        """A row of ``results.csv`` that begins with these columns."""
        return Measurement(
            bundle=self.bundle,
            recipe=self.recipe,
            runtime=self.runtime,
            cpu=self.cpu,
            simulated=self.simulated,
            **values,
        )


@dataclass(frozen=True)
class Estimate:
    """A metric on a view (and group) with its draws; ``correct`` marks the right samples, where it is an accuracy.

    ``paired`` says that the value itself compares with the reference (agreement): it has no difference to it.
    """

    view: str
    group: str
    metric: str
    draws: Draws
    unit: str
    correct: Booleans | None = None
    paired: bool = False


def estimate(
    functions: Mapping[str, Statistic],
    *sizes: int,
    view: str,
    group: str = "",
    seed: int = 0,
    paired: bool = False,
    n: int | None = None,
) -> list[Estimate]:
    """Bootstrap functions named by their metric into estimates of one view and group.

    ``n`` is how many of the samples the values rest on, where it is not all of them.
    """
    return [
        Estimate(view, group, name, draws if n is None else replace(draws, n=n), metric_of(name).unit, paired=paired)
        for name, draws in bootstrap(functions, *sizes, seed=seed).items()
    ]


def accuracy_estimate(correct: Booleans, *, metric: str, view: str, group: str, seed: int) -> Estimate:
    """An accuracy by itself."""
    draws = bootstrap({metric: partial(weighted_mean, correct)}, len(correct), seed=seed)[metric]
    return Estimate(view, group, metric, draws, "fraction", correct)


def measurements(
    engine: Engine, estimates: Sequence[Estimate], reference: Engine | None, base: Sequence[Estimate]
) -> list[Measurement]:
    """Rows with values and intervals and, where a reference is given, paired differences and p-values.

    The p-value is exact McNemar for accuracies, else from the bootstrap's standard error (Wald).
    """
    known = {(one.view, one.group, one.metric): one for one in base}
    rows = []
    for one in estimates:
        other = known.get((one.view, one.group, one.metric)) if reference not in (None, engine) else None
        low, high = metric_of(one.metric).within(*one.draws.interval())
        difference, p_value = None, None
        bounds: tuple[float, float] | tuple[None, None] = (None, None)
        if other is not None and not one.paired:
            difference = one.draws - other.draws
            bounds = difference.interval()
            both = one.correct is not None and other.correct is not None
            p_value = mcnemar_p(one.correct, other.correct) if both else difference.p_value()  # type: ignore[arg-type]
        compares = other is not None or (one.paired and reference not in (None, engine))
        rows.append(
            engine.row(
                view=one.view,
                group=one.group,
                metric=one.metric,
                unit=one.unit,
                value=one.draws.value,
                low=low,
                high=high,
                n=one.draws.n,
                reference=reference.label if compares and reference is not None else "",
                delta=None if difference is None else difference.value,
                delta_low=bounds[0],
                delta_high=bounds[1],
                p_value=p_value,
            )
        )
    return rows
