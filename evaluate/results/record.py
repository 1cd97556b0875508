"""The result record: what was measured on one engine, on how many samples, with which digests, on which machine."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from clipq.bundle import Adopted
from clipq.cpu import predicted_for
from clipq.errors import ResultsError
from clipq.evaluate.metrics.statistics import median_ratio
from clipq.evaluate.results.complaints import complaint
from clipq.evaluate.results.key import Key
from clipq.files import file_stem, write_atomic
from clipq.given import without_folders
from clipq.hints import Hints
from clipq.scheme import Scheme, with_scheme
from clipq.text_files import read_json

SCHEMA_VERSION = 8

# A folder can hold a million files that are no images.
MOST_LEFT_OUT = 100

CSV_COLUMNS = (
    "bundle", "recipe", "runtime", "cpu", "simulated", "view", "group", "metric", "unit", "value", "low", "high", "n",
    "reference", "delta", "delta_low", "delta_high", "p_value", "busy",
)  # fmt: skip


# A metric that has no value is written as NaN: as null the record could not be read again.
_CONFIG = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

# One object for all rows that say the same: a million rows have few names.
_Name = Annotated[str, AfterValidator(sys.intern)]


# Of a study's record with a million rows.
_MOST_BYTES = 512 * 2**20


class _Model(BaseModel):
    model_config = ConfigDict(**_CONFIG, frozen=True)


# Whose machine it was is nobody's business who reads a page or a card; older records hold whole paths.
_Place = Annotated[str, AfterValidator(without_folders)]


# No pydantic model: that takes five times the memory, and a study has a million rows.
@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Measurement:
    """One number: a row of ``results.csv``.

    ``low`` and ``high`` bound the 95 % interval. ``delta`` is the value minus the reference's on the same samples.
    Fractions are 0 to 1, latencies milliseconds, sizes bytes. What ``view`` and ``group`` say: ``results/key.py``; what
    ``cpu`` says: ``src/clipq/cpu.py`` (empty on a GPU, and before schema 7).
    ``busy`` marks a time that says nothing, for the machine was busy (``LatencyRecord.busy`` says why).
    """

    bundle: _Name
    recipe: _Name
    runtime: _Name
    cpu: _Name = ""
    simulated: bool
    view: _Name
    group: _Name = ""
    metric: _Name
    unit: _Name
    value: float
    low: float | None = None
    high: float | None = None
    n: int
    reference: _Name = ""
    delta: float | None = None
    delta_low: float | None = None
    delta_high: float | None = None
    p_value: float | None = None
    busy: bool = False

    @property
    def key(self) -> Key:
        """Which number it is."""
        return Key(self.view, self.group, self.metric)


class ReliabilityBin(_Model):
    """One bar of a reliability diagram: how many samples, their mean confidence, their accuracy and its interval."""

    lower: float
    upper: float
    n: int
    confidence: float
    accuracy: float
    low: float
    high: float


class ScoreHistogram(_Model):
    """How an outlier score is distributed in and out of distribution: counts between common edges."""

    score: str
    edges: tuple[float, ...]
    inside: tuple[int, ...]
    outside: tuple[int, ...]


class FlipRecord(_Model):
    """A sample that the candidate newly gets wrong, or right: both answers with their confidences from 0 to 1.

    ``thumbnail`` is a file of the results folder, or empty where none was kept.
    """

    sample: str
    label: str
    reference: str
    reference_confidence: float
    candidate: str
    confidence: float
    gained: bool
    thumbnail: str


class AttackRecord(_Model):
    """An attack: transferred from the reference checkpoint's gradients, or the Square attack on each engine itself."""

    view: str
    kind: str
    method: str
    epsilons: tuple[int, ...]
    n: int
    options: dict[str, Any]
    digest: str
    digests: dict[str, str] = Field(default_factory=dict)


class PublishedSetRecord(_Model):
    """The published test set that a view is, by its suite or its source, and whether the published question was asked.

    ``images`` are those of the whole view, of which a run may take a part. ``other_names`` counts the class names that
    are none of the published ones. What does not apply or is not known is None.
    """

    name: str
    images: int
    other_names: int | None = None
    same_templates: bool | None = None


