"""From Python: what ``clipq-eval`` does; ``clipq`` hands it on, and the commands use it too."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipq.bundle import MANIFEST
from clipq.errors import DataError, ResultsError
from clipq.evaluate.report import FORMATS
from clipq.evaluate.report.comparison import as_markdown
from clipq.evaluate.report.formats import write
from clipq.evaluate.report.notebook import data_frame, html_table
from clipq.evaluate.results.folders import Results, gather
from clipq.evaluate.results.folders import read_results as read_folders
from clipq.evaluate.settings import Settings
from clipq.evaluate.suites.schema import LatencyEntry, Suite, ViewEntry
from clipq.evaluate.suites.suite import check_suite, read_suite, written_down
from clipq.evaluate.verdicts import compare as comparing
from clipq.evaluate.verdicts import gate as gating
from clipq.evaluate.verdicts.by_axis import MARKS, AxisVerdict, axis_verdicts, findings
from clipq.evaluate.verdicts.headline import AXES
from clipq.evaluate.verdicts.judgement import MARGIN
from clipq.evaluate.verdicts.policy import Policy, read_policy
from clipq.evaluate.verdicts.reference import ReferenceVerdict, reference_verdicts
from clipq.given import PathLike, as_folder, as_list, as_path, as_share, as_text, shown
from clipq.progress import Progress, progress_bars

if TYPE_CHECKING:
    import pandas as pd

    from clipq.evaluate.cells.imported import Imported
    from clipq.evaluate.cells.work import Work


@dataclass(frozen=True)
class Evaluation(Results):
    """Engines that were evaluated or read together.

    ``results["int8-static-minmax"]["test", "acc1"]`` is a row of ``results.csv``: ``value``, ``low``, ``high``, ``n``
    and, against the reference, ``delta``, ``delta_low``, ``delta_high``, ``p_value``. A part of a view stands between
    the two: ``["test", "race=Black", "acc1"]``. A notebook shows the verdicts.
    """

    def verdicts(self) -> dict[str, dict[str, AxisVerdict]]:
        """By engine and axis: ``verdict`` (better, same, worse, unknown), ``text``, and the rows behind it.

        Engines are those compared with a reference; axes that nobody measured are left out.
        """
        found = {entry.name: axis_verdicts(entry) for entry in self.candidates}
        measured = [axis for axis in AXES if any(axes[axis].rows for axes in found.values())]
        return {name: {axis: axes[axis] for axis in measured} for name, axes in found.items()}

    def references(self) -> dict[str, ReferenceVerdict]:
        """By reference, whether it is right: ``state``, ``reason``, and a check for each view (docs/reference.md)."""
        return {one.engine: one for one in reference_verdicts(self.entries)}

    def sentences(self) -> dict[str, str]:
        """By engine: what changed and what did not, in a sentence."""
        return {entry.name: findings(entry) for entry in self.candidates}

    def rows(self) -> list[dict[str, Any]]:
        """Every measurement, by the columns of ``results.csv``; ``engine`` in front is its name here."""
        return [{"engine": entry.name, **asdict(row)} for entry in self.entries for row in entry.rows.values()]

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a data frame; raises ClipqError where pandas is not installed."""
        return data_frame(self.rows())

    def report(self, target: PathLike, *, images: bool = True) -> Path:
        """Write the report; the file's ending says as what: .html, .md, .json, .csv or .pdf. Returns its path."""
        path = as_path(target, "report")
        as_folder(path.absolute().parent, "report in")
        form = path.suffix.removeprefix(".")
        if form not in FORMATS or path.is_dir():
            raise ResultsError(f"report {path}: give a file that ends in {', '.join('.' + one for one in FORMATS)}")
        return write(self, form, path, images=images)

    def _repr_html_(self) -> str:
        """The verdict table, for notebooks."""
        found = self.verdicts()
        if not found:
            return f"<p>{len(self)} engines, none compared with a reference</p>"
        head = ["", *(AXES[axis].title for axis in next(iter(found.values())))]
        rows = [
            (name, *(f"{MARKS[one.verdict]} {one.text}" for one in verdicts.values()))
            for name, verdicts in found.items()
        ]
        legend = "▲ better, ▼ worse, = same within ± 1 point, ? unknown; differences to the reference, 95 % intervals"
        failed = "".join(f"<p>{escape(entry.name)} failed: {escape(entry.record.failed)}</p>" for entry in self.failed)
        return html_table(head, rows, caption=legend) + failed


