"""From Python: what ``clipq-export onnx`` and ``quantize`` do; ``clipq`` hands it on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import clipq.demo
from clipq.bundle import Bundle, TowerName, open_bundle
from clipq.engines.catalog import DEFAULT_RUNTIME, known_runtime
from clipq.errors import BundleError, CheckpointError, RecipeError
from clipq.exporters.adopt.foreign import ForeignEngine
from clipq.exporters.calibration_set import DEMO_SET, CalibrationSet, open_calibration_set
from clipq.exporters.quantized_bundle import quantize_bundle
from clipq.exporters.recipes import Recipe, parse_recipe
from clipq.given import PathLike, as_folder, as_list, as_path, as_text, shown
from clipq.making import check_target, directory_in_making
from clipq.progress import Progress, progress_bars

# The built-in checkpoint and bundle, whatever folders there are: a folder of that name is "./demo".
DEMO = "demo"


def export(checkpoint: str, output: PathLike, *, pretrained: str | None = None, opset: Literal[17, 21] = 21) -> Path:
    """Export a checkpoint of open_clip or transformers to an FP32 bundle at ``output``, compared with torch.

    ``checkpoint`` is MODEL/TAG (``ViT-B-32/laion2b_s34b_b79k``), MODEL with ``pretrained``, ``hf-hub:ORG/REPO``,
    ``transformers:ORG/REPO``, ``local-dir:PATH`` or ``demo``. Returns the bundle's folder. Raises CheckpointError where
    the checkpoint or torch is missing, ParityError where a tower does not match the checkpoint.
    """
    named, target = as_text(checkpoint, "checkpoint"), as_folder(output, "output")
    if opset not in (17, 21):
        raise CheckpointError(f"opset {opset!r}: give 21, or 17 for TensorRT 8.6")
    require_torch()
    from clipq.exporters.onnx_bundle import export_bundle

    return export_bundle(named, pretrained, target, opset=opset, progress=lambda line: None).path


def adopt(engine: ForeignEngine, output: PathLike, *, against: PathLike | None = None) -> Path:
    """Make a bundle at ``output`` of an engine that others made, whose files stay as they are; returns its folder.

    What the files do not say is read from those beside them, or said by ``engine``. ``against`` is a bundle, or a
    checkpoint as ``export`` takes it, of an engine that is right: ``open_bundle(...).manifest.adopted.compared`` says
    whether they agree, or which mistake explains that they do not. Raises BundleError for what is no engine, and for
    what nobody says; EngineError where ONNX Runtime refuses a tower.
    """
    if not isinstance(engine, ForeignEngine):
        raise BundleError(f"engine {shown(engine)}: give clipq.ForeignEngine(FOLDER) or (image=FILE, text=FILE)")
    return adopt_engine(engine, as_folder(output, "output"), against, lambda line: None).path


def adopt_engine(
    engine: ForeignEngine, target: Path, against: PathLike | None, progress: Callable[[str], None]
) -> Bundle:
    """What ``adopt`` does, told of by ``progress``; a checkpoint to compare with is exported for the time being."""
    from clipq.exporters.adopt.adopt import adopt as make

    check_target(target)
    if against is None:
        return make(engine, target)
    if against == DEMO:
        return make(engine, target, open_bundle(Path(clipq.demo.__file__).parent / "bundle"), progress)
    if as_path(against, "against").exists():
        return make(engine, target, open_bundle(against), progress)
    require_torch()
    from clipq.exporters.onnx_bundle import export_bundle

    with TemporaryDirectory(prefix="clipq-") as folder:
        exported = export_bundle(str(against), None, Path(folder) / "reference", opset=21, progress=progress)
        return make(engine, target, exported, progress)


def quantize(
    bundle: PathLike,
    recipes: Sequence[str],
    *,
    calibration: PathLike | None = None,
    towers: str = "both",
    runtime: str = DEFAULT_RUNTIME,
    output: PathLike | None = None,
) -> list[Path]:
    """Quantize an FP32 bundle: one new bundle per recipe, in ``output`` (default: the FP32 bundle's parent folder).

    ``recipes`` are written as on the command line: ``int4-weight-only:algorithm=hqq``. ``calibration`` is a folder of
    images with ``captions.csv`` or in class folders. ``towers`` is "both", "image" or "text"; ``runtime`` is what
    options not given are fitted to. ``"demo"`` is the built-in bundle, put into ``output/fp32`` (a folder of that name
    is ``"./demo"``). Returns the folders, the FP32 bundle first, as ``clipq.evaluate`` takes them. Raises RecipeError
    for a recipe that is unknown or cannot be applied, DataError for a calibration set that cannot be used; a bundle is
    whole or not there.
    """
    if isinstance(recipes, str):
        raise RecipeError(f"recipes {recipes!r}: give a list of recipes")
    towers_of(towers)
    texts = [as_text(recipe, "recipe") for recipe in as_list(recipes, "recipes")]
    chosen = parse_recipes(texts, known_runtime(runtime).name, towers)
    folder = None if calibration is None else as_path(calibration, "calibration")
    source, parent = as_path(bundle, "bundle"), None if output is None else as_folder(output, "output")
    folder = check_calibration_set(folder, chosen, built_in=bundle == DEMO)
    check_targets(chosen, towers, parent or source.parent, source)
    if bundle == DEMO:
        source = demo_bundle(parent)
    opened = open_bundle(source)
    measured = None if folder is None else open_calibration_set(folder, opened)
    with progress_bars() as progress:
        made = [quantized(opened, recipe, measured, towers, parent or source.parent, progress) for recipe in chosen]
    return [source, *(one.path for one in made)]


def quantized(
    source: Bundle, recipe: Recipe, calibration: CalibrationSet | None, towers: str, parent: Path, progress: Progress
) -> Bundle:
    """The bundle that a recipe makes of an FP32 one, in ``parent`` under the recipe's name."""
    target = parent / bundle_name(recipe, towers)
    chosen = towers_of(towers)
    return quantize_bundle(source, recipe, target, towers=chosen, calibration=calibration, progress=progress)


def towers_of(towers: str) -> tuple[TowerName, ...]:
    """The towers meant by ``both``, ``image`` or ``text``."""
    meant: dict[str, tuple[TowerName, ...]] = {"both": ("image", "text"), "image": ("image",), "text": ("text",)}
    if not isinstance(towers, str) or towers not in meant:
        raise RecipeError(f"towers {towers!r}: give {', '.join(meant)}")
    return meant[towers]


def parse_recipes(texts: Sequence[str], runtime: str, towers: str) -> list[Recipe]:
    """Recipes as they are written, fitted to a runtime.

    Raises RecipeError where two would make one bundle, for an option about a tower that is left as it is, and for a
    runtime that no bundle can be made for.
    """
    if known_runtime(runtime).takes == "answers":
        raise RecipeError(f"runtime {runtime!r} runs elsewhere, so no bundle is made for it; leave it out")
    parsed = [parse_recipe(text, runtime) for text in texts if text != "fp32"]
    for recipe in parsed:
        if towers == "image" and recipe.options().get("token_table"):
            raise RecipeError(f"{recipe.name}: token_table=true is about the text tower, which --towers image leaves")
    slugs = [recipe.slug() for recipe in parsed]
    for slug in slugs:
        if slugs.count(slug) > 1:
            raise RecipeError(f"two recipes would both make the bundle {slug!r}; drop one")
    return parsed


def bundle_name(recipe: Recipe, towers: str) -> str:
    """What the folder of a recipe's bundle is called."""
    return recipe.slug() if towers == "both" else f"{recipe.slug()}-{towers}-only"


def check_targets(recipes: Sequence[Recipe], towers: str, parent: Path, source: Path) -> None:
    """Refuse folders that the recipes' bundles cannot replace, or that hold the source, before any of them is made."""
    for recipe in recipes:
        target = parent / bundle_name(recipe, towers)
        if source.resolve().is_relative_to(target.resolve()):
            raise RecipeError(
                f"{target} is where the FP32 bundle lies, and the new one would replace it; rename that, or choose "
                "another folder with -o"
            )
        check_target(target)


def check_calibration_set(folder: Path | None, recipes: Sequence[Recipe], *, built_in: bool) -> Path | None:
    """The folder, if it is one, or None where no recipe needs it; raises RecipeError else, before anything is made.

    ``built_in``: where none is given, the set that ships is meant.
    """
    if folder is not None and not folder.is_dir():
        raise RecipeError(f"--calibration-set {folder}: no such folder")
    calibrated = sorted({recipe.name for recipe in recipes if recipe.needs_calibration})
    if not calibrated:
        # A script gives one set to all of its recipes.
        return None
    if folder is None and not built_in:
        raise RecipeError(
            f"recipe {', '.join(calibrated)} measures activation ranges: give --calibration-set DIR (calibration=DIR)"
        )
    return folder or DEMO_SET


def demo_bundle(parent: Path | None) -> Path:
    """The built-in bundle, copied to ``parent/fp32``."""
    if parent is None:
        raise RecipeError("say with -o (output=...) where the built-in bundle and what is made of it go")
    with directory_in_making(parent / "fp32") as making:
        shutil.copytree(Path(clipq.demo.__file__).parent / "bundle", making, dirs_exist_ok=True)
    return parent / "fp32"


def require_torch() -> None:
    """Raise CheckpointError where what exporting needs is not installed."""
    try:
        import open_clip  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise CheckpointError(
            f"exporting needs {error.name}: pip install 'clip-quant[export]' (in a checkout: pip install '.[export]')"
        ) from error
