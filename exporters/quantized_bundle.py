"""FP32 bundle and recipe to quantized bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from clipq import __version__
from clipq.bundle import Bundle, Calibration, Recipe, Tower, TowerName, open_bundle, stored_tower, write_manifest
from clipq.engines.base import Array
from clipq.engines.catalog import DEFAULT_RUNTIME, open_engine
from clipq.engines.ort_rows import onnxruntime_version
from clipq.errors import ClipqError, EngineError, RecipeError
from clipq.exporters import recipes
from clipq.exporters.calibration_set import CalibrationSet
from clipq.exporters.hints import hints_of
from clipq.exporters.onnx_file import save, without_weights
from clipq.exporters.quantize import TowerSource, quantize_tower
from clipq.exporters.tower_check import check_tower
from clipq.hints import Hint
from clipq.making import directory_in_making
from clipq.progress import Progress
from clipq.tokenizer import TextTokenizer

WAYS_OUT = "make the bundle again, or leave this tower with --towers"


def quantize_bundle(
    source: Bundle,
    recipe: recipes.Recipe,
    target: Path,
    *,
    towers: tuple[TowerName, ...],
    calibration: CalibrationSet | None,
    progress: Progress,
) -> Bundle:
    """Write the bundle that the recipe makes of an FP32 bundle; the towers not named are copied.

    Raises RecipeError where the source is no FP32 bundle, data is missing, or the result does not run; then nothing
    is left at ``target``.
    """
    _check_source(source, recipe, calibration)
    measured = calibration if recipe.needs_calibration else None
    with directory_in_making(target) as making, source.unchanged():
        # It runs each new text tower, and is the same in both bundles.
        tokenizer = TextTokenizer(source)
        source.copy((source.manifest.tokenizer, source.manifest.prompts), making)
        entries: dict[TowerName, Tower] = {}
        hints: list[Hint] = []
        for name in ("image", "text"):
            entry = source.manifest.tower(name)
            if name in towers:
                entries[name], found = _quantized_tower(source, recipe, name, making, measured, progress)
                hints += found
            else:
                source.copy(entry.files(), making)
                entries[name] = entry
        manifest = source.manifest.model_copy(
            update={
                "recipe": Recipe(
                    name=recipe.name,
                    scheme=recipe.scheme,
                    options=recipe.options(),
                    towers=towers,
                    calibration=_describe(measured) if measured else None,
                    source_digest=source.digest,
                ),
                "image": entries["image"],
                "text": entries["text"],
                "hints": tuple(hints),
                # What was found is of the files that others made.
                "adopted": None,
                "environment": {"clipq": __version__, **_versions()},
            }
        )
        write_manifest(making, manifest)
        _check_runs(Bundle(making, manifest), recipe, tokenizer)
    return open_bundle(target)


def _check_source(source: Bundle, recipe: recipes.Recipe, calibration: CalibrationSet | None) -> None:
    """Raise RecipeError for a bundle that the recipe cannot be applied to, and where its data is missing."""
    if source.built_for is not None:
        raise RecipeError(f"{source.path} holds {source.holds}; quantize the fp32 bundle they came from")
    if not source.manifest.recipe.scheme.is_fp32:
        raise RecipeError(
            f"{source.path} was made by {source.manifest.recipe.name!r}; quantize the fp32 bundle instead"
        )
    if source.manifest.is_one_graph:
        raise RecipeError(
            f"{source.path} is one graph of both towers, and recipes are for one each; adopt the towers as two files"
        )
    if recipe.needs_calibration and calibration is None:
        raise RecipeError(f"recipe {recipe.name} measures activation ranges: give --calibration-set DIR")


def _quantized_tower(
    source: Bundle,
    recipe: recipes.Recipe,
    name: TowerName,
    making: Path,
    calibration: CalibrationSet | None,
    progress: Progress,
) -> tuple[Tower, list[Hint]]:
    entry = source.manifest.tower(name)
    feeds: Callable[[], Iterator[dict[str, Array]]] | None = None
    if calibration is not None:
        progress.start(f"ranges of the {name} tower", calibration.count(name))

        def feeds() -> Iterator[dict[str, Array]]:
            return calibration.feeds(source, name, progress.advance)

    else:
        progress.start(f"{recipe.name}, {name} tower", 0)
    import_module(f"clipq.exporters.{recipe.quantizer}")
    path = source.tower_path(name)
    with TemporaryDirectory(prefix="clipq-") as scratch, _refused(recipe, path):
        check_tower(source, name)
        tower_source = TowerSource(path, Path(scratch), feeds)
        model = quantize_tower(recipe, tower_source)
        # A name that a recipe makes may be there already.
        onnx.checker.check_model(without_weights(model))
        hints = [Hint(code=code, tower=name, numbers=numbers) for code, numbers in tower_source.idle.items()]
        hints += hints_of(model, recipe, name)
        model.producer_name, model.producer_version = "clipq", __version__
        save(model, making / entry.file)
    made = entry.model_copy(update={**stored_tower(making, entry.file), "recipe": recipe.name, "parity": ()})
    return made, hints


@contextmanager
def _refused(recipe: recipes.Recipe, path: Path) -> Iterator[None]:
    """Say of what libraries raise which recipe and tower it was: they take other graphs than ONNX Runtime loads."""
    try:
        # What would be warned of, and rounded to a level all the same.
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            yield
    except EngineError as error:
        raise RecipeError(f"{path}: does not run: {error}; {WAYS_OUT}") from error
    except (ClipqError, OSError, MemoryError):
        raise
    except Exception as error:  # they share no base
        said = str(error) or type(error).__name__
        raise RecipeError(f"recipe {recipe.name} cannot be applied to {path}: {said[:400]}; {WAYS_OUT}") from error


def _check_runs(bundle: Bundle, recipe: recipes.Recipe, tokenizer: TextTokenizer) -> None:
    """Load each new tower and run one sample: a bundle that cannot run, or gives NaN, is never written."""
    height, width = bundle.manifest.preprocess.image_size
    feeds: dict[TowerName, Array] = {
        "image": np.zeros((1, 3, height, width), np.float32),
        "text": tokenizer(["a photo of a thing"]),
    }
    for name in bundle.manifest.recipe.towers:
        tower = bundle.manifest.tower(name)
        try:
            with open_engine(bundle, name, DEFAULT_RUNTIME) as engine:
                output = engine.run({tower.input_name: feeds[name]})[tower.output_name]
        except EngineError as error:
            raise RecipeError(f"recipe {recipe.name}: the {name} tower does not run: {error}; {WAYS_OUT}") from error
        if not np.isfinite(output).all():
            raise RecipeError(f"recipe {recipe.name}: the {name} tower gives values that are not finite; {WAYS_OUT}")


def _describe(calibration: CalibrationSet) -> Calibration:
    return Calibration(
        digest=calibration.digest(),
        images=len(calibration.images),
        texts=len(calibration.texts),
        texts_from=calibration.texts_from,
    )


def _versions() -> dict[str, str]:
    found = {"onnxruntime": onnxruntime_version() or "none"}
    for package in ("onnx", "numpy", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # pragma: no cover
            continue
    return found
