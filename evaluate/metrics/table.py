"""The table of metrics: a row says all that is known of one, and nothing else in clipq does.

``results.csv`` names a metric by its row and, where it comes in several forms, by what follows a dot or an @:
``auroc.mcm``, ``image_retrieval_recall@5``, ``latency_ms.p50``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

from clipq.evaluate.metrics import accuracy, calibration
from clipq.evaluate.metrics.ood import SCORES
from clipq.evaluate.metrics.predictions import Floats, Predictions
from clipq.evaluate.metrics.retrieval import KS
from clipq.evaluate.metrics.statistics import Statistic

# Where the report shows a metric and what its group in results.csv says (results/key.py). Of classification the first
# columns and the further ones; "classification, groups" are of parts of a view alone; "" is of a metric not known here.
Section = Literal[
    "classification", "classification, further", "classification, groups", "agreement", "tuning", "shift", "ood",
    "corruptions", "attacks", "fairness", "retrieval", "engine", "costs", "",
]  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """One metric: its unit, its range, whether higher is better (None: neither), and its section.

    ``low`` and ``high`` bound its values and so its intervals (None: no bound). ``forms`` are the endings its name
    takes. A classification metric has a ``function`` of predictions and sample weights (resamples × samples) that gives
    one value per row. A ``binned`` one depends on the number of bins, which its function takes too. ``short`` is
    what a sentence calls it.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool | None
    section: Section
    low: float | None = 0.0
    high: float | None = None
    forms: tuple[str, ...] = ()
    function: Callable[..., Floats] | None = None
    binned: bool = False
    short: str = ""
    note: str = ""

    def within(self, low: float, high: float) -> tuple[float, float]:
        """An interval, cut where the metric's range ends."""
        return (
            low if self.low is None else max(low, self.low),
            high if self.high is None else min(high, self.high),
        )


def _share(name: str, title: str, better: bool | None, section: Section, **more: Any) -> Metric:
    return Metric(name, title, "fraction", better, section, **{"high": 1.0, **more})


