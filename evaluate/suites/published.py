"""Which published test set a view is, and whether it is asked what was published."""

from __future__ import annotations

import re

from clipq.bundle import Bundle
from clipq.data.open import find_source
from clipq.data.views import SubsetView
from clipq.evaluate.published import table
from clipq.evaluate.results.record import PublishedSetRecord
from clipq.evaluate.suites.plan import PlannedView
from clipq.evaluate.suites.schema import LABELLED, Suite, ViewEntry
from clipq.evaluate.suites.templates import choose_templates
from clipq.given import hint


def published_set(entry: ViewEntry) -> str:
    """The test set that a view is by its ``published`` key, else by CLIP_benchmark's name of its source; else empty.

    >>> [published_set(ViewEntry(source=source)) for source in ("hf:clip-benchmark/wds_vtab-cifar10", "photos/cifar10")]
    ['cifar10', '']
    """
    if entry.published is not None:
        return table.shipped().set_name(entry.published)
    scheme, source = find_source(entry.source)
    found = re.fullmatch(r"wds_(.+?)(_test)?", scheme.name(source.place))
    name = table.shipped().set_name(found[1]) if found else ""
    return "" if name and _unfit(entry, name) else name


def published_complaint(entry: ViewEntry) -> str:
    """What is wrong with a view's ``published`` key; empty where nothing is."""
    if entry.published is None:
        return ""
    known = table.shipped().sets
    name = published_set(entry)
    if not name:
        return f"published {entry.published!r} is no published test set; there are {', '.join(known)}" + hint(
            entry.published, known
        )
    return _unfit(entry, name)


def _unfit(entry: ViewEntry, name: str) -> str:
    captioned = not table.shipped().sets[name].classes
    if captioned == (entry.role == "retrieval"):
        return ""
    return f"published {name!r} is of role {'retrieval' if captioned else ' or '.join(LABELLED)}, not {entry.role}"


def asked_as_published(planned: PlannedView, bundle: Bundle, suite: Suite) -> PublishedSetRecord | None:
    """What a record says of the published test set that a view is; None where it is none."""
    name, view = published_set(planned.entry), planned.view
    if not name:
        return None
    published = table.shipped().sets[name]
    whole = view.base if isinstance(view, SubsetView) else view
    if view.classes is None:
        return PublishedSetRecord(name=name, images=len(whole.samples))
    templates = choose_templates(view, bundle, suite.templates_of(view.name)).templates
    return PublishedSetRecord(
        name=name,
        images=len(whole.samples),
        other_names=published.other_names(view.classes.names),
        same_templates=published.same_templates(templates),
    )
