"""What is evaluated: bundles in a runtime, deployed or simulated, one of them the reference."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from clipq.bundle import TOWERS, Bundle, TowerName, open_bundle
from clipq.cpu import Precision, arithmetic, cpu_level, is_kept_exact, predicted
from clipq.engines.base import Engine
from clipq.engines.catalog import (
    check_fits,
    known_runtime,
    open_load,
    require_runtime,
    runtime_identity,
    simulator,
)
from clipq.engines.ort import has_integer_products, has_quantize_dequantize
from clipq.engines.runtime import Device, Load
from clipq.errors import BundleError, ClipqError, ResultsError, raise_together
from clipq.evaluate.results.estimates import Engine as EngineColumns
from clipq.evaluate.settings import Settings
from clipq.given import hint, is_nameable
from clipq.made_by import makers
from clipq.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Subject:
    """One bundle in one runtime; ``simulated`` runs its Q/DQ nodes around floating-point kernels.

    ``graphs`` launches plans as CUDA graphs, which changes times and no numbers. ``precision`` is what is asked of
    8-bit products on a CPU whose own would saturate. ``as_cpu`` names a level of such CPUs: what the engine would
    answer there is predicted on this one.
    """

    bundle: Bundle
    runtime: str
    threads: int
    simulated: bool = False
    graphs: bool = False
    precision: Precision = "as-is"
    as_cpu: str = ""

    @property
    def is_side(self) -> bool:
        """Whether it stands beside its bundle's engine to tell something of it: a simulated twin, or a prediction."""
        return self.simulated or bool(self.as_cpu)

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.columns.label

    @property
    def columns(self) -> EngineColumns:
        """The first columns of its measurements."""
        recipe = self.bundle.manifest.recipe
        simulated = self.is_side or recipe.scheme.arithmetic == "simulated"
        return EngineColumns(self.bundle.name, recipe.name, self.runtime, simulated, self.simulated, self.cpu)

    @property
    def device(self) -> Device:
        """Where its runtime runs."""
        return known_runtime(self.runtime).device

    @property
    def runs_here(self) -> bool:
        """Whether it can be run, timed and asked again; answers of an engine that ran elsewhere can only be read."""
        return self.device != "elsewhere"

    @property
    def has_embeddings(self) -> bool:
        """Whether it has embeddings: of an engine that ran elsewhere predictions alone may have come back."""
        answers = self.bundle.manifest.image.answers
        return answers is None or answers.kind == "embeddings"

    @property
    def is_timed(self) -> bool:
        """Whether its speed, memory and kernels can be measured: nothing of a prediction is."""
        return self.runs_here and not self.as_cpu

    @property
    def cpu(self) -> str:
        """The arithmetic of the CPU that it runs on, or is predicted for; empty on a GPU."""
        if self.as_cpu:
            return predicted(self.as_cpu)
        return arithmetic(self.precision) if self.device == "cpu" else ""

    def load(self, tower: TowerName) -> Load:
        """One tower, as this subject's runtime loads it."""
        exact = self.device == "cpu" and is_kept_exact(self.precision)
        return Load(self.bundle, tower, self.threads, self.simulated, self.graphs, exact, bool(self.as_cpu))

    def open(self, tower: TowerName) -> Engine:
        """Load one tower."""
        return open_load(self.load(tower), self.runtime)

    def identity(self, tower: TowerName) -> dict[str, Any]:
        """What determines this tower's numbers: files, runtime and its version, arithmetic and threads of a CPU.

        ONNX Runtime ends in other last digits where it has more threads than there are rows in a batch.
        """
        on_cpu = {"threads": self.threads or os.cpu_count(), "cpu": self.cpu} if self.device == "cpu" else {}
        # Floating point between predicted products is this CPU's.
        on_cpu |= {"predicted_on": cpu_level().name} if self.as_cpu else {}
        entry = self.bundle.manifest.tower(tower)
        # One file can give several embeddings, and be fed in several ways.
        told = {"input_name", "layout", "further_inputs", "output_name"}
        interface = {} if entry.is_plain else {"interface": entry.model_dump(mode="json", include=told)}
        return {
            "tower": entry.digest,
            **interface,
            **runtime_identity(self.runtime),
            **on_cpu,
            "simulated": self.simulated,
        }


def numbers_of(subject: Subject, tower: TowerName) -> dict[str, Any]:
    """What determines a tower's numbers on this machine, whatever it is run on: the engine, and what feeds it."""
    return {**subject.identity(tower), **makers(tower)}


