"""The command ``clipq-export``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from clipq import __version__
from clipq.bounds import ATTACK_RESTARTS, ATTACK_STEPS, EPSILON, SAMPLES, SEED
from clipq.console import Group, OutputFolder, fetch_option, refuse_idle
from clipq.data.open import describe_sources
from clipq.engines.catalog import DEFAULT_RUNTIME, RUNTIMES, known_runtime, require_runtime
from clipq.errors import RecipeError
from clipq.progress import progress_bars

if TYPE_CHECKING:
    from clipq.bundle import Bundle
    from clipq.exporters.build import Toolchain
    from clipq.exporters.recipes import Recipe

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

recipe_option = click.option(
    "--recipe", "recipes", multiple=True, metavar="NAME[:option=value,...]",
    help="Quantization recipe; repeatable. `clipq-export list` shows them with their options.",
)  # fmt: skip
calibration_option = click.option(
    "--calibration-set", type=click.Path(path_type=Path), metavar="DIR",
    help="Images (found recursively) with captions.csv (file,caption) or in class folders, for measuring ranges "
    "[default: none; for demo, the set that ships].",
)  # fmt: skip
towers_option = click.option(
    "--towers", type=click.Choice(["image", "text", "both"]), default="both", show_default=True,
    help="Which towers the recipes quantize; the other stays FP32.",
)  # fmt: skip
pretrained_option = click.option(
    "--pretrained", metavar="TAG|FILE|random",
    help="Weights, where CHECKPOINT is a bare open_clip model name: open_clip's tag, a weights file, or `random`.",
)  # fmt: skip


opset_option = click.option(
    "--opset", type=click.Choice(["17", "21"]), default="21", show_default=True,
    help="ONNX version of the FP32 bundle; TensorRT 8.6 reads 17, which its build makes of 21 itself.",
)  # fmt: skip
runtime_option = click.option(
    "--runtime", "runtimes", multiple=True, default=[DEFAULT_RUNTIME], show_default=True,
    help="Runtime the bundles are for; repeatable. Recipes take the form it needs; TensorRT's get plans as well.",
)  # fmt: skip
plan_runtime = click.Choice([runtime.name for runtime in RUNTIMES.values() if runtime.takes == "plan"])
target_option = click.option(
    "--target", metavar="sm_XY", help="GPU that plans are for, by compute capability [default: the one that is here].",
)  # fmt: skip
batch_option = click.option(
    "--batch", default="1,8,32", show_default=True, metavar="MIN,OPT,MAX",
    help="Smallest, best and largest batch of the plans; evaluation runs batches up to 32.",
)  # fmt: skip


@click.group(cls=Group, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="clipq-export")
def main() -> None:
    """Checkpoint → ONNX → quantized bundle → built engine.

    A bundle is a folder with two towers, a tokenizer and clipq.json; clipq-eval measures it without torch.
    """


@main.command("list")
@click.argument("bundles", nargs=-1, type=click.Path(path_type=Path))
@click.option("--checkpoints", is_flag=True, help="Every checkpoint name open_clip knows, one a line.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def list_command(bundles: Sequence[Path], checkpoints: bool, as_json: bool) -> None:
    """Show checkpoints, recipes, runtimes and sources: what works on this machine, and why the rest does not.

    BUNDLES: these in their stead, with what each hints at.
    """
    from clipq.exporters.catalog import bundle_rows, known_checkpoints, overview

    if checkpoints:
        if bundles:
            raise click.UsageError("--checkpoints lists names, and BUNDLES list themselves; leave one of them out")
        names = known_checkpoints()
        click.echo(json.dumps(names, indent=2) if as_json else "\n".join(names))
        return
    rows = bundle_rows(bundles) if bundles else overview()
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for kind in dict.fromkeys(row["kind"] for row in rows):
        click.echo(f"{kind}s")
        for row in rows:
            if row["kind"] == kind:
                click.echo(f"  {row['state']:5}  {row['name']:21}  {row['detail']}")


@main.command()
@click.argument("checkpoint")
@pretrained_option
@opset_option
@click.option("-o", "--output", type=OutputFolder(), required=True, help="Folder of the FP32 bundle.")
def onnx(checkpoint: str, pretrained: str | None, opset: str, output: Path) -> None:
    """Export CHECKPOINT to an FP32 bundle and compare both towers with torch.

    CHECKPOINT is MODEL/TAG (ViT-B-32/laion2b_s34b_b79k), MODEL with --pretrained, hf-hub:ORG/REPO (open_clip's),
    transformers:ORG/REPO (or a folder: CLIP, SigLIP, SigLIP 2, AltCLIP, ChineseCLIP, MetaCLIP 2), local-dir:PATH (a
    folder with open_clip_config.json and weights, or that save_pretrained of transformers wrote), or demo.
    """
    bundle = _export(checkpoint, pretrained, output, int(opset))
    for name, tower in (("image", bundle.manifest.image), ("text", bundle.manifest.text)):
        for parity in tower.parity:
            click.echo(f"{name} tower, batch {parity.batch}: max abs {parity.max_abs:.1e}, cosine {parity.cosine:.7f}")
    click.echo(str(bundle.path))


@main.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--image", type=click.Path(path_type=Path), metavar="FILE", help="Image tower, where there is no FOLDER.")
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE", help="Text tower, beside --image.")
@click.option(
    "--variant",
    metavar="NAME",
    help="Which of several engines in FOLDER, by the end of its files' names: quantized, fp16, … (fp32: none).",
)
@click.option(
    "--like", type=click.Path(path_type=Path), metavar="BUNDLE",
    help="Preprocessing, tokenizer, logit scale and prompts, where the files beside the engine do not say them.",
)  # fmt: skip
@click.option("--logit-scale", type=float, help="exp(logit_scale) of the checkpoint, which few files hold.")
@click.option(
    "--logit-bias", type=float, help="logit_bias of the checkpoint, where it was trained with a sigmoid (SigLIP)."
)
@click.option("--image-output", metavar="NAME", help="Which output is the embedding, where that cannot be told.")
@click.option("--text-output", metavar="NAME", help="The same for the text tower.")
@click.option("--context-length", type=click.IntRange(1, 2**16), help="Tokens of a text, where no file says it.")
@click.option(
    "--against", metavar="BUNDLE|CHECKPOINT",
    help="Embed 64 images and 64 texts in both, and say whether they agree or which mistake explains that they do not.",
)  # fmt: skip
@click.option("--checkpoint", metavar="NAME", help="What the engine is made of, by open_clip's name, for the record.")
@click.option("-o", "--output", type=OutputFolder(), required=True, help="Folder of the bundle.")
def adopt(output: Path, against: str | None, **given: Any) -> None:
    """Make a bundle of an engine that others made: its files as they are, with what evaluation needs.

    FOLDER holds both towers as transformers.js, Optimum, Immich, clip-as-service and others lay them out. With
    --against, ends with code 1 where the two do not agree; the bundle is made all the same.
    """
    from clipq.exporters.adopt.foreign import ForeignEngine
    from clipq.exporters.api import adopt_engine

    if given["logit_scale"] is None:
        refuse_idle("goes with --logit-scale, which is not given", "logit_bias")
    bundle = adopt_engine(ForeignEngine(**given), output, against, lambda line: click.echo(line, err=True))
    found = bundle.manifest.adopted
    assert found is not None
    for fact, source in (*found.sources.items(), *bundle.manifest.recipe.options.items()):
        click.echo(f"{fact.replace('_', ' ')}: {source}")
    for sentence in found.compared.sentences if found.compared else ():
        click.echo(sentence)
    click.echo(str(bundle.path))
    if found.compared is not None and not found.compared.agrees:
        raise SystemExit(1)


@main.command()
@click.argument("bundle")
@recipe_option
@calibration_option
@towers_option
@click.option(
    "--runtime", default=DEFAULT_RUNTIME, show_default=True,
    help="Runtime the bundles are for: options not given take the values it needs.",
)  # fmt: skip
@click.option("-o", "--output", type=OutputFolder(), help="Parent folder of the new bundles [default: BUNDLE's].")
def quantize(
    bundle: str,
    recipes: Sequence[str],
    calibration_set: Path | None,
    towers: str,
    runtime: str,
    output: Path | None,
) -> None:
    """Quantize the FP32 BUNDLE: one new bundle per recipe.

    BUNDLE is a folder, or demo: the built-in one, put into OUTPUT/fp32 (a folder of that name is ./demo).
    """
    from clipq.bundle import open_bundle
    from clipq.exporters.api import DEMO, check_calibration_set, check_targets, demo_bundle, parse_recipes

    parsed = parse_recipes(recipes, known_runtime(runtime).name, towers)
    if not parsed:
        raise RecipeError("nothing to do: give --recipe NAME (clipq-export list shows them)")
    calibration_set = check_calibration_set(calibration_set, parsed, built_in=bundle == DEMO)
    source = Path(bundle)
    check_targets(parsed, towers, output or source.parent, source)
    if bundle == DEMO:
        source = demo_bundle(output)
        click.echo(str(source))
    _quantize_all(open_bundle(source), parsed, calibration_set, towers, output or source.parent)


@main.command()
@click.argument("checkpoint")
@pretrained_option
@recipe_option
@calibration_option
@towers_option
@runtime_option
@target_option
@batch_option
@opset_option
@click.option("-o", "--output", type=OutputFolder(), required=True, help="Folder that receives one folder per bundle.")
def run(
    checkpoint: str,
    pretrained: str | None,
    recipes: Sequence[str],
    calibration_set: Path | None,
    towers: str,
    runtimes: Sequence[str],
    target: str | None,
    batch: str,
    opset: str,
    output: Path,
) -> None:
    """All of it: export CHECKPOINT (bundle `fp32`), quantize it by each recipe, build plans for TensorRT runtimes."""
    from clipq.exporters.api import DEMO, bundle_name, check_calibration_set, parse_recipes
    from clipq.exporters.build import BuildSettings, open_toolchain

    # Everything that can be refused is refused before minutes go into the export.
    parsed = {known_runtime(runtime).name: parse_recipes(recipes, runtime, towers) for runtime in runtimes}
    if not any(parsed.values()):
        refuse_idle("is for recipes, and no --recipe is given", "towers", "calibration_set")
    if not any(known_runtime(runtime).takes == "plan" for runtime in parsed):
        refuse_idle(f"is for plans, which --runtime {', '.join(parsed)} does not take", "target", "batch")
    builds = {}
    for runtime in parsed:
        if known_runtime(runtime).takes == "plan":
            settings = BuildSettings(cast("Any", runtime), _batch(batch), target)
            builds[runtime] = open_toolchain(settings)
        else:
            require_runtime(runtime)
    calibration_set = check_calibration_set(
        calibration_set,
        [recipe for chosen in parsed.values() for recipe in chosen],
        built_in=checkpoint == DEMO,
    )
    source = _export(checkpoint, pretrained, output / "fp32", int(opset))
    click.echo(str(source.path))
    made: dict[str, Bundle] = {}
    for runtime, chosen in parsed.items():
        fresh = [recipe for recipe in chosen if bundle_name(recipe, towers) not in made]
        made |= _quantize_all(source, fresh, calibration_set, towers, output)
        if runtime in builds:
            bundles = [source, *(made[bundle_name(recipe, towers)] for recipe in chosen)]
            _build_all(bundles, builds[runtime], output)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--runtime", required=True, type=plan_runtime, help="Library that builds and runs it.")
@target_option
@batch_option
@click.option("--tf32", is_flag=True, help="Let float32 products round their factors to 10 bits.")
@click.option(
    "--calibrator", type=click.Choice(["entropy2", "minmax", "legacy"]),
    help="Implicit INT8 of an FP32 bundle: TensorRT (up to 10.16) measures ranges and places integers itself.",
)  # fmt: skip
@calibration_option
@click.option(
    "--calibration-cache", type=click.Path(path_type=Path), metavar="DIR",
    help="Built bundle whose calibration caches are used again instead of measuring.",
)  # fmt: skip
@click.option("-o", "--output", type=OutputFolder(), help="Parent folder of the built bundle [default: BUNDLE's].")
def build(
    bundle: Path,
    runtime: str,
    target: str | None,
    batch: str,
    tf32: bool,
    calibrator: str | None,
    calibration_set: Path | None,
    calibration_cache: Path | None,
    output: Path | None,
) -> None:
    """Build engine plans of both towers of BUNDLE, into a bundle of their own.

    Types come from the bundle: quantize with floats=fp16 (and form=qdq for 4 bits), which `run --runtime` chooses.
    """
    from clipq.bundle import open_bundle
    from clipq.exporters.build import BuildSettings, open_toolchain

    if calibrator is None:
        refuse_idle("is for --calibrator, which is not given", "calibration_set", "calibration_cache")
    if calibration_cache is not None:
        refuse_idle("measures the ranges that --calibration-cache has; leave one of them out", "calibration_set")
    settings = BuildSettings(
        cast("Any", runtime), _batch(batch), target, tf32, cast("Any", calibrator), calibration_cache
    )
    source = open_bundle(bundle)
    _build_all([source], open_toolchain(settings), output or bundle.parent, calibration_set)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--runtime", required=True, type=plan_runtime, help="Whose parser reads it.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def check(bundle: Path, runtime: str, as_json: bool) -> None:
    """Let TensorRT's parser read BUNDLE, node by node: what would not build, and why. Needs no GPU."""
    from clipq.bundle import open_bundle
    from clipq.exporters.parser_check import check_bundle

    verdict = check_bundle(open_bundle(bundle), cast("Any", runtime))
    if as_json:
        click.echo(verdict.model_dump_json(indent=2))
    else:
        click.echo(f"parser: {verdict.parser}")
        for tower in verdict.towers:
            refused = sum(len(row.nodes) for row in tower.refused)
            counted = ", ".join(f"{count} {kind}" for kind, count in tower.layers.items())
            click.echo(f"{tower.tower} tower: {tower.nodes} nodes, {refused} refused{'; ' if counted else ''}{counted}")
            for row in tower.refused:
                click.echo(f"  {row.op} {', '.join(row.nodes[:4])}{' …' if len(row.nodes) > 4 else ''}: {row.reason}")
    if not verdict.accepted:
        raise SystemExit(1)


def _batch(text: str) -> tuple[int, int, int]:
    from clipq.errors import BuildError

    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise BuildError(f"--batch {text!r}: give three whole numbers, MIN,OPT,MAX")
    low, best, high = (int(part) for part in parts)
    return low, best, high


@main.command()
@click.argument("checkpoint")
@pretrained_option
@click.option(
    "--data", required=True, metavar="SOURCE", help=f"Labelled images: {describe_sources()}.",
)  # fmt: skip
@fetch_option
@click.option("-o", "--output", type=OutputFolder(), required=True, help="Folder of the attack.")
@click.option("--method", type=click.Choice(["fgsm", "pgd"]), default="pgd", show_default=True)
@click.option(
    "--epsilon", "epsilons", multiple=True, default=(1, 2, 4, 8), show_default=True, type=click.IntRange(*EPSILON),
    help="L∞ strength in 255ths; repeatable.",
)  # fmt: skip
@click.option("--steps", default=10, show_default=True, type=click.IntRange(*ATTACK_STEPS), help="Steps of PGD.")
@click.option(
    "--restarts", default=1, show_default=True, type=click.IntRange(*ATTACK_RESTARTS), help="Random starts of PGD."
)
@click.option("--samples", type=click.IntRange(*SAMPLES), help="Attack a random part of so many images [default: all].")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(*SEED))
@click.option("--templates", metavar="NAME", help="Template set [default: the data set's own, else imagenet-80].")
def attack(
    checkpoint: str,
    pretrained: str | None,
    data: str,
    cache: str | None,
    output: Path,
    method: str,
    epsilons: Sequence[int],
    steps: int,
    restarts: int,
    samples: int | None,
    seed: int,
    templates: str | None,
) -> None:
    """Make adversarial images from the gradients of CHECKPOINT, for clipq-eval to try on every engine."""
    from clipq.data.open import open_view
    from clipq.data.views import choose_samples
    from clipq.exporters.attacks import AttackSettings
    from clipq.exporters.attacks import attack as make_attack
    from clipq.exporters.checkpoints import load_checkpoint, parse_checkpoint
    from clipq.making import check_target

    if method == "fgsm":
        unseeded = ("seed",) if samples is None else ()
        refuse_idle("is PGD's; --method fgsm goes one step, from the image itself", "steps", "restarts", *unseeded)
    check_target(output)
    view = choose_samples(open_view(data, cache=Path(cache).expanduser() if cache else None), samples, seed)
    settings = AttackSettings(
        cast("Any", method), tuple(sorted(set(epsilons))), steps, restarts, seed=seed, templates=templates
    )
    source = parse_checkpoint(checkpoint, pretrained)
    click.echo(f"loading {source.name}", err=True)
    with progress_bars() as progress:
        make_attack(load_checkpoint(source), view, settings, output, progress)
    click.echo(str(output))


