"""The schema of a suite: what may be asked, defaults resolved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from clipq.bounds import ECE_BINS, QUERIES, REPEATS, SAMPLES, SEED, TIMED_BATCH
from clipq.data.open import find_source
from clipq.errors import DataError
from clipq.evaluate.metrics.calibration import BINS
from clipq.evaluate.metrics.fairness import SMALLEST_GROUP
from clipq.evaluate.suites.corruptions import NAMED_SETS, SEVERITIES
from clipq.fields import Flag, Number, Whole
from clipq.given import hint, shown, unusable

_TimedBatch = Annotated[Whole, Field(ge=TIMED_BATCH.least, le=TIMED_BATCH.most)]


def _each_once(batches: tuple[int, ...]) -> tuple[int, ...]:
    """In order: timed twice, a size would have two numbers of one name."""
    return tuple(sorted(set(batches)))


_TimedBatches = Annotated[tuple[_TimedBatch, ...], Field(min_length=1), AfterValidator(_each_once)]

Role = Literal["in-distribution", "shifted", "near-ood", "far-ood", "groups", "retrieval"]


def _given(path: Path) -> Path:
    if wrong := unusable(str(path)):
        raise ValueError(wrong)
    return path


GivenPath = Annotated[Path, AfterValidator(_given)]

LABELLED: tuple[Role, ...] = ("in-distribution", "shifted", "groups")
# The roles that make something of a view's key; those that are not here do so in every role.
ROLES_OF: dict[str, tuple[Role, ...]] = {
    **dict.fromkeys(("classes_of", "label_map", "templates", "groups", "smallest_group"), LABELLED),
    "published": (*LABELLED, "retrieval"),
    "baseline": ("shifted", "near-ood", "far-ood"),
}


def _said(place: tuple[Any, ...], kind: str, error: Mapping[str, Any], keys: Sequence[str]) -> str:
    where = ".".join(map(str, place))
    if kind == "missing":
        return f"{where} is missing"
    if kind == "extra_forbidden":
        return f"no key {where!r}" + (f"; there are {', '.join(keys)}{hint(where, keys)}" if len(place) == 1 else "")
    return f"{where} {shown(error['input'])}: {error['msg'].lower()}"


if TYPE_CHECKING:
    _Checked = BaseModel
else:

    class _Says(type(BaseModel)):
        """Says in a line what is wrong with an entry made in Python; files are read past it, by ``model_validate``."""

        def __call__(cls, *unnamed: Any, **given: Any) -> Any:
            called = cls.__name__.removesuffix("Entry")
            keys = [field.alias or name for name, field in cls.model_fields.items()]
            if unnamed:
                raise DataError(f"{called}({shown(unnamed[0])}): give it by name; there are {', '.join(keys)}")
            try:
                return super().__call__(**given)
            except ValidationError as error:
                # A list that is none is wrong in each of its parts; the first says it.
                first = {one["loc"][:1]: one for one in reversed(error.errors())}
                said = [_said(one["loc"], one["type"], one, keys) for one in reversed(first.values())]
                raise DataError(f"{called}: {'; '.join(said)}") from error

    class _Checked(BaseModel, metaclass=_Says):
        """What type checkers take for a plain model, whose fields they know."""


class _Entry(_Checked):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ViewEntry(_Entry):
    """One data set and its role.

    ``baseline`` is the in-distribution view that a shifted or out-of-distribution one belongs to (default: the first).
    ``classes_of`` reads the labels as classes of another view, ``label_map`` (CSV: ``label,class``) says how.
    ``groups`` names columns and crossings (``race*gender``); smaller groups than ``smallest_group`` are shown, marked,
    and left out of gaps. ``samples`` takes a seeded random part. ``published`` says which published test set it is,
    where its source does not say so itself (``wds_imagenet1k``).
    """

    source: str
    role: Role = "in-distribution"
    name: str | None = None
    baseline: str | None = None
    classes_of: str | None = None
    label_map: GivenPath | None = None
    templates: str | None = None
    groups: tuple[str, ...] = ()
    smallest_group: Whole = Field(default=SMALLEST_GROUP, ge=SAMPLES.least, le=SAMPLES.most)
    samples: Whole | None = Field(default=None, ge=SAMPLES.least, le=SAMPLES.most)
    published: str | None = None


class CorruptionsEntry(_Entry):
    """Corruptions of a labelled view; ``names`` are corruptions or named sets, ``baseline`` is what mCE divides by."""

    of: str
    names: tuple[str, ...] = ("all",)
    severities: tuple[Whole, ...] = SEVERITIES
    samples: Whole | None = Field(default=None, ge=SAMPLES.least, le=SAMPLES.most)
    baseline: Literal["reference", "alexnet"] = "reference"

    def corruptions(self) -> tuple[str, ...]:
        """The corruptions asked for, named sets spelled out."""
        return tuple(dict.fromkeys(one for name in self.names for one in NAMED_SETS.get(name, (name,))))


class TransferEntry(_Entry):
    """Adversarial images made from the reference checkpoint's gradients (``clipq-export attack``)."""

    source: GivenPath
    name: str | None = None


class SquareEntry(_Entry):
    """Square attack on each engine: ``epsilons`` in 255ths, a budget of queries per image."""

    of: str
    epsilons: tuple[Whole, ...] = (4,)
    queries: Whole = Field(default=200, ge=QUERIES.least, le=QUERIES.most)
    samples: Whole | None = Field(default=50, ge=SAMPLES.least, le=SAMPLES.most)


class LatencyEntry(_Entry):
    """Batch sizes and timed repeats of the latency measurement."""

    batches: _TimedBatches = (1, 8)
    repeats: Whole = Field(default=30, ge=REPEATS.least, le=REPEATS.most)


class Suite(_Entry):
    """What an evaluation asks; defaults resolved."""

    reference: str | None = None
    templates: str | None = None
    on_bad_image: Literal["error", "skip"] = "error"
    ece_bins: Whole = Field(default=BINS, ge=ECE_BINS.least, le=ECE_BINS.most)
    seed: Whole = Field(default=0, ge=SEED.least, le=SEED.most)
    simulated: Flag = False
    tune_fraction: Number = Field(default=0.5, gt=0, lt=1)
    views: tuple[ViewEntry, ...] = Field(default=(), alias="view")
    corruptions: tuple[CorruptionsEntry, ...] = ()
    transfer: tuple[TransferEntry, ...] = ()
    square: tuple[SquareEntry, ...] = ()
    latency: LatencyEntry | None = None

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    def templates_of(self, view: str) -> str | None:
        """The name of the template set that is asked for on a view: its own, else the suite's; None where none is."""
        return next((one.templates for one in self.views if one.templates and view_name(one) == view), self.templates)


def view_name(entry: ViewEntry) -> str:
    """The name a view goes by: given, or from its source."""
    return entry.name or find_source(entry.source)[1].name