_SCORES = tuple(f".{score}" for score in SCORES)
_AT_K = tuple(f"@{k}" for k in KS)
_PERCENTILES = (".p50", ".p90", ".p99")
_TOP1 = (".acc1",)
_BINS = "15 bins (`--ece-bins`)"
_SAME = "against the reference, same samples"
_AVERAGED = "view = the OOD set, or the in-distribution one for averages; group `near` or `far`"
_CONDITION = "view `NAME-c`, group `gaussian_noise/3`; empty for the mean"
_DIVIDED = "view `NAME-c`: errors under ImageNet-C's corruptions ÷ the baseline's, mean over corruptions"
_COLUMN = "group = the column"
_TIMED = "view `tower:image` or `tower:text`, group `batch=8`"

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _share("acc1", "top-1 accuracy", True, "classification", function=accuracy.acc1, short="top-1"),
        _share("acc5", "top-5 accuracy", True, "classification, further", function=accuracy.acc5),
        _share("mean_per_class_recall", "mean per-class recall", True, "classification, further",
               function=accuracy.mean_per_class_recall),
        _share("ece", "ECE", False, "classification", function=calibration.ece, binned=True, note=_BINS),
        _share("ece_adaptive", "adaptive ECE", False, "classification, further", function=calibration.ece_adaptive,
               binned=True, note=_BINS),
        _share("ece_classwise", "class-wise ECE", False, "classification, further",
               function=calibration.ece_classwise, binned=True, note=_BINS),
        _share("mce", "MCE", False, "classification, further", function=calibration.mce, binned=True,
               note="the largest gap of a bin; " + _BINS),
        _share("confidence_gap", "confidence − accuracy", None, "classification", low=-1.0,
               function=calibration.confidence_gap, note="best at 0; above it overconfident"),
        Metric("nll", "NLL", "nats", False, "classification", function=calibration.nll),
        Metric("brier", "Brier score", "score", False, "classification", high=2.0, function=calibration.brier,
               note="summed over classes"),
        _share("aurc", "AURC", False, "classification", function=calibration.aurc),
        _share("confidence", "mean confidence", None, "classification, groups", note="of groups"),
        _share("agreement", "same top-1", True, "agreement", note=_SAME),
        _share("flips_lost", "flips lost", False, "agreement", note=_SAME),
        _share("flips_gained", "flips gained", True, "agreement", note=_SAME),
        _share("cosine", "embedding cosine", True, "agreement", low=-1.0, note=_SAME),
        _share("ece_untuned", "ECE as shipped", False, "tuning", binned=True, note="on the half that is not held out"),
        _share("ece_tuned", "ECE after tuning", False, "tuning", binned=True,
               note="logit scale fitted on a held-out half, unless all of it is right; on the rest"),
        Metric("logit_scale_tuned", "tuned logit scale", "scale", None, "tuning", note="the fitted scale"),
        _share("relative_drop", "relative drop", False, "shift", low=None, forms=_TOP1,
               note="view = the shifted set: 1 − accuracy ÷ in-distribution accuracy"),
        _share("effective_robustness", "effective robustness", True, "shift", low=-1.0, forms=_TOP1,
               note="beyond a logit-linear line of slope 1 through the reference"),
        _share("auroc", "AUROC", True, "ood", forms=_SCORES, note=_AVERAGED),
        _share("aupr_in", "AUPR-in", True, "ood", forms=_SCORES, note=_AVERAGED),
        _share("aupr_out", "AUPR-out", True, "ood", forms=_SCORES, note=_AVERAGED),
        _share("fpr95_id_positive", "FPR@95, ID positive", False, "ood", forms=_SCORES, note="MCM's convention"),
        _share("fpr95_ood_positive", "FPR@95, OOD positive", False, "ood", forms=_SCORES, note="OpenOOD's convention"),
        _share("clean_acc1", "clean top-1", True, "attacks",
               note="of attacked samples before the attack; view `NAME-c`: of the uncorrupted ones"),
        _share("corruption_acc1", "top-1 under corruption", True, "corruptions", short="top-1", note=_CONDITION),
        _share("corruption_ece", "ECE under corruption", False, "corruptions", short="ECE", binned=True,
               note=_CONDITION),
        Metric("mean_corruption_error", "mCE", "ratio", False, "corruptions", note=_DIVIDED),
        Metric("relative_mean_corruption_error", "relative mCE", "ratio", False, "corruptions", low=None,
               note="the same of what is lost beside the clean error"),
        _share("robust_acc1", "robust top-1", True, "attacks", note="group `pgd/2`, `square/4`"),
        _share("attack_success", "success", False, "attacks", note="of a transferred attack its transfer rate"),
        Metric("queries", "mean queries", "queries", True, "attacks",
               note="Square attack's mean, over images right before it"),
        _share("group_gap", "gap (max − min)", False, "fairness", forms=_TOP1, note=_COLUMN),
        _share("group_std", "standard deviation", False, "fairness", forms=_TOP1, note=_COLUMN),
        _share("group_worst", "worst group", True, "fairness", forms=_TOP1, note=_COLUMN),
        Metric("group_ratio", "ratio (min ÷ max)", "ratio", True, "fairness", high=1.0, forms=_TOP1, note=_COLUMN),
        _share("equalized_odds_difference", "equalized-odds difference", False, "fairness", note=_COLUMN),
        _share("image_retrieval_recall", "text → image", True, "retrieval", forms=_AT_K, note="CLIP_benchmark's name"),
        _share("text_retrieval_recall", "image → text", True, "retrieval", forms=_AT_K, note="CLIP_benchmark's name"),
        Metric("latency_ms", "latency", "ms", False, "engine", forms=_PERCENTILES, note=_TIMED),
        Metric("device_latency_ms", "latency on the device", "ms", False, "engine", forms=_PERCENTILES,
               note="by the GPU's events; " + _TIMED),
        Metric("throughput", "throughput", "samples/s", True, "engine", note="of the median; " + _TIMED),
        Metric("file_bytes", "file size", "bytes", False, "engine", note="view `tower:…`; empty: both"),
        Metric("peak_rss_bytes", "peak memory", "bytes", False, "costs", note="view `tower:…`; of the host, on a CPU"),
        Metric("gpu_bytes", "GPU memory", "bytes", False, "costs", note="view `tower:…`; the peak, on a GPU"),
        Metric("joules_per_sample", "energy per sample", "J", False, "costs", note="view `tower:…`; on a GPU"),
        _share("integer_share", "work in integer kernels", True, "engine", note="view `tower:…`; of matrix products"),
        _share("reformat_share", "time spent reformatting", False, "engine", note="view `tower:…`; of plans"),
    )
}  # fmt: skip


def spoken() -> dict[str, tuple[str, str]]:
    """What people call a metric, by the name that it has in results."""
    return {metric.name: (metric.title, metric.short) for metric in METRICS.values()}


@lru_cache(maxsize=4096)
def metric_of(name: str) -> Metric:
    """The row of a metric as ``results.csv`` names it; one that the table lacks is its own title and nothing more."""
    stem = name.partition(".")[0].partition("@")[0]
    return METRICS.get(stem) or Metric(stem, stem, "", None, "", low=None)


def title_of(name: str) -> str:
    """What a metric is called, its form included.

    >>> title_of("auroc.mcm"), title_of("relative_drop.acc1"), title_of("image_retrieval_recall@5")
    ('AUROC, mcm', 'relative drop', 'text → image R@5')
    """
    metric = metric_of(name)
    form = name.removeprefix(metric.name)
    if form in ("", *_TOP1):
        return metric.title
    return f"{metric.title} R{form}" if form.startswith("@") else f"{metric.title}, {form[1:]}"


def of_section(section: Section) -> list[Metric]:
    """The metrics of a section, in the order of the table."""
    return [metric for metric in METRICS.values() if metric.section == section]


def functions_of(predictions: Predictions, bins: int = calibration.BINS) -> dict[str, Statistic]:
    """The metrics that need predictions alone, each a function of sample weights."""
    return {
        metric.name: partial(metric.function, predictions, **({"bins": bins} if metric.binned else {}))
        for metric in METRICS.values()
        if metric.function is not None
    }