class ViewRecord(_Model):
    """A view as it was used: where from, in which role, how many samples, what was left out, which classes.

    ``baseline`` is the in-distribution view of a shifted or out-of-distribution one; ``classes``, ``templates`` and
    ``reliability`` are empty where nothing was classified. ``flips`` holds the most confident ones, not all, and
    ``left_out`` the first MOST_LEFT_OUT of the ``left_out_count`` files that are no samples, and why; ``unverified``
    names what was read though nobody can tell whether it is whole. ``digest`` is of ids and images, ``digests`` of what
    else was asked: labels, classes, templates, captions, columns of groups; before schema 6 these are not known.
    ``published`` is None for a view that is no published test set, and before schema 8.
    """

    name: str
    source: _Place
    role: str
    baseline: str
    digest: str
    digests: dict[str, str] = Field(default_factory=dict)
    n: int
    classes: int = 0
    captions: int = 0
    templates: str = ""
    template_count: int = 0
    skipped: dict[str, str]
    left_out: dict[str, str] = Field(default_factory=dict)
    left_out_count: int = 0
    unverified: tuple[str, ...] = ()
    smallest_group: int | None = None
    published: PublishedSetRecord | None = None
    reliability: tuple[ReliabilityBin, ...] = ()
    histograms: tuple[ScoreHistogram, ...] = ()
    flips: tuple[FlipRecord, ...] = ()


class LoadRecord(_Model):
    """The machine before, during and after a tower was timed (``engines/machine_load.py``).

    ``others`` are the cores that other processes used, of ``cores``; ``mhz`` the clock before and after, 0 where it is
    not known; ``throttled`` the seconds that a quota held this container back.
    """

    cores: int
    others: tuple[float, float, float]
    mhz: tuple[float, float]
    throttled: float


class LatencyRecord(_Model):
    """Raw times of one tower at one batch size, in milliseconds, by wall clock and by the device's events.

    ``again`` are the wall-clock times of a second copy of the reference, in the same turns; other engines have none.
    ``busy`` says why these times say nothing, and is mostly empty; ``attempts`` how often the tower was timed until it
    was empty, or given up. Before schema 7 none of it is known, and ``load`` is None where the system does not tell it.
    """

    tower: str
    batch: int
    milliseconds: tuple[float, ...]
    device_milliseconds: tuple[float, ...] = ()
    again: tuple[float, ...] = ()
    load: LoadRecord | None = None
    busy: str = ""
    attempts: int = 1

    def over(self, base: LatencyRecord) -> tuple[float, float, float]:
        """The median over another engine's, timed in the same turns, with its 95 % interval (lower is better)."""
        return median_ratio(self.milliseconds, base.milliseconds, () if base is self else base.again)

    def twice(self) -> tuple[float, float, float] | None:
        """The median of the second copy over the first's, with its 95 % interval; None where there is no second one."""
        return median_ratio(self.again, self.milliseconds) if self.again else None


def busy_note(timed: Mapping[str, Sequence[LatencyRecord]]) -> str:
    """A sentence on the engines, by name, that were timed while the machine was busy, and what to do; else nothing."""
    found = {name: [one for one in latencies if one.busy] for name, latencies in timed.items()}
    if not (busy := {name: rows for name, rows in found.items() if rows}):
        return ""
    one = next(iter(busy.values()))[0]
    measured = [name for name, rows in timed.items() if rows]
    who = f"all {len(busy)} engines" if len(busy) == len(measured) > 2 else ", ".join(busy)
    return (
        f"{who}: the machine was busy while engines were timed ({one.tower} tower, batch {one.batch}: "
        f"{one.busy}); such times stand in no verdict: time them again when nothing else runs"
    )


