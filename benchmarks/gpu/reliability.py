"""The demo checkpoint's answers on a runtime, against its own FP32 there and against the same file on the CPU.

In three steps, for TensorRT 8.6.0 wants a Python that has little else than itself: ``write_inputs`` (quantizes, draws
and tokenizes), ``embed`` (runs engines; needs the runtime alone), ``score`` (metrics with intervals). About the demo
and its drawn world; it says nothing about CLIP.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.models import CALIBRATION, DEMO, FAMILIES, command, family, quantize
from benchmarks.gpu.record import Record
from clipq.bundle import Bundle, open_bundle
from clipq.engines.base import Array, Engine
from clipq.engines.catalog import open_engine
from clipq.engines.tensorrt_library import PACKAGES

VIEW = "demo:test"
BATCH = 32
METRICS = ("acc1", "ece", "nll", "brier", "confidence_gap")
CALIBRATORS = ("entropy2", "minmax", "legacy")


def write_inputs(folder: Path, families: list[str]) -> None:
    """Images as the towers take them, token ids of every class's prompts, labels; and the bundles of the families."""
    from clipq.data.open import open_view
    from clipq.evaluate.suites.templates import choose_templates
    from clipq.preprocess import preprocess
    from clipq.tokenizer import TextTokenizer

    bundle = open_bundle(DEMO)
    view = open_view(VIEW)
    templates, tokenizer = choose_templates(view, bundle, None), TextTokenizer(bundle)
    assert view.classes is not None
    images = np.stack([preprocess(view.image(index), bundle.manifest.preprocess) for index in range(len(view.samples))])
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "inputs.npz", images=images, labels=[sample.label for sample in view.samples],
        prompts=np.stack([tokenizer(templates.prompts((name,))) for name in view.classes.names]),
    )  # fmt: skip
    for name in families:
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(DEMO, folder / name / "fp32")
        quantize(folder / name / "fp32", name, folder / name)


def embed(record: Record, folder: Path, runtime: str) -> None:
    """``folder/RUNTIME/LABEL.npz``: the embeddings of images and prompts by every recipe of a runtime."""
    inputs = np.load(folder / "inputs.npz")
    target = folder / "embedded" / runtime
    target.mkdir(parents=True, exist_ok=True)
    for label, bundle in _bundles(record, folder, runtime):
        what = f"reliability, {runtime}, {label}"
        found = record.attempt(what, lambda b=bundle: {
            "images": _run(b, "image", runtime, inputs["images"]), "prompts": _run_prompts(b, runtime, inputs["prompts"]),
        })  # fmt: skip
        if found is not None:
            np.savez(target / f"{label}.npz", **found)


def _bundles(record: Record, folder: Path, runtime: str) -> Iterator[tuple[str, Bundle]]:
    """Bundles by label, each built when it is its turn."""
    # The CPU runs every file: it is what the others are compared with.
    mine = FAMILIES if runtime == "ort-cpu" else (family(runtime),)
    found = {
        path.name: path
        for name in mine
        for path in sorted((folder / name).glob("*"))
        if (path / "clipq.json").is_file()
    }
    jobs: list[tuple[str, Path, tuple[object, ...]]] = [(path.name, path, ()) for path in found.values()]
    if runtime not in PACKAGES:
        yield from ((label, open_bundle(path)) for label, path, _ in jobs)
        return
    if runtime == "tensorrt":
        jobs += [
            (f"int8-{kind}", found["fp32"], ("--calibrator", kind, "--calibration-set", CALIBRATION))
            for kind in CALIBRATORS
        ]
    jobs.append(("tf32", found["fp32"], ("--tf32",)))
    for label, path, options in jobs:
        arguments = ("build", path, "--runtime", runtime, *options, "-o", folder / "built")
        output = record.attempt(f"build {label}", lambda a=arguments: command("clipq.exporters.cli", *a))
        if output is not None:
            yield label, open_bundle(Path(output.split()[-1]))


