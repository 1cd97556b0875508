"""``clipq-eval cells``: what an engine that runs elsewhere is asked, and what it answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from clipq.console import Command, Group, OutputFolder, fetch_option, refuse_idle
from clipq.data.open import describe_sources
from clipq.errors import DataError, one_line
from clipq.evaluate.cli.options import pixel_cache_option, pixel_cache_size_option
from clipq.evaluate.settings import Settings, kept_pixels
from clipq.progress import progress_bars


@click.group(cls=Group)
def cells() -> None:
    """Measure an engine that runs where clipq cannot: on a phone, an NPU, a server."""


@cells.command("export", cls=Command)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--suite", metavar="FILE|NAME", help="What to evaluate on; see `clipq-eval suite`.")
@click.option(
    "--data", multiple=True, metavar="[NAME=]SOURCE",
    help=f"Labelled images, instead of a suite; repeatable. SOURCE is {describe_sources()}.",
)  # fmt: skip
@click.option("-o", "--output", type=OutputFolder(), required=True, metavar="WORK", help="Folder to take there.")
@click.option("--png", is_flag=True, help="Write each image as a PNG file, too.")
@click.option(
    "--templates", metavar="NAME", help="Template set of the bundle [default: the data set's own, else imagenet-80]."
)
@click.option(
    "--on-bad-image", type=click.Choice(["error", "skip"]),
    help="What to do with images that cannot be decoded [default: error].",
)  # fmt: skip
@fetch_option
@pixel_cache_option
@pixel_cache_size_option
def cells_export(
    bundle: Path,
    suite: str | None,
    data: Sequence[str],
    output: Path,
    png: bool,
    templates: str | None,
    on_bad_image: str | None,
    cache: str | None,
    pixel_cache: Path,
    pixel_cache_gb: float,
) -> None:
    """Write the images and token ids of a suite, to run elsewhere.

    BUNDLE, mostly the FP32 one, says how images and texts become inputs; each is written once.
    """
    from clipq.evaluate.api import export_suite, suite_of
    from clipq.evaluate.suites.suite import check_suite, read_suite

    if bool(suite) == bool(data):
        raise click.UsageError("give --suite FILE, or --data SOURCE (repeatable)")
    given = {"templates": templates, "on_bad_image": on_bad_image}
    asked = {key: value for key, value in given.items() if value is not None}
    chosen = (read_suite(suite) if suite else suite_of(data)).model_copy(update=asked)
    if suite and templates:
        check_suite(chosen)
    settings = Settings(
        fetch=Path(cache).expanduser() if cache else None, pixels=kept_pixels(pixel_cache, pixel_cache_gb)
    )
    with progress_bars() as progress:
        done = export_suite(bundle, chosen, output, settings, png=png, progress=progress)
    for note in done.notes:
        click.echo(f"note: {one_line(note)}", err=True)
    click.echo(str(output))


@cells.command("import", cls=Command)
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--images", type=click.Path(path_type=Path), metavar="FILE", help="Image embeddings: .npy, .safetensors.")
@click.option("--texts", type=click.Path(path_type=Path), metavar="FILE", help="Text embeddings: .npy, .safetensors.")
@click.option(
    "--predictions", multiple=True, metavar="VIEW=FILE",
    help="In place of embeddings, label probabilities of a classified view: .csv, .npz, .parquet; repeatable.",
)  # fmt: skip
@click.option(
    "--ran-on", required=True, metavar="WORDS",
    help="What ran where, as tables say it: 'QNN 2.26 on a Snapdragon 8 Gen 3, INT8'.",
)  # fmt: skip
@click.option(
    "--scheme", default="", metavar="WxAy-ARITHMETIC",
    help="Bits of weights and activations and what was multiplied, where you know: W8A8-integer, W4A16-float.",
)  # fmt: skip
@click.option("-o", "--output", type=OutputFolder(), required=True, metavar="ENGINE", help="Bundle of the answers.")
def cells_import(
    work: Path,
    images: Path | None,
    texts: Path | None,
    predictions: Sequence[str],
    ran_on: str,
    scheme: str,
    output: Path,
) -> None:
    """Make a bundle of the answers that came back.

    WORK is what `cells export` wrote. The bundle is evaluated like any other.
    """
    from clipq.evaluate.api import BroughtBack, import_answers

    if predictions:
        refuse_idle("is for embeddings, and --predictions come in their place; leave one out", "images", "texts")
    elif images is None or texts is None:
        raise DataError("give --images FILE and --texts FILE (an engine has two towers), or --predictions VIEW=FILE")
    towers = None if images is None or texts is None else (images, texts)
    done = import_answers(work, output, BroughtBack(ran_on, towers, _by_view(predictions), scheme))
    for note in done.notes:
        click.echo(f"note: {one_line(note)}", err=True)
    click.echo(str(output))


def _by_view(predictions: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for one in predictions:
        view, equals, file = one.partition("=")
        if not (view and equals and file):
            raise DataError(f"--predictions {one!r}: give VIEW=FILE")
        if view in found:
            raise DataError(f"--predictions {view!r} is given twice; once is right")
        found[view] = Path(file)
    return found
