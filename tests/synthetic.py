"""Results folders whose truth is known: predictions are drawn, everything after them is clipq's own code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from clipq.evaluate.axes.classification import reliability
from clipq.evaluate.metrics.predictions import Predictions
from clipq.evaluate.metrics.statistics import Draws
from clipq.evaluate.metrics.table import METRICS, functions_of
from clipq.evaluate.results.estimates import Engine, Estimate, estimate, measurements
from clipq.evaluate.results.pairing import SampleAnswers, write_pairing
from clipq.evaluate.results.record import (
    BundleRecord,
    CensusRecord,
    KernelRecord,
    LatencyRecord,
    Measurement,
    Record,
    ViewRecord,
    write_csv,
    write_record,
)
from clipq.files import sha256_bytes
from clipq.scheme import Scheme, with_scheme

CLASSES = 5


def predictions(n, *, accuracy=0.8, overconfidence=0.0, seed=0, labels_seed=0):
    """Predictions of a given true accuracy; confidence − accuracy is ``overconfidence`` in expectation."""
    rng = np.random.default_rng([*np.atleast_1d(seed), 7])
    labels = np.random.default_rng([*np.atleast_1d(labels_seed), 8]).integers(0, CLASSES, n)
    right = rng.random(n) < accuracy
    predicted = np.where(right, labels, (labels + rng.integers(1, CLASSES, n)) % CLASSES)
    confidence = np.clip(accuracy + overconfidence + rng.uniform(-0.1, 0.1, n), 0.3, 0.995)
    probabilities = np.repeat(((1 - confidence) / (CLASSES - 1))[:, None], CLASSES, axis=1)
    probabilities[np.arange(n), predicted] = confidence
    return Predictions(probabilities, labels)


def worse(base, part, *, seed=1):
    """The predictions with a random part of the right ones turned wrong."""
    rng = np.random.default_rng([seed, 9])
    probabilities = base.probabilities.copy()
    for row in np.flatnonzero(base.correct & (rng.random(len(base)) < part)):
        probabilities[row] = np.roll(probabilities[row], 1)
    return Predictions(probabilities, base.labels)


def estimates(views, metrics):
    rows = []
    for view, one in views.items():
        functions = {name: function for name, function in functions_of(one).items() if name in metrics}
        for row in estimate(functions, len(one), view=view):
            correct = one.correct if row.metric == "acc1" else None
            rows.append(Estimate(row.view, row.group, row.metric, row.draws, row.unit, correct))
    return rows


def scheme_of(recipe, options=None):
    """What files from before schemes were written mean by a recipe's name and options."""
    return Scheme(**with_scheme({"recipe": recipe, "options": options or {}}, "recipe")["scheme"])


def record(
    name, views, *, recipe="int8-static", reference=None, base=(), runtime="ort-cpu", failed="", extra=(), ids=None, milliseconds=None,
    file_bytes=1_000_000, options=None, cpu="", towers=("image", "text"), integer_share=1.0, metrics=("acc1", "ece", "confidence_gap"),
):  # fmt: skip
    """A record of an engine with these predictions by view, and its estimates; ``base`` are the reference's."""
    found = [*estimates(views, metrics), *extra]
    scheme = scheme_of(recipe, options)
    engine = Engine(name, recipe, runtime, scheme.arithmetic == "simulated", cpu=cpu)
    other = None if reference is None else Engine(reference, "fp32", runtime, False, cpu=cpu)
    rows = [] if failed else measurements(engine, found, other, base)
    rows += [engine.row(view="", metric="file_bytes", unit="bytes", value=file_bytes, n=1)]
    census = CensusRecord(
        tower="image", recipe=recipe, verdict="integer", integer_share=integer_share, integer_time_share=integer_share, matmul_time_share=0.9,
        kernels=(KernelRecord(op="MatMul", arithmetic="integer", count=1, macs=1, milliseconds=1.0),), other_milliseconds={},
        evidence="test",
    )  # fmt: skip
    rows += [engine.row(view="tower:image", metric="integer_share", unit="fraction", value=integer_share, n=1)]
    latency = ()
    if milliseconds is not None:
        times = tuple((np.random.default_rng(3).normal(1, 0.02, 30) * milliseconds).tolist())
        latency = (LatencyRecord(tower="image", batch=8, milliseconds=times),)
        where = {"view": "tower:image", "group": "batch=8", "n": 30}
        rows += [
            engine.row(**where, metric=f"latency_ms.p{q}", unit="ms", value=float(np.percentile(times, q)))
            for q in (50, 90, 99)
        ]
        rows += [engine.row(**where, metric="throughput", unit="samples/s", value=8e3 / float(np.median(times)))]
        rows += [engine.row(view="tower:image", metric="file_bytes", unit="bytes", value=file_bytes / 2, n=1)]
        rows += [engine.row(view="tower:image", metric="peak_rss_bytes", unit="bytes", value=1e8, n=1)]
    made = Record(
        created="2026-01-01T00:00:00+00:00",
        bundle=BundleRecord(
            name=name, digest=f"{name:0<64}", checkpoint="synthetic", recipe=recipe, scheme=scheme, options=options or {}, towers=towers,
            calibration=None, file_bytes=file_bytes,
        ),
        runtime=runtime, cpu=cpu, simulated=engine.simulated, twin=False, failed=failed, reference=reference or name,
        arguments_given={}, arguments_resolved={"seed": 0, "ece_bins": 15}, environment={"cpu": "none", "cores": 1, "system": "-", "python": "3", "packages": {}},
        views=tuple(
            ViewRecord(name=view, source=view, role="in-distribution", baseline="", digest=sha256_bytes(f"{view}/{len(one)}".encode()), n=len(one), classes=CLASSES,
                       templates="t", template_count=1, skipped={}, reliability=reliability(one))
            for view, one in views.items()
        ),
        latency=latency, census=(census,) if milliseconds is not None else (), measurements=tuple(rows),
    )  # fmt: skip
    answers = {view: SampleAnswers.of(ids or [str(i) for i in range(len(one))], one) for view, one in views.items()}
    return made, found, answers


