"""The kinds of sources there are, and how one becomes a view.

Help texts are made of this table, so it loads neither numpy nor a decoder: what opens a source is imported when called.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from clipq.data.source import Source, Want, checked_classes, exists, refuse_unwritable, split_source
from clipq.errors import DataError
from clipq.given import hint, is_unicode, shown, unusable

if TYPE_CHECKING:
    from clipq.data.views import View

    Opener = Callable[[Source, Want, Path | None], View]


def _open_folder(source: Source, want: Want, cache: Path | None) -> View:
    from clipq.data.folders import open_folder

    return open_folder(source, want, cache)


def _open_csv(source: Source, want: Want, cache: Path | None) -> View:
    from clipq.data.folders import open_csv

    return open_csv(source, want, cache)


def _open_demo(source: Source, want: Want, cache: Path | None) -> View:
    from clipq.data.demo_sets import open_demo

    return open_demo(source, want, cache)


def _open_archives(source: Source, want: Want, cache: Path | None) -> View:
    from clipq.data.archives import open_archives

    return open_archives(source, want, cache)


def _open_hugging_face(source: Source, want: Want, cache: Path | None) -> View:
    from clipq.data.hugging_face import open_hugging_face

    return open_hugging_face(source, want, cache)


def _open_utkface(source: Source, want: Want, cache: Path | None) -> View:
    from clipq.data.utkface import open_utkface

    return open_utkface(source, want, cache)


def _path(place: str, folder: Path) -> Path | None:
    return folder / place


def _no_path(place: str, folder: Path) -> Path | None:
    return None


def _path_unless_address(place: str, folder: Path) -> Path | None:
    return None if "://" in place else folder / place


def _path_of_a_folder(place: str, folder: Path) -> Path | None:
    return folder / place if exists(folder / place) and (folder / place).is_dir() else None


def _last_part(place: str) -> str:
    if "://" not in place:
        return Path(place).resolve().name
    # The hub's files lie below one of these, whatever the data set is called.
    address = place.split("?")[0].rstrip("/").removesuffix("/resolve/main").removesuffix("/tree/main")
    return address.rpartition("/")[2]


@dataclass(frozen=True)
class Scheme:
    """A kind of source: all that clipq knows about it.

    ``form`` is how it is written, ``help`` what it is, ``options`` what may follow a colon, with defaults;
    ``file_options`` are those that are paths of files. The rest is about its place (what stands after the prefix):
    ``locate`` gives the path that it means, seen from a folder, or None where it means none on this machine;
    ``is_remote`` says that it then lies elsewhere and has to be fetched; ``is_file`` that the path is a file's, not a
    folder's; ``name`` what its view is called unless someone says otherwise. ``needs`` is a package that clipq does not
    bring along, and the extra that does.
    """

    form: str
    help: str
    open: Opener
    options: Mapping[str, str] = field(default_factory=dict)
    file_options: tuple[str, ...] = ()
    locate: Callable[[str, Path], Path | None] = _path
    name: Callable[[str], str] = _last_part
    is_file: bool = False
    is_remote: bool = False
    needs: tuple[str, str] | None = None

    @property
    def missing(self) -> str:
        """What has to be installed before a source of this kind opens; empty where nothing has."""
        if self.needs is None or find_spec(self.needs[0]) is not None:
            return ""
        return f"needs the package {self.needs[0]}: pip install 'clip-quant[{self.needs[1]}]'"


# By what a source is known by: its prefix, the suffix of its file, or neither.
SCHEMES: dict[str, Scheme] = {
    "": Scheme("a folder", "an ImageFolder: one folder per class", _open_folder),
    ".csv": Scheme(
        "a .csv file", "file,label[,group...], or file,caption", _open_csv,
        options={"label": "label"}, name=lambda place: Path(place).resolve().parent.name, is_file=True,
    ),
    "demo:": Scheme(
        "demo:SET", "drawn images of the built-in world", _open_demo,
        options={"n": ""}, locate=_no_path, name=lambda place: f"demo-{place}",
    ),
    "wds:": Scheme(
        "wds:FOLDER-OR-URL", "webdataset tars in CLIP_benchmark's layout", _open_archives,
        options={"split": "test"}, locate=_path_unless_address, is_remote=True,
    ),
    "hf:": Scheme(
        "hf:ORG/NAME", "a Hugging Face dataset; also hf:FOLDER", _open_hugging_face,
        options={"split": "test", "config": "", "image": "image", "label": "label", "caption": "caption", "names": ""},
        file_options=("names",),
        locate=_path_of_a_folder, is_remote=True, needs=("datasets", "hf"),
    ),
    "utkface:": Scheme(
        "utkface:FOLDER", "UTKFace's photos, AGE_GENDER_RACE_DATE.jpg", _open_utkface, options={"label": "gender"},
    ),
}  # fmt: skip


# Options that are not about the images, which every reading wants, and the one reading that makes something of them.
_ABOUT: dict[str, Want] = {"label": "labels", "names": "labels", "caption": "captions"}


def describe_sources() -> str:
    """What a source can be, for help texts."""
    *kinds, last = (f"{scheme.form} ({scheme.help})" for scheme in SCHEMES.values())
    return f"{', '.join(kinds)} or {last}; options follow a colon: labels.csv:label=gender"


def find_source(spec: str, folder: Path = Path()) -> tuple[Scheme, Source]:
    """The kind of a source and the source taken apart, its name and options filled in; paths are seen from a folder."""
    before, path, after = split_source(spec, folder)
    scheme, place = _find_scheme(path, folder)
    given = dict(item.split("=", 1) for item in after[1:].split(",")) if after else {}
    return scheme, Source(before[:-1] or scheme.name(place), path, place, {**scheme.options, **given})


def seen_from(spec: str, folder: Path) -> str:
    """The source with the paths that it means, if any, seen from a folder."""
    before, path, after = split_source(spec, folder)
    scheme, place = _find_scheme(path, folder)
    located = scheme.locate(place, folder)
    if located is not None:
        path = f"{path.removesuffix(place)}{located}"
    for option in scheme.file_options:
        after = re.sub(f"(?<=[:,]{option}=)[^,]+", lambda found: str(folder / found[0]), after)
    return f"{before}{path}{after}"


def complaint(spec: str) -> str | None:
    """What is wrong with a source, as far as can be told without opening it; None for one that may well open."""
    scheme, source = find_source(spec)
    if not is_unicode(spec):
        return f"{source.path}: is not UTF-8, so that no record can name it; rename it"
    unknown = [option for option in source.options if option not in scheme.options]
    if unknown:
        known = f"{', '.join(scheme.options) or 'none'}{hint(unknown[0], scheme.options)}"
        return f"{source.path}: unknown option {unknown[0]!r}; known: {known}"
    given = Counter(item.partition("=")[0] for item in split_source(spec)[2][1:].split(","))
    twice = [option for option, count in given.items() if count > 1]
    if twice:
        return f"{source.path}: option {twice[0]!r} is given twice"
    path = scheme.locate(source.place, Path())
    if path is not None and (wrong := unusable(str(path))):
        return f"{shown(source.path)}: {wrong}"
    if path is None or (path.is_file() if scheme.is_file else path.is_dir()):
        return None
    if scheme is SCHEMES[""]:
        what = f"neither {', nor '.join(other.form for other in SCHEMES.values())}"
        return f"{source.path}: {'is' if path.exists() else 'does not exist:'} {what}"
    what = f"is no {'file' if scheme.is_file else 'folder'}" if path.exists() else "does not exist"
    return f"{source.path}: {what}"


def open_view(spec: str, want: Want = "labels", cache: Path | None = None) -> View:
    """Open a data view, ``[NAME=]SOURCE[:option=value,...]``; raises DataError in one line for whatever does not fit.

    ``want`` says what the samples must have: labels, captions, or nothing but images. ``cache`` is where remote
    sources are kept; without one they are refused.
    """
    scheme, source = find_source(spec)
    wrong = complaint(spec)
    if wrong is not None:
        raise DataError(f"--data {wrong}")
    if scheme.missing:
        raise DataError(f"{source.where}: {scheme.missing}")
    if scheme.is_remote and cache is None and scheme.locate(source.place, Path()) is None:
        raise DataError(f"{source.where}: is remote; --fetch allows downloads")
    for option, about in _ABOUT.items():
        value = source.options.get(option)
        # Who wants images alone takes the same source as others do.
        if want not in (about, "images") and value != scheme.options.get(option):
            raise DataError(f"{source.where}: {want} have no {about}; leave out :{option}={value}")
    view = scheme.open(source, want, cache)
    if not view.samples:
        raise DataError(f"{source.where}: no images in it")
    if want == "captions" and not any(sample.captions for sample in view.samples):
        raise DataError(f"{source.where}: has no captions; retrieval wants a source that has (a CSV of file,caption)")
    refuse_unwritable((sample.id for sample in view.samples), source.where)
    return checked_classes(view) if want == "labels" else view


def _find_scheme(path: str, folder: Path) -> tuple[Scheme, str]:
    """The kind of a source by its prefix, suffix or neither, and the place that it speaks of."""
    prefix, colon, place = path.partition(":")
    if colon and prefix + colon in SCHEMES:
        return SCHEMES[prefix + colon], place
    suffix = "" if exists(folder / path) and (folder / path).is_dir() else Path(path).suffix.lower()
    return SCHEMES.get(suffix, SCHEMES[""]), path