@dataclass(frozen=True)
class Judgement:
    """What a policy says of results: ``state`` (pass, fail, investigate) and a finding per rule, engine and number."""

    state: gating.State
    findings: tuple[gating.Finding, ...]

    def _repr_html_(self) -> str:
        """The findings, for notebooks."""
        rows = [
            (one.engine, one.state, one.rule, " ".join(filter(None, (one.view, one.group))), one.reason)
            for one in self.findings
        ]
        return html_table(("engine", "state", "rule", "where", "reason"), rows, caption=self.state)


@dataclass(frozen=True)
class Comparison(comparing.Comparison):
    """Two evaluations against each other, B − A; a notebook shows the table of a pull request."""

    def _repr_markdown_(self) -> str:
        return as_markdown(self)


def evaluate(
    bundles: Sequence[PathLike] | PathLike,
    *,
    data: Sequence[PathLike] | PathLike | None = None,
    suite: Suite | PathLike | None = None,
    settings: Settings | None = None,
    output: PathLike = "clipq-results",
) -> Evaluation:
    """Evaluate bundles and compare them with the FP32 one among them; the same as ``clipq-eval run``.

    On what is either ``data``, labelled images as on the command line (``"photos/test"``, ``"NAME=SOURCE"``, several),
    or ``suite``: a file, a built-in name, or a ``clipq.Suite``. ``output`` is the results folder: what is in it already
    is not embedded or timed again. Terminals and notebooks show how far it is, unless ``CLIPQ_PROGRESS`` is 0. Raises
    ClipqError for what does not fit, EngineError where the reference fails; an engine that fails is among ``failed``.
    """
    asked = _suite(data, suite)
    paths = [as_path(one, "bundle") for one in as_list(bundles, "bundles")]
    if settings is not None and not isinstance(settings, Settings):
        raise DataError(f"settings {shown(settings)}: give clipq.Settings(...)")
    given = {
        "command": "clipq.evaluate", "bundles": [str(path) for path in paths],
        "data": None if data is None else [as_text(one, "data") for one in as_list(data, "data")],
        "suite": as_text(suite, "suite") if isinstance(suite, str | os.PathLike) else None,
    }  # fmt: skip
    with progress_bars() as progress:
        return run_suite(paths, asked, as_path(output, "output"), settings or Settings(), given, progress)


def _suite(data: Sequence[PathLike] | PathLike | None, suite: Suite | PathLike | None) -> Suite:
    """The suite that is asked for; raises DataError where it is none, or where there is data beside it."""
    if (data is None) == (suite is None):
        raise DataError("give data=SOURCE (or a list of them), or suite=FILE, NAME or a Suite")
    if data is not None:
        return suite_of([as_text(one, "data") for one in as_list(data, "data")])
    if isinstance(suite, Suite):
        return check_suite(suite)
    if isinstance(suite, str | os.PathLike):
        return read_suite(as_text(suite, "suite"))
    raise DataError(f"suite {shown(suite)}: give a file, a name or a clipq.Suite(...)")


def export_cells(
    bundle: PathLike,
    output: PathLike,
    *,
    data: Sequence[PathLike] | PathLike | None = None,
    suite: Suite | PathLike | None = None,
    settings: Settings | None = None,
    png: bool = False,
) -> Path:
    """Write what a suite asks of an engine that runs where clipq cannot; the same as ``clipq-eval cells export``.

    ``bundle``, mostly the FP32 one, says how images and texts become inputs. Returns the work folder. Raises ClipqError
    for what does not fit.
    """
    asked, folder = _suite(data, suite), as_path(output, "output")
    with progress_bars() as progress:
        export_suite(as_path(bundle, "bundle"), asked, folder, settings or Settings(), png=png, progress=progress)
    return folder


def export_suite(
    bundle: Path, suite: Suite, output: Path, settings: Settings, *, png: bool, progress: Progress
) -> Work:
    """``export_cells`` of a suite that is read already: what was written."""
    from clipq.bundle import open_bundle
    from clipq.evaluate.cells.export import Order, export_work
    from clipq.evaluate.suites.plan import open_plan

    as_folder(output, "-o")
    if (output / MANIFEST).is_file():
        raise DataError(f"-o {output} is a bundle; give another folder for the cells")
    opened = open_bundle(bundle)
    progress.start("opening and checking the data", 0)
    plan = open_plan(suite, settings.fetch)
    return export_work(Order(opened, plan, written_down(suite), png), settings, output, progress)