@dataclass(frozen=True)
class Cohort:
    """Subjects that are evaluated together, and the one among them that the others are compared with.

    ``failed`` says why an engine was given up, by its label: it is tried no more, and nothing is measured of it.
    """

    subjects: tuple[Subject, ...]
    reference: Subject | None = None
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def working(self) -> tuple[Subject, ...]:
        """The subjects that were not given up."""
        return tuple(subject for subject in self.subjects if subject.label not in self.failed)

    def without(self, failed: Mapping[str, str]) -> Cohort:
        """This cohort where more engines are given up."""
        return replace(self, failed={**self.failed, **failed})

    def twin(self, subject: Subject) -> Subject | None:
        """The same bundle with integer kernels off, if that is evaluated too."""
        twins = (other for other in self.working if other.simulated and other.bundle == subject.bundle)
        return None if subject.is_side else next(twins, None)


def gather_cohort(
    paths: Sequence[Path],
    settings: Settings,
    *,
    simulated: bool = False,
    reference: str | None = None,
    also: Sequence[ClipqError] = (),
) -> Cohort:
    """Open bundles and find the reference among them: the only FP32 bundle, plans built of it apart, or the one named.

    ONNX bundles run in the settings' runtime, built ones in the runtime they were built for. With ``simulated``, every
    Q/DQ bundle comes twice; so does every bundle with integer products where the settings say ``as_cpu``. What is wrong
    with each bundle is raised together, and what ``also`` is wrong. Raises RuntimeUnavailable for a runtime that does
    not work here.
    """
    bundles = _open_bundles(paths, also)
    names = [bundle.name for bundle in bundles]
    for name in names:
        if names.count(name) > 1:
            raise BundleError(f"two bundles are called {name!r}; rename one of the folders")
    chosen = _reference(bundles, reference)
    # Before hours of images: a tokenizer is needed for the class prompts, after them.
    for bundle in {one.manifest.tokenizer.sha256: one for one in bundles}.values():
        TextTokenizer(bundle)
    graphs = settings.graphs
    made = partial(Subject, threads=settings.threads, precision=settings.cpu_precision)
    subjects = [
        made(bundle, runtime, graphs=graphs and known_runtime(runtime).takes == "plan")
        for bundle in bundles
        for runtime in (runtime_of(bundle, settings.runtime),)
    ]
    if graphs and not any(subject.graphs for subject in subjects):
        raise BundleError("--cuda-graphs: none of the bundles holds plans (clipq-export build makes them)")
    check_precision(subjects, settings.cpu_precision)
    for subject in subjects:
        check_fits(subject.bundle, subject.runtime)
        require_runtime(subject.runtime)
    if simulated:
        twins = [made(bundle, simulator().name, simulated=True) for bundle in bundles if has_twin(bundle)]
        if not twins:
            raise BundleError("--simulated: none of the bundles has Q/DQ nodes (int8-static has); nothing to simulate")
        subjects += twins
    subjects += predictions(subjects, settings)
    _check_told_apart(subjects)
    first = next((subject for subject in subjects if chosen is not None and subject.bundle.name == chosen.name), None)
    return Cohort(tuple(subjects), first)


def predictions(subjects: Sequence[Subject], settings: Settings) -> list[Subject]:
    """What ``as_cpu`` adds to subjects: the engines with integer products again, as they would be on another CPU.

    Raises BundleError where that cannot be told.
    """
    level = settings.as_cpu
    if not level:
        return []
    asked = f"--as-cpu {level}"
    if cpu_level().machine != "x86_64":
        raise BundleError(f"{asked}: what ONNX Runtime runs on x86 can be told on x86 alone, and this CPU is another")
    if settings.cpu_precision == "exact":
        raise BundleError(f"{asked}: --cpu-precision exact keeps products exact on every CPU; leave one out")
    able = [one for one in subjects if not one.is_side and known_runtime(one.runtime).saturation is not None]
    if not able:
        raise BundleError(f"{asked}: none of the engines runs on the CPU, where alone products saturate; leave it out")
    found = [one for one in able if any(has_integer_products(one.bundle.tower_path(tower)) for tower in TOWERS)]
    if not found:
        raise BundleError(
            f"{asked}: none of the bundles multiplies integers (int8-static and int8-dynamic do); leave it out"
        )
    return [replace(one, as_cpu=level) for one in found]


def check_precision(subjects: Sequence[Subject], precision: Precision) -> None:
    """Raise BundleError where products of a CPU are to be exact and no engine runs on one."""
    if precision == "exact" and not any(subject.cpu for subject in subjects):
        raise BundleError("--cpu-precision exact: none of the engines runs on the CPU; leave it out")


def check_runs_here(subjects: Sequence[Subject], what: str) -> None:
    """Raise BundleError for an engine that ran elsewhere, of which ``what`` cannot be measured here."""
    for subject in subjects:
        if not subject.runs_here:
            raise BundleError(
                f"{subject.bundle.path}: this engine ran elsewhere ({subject.bundle.ran_on}), so its {what} cannot be "
                "measured here; leave it out"
            )