def _run(bundle: Bundle, tower: str, runtime: str, rows: Array) -> NDArray[np.float32]:
    entry = bundle.manifest.tower(tower)  # type: ignore[arg-type]
    with open_engine(bundle, tower, runtime) as engine:  # type: ignore[arg-type]
        return _embedded(engine, entry.input_name, rows)


def _run_prompts(bundle: Bundle, runtime: str, classes: Array) -> NDArray[np.float32]:
    """Class by class, as an evaluation does it."""
    with open_engine(bundle, "text", runtime) as engine:
        return np.stack([_embedded(engine, bundle.manifest.text.input_name, rows) for rows in classes])


def _embedded(engine: Engine, name: str, rows: Array) -> NDArray[np.float32]:
    feeds = [{name: rows[start : start + BATCH]} for start in range(0, len(rows), BATCH)]
    return np.concatenate([next(iter(result.values())) for result in engine.run_ahead(feeds)])


def score(record: Record, folder: Path) -> None:
    """A line per runtime, recipe and metric: its value, and its paired differences to two references."""
    answers = {
        (runtime.name, path.stem): _answers(path, folder / "inputs.npz")
        for runtime in sorted((folder / "embedded").iterdir())
        for path in sorted(runtime.glob("*.npz"))
    }
    for (runtime, label), mine in answers.items():
        references = {("ort-cpu", label), (runtime, "fp32")} & answers.keys() - {(runtime, label)}
        rows = _rows(mine, {" on ".join(reversed(key)): answers[key] for key in references})
        for row in rows:
            record.add("reliability", runtime=runtime, recipe=label, **row)


def _answers(path: Path, inputs: Path) -> Any:
    from clipq.evaluate.cells.cells import unit
    from clipq.evaluate.metrics.zeroshot import Answers, Classifier

    found, given = np.load(path), np.load(inputs)
    classes = np.stack([unit(unit(prompts).mean(0)) for prompts in found["prompts"]])
    manifest = open_bundle(DEMO).manifest
    classifier = Classifier(classes, np.arange(len(classes)), manifest.logit_scale, manifest.logit_bias)
    ids = tuple(str(index) for index in range(len(given["labels"])))
    return Answers(unit(found["images"]), classifier, given["labels"], ids)


def _seen(bounds: tuple[float, float], n: int) -> tuple[float, float]:
    """An interval, or what n samples without any change do not exclude."""
    from clipq.evaluate.verdicts.judgement import unseen

    return (-unseen(n), unseen(n)) if bounds == (0, 0) else bounds


def _rows(mine: Any, references: dict[str, Any]) -> list[dict[str, Any]]:
    from clipq.evaluate.axes.agreement import compared
    from clipq.evaluate.axes.classification import classification
    from clipq.evaluate.verdicts.judgement import unseen

    rows = []
    estimates = {one.metric: one for one in classification(mine, view=VIEW)}
    theirs = {name: {one.metric: one for one in classification(other, view=VIEW)} for name, other in references.items()}
    for metric in METRICS:
        own = estimates[metric].draws
        low, high = own.interval()
        differences = {}
        for name, other in theirs.items():
            difference = own - other[metric].draws
            differences[name] = [difference.value, *_seen(difference.interval(), own.n)]
        rows.append(
            {"metric": metric, "value": own.value, "low": low, "high": high, "n": own.n, "differences": differences}
        )
    for name, other in references.items():
        for one in compared(mine, other, view=VIEW):
            if one.metric in ("agreement", "cosine"):
                low, high = one.draws.interval()
                low = 1 - unseen(one.draws.n) if one.metric == "agreement" and low == high == 1 else low
                rows.append({"metric": one.metric, "value": one.draws.value, "low": low, "high": high, "n": one.draws.n, "with": name, "differences": {}})  # fmt: skip
    return rows


def families(runtimes: list[str]) -> list[str]:
    """The families that runtimes take, each once."""
    return list(dict.fromkeys(family(runtime) for runtime in runtimes))