def unanswered_notes(said: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A sentence on each engine, by name, that ran elsewhere and was not asked all that was measured."""
    notes = []
    for name, unanswered in said.items():
        by_reason: dict[str, list[str]] = defaultdict(list)
        for what, why in unanswered.items():
            by_reason[why].append(what)
        if by_reason:
            missing = "; ".join(f"{', '.join(whats)}: {why}" for why, whats in by_reason.items())
            notes.append(f"{name}: not measured: {missing}")
    return notes


def disagreement_notes(said: Mapping[str, Adopted | None]) -> list[str]:
    """A sentence on each engine, by name, that others made and that was found unlike one that is known to be right."""
    compared = {name: adopted.compared for name, adopted in said.items() if adopted is not None}
    return [
        f"{name}: answers otherwise than {found.reference}, which it was compared with: {'; '.join(found.sentences)}"
        for name, found in compared.items()
        if found is not None and not found.agrees
    ]


class KernelRecord(_Model):
    """The matrix-multiply kernels of one operator in one tower, per batch."""

    op: str
    arithmetic: str
    count: int
    macs: int
    milliseconds: float
    precision: str = ""
    kernels: tuple[str, ...] = ()


class ProductRecord(_Model):
    """One integer product: how many sums of two products it took in 16 bits, and how many of them saturate there.

    ``can_saturate`` is said by the weights alone: whether any activations could make one of its sums saturate.
    """

    name: str
    op: str
    can_saturate: bool
    sums: int
    saturated: int


class SaturationRecord(_Model):
    """What x86 without VNNI would lose of a tower's integer products.

    ``verdict`` is ``exact everywhere`` (the weights prove it), ``none saturated`` (on these samples; on others some
    could), ``differs without VNNI``, or ``unknown``, which ``unknown`` explains. ``share`` is the part of all sums that
    saturate, 0 to 1. ``view`` is where the samples are from; empty: plausible inputs, which nobody evaluated.
    """

    verdict: str
    share: float
    samples: int
    view: str = ""
    unknown: str = ""
    products: tuple[ProductRecord, ...] = ()


class CensusRecord(_Model):
    """Which kernels ran in a tower, with shares from 0 to 1 and what the finding rests on.

    ``saturation`` is None where nothing depends on the CPU: without integer products, and on a GPU. Nobody counted
    before schema 7.
    """

    tower: str
    recipe: str
    verdict: str
    integer_share: float
    integer_time_share: float
    matmul_time_share: float
    reformat_share: float = 0.0
    precision_time_shares: dict[str, float] = Field(default_factory=dict)
    kernels: tuple[KernelRecord, ...]
    other_milliseconds: dict[str, float]
    evidence: str
    saturation: SaturationRecord | None = None


class GpuRecord(_Model):
    """The GPU before and after engines were timed: clocks in MHz, °C, W, J, and what held the clocks down."""

    before: dict[str, Any]
    after: dict[str, Any]


class BundleRecord(_Model):
    """The engine that was measured; ``plans`` says by tower what built it and for which GPU, where it is built.

    ``hints`` are those of the bundle that are about the device it ran on, since schema 7. Since schema 8 ``ran_on``
    says, in the words of who ran it, where an engine ran that clipq cannot run (its ``file_bytes`` are not known: 0),
    and ``adopted`` of one that others made where each fact was read.
    """

    name: str
    digest: str
    checkpoint: _Place
    recipe: str
    scheme: Scheme
    options: dict[str, Any]
    towers: tuple[str, ...]
    calibration: dict[str, Any] | None
    file_bytes: int
    plans: dict[str, dict[str, Any]] = Field(default_factory=dict)
    hints: Hints = ()
    adopted: Adopted | None = None
    ran_on: str = ""

    @property
    def scope(self) -> str:
        """Which towers were quantized: ``both``, ``image`` or ``text``."""
        return "both" if len(self.towers) != 1 else self.towers[0]


class Record(_Model):
    """Everything measured on one bundle in one runtime, deployed or simulated.

    ``twin`` marks the simulated twin of a Q/DQ bundle; ``failed`` says why an engine was given up, and is mostly empty.
    ``reference`` is a bundle's name and ``reference_digest`` its digest; ``pairing`` is the digest of the file of draws
    and answers that belongs to the record. Both are empty before schema 6. ``cpu`` names the arithmetic of the CPU it
    ran on, or is predicted for (``avx2-predicted``); empty on a GPU, and before schema 7. ``timed`` is when an earlier
    run measured latency, memory and kernels, where this one kept them. ``unlike_reference``: in what else than its
    arithmetic the engine differs from its reference (preprocessing, tokenizer), in words; ``unanswered``: what an
    engine that ran elsewhere was not asked there, and why (both since schema 8).
    """

    schema_version: int = Field(default=SCHEMA_VERSION, strict=True, ge=1)
    created: str
    bundle: BundleRecord
    runtime: str
    cpu: str = ""
    simulated: bool
    twin: bool
    failed: str = ""
    reference: str
    reference_digest: str = ""
    unlike_reference: tuple[str, ...] = ()
    pairing: str = ""
    arguments_given: dict[str, Any]
    arguments_resolved: dict[str, Any]
    environment: dict[str, Any]
    views: tuple[ViewRecord, ...]
    attacks: tuple[AttackRecord, ...] = ()
    unanswered: dict[str, str] = Field(default_factory=dict)
    timed: str = ""
    latency: tuple[LatencyRecord, ...]
    census: tuple[CensusRecord, ...]
    gpu: GpuRecord | None = None
    measurements: tuple[Measurement, ...]
    deployed_minus_simulated: tuple[Measurement, ...] = ()

    @property
    def place(self) -> str:
        """What it ran on: the runtime, and the arithmetic of the CPU, or the words of who ran it elsewhere."""
        said = self.cpu or self.bundle.ran_on
        return f"{self.runtime} ({said})" if said else self.runtime

    @property
    def name(self) -> str:
        """What tables and charts call this record."""
        return engine_name(self.bundle.name, self.cpu, simulated=self.simulated, twin=self.twin)

    @property
    def unlike_in_words(self) -> str:
        """A clause on what else than its arithmetic differs from the reference; empty where nothing does."""
        found = ", ".join(self.unlike_reference)
        return found and f"not made as the reference is: {found}"

    @property
    def is_reference(self) -> bool:
        """Whether it is what its run compares others with."""
        return self.bundle.name == self.reference and not (self.is_side or self.failed)

    @property
    def is_side(self) -> bool:
        """Whether it stands beside its bundle's engine to tell something of it: a simulated twin, or a prediction."""
        return self.twin or bool(self.predicted_for)

    @property
    def predicted_for(self) -> str:
        """The level of CPUs that its numbers are predicted for; empty where the engine ran as it is."""
        return predicted_for(self.cpu)


def engine_name(bundle: str, cpu: str = "", *, simulated: bool, twin: bool) -> str:
    """What tables and charts call an engine: its bundle, marked where it is simulated and its name does not say so.

    >>> engine_name("int8-static", simulated=True, twin=True)
    'int8-static (simulated)'
    >>> engine_name("int8-static", "avx2-predicted", simulated=True, twin=False)
    'int8-static (as on avx2)'
    """
    if level := predicted_for(cpu):
        return f"{bundle} (as on {level})"
    says_so = not twin and "simulated" in bundle
    return f"{bundle} (simulated)" if simulated and not says_so else bundle


def labels(records: Sequence[Record]) -> list[str]:
    """A name for each record that no other has: runtime and CPU are added where one bundle ran in several."""
    alike: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        alike[record.name].append(record)
    return [_told_apart(record, alike[record.name]) for record in records]


def _told_apart(record: Record, alike: Sequence[Record]) -> str:
    places = {"runtime": record.runtime, "cpu": record.cpu or "unknown CPU"}
    said = [place for what, place in places.items() if len({getattr(one, what) for one in alike}) > 1]
    return f"{record.name} ({', '.join(said)})" if said else record.name


def write_record(folder: Path, record: Record) -> Path:
    """Store a record under its bundle, runtime and kind; returns the path."""
    path = record_path(folder, record)
    write_atomic(path, record.model_dump_json(indent=1) + "\n")
    return path


def record_path(folder: Path, record: Record) -> Path:
    """Where a folder has a record."""
    return folder / "records" / f"{record_stem(record)}.json"


def record_stem(record: Record) -> str:
    """The name of a record's files, without their ending."""
    return stem_of(record.bundle.name, record.runtime, record.cpu, twin=record.twin)


def stem_of(bundle: str, runtime: str, cpu: str, *, twin: bool) -> str:
    """``record_stem`` of an engine that has no record yet."""
    return file_stem("__".join(filter(None, (bundle, runtime, cpu, "simulated" if twin else ""))))


def read_records(folder: Path) -> list[Record]:
    """All records of a results folder, the reference first; raises ResultsError where there are none or one is bad."""
    paths = sorted((folder / "records").glob("*.json"))
    if not paths and (folder / "clipq.json").is_file():
        raise ResultsError(f"{folder} is a bundle; give the folder that clipq-eval run wrote with -o")
    if not paths and folder.is_file():
        raise ResultsError(f"{folder} is a file and no record; give the folder that clipq-eval run wrote with -o")
    if not paths:
        # Of demo, of a sweep's groups, and of who gives the folder of records itself.
        places = [folder.parent, folder / "results", *sorted(folder.glob("results/*"))]
        meant = [str(one) for one in places if any((one / "records").glob("*.json"))]
        way_out = f"did you mean {' or '.join(meant[:3])}?" if meant else f"clipq-eval run -o {folder} makes them"
        raise ResultsError(f"{folder} holds no records; {way_out}")
    records = [read_record(path) for path in paths]
    for path, record in zip(paths, records, strict=True):
        if path != record_path(folder, record):
            raise ResultsError(
                f"{path} holds what belongs into {record_path(folder, record)}; delete it, or give it that name"
            )
    return in_order(records)


def in_order(records: Iterable[Record]) -> list[Record]:
    """The reference first, then by name, a twin behind its engine and a prediction behind both."""
    return sorted(
        records,
        key=lambda one: (one.bundle.name != one.reference, one.bundle.name, one.twin, one.predicted_for),
    )


def read_record(path: Path) -> Record:
    """One record; raises ResultsError where it is damaged or newer than this clipq."""
    raw = read_json(path, ResultsError, "it is damaged: delete it and run again", _MOST_BYTES)
    try:
        found = raw.get("schema_version")
        if isinstance(found, int) and found > SCHEMA_VERSION:
            raise ResultsError(
                f"{path} has schema version {found}, this clipq reads up to {SCHEMA_VERSION}; upgrade clip-quant"
            )
        if isinstance(found, int) and found < SCHEMA_VERSION:
            raw |= {"bundle": with_scheme(raw.get("bundle"), "recipe")}
        record = _renamed(Record.model_validate(raw))
        wrong = complaint(record)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        wrong = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (ValueError, AttributeError, TypeError) as error:
        wrong = str(error)
    if wrong:
        raise ResultsError(f"{path} is damaged ({wrong}); delete it and run again")
    return record


# Until schema 5 the name of the maximum calibration error meant another metric too, told apart by its unit.
RENAMED = {"mce": "mean_corruption_error", "relative_mce": "relative_mean_corruption_error"}


def _renamed(record: Record) -> Record:
    if record.schema_version >= 5:
        return record
    rows = (
        replace(row, metric=RENAMED.get(row.metric, row.metric)) if row.unit == "ratio" else row
        for row in record.measurements
    )
    return record.model_copy(update={"schema_version": SCHEMA_VERSION, "measurements": tuple(rows)})


def write_csv(folder: Path, records: Iterable[Record]) -> Path:
    """Write ``results.csv``, one row per measurement of every record."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for record in records:
        for measurement in record.measurements:
            writer.writerow(csv_cells(measurement))
    path = folder / "results.csv"
    write_atomic(path, stream.getvalue())
    return path


def csv_cells(measurement: Measurement) -> list[Any]:
    """A measurement as a row of ``results.csv``."""
    return [_cell(getattr(measurement, column)) for column in CSV_COLUMNS]


# What spreadsheets take for a formula, whatever stands in front that they leave out; in East Asian width too.
_FORMULA = re.compile(r"'*\s*[=+\-@＝＋－＠]|'*[\t\r\n]")


def csv_text(name: str) -> str:
    """A name as a cell of ``results.csv``: an apostrophe in front where a spreadsheet would run it as a formula.

    The names of records stay as they are; ``csv_name`` reads a cell back.

    >>> csv_text("=1+1"), csv_text("light=day"), csv_name(csv_text("=1+1"))
    ("'=1+1", 'light=day', '=1+1')
    """
    return f"'{name}" if _FORMULA.match(name) else name


def csv_name(cell: str) -> str:
    """The name that ``csv_text`` made a cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, str):
        return csv_text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else value