def _open_bundles(paths: Sequence[Path], also: Sequence[ClipqError]) -> list[Bundle]:
    opened: list[Bundle] = []
    wrong: list[ClipqError] = []
    for path in paths:
        try:
            opened.append(open_bundle(path))
            if not is_nameable(name := opened[-1].name):
                wrong.append(BundleError(f"bundle {name!r}: its name breaks the line or is not UTF-8; rename it"))
        except ClipqError as error:
            wrong.append(error)
    raise_together([*wrong, *also])
    return opened


def _check_told_apart(subjects: Sequence[Subject]) -> None:
    """Raise BundleError where a bundle has the name of another one's twin or prediction: findings are kept by name."""
    called = [subject.label for subject in subjects]
    for subject in subjects:
        if called.count(subject.label) > 1 and subject.label == subject.bundle.name:
            raise BundleError(f"{subject.label!r} is what another bundle's engine is called here; rename the folder")


def has_twin(bundle: Bundle) -> bool:
    """Whether a bundle can be run with its integer kernels off: an ONNX one with Q/DQ nodes."""
    return bundle.built_for is None and any(has_quantize_dequantize(bundle.tower_path(tower)) for tower in TOWERS)


def runtime_of(bundle: Bundle, asked: str) -> str:
    """Plans and answers go with the runtime they are of, ONNX files with the one asked for."""
    return bundle.built_for or asked


def _reference(bundles: Sequence[Bundle], asked: str | None) -> Bundle | None:
    if asked is not None:
        for bundle in bundles:
            if bundle.name == asked:
                return bundle
        names = [bundle.name for bundle in bundles]
        raise ResultsError(f"--reference {asked!r} is not among the bundles: {', '.join(names)}{hint(asked, names)}")
    fp32 = [bundle for bundle in bundles if bundle.manifest.recipe.scheme.is_fp32]
    # A plan built of an FP32 bundle that is here too is compared with it, as every other engine.
    digests = {bundle.digest for bundle in fp32}
    fp32 = [bundle for bundle in fp32 if bundle.manifest.recipe.source_digest not in digests]
    # One that clipq exported was compared with its checkpoint; one that was adopted may be what is to be judged.
    own = [bundle for bundle in fp32 if bundle.manifest.adopted is None]
    fp32 = own if len(own) == 1 else fp32
    if len(fp32) > 1:
        raise ResultsError(
            f"several FP32 bundles ({', '.join(b.name for b in fp32)}): choose one with --reference NAME "
            "(in a suite: reference)"
        )
    return fp32[0] if fp32 else None


def unlike(bundle: Bundle, reference: Bundle) -> tuple[str, ...]:
    """In what an engine differs from its reference beside its arithmetic, in words: what it is made of, and is fed."""
    ours, theirs = bundle.manifest, reference.manifest
    found: dict[str, tuple[str | int, str | int]] = {
        "checkpoint": (ours.checkpoint.name, theirs.checkpoint.name),
        "width of embeddings": (ours.embed_dim, theirs.embed_dim),
        # As fitted to a graph's own logits they end in other digits.
        "logit scale": (f"{ours.logit_scale:.4g}", f"{theirs.logit_scale:.4g}"),
    }
    said = [f"{what} ({mine} and {other})" for what, (mine, other) in found.items() if mine != other]
    weights = {one.checkpoint.weights_sha256 for one in (ours, theirs)} - {None}
    if ours.checkpoint.name == theirs.checkpoint.name and len(weights) > 1:
        said.append("the checkpoint's weights")
    if differing := ours.preprocess.difference(theirs.preprocess):
        said.append(f"preprocessing: {differing}")
    if ours.tokenizer != theirs.tokenizer and (differing := _other_ids(bundle, reference)):
        said.append(f"tokenizer: {differing}")
    return tuple(said)


def _other_ids(bundle: Bundle, reference: Bundle) -> str:
    """In what the ids of texts differ; empty where two tokenizers give the same."""
    lengths = [one.manifest.tokenizer.context_length for one in (bundle, reference)]
    if lengths[0] != lengths[1]:
        return f"{lengths[0]} and {lengths[1]} tokens"
    names = cycle(next(iter(reference.prompts.class_names.values())))
    templates = reference.prompts.templates["imagenet-80"]
    texts = [template.replace("{}", name) for template, name in zip(templates, names, strict=False)]
    tokenizers = [TextTokenizer(one) for one in (bundle, reference)]
    rows = [tokenizer(texts) for tokenizer in tokenizers]
    if (rows[0] == rows[1]).all():
        return ""
    mine, theirs = (ids * tokenizer.mask(ids) for tokenizer, ids in zip(tokenizers, rows, strict=True))
    others = int((mine != theirs).any(1).sum())
    return f"other ids of {others} of {len(texts)} texts" if others else "it pads with another id"