def write_results(folder, reference, candidates, **common):
    """A results folder: ``reference`` are the FP32 predictions by view, ``candidates`` keyword arguments by name."""
    first = record("fp32", reference, recipe="fp32", milliseconds=4.0, file_bytes=4_000_000, cpu=common.get("cpu", ""))
    made = [first]
    for name, asked in candidates.items():
        made.append(record(name, **{"reference": "fp32", "base": first[1], **common, **asked}))
    for one, found, answers in made:
        write_record(folder, one)
        write_pairing(folder, one, [] if one.failed else found, answers)
    write_csv(folder, [one for one, _, _ in made])
    return folder


def exact(view, group, metric, value, unit="fraction"):
    """An estimate without spread."""
    return Estimate(view, group, metric, Draws(value, np.full(1000, value), 100), unit)


def many(engines, views):
    """A study's worth of records without computing it: every classification metric of every view with intervals."""
    rng = np.random.default_rng(0)
    base = record("fp32", {"v": predictions(200)}, recipe="fp32", milliseconds=4.0)[0]
    bars = base.views[0].reliability
    compared = ("agreement", "flips_lost", "flips_gained", "cosine")
    metrics = [*functions_of(predictions(2)), *compared, "ece_untuned", "ece_tuned", "logit_scale_tuned"]
    records = []
    for number in range(engines):
        name, bits = ("fp32", 32) if number == 0 else (f"engine-{number}", (8, 4, 2)[number % 3])
        columns = {
            "bundle": name,
            "recipe": "fp32" if bits == 32 else f"int{bits}-weight-only",
            "runtime": "ort-cpu",
            "simulated": False,
            "n": 1000,
        }
        rows = [replace(row, **columns) for row in base.measurements if row.view in ("", "tower:image")]
        for view in range(views):
            for metric in metrics:
                if metric in compared and number == 0:
                    continue
                value, half, delta, spread = rng.random(), rng.random() / 20, rng.normal() / 50, rng.random() / 50
                unit = METRICS[metric].unit
                against = {} if number == 0 or metric in compared else {"reference": "fp32", "delta": delta, "delta_low": delta - spread, "delta_high": delta + spread, "p_value": rng.random()}  # fmt: skip
                rows.append(Measurement(**columns, view=f"view {view}", metric=metric, unit=unit, value=value, low=value - half, high=value + half, **against))  # fmt: skip
        shown = [bar.model_copy(update={"n": int(rng.integers(1, 200)), "confidence": rng.random(), "accuracy": rng.random()}) for bar in bars]  # fmt: skip
        records.append(
            base.model_copy(
                update={
                    "bundle": base.bundle.model_copy(update={"name": name, "recipe": columns["recipe"], "scheme": scheme_of(columns["recipe"]), "digest": f"{number:064}"}),
                    "reference": "fp32",
                    "measurements": tuple(rows),
                    "views": tuple(base.views[0].model_copy(update={"name": f"view {view}", "digest": f"{view:064}", "reliability": tuple(shown)}) for view in range(views)),
                }
            )
        )  # fmt: skip
    return records
