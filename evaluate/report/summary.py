"""Which few of a run's measurements stand at the top: one or two per axis."""

from __future__ import annotations

from collections.abc import Set
from itertools import chain

from clipq.record import Record

Key = tuple[str, str, str]
Column = tuple[str, Key]


def summary_columns(record: Record, known: Set[Key]) -> list[Column]:
    """Columns (title and view, group, metric) of the summary table, in the order of the axes."""
    inside = [view for view in record.views if view.role == "in-distribution"]
    wanted: list[list[Column]] = [
        [(f"{view.name}: top-1", (view.name, "", "acc1")), (f"{view.name}: ECE", (view.name, "", "ece"))]
        for view in inside[:2]
    ]
    wanted += [[(f"{view.name}: top-1", (view.name, "", "acc1"))] for view in record.views if view.role == "shifted"][
        :4
    ]
    for view in inside:
        for distance in ("near", "far"):
            wanted.append([(f"{distance} OOD: AUROC, mcm", (view.name, distance, "auroc.mcm"))])
    wanted.append(
        [(f"{view} mCE", (view, group, metric)) for view, group, metric in sorted(known)
         if metric == "mce" and (view, "", "corruption_acc1") in known]
    )  # fmt: skip
    for attack in record.attacks:
        epsilon = attack.epsilons[len(attack.epsilons) // 2]
        group = f"{attack.method}/{epsilon}"
        wanted.append([(f"{attack.method}, ε = {epsilon}/255: robust top-1", (attack.view, group, "robust_acc1"))])
    gaps = [key for key in sorted(known) if key[2] == "group_gap.acc1"]
    wanted.append([(f"{view}: gap over {group}", (view, group, metric)) for view, group, metric in gaps][:2])
    for view in record.views:
        if view.role == "retrieval":
            wanted.append([(f"{view.name}: text → image R@1", (view.name, "", "image_retrieval_recall@1"))])
    return [(title, key) for title, key in chain.from_iterable(wanted) if key in known]
