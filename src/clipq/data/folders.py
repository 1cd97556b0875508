"""Images in files: an ImageFolder (CLIP_benchmark's layout), a CSV ``file,label[,group...]`` or ``file,caption``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipq.data.source import (
    CLASS_NAMES,
    IMAGE_SUFFIXES,
    Source,
    Want,
    side_file,
    side_templates,
)
from clipq.data.tables import files_beside, read_csv
from clipq.data.views import Classes, FileView, Sample, View
from clipq.errors import DataError


def open_folder(source: Source, want: Want, cache: Path | None) -> View:
    """Open a folder with one folder per class; where only images are wanted, all of them at any depth."""
    root = Path(source.path)
    if want == "captions":
        raise DataError(f"{source.where}: retrieval wants a CSV of file,caption")
    if want == "images":
        files = [path for path in sorted(root.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
        samples = tuple(Sample(path.relative_to(root).as_posix()) for path in files)
        return FileView(source.name, source.path, samples, None, tuple(files))
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
    found = side_file(root, CLASS_NAMES)
    if found is None:
        names = tuple(folder.name.replace("_", " ") for folder in folders)
    else:
        path, names = found
        if len(names) != len(folders):
            raise DataError(f"{path} names {len(names)} classes, {root} has {len(folders)} class folders")
    classes = Classes.plain(names, [folder.name for folder in folders], side_templates(root))
    return FileView(source.name, source.path, tuple(labelled), classes, tuple(files))


def open_csv(source: Source, want: Want, cache: Path | None) -> View:
    """Open a CSV ``file,label``, whose further columns are groups, or ``file,caption``."""
    path = Path(source.path)
    label = source.options["label"]
    if want == "captions":
        if label != "label":
            raise DataError(f"{source.where}: captions have no labels; leave out :label={label}")
        return _open_captions(source.name, path)
    if want == "images":
        rows = read_csv(path, ("file",))
        files = files_beside(path, [row["file"] for row in rows])
        return FileView(source.name, source.path, tuple(Sample(row["file"]) for row in rows), None, files)
    rows = read_csv(path, ("file", label))
    columns = list(rows[0])
    values = sorted({row[label] for row in rows})
    found = side_file(path.parent, CLASS_NAMES)
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
    classes = Classes.plain(names, keys, side_templates(path.parent))
    return FileView(source.name, source.path, samples, classes, files_beside(path, [row["file"] for row in rows]))


def _open_captions(name: str, path: Path) -> View:
    captions: dict[str, list[str]] = {}
    for row in read_csv(path, ("file", "caption")):
        captions.setdefault(row["file"], []).append(row["caption"])
    samples = tuple(Sample(file, captions=tuple(texts)) for file, texts in captions.items())
    return FileView(name, str(path), samples, None, files_beside(path, list(captions)))
