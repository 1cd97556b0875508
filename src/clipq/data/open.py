"""Where views come from: ``[NAME=]SOURCE[:option=value,...]`` opened as a view.

SOURCE is an ImageFolder (CLIP_benchmark's layout), a CSV (``file,label[,group...]`` or ``file,caption``), ``demo:SET``,
``wds:FOLDER-OR-URL`` (webdataset tars in CLIP_benchmark's layout), ``hf:ORG/NAME`` (Hugging Face ``datasets``), or
``utkface:FOLDER``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from clipq.data.archives import open_archives
from clipq.data.demo_sets import open_demo
from clipq.data.folders import open_csv, open_folder
from clipq.data.hugging_face import open_hugging_face
from clipq.data.source import Source, Want, checked_classes, parse_source
from clipq.data.utkface import open_utkface
from clipq.data.views import View
from clipq.errors import DataError


def open_view(spec: str, want: Want = "labels", cache: Path | None = None) -> View:
    """Open a data view; raises DataError in one line for whatever does not fit.

    ``want`` says what the samples must have: labels, captions, or nothing but images. ``cache`` is where remote
    sources are kept; without one they are refused.
    """
    source = parse_source(spec)
    openers: dict[str, Callable[[Source, Want, Path | None], View]] = {
        "demo": open_demo,
        "wds": _open_archives,
        "hf": _open_hugging_face,
        "utkface": open_utkface,
    }
    scheme = source.path.partition(":")[0]
    if scheme in openers:
        view = openers[scheme](source, want, cache)
    elif Path(source.path).is_dir():
        view = open_folder(source, want)
    elif Path(source.path).is_file() and Path(source.path).suffix.lower() == ".csv":
        view = open_csv(source, want)
    else:
        raise DataError(f"{source.where}: neither a folder, nor a .csv file, nor demo:, wds:, hf: or utkface:")
    if not view.samples:
        raise DataError(f"{source.where}: no images in it")
    return checked_classes(view) if want == "labels" else view


def _open_archives(source: Source, want: Want, cache: Path | None) -> View:
    options = source.take(split="test")
    return open_archives(source.name, source.path, options["split"], want, cache)


def _open_hugging_face(source: Source, want: Want, cache: Path | None) -> View:
    options = source.take(split="test", config="", image="image", label="label", caption="caption")
    return open_hugging_face(source.name, source.path, options, want, cache)