def import_cells(
    work: PathLike,
    output: PathLike,
    *,
    ran_on: str,
    embeddings: tuple[PathLike, PathLike] | None = None,
    predictions: Mapping[str, PathLike] | None = None,
    scheme: str = "",
) -> Path:
    """Make a bundle of what an engine answered elsewhere; the same as ``clipq-eval cells import``.

    What came back are ``embeddings`` (the files of images' and of texts'), or ``predictions``, a file by a view's name.
    ``ran_on`` says where the engine ran, ``scheme`` its bits (``"W8A8-integer"``). Returns the bundle's folder. Raises
    ClipqError for what cannot be the answers.
    """
    towers = None if embeddings is None else (as_path(embeddings[0], "images"), as_path(embeddings[1], "texts"))
    views = {name: as_path(file, "predictions") for name, file in (predictions or {}).items()}
    brought = BroughtBack(as_text(ran_on, "ran_on"), towers, views, scheme)
    return import_answers(as_path(work, "work"), as_path(output, "output"), brought).bundle.path


@dataclass(frozen=True)
class BroughtBack:
    """What came back from where an engine ran: embeddings of images and texts, or predictions by view; its scheme."""

    ran_on: str
    embeddings: tuple[Path, Path] | None = None
    predictions: Mapping[str, Path] = field(default_factory=dict)
    scheme: str = ""


def import_answers(work: Path, output: Path, brought: BroughtBack) -> Imported:
    """``import_cells`` of paths: the bundle, and what is to be known of the answers."""
    from clipq.evaluate.cells.imported import import_embeddings, import_predictions

    as_folder(output, "-o")
    if (brought.embeddings is None) == (not brought.predictions):
        raise DataError("give the embeddings of images and of texts, or predictions by view")
    if brought.embeddings is None:
        return import_predictions(work, brought.predictions, output, ran_on=brought.ran_on, scheme=brought.scheme)
    images, texts = brought.embeddings
    return import_embeddings(work, images, texts, output, ran_on=brought.ran_on, scheme=brought.scheme)


def run_suite(
    bundles: Sequence[Path],
    suite: Suite,
    output: Path,
    settings: Settings,
    given: Mapping[str, Any],
    progress: Progress,
) -> Evaluation:
    """Evaluate bundles by a suite into a results folder; ``given`` is recorded as what was asked for."""
    # Here alone: reading results needs no engine and none of what engines need.
    from clipq.evaluate.run import evaluate as run

    as_folder(output, "-o")
    if (output / MANIFEST).is_file():
        raise DataError(f"-o {output} is a bundle; give another folder for the results")
    records = run(bundles, suite, output, settings, given=dict(given), progress=progress)
    return Evaluation(gather([(output, records)]).engines)


def suite_of(sources: Sequence[str]) -> Suite:
    """The suite that ``--data`` stands for: labelled views, and latency."""
    return Suite(view=tuple(ViewEntry(source=source) for source in sources), latency=LatencyEntry())


def read_results(*paths: PathLike) -> Evaluation:
    """The engines of results folders, or of one record file; of several folders they are called ``FOLDER/NAME``.

    Raises ResultsError where a folder holds no records or one is damaged.
    """
    return Evaluation(read_folders([as_path(path, "results") for path in as_list(paths, "results")]).engines)


def compare(a: Results | PathLike, b: Results | PathLike, *, margin: float = MARGIN) -> Comparison:
    """Compare B with A: results, folders of them, or single record files. ``outcome`` says it in a word.

    ``margin``: engines are the same where the whole interval of their difference lies within ± this.
    """
    share = as_share(margin, "margin")
    return Comparison(**vars(comparing.compare(_results(a), _results(b), margin=share)))


def gate(results: Results | PathLike, policy: Policy | PathLike) -> Judgement:
    """Judge results by a policy: a TOML file, or ``strict``, ``mlperf-99``, ``mlperf-99.9``, ``demo``."""
    rules = policy if isinstance(policy, Policy) else read_policy(as_text(policy, "policy"))
    found = tuple(gating.judge_policy(_results(results), rules))
    return Judgement(gating.outcome(found), found)


def _results(given: Results | PathLike) -> Results:
    return given if isinstance(given, Results) else read_results(given)
