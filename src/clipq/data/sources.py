"""Where views come from: ``[NAME=]SOURCE[:option=value,...]`` opened as a view.

SOURCE is an ImageFolder (CLIP_benchmark's layout), a CSV (``file,label[,group...]`` or ``file,caption``), ``demo:SET``,
``wds:FOLDER-OR-URL`` (webdataset tars in CLIP_benchmark's layout), ``hf:ORG/NAME`` (Hugging Face ``datasets``), or
``utkface:FOLDER``.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from clipq.data.views import Classes, DemoView, FileView, Sample, View
from clipq.demo import world
from clipq.errors import DataError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"

UTKFACE_GENDERS = ("male", "female")
UTKFACE_RACES = ("White", "Black", "Asian", "Indian", "Others")

Want = Literal["labels", "images", "captions"]


@dataclass(frozen=True)
class Source:
    """A source as written, taken apart; ``where`` is what errors call it."""

    name: str | None
    path: str
    options: Mapping[str, str]
    where: str

    def take(self, **defaults: str) -> dict[str, str]:
        """The options with their defaults; raises DataError for one that is not among them."""
        for option in self.options:
            if option not in defaults:
                raise DataError(f"{self.where}: unknown option {option!r}; known: {', '.join(defaults) or 'none'}")
        return {**defaults, **self.options}


def parse_source(spec: str) -> Source:
    """Take ``[NAME=]SOURCE[:option=value,...]`` apart; a path that exists as it stands is taken as it stands."""
    name, path, options = None, spec, {}
    found = re.match(r"([A-Za-z0-9][\w.-]*)=(.+)$", path)
    if found and not Path(path).exists():
        name, path = found.group(1), found.group(2)
    found = re.match(r"(.+?):((?:[a-z_]+=[^,=]+)(?:,[a-z_]+=[^,=]+)*)$", path)
    if found and not Path(path).exists():
        path = found.group(1)
        options = dict(item.split("=", 1) for item in found.group(2).split(","))
    return Source(name, path, options, f"--data {path}")


def open_view(spec: str, want: Want = "labels", cache: Path | None = None) -> View:
    """Open a data view; raises DataError in one line for whatever does not fit.

    ``want`` says what the samples must have: labels, captions, or nothing but images. ``cache`` is where remote
    sources are kept; without one they are refused.
    """
    source = parse_source(spec)
    openers: dict[str, Callable[[Source, Want, Path | None], View]] = {
        "demo": _open_demo,
        "wds": _open_archives,
        "hf": _open_hugging_face,
        "utkface": _open_utkface,
    }
    scheme = source.path.partition(":")[0]
    if scheme in openers:
        view = openers[scheme](source, want, cache)
    elif Path(source.path).is_dir():
        view = _open_folder(source, want)
    elif Path(source.path).is_file() and Path(source.path).suffix.lower() == ".csv":
        view = _open_csv(source, want)
    else:
        raise DataError(f"{source.where}: neither a folder, nor a .csv file, nor demo:, wds:, hf: or utkface:")
    if not view.samples:
        raise DataError(f"{source.where}: no images in it")
    return _checked(view) if want == "labels" else view


def join_columns(view: View, columns: str) -> View:
    """The view with a crossing of group columns (``race*gender``) as one more column."""
    parts = columns.split("*")
    for part in parts:
        if part not in view.samples[0].groups:
            known = ", ".join(view.samples[0].groups) or "none"
            raise DataError(f"{view.source}: has no group column {part!r}; it has: {known}")
    samples = tuple(
        replace(sample, groups={**sample.groups, columns: " * ".join(sample.groups[part] for part in parts)})
        for sample in view.samples
    )
    return replace(view, samples=samples)


def restrict_classes(view: View, to: View, label_map: Path | None) -> View:
    """The view with its labels read as classes of another view; predictions are then among those classes alone.

    A label is that class of ``to`` with the same key (folder name, such as a WordNet id); or what ``label_map`` (CSV:
    ``label,class``, classes by key or name) says, which can give several classes to a label.
    """
    assert view.classes is not None and to.classes is not None
    known = {name: index for index, name in enumerate(to.classes.names)}
    known.update({key: index for index, key in enumerate(to.classes.keys)})
    mapping = {key: [key] for key in view.classes.keys} if label_map is None else _read_label_map(label_map)
    names, labels = [], []
    for label, key in enumerate(view.classes.keys):
        if key not in mapping:
            raise DataError(f"{label_map}: says nothing about label {key!r} of {view.source}")
        for wanted in mapping[key]:
            if wanted not in known:
                where = label_map or view.source
                raise DataError(f"{where}: {wanted!r} is no class of {to.source}; give a label_map (CSV: label,class)")
            names.append(to.classes.names[known[wanted]])
            labels.append(label)
    templates = view.classes.templates or to.classes.templates
    return _checked(replace(view, classes=Classes(tuple(names), view.classes.keys, tuple(labels), templates)))


def _read_label_map(path: Path) -> dict[str, list[str]]:
    rows = _read_csv(path, ("label", "class"))
    mapping: dict[str, list[str]] = {}
    for row in rows:
        mapping.setdefault(row["label"], []).append(row["class"])
    return mapping


def _open_demo(source: Source, want: Want, cache: Path | None) -> View:
    options = source.take(n="")
    set_name = source.path.removeprefix("demo:")
    roles = (
        ("in-distribution", "shifted") if want != "images" else ("in-distribution", "shifted", "near-ood", "far-ood")
    )
    fitting = [key for key, value in world.SETS.items() if value.role in roles]
    if set_name not in fitting:
        raise DataError(f"{source.where}: unknown set of the demo world; fitting ones: {', '.join(fitting)}")
    try:
        count = int(options["n"] or world.SETS[set_name].count)
    except ValueError as error:
        raise DataError(f"{source.where}: n={options['n']!r} is not a number") from error
    samples = []
    for index in range(count):
        scene, _ = world.sample(set_name, index)
        label = world.CLASS_NAMES.index(scene.shape) if scene.shape in world.CLASS_NAMES else -1
        groups = {"light": scene.light, "size": scene.size}
        samples.append(Sample(f"{set_name}/{index:05d}", label, groups, (scene.caption(),)))
    classes = Classes.plain(world.CLASS_NAMES) if want == "labels" else None
    name = source.name or f"demo-{set_name}"
    return DemoView(name, source.path, tuple(samples), classes, set_name)


def _open_folder(source: Source, want: Want) -> View:
    source.take()
    root = Path(source.path)
    name = source.name or root.resolve().name
    if want == "captions":
        raise DataError(f"{source.where}: retrieval wants a CSV of file,caption")
    if want == "images":
        files = [path for path in sorted(root.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
        samples = tuple(Sample(path.relative_to(root).as_posix()) for path in files)
        return FileView(name, source.path, samples, None, tuple(files))
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise DataError(f"{source.where}: no class folders in it (an ImageFolder has one folder per class)")
    files, labelled = [], []
    for label, folder in enumerate(folders):
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                files.append(path)
                labelled.append(Sample(path.relative_to(root).as_posix(), label))
    if not files:
        raise DataError(f"{source.where}: no images in its {len(folders)} class folders")
    found = _lines(root, CLASS_NAMES)
    if found is None:
        names = tuple(folder.name.replace("_", " ") for folder in folders)
    else:
        path, names = found
        if len(names) != len(folders):
            raise DataError(f"{path} names {len(names)} classes, {root} has {len(folders)} class folders")
    classes = Classes.plain(names, [folder.name for folder in folders], _templates(root))
    return FileView(name, source.path, tuple(labelled), classes, tuple(files))


def _open_csv(source: Source, want: Want) -> View:
    path = Path(source.path)
    name = source.name or path.resolve().parent.name
    if want == "captions":
        source.take()
        return _open_captions(name, path)
    label = source.take(label="label")["label"]
    if want == "images":
        rows = _read_csv(path, ("file",))
        files = _files(path, [row["file"] for row in rows])
        return FileView(name, source.path, tuple(Sample(row["file"]) for row in rows), None, files)
    rows = _read_csv(path, ("file", label))
    columns = list(rows[0])
    values = sorted({row[label] for row in rows})
    found = _lines(path.parent, CLASS_NAMES)
    keys: Sequence[str] = values
    names: Sequence[str] = values
    if found is not None:
        names_path, names = found
        keys = [str(number) for number in range(len(names))] if all(value.isdecimal() for value in values) else names
        unknown = [value for value in values if value not in keys]
        if unknown:
            raise DataError(f"{path}: label {unknown[0]!r} is not in {names_path}")
    index = {key: number for number, key in enumerate(keys)}
    # The label is a group too where it has a name of its own: gender is asked for, and compared between genders.
    groups = [column for column in columns if column not in ("file", "label")]
    samples = tuple(Sample(row["file"], index[row[label]], {column: row[column] for column in groups}) for row in rows)
    classes = Classes.plain(names, keys, _templates(path.parent))
    return FileView(name, source.path, samples, classes, _files(path, [row["file"] for row in rows]))


def _open_captions(name: str, path: Path) -> View:
    captions: dict[str, list[str]] = {}
    for row in _read_csv(path, ("file", "caption")):
        captions.setdefault(row["file"], []).append(row["caption"])
    samples = tuple(Sample(file, captions=tuple(texts)) for file, texts in captions.items())
    return FileView(name, str(path), samples, None, _files(path, list(captions)))


def _open_utkface(source: Source, want: Want, cache: Path | None) -> View:
    """``[age]_[gender]_[race]_[date].jpg`` in one folder; ages are also grouped by decade."""
    label = source.take(label="gender")["label"]
    root = Path(source.path.removeprefix("utkface:"))
    if not root.is_dir():
        raise DataError(f"{source.where}: no such folder")
    if label not in ("gender", "race"):
        raise DataError(f"{source.where}: label={label!r}: gender or race")
    names = UTKFACE_GENDERS if label == "gender" else UTKFACE_RACES
    files, samples = [], []
    for path in sorted(root.rglob("*.jpg")):
        found = re.match(r"(\d+)_([01])_([0-4])_", path.name)
        if found is None:
            raise DataError(f"{path}: is not named AGE_GENDER_RACE_DATE.jpg as UTKFace's files are")
        age, gender, race = (int(part) for part in found.groups())
        groups = {
            "gender": UTKFACE_GENDERS[gender],
            "race": UTKFACE_RACES[race],
            "age": f"{age // 10 * 10}-{age // 10 * 10 + 9}",
        }
        files.append(path)
        samples.append(Sample(path.relative_to(root).as_posix(), names.index(groups[label]), groups))
    classes = Classes.plain(names) if want == "labels" else None
    return FileView(source.name or root.resolve().name, source.path, tuple(samples), classes, tuple(files))


def _open_archives(source: Source, want: Want, cache: Path | None) -> View:
    from clipq.data.archives import open_archives

    options = source.take(split="test")
    return open_archives(source.name, source.path, options["split"], want, cache)


def _open_hugging_face(source: Source, want: Want, cache: Path | None) -> View:
    from clipq.data.hugging_face import open_hugging_face

    options = source.take(split="test", config="", image="image", label="label", caption="caption")
    return open_hugging_face(source.name, source.path, options, want, cache)


def _read_csv(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = list(reader.fieldnames or [])
            rows = list(reader)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    for column in needed:
        if column not in columns:
            hint = "; paths go there" if column == "file" else ""
            hint = "; :label=COLUMN chooses another label column" if column == "label" else hint
            raise DataError(f"{path}: has no column {column!r} (it has {', '.join(columns)}){hint}")
    if not rows:
        raise DataError(f"{path}: has no rows")
    return rows


def _files(path: Path, names: Sequence[str]) -> tuple[Path, ...]:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: names {repeated[0]} more than once")
    for name in names:
        if not (path.parent / name).is_file():
            raise DataError(f"{path}: names {name}, which does not exist")
    return tuple(path.parent / name for name in names)


def _lines(folder: Path, name: str) -> tuple[Path, tuple[str, ...]] | None:
    """The lines of a side file in the folder or beside it, with the file's path."""
    for path in (folder / name, folder.resolve().parent / name):
        if path.is_file():
            return path, side_lines(path.read_text(encoding="utf-8-sig"))
    return None


def side_lines(text: str) -> tuple[str, ...]:
    """The lines of a file of class names or templates, without empty ones."""
    lines = [line.strip() for line in text.splitlines()]
    return tuple(line for line in lines if line)


def _templates(folder: Path) -> tuple[str, ...] | None:
    found = _lines(folder, TEMPLATES)
    return None if found is None else checked_templates(*found)


def checked_templates(path: object, lines: Sequence[str]) -> tuple[str, ...]:
    """Templates with ``{}`` for the class name; raises DataError for one without."""
    templates = tuple(line.replace("{c}", "{}") for line in lines)
    for template in templates:
        if template.count("{}") != 1:
            raise DataError(f"{path}: template {template!r} must hold {{}} or {{c}} exactly once")
    return templates


def _checked(view: View) -> View:
    assert view.classes is not None
    names = view.classes.names
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{view.source}: class name {repeated[0]!r} stands for more than one class; tell them apart")
    if len(view.classes.keys) < 2:
        raise DataError(f"{view.source}: only one class ({names[0]!r}); classification needs two")
    if len(view.samples) < len(view.classes.keys):
        raise DataError(
            f"{view.source}: {len(view.samples)} samples are fewer than the {len(view.classes.keys)} classes"
        )
    return view