def _export(checkpoint: str, pretrained: str | None, output: Path, opset: int) -> Bundle:
    from clipq.exporters.api import require_torch

    require_torch()
    from clipq.exporters.onnx_bundle import export_bundle

    return export_bundle(checkpoint, pretrained, output, opset=opset, progress=lambda line: click.echo(line, err=True))


def _quantize_all(
    source: Bundle, recipes: Sequence[Recipe], calibration_set: Path | None, towers: str, output: Path
) -> dict[str, Bundle]:
    from clipq.exporters.api import bundle_name, quantized
    from clipq.exporters.calibration_set import open_calibration_set
    from clipq.hints import sentences

    calibration = open_calibration_set(calibration_set, source) if calibration_set else None
    made = {}
    for recipe in recipes:
        name = bundle_name(recipe, towers)
        click.echo(f"quantizing: {name}", err=True)
        with progress_bars() as progress:
            made[name] = quantized(source, recipe, calibration, towers, output, progress)
        click.echo(str(made[name].path))
    for name, bundle in made.items():
        for said in sentences(bundle.manifest.hints):
            click.echo(f"hint: {name}, {said}", err=True)
    return made


def _build_all(
    bundles: Sequence[Bundle], toolchain: Toolchain, output: Path, calibration_set: Path | None = None
) -> None:
    from clipq.exporters.build import build_bundle, describe_plan
    from clipq.exporters.calibration_set import open_calibration_set

    for source in bundles:
        name = f"{source.name}-{toolchain.settings.slug(toolchain.capability)}"
        click.echo(f"building: {name}", err=True)
        calibration = open_calibration_set(calibration_set, source) if calibration_set else None
        with progress_bars() as progress:
            built = build_bundle(source, toolchain, output / name, calibration=calibration, progress=progress)
        for tower in ("image", "text"):
            click.echo(describe_plan(built, tower), err=True)
        click.echo(str(built.path))


if __name__ == "__main__":
    main()
