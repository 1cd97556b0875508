"""Images in files: an ImageFolder (CLIP_benchmark's layout), a CSV ``file,label[,group...]`` or ``file,caption``."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from pathlib import Path

from clipq.data.image_files import find_images
from clipq.data.source import (
    CLASS_NAMES,
    Source,
    Want,
    checked_captions,
    class_keys,
    label_classes,
    read_class_names,
    refuse_exchanged,
    side_file,
    side_templates,
)
from clipq.data.tables import files_beside, read_csv
from clipq.data.views import NO_GROUP, Classes, FileView, Sample, View
from clipq.errors import DataError

# Folders of a data set that are no classes, if all of them are so called: train, test_set, images-val, val2017.
_SPLIT = re.compile(
    r"(images?[ _-]?)?(train(ing)?|val(id|idation)?|dev|test(ing)?|eval(uation)?|holdout|unlabell?ed|query|gallery|"
    r"(fold|split)[ _-]?[0-9]+)([ _-]?(set|data|images?|split|[0-9]+))?",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"([^0-9]*)([0-9]+)([^0-9]*)")


def open_folder(source: Source, want: Want, cache: Path | None) -> View:
    """Open a folder with one folder per class; where only images are wanted, all of them at any depth."""
    root = Path(source.path)
    if want == "captions":
        raise DataError(f"{source.where}: retrieval wants a CSV of file,caption")
    found = find_images(root)
    names = [path.relative_to(root).as_posix() for path in found.files]
    if want == "images":
        samples = tuple(map(Sample, names))
        return FileView(source.name, source.path, samples, None, found.files, left_out=found.left_out)
    if not found.folders:
        raise DataError(f"{source.where}: no class folders in it (an ImageFolder has one folder per class)")
    keys = [folder.name for folder in found.folders]
    if len(keys) > 1 and all(map(_SPLIT.fullmatch, keys)):
        raise DataError(
            f"{source.where}: its folders are splits ({', '.join(keys)}), no classes; give {root / keys[-1]}"
        )
    labels = {key: label for label, key in enumerate(keys)}
    files, labelled, left_out = [], [], dict(found.left_out)
    for path, name in zip(found.files, names, strict=True):
        if "/" in name:
            files.append(path)
            labelled.append(Sample(name, labels[name.partition("/")[0]]))
        else:
            left_out[name] = "an image beside the class folders, in none"
    _refuse_empty(source, keys, {sample.label for sample in labelled})
    path_of_names = side_file(root, CLASS_NAMES)
    class_names = [key.replace("_", " ") for key in keys] if path_of_names is None else read_class_names(path_of_names)
    if path_of_names is not None:
        _check_order(root, path_of_names, class_names, keys)
    classes = Classes.plain(class_names, keys, side_templates(root))
    return FileView(source.name, source.path, tuple(labelled), classes, tuple(files), left_out=left_out)


def _check_order(root: Path, path_of_names: Path, names: Sequence[str], keys: Sequence[str]) -> None:
    """See that line k of a file of names means the k-th class folder."""
    if len(names) != len(keys):
        raise DataError(f"{path_of_names} names {len(names)} classes, {root} has {len(keys)} class folders")
    refuse_exchanged(names, keys, path_of_names)
    numbered = [found for key in keys if (found := _NUMBERED.fullmatch(key))]
    numbers = [int(found[2]) for found in numbered]
    alike = len(numbered) == len(keys) and len({(found[1], found[3]) for found in numbered}) == 1
    if alike and numbers != sorted(numbers) and list(names) != list(keys):
        raise DataError(
            f"{root}: its class folders are numbered, which sort as texts (10 before 2), so that {path_of_names} "
            "may name others than were meant; rename them with leading zeros (02)"
        )


def _refuse_empty(source: Source, keys: Sequence[str], labels: Set[int]) -> None:
    if not labels:
        raise DataError(f"{source.where}: no images in its {len(keys)} class folders")
    empty = [key for label, key in enumerate(keys) if label not in labels]
    if empty:
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise DataError(
            f"{source.where}: class folder {empty[0]!r}{more} holds no image, fewer than the one that a "
            f"class must have; delete it (a CSV file,label and {CLASS_NAMES} can also name classes without images)"
        )


def open_csv(source: Source, want: Want, cache: Path | None) -> View:
    """Open a CSV ``file,label``, whose further columns are groups, or ``file,caption``."""
    path = Path(source.path)
    label = source.options["label"]
    if want == "captions":
        return _open_captions(source.name, path)
    if want == "images":
        rows = read_csv(path, ("file",))
        files = files_beside(path, [row["file"] for row in rows])
        return FileView(source.name, source.path, tuple(Sample(row["file"]) for row in rows), None, files)
    rows = read_csv(path, ("file", label))
    columns = list(rows[0])
    names_path = side_file(path.parent, CLASS_NAMES)
    names: Sequence[str] = () if names_path is None else read_class_names(names_path)
    found = label_classes({row[label] for row in rows}.difference(names), f"{path}: column {label!r}")
    keys: Sequence[str] = found
    if names_path is not None:
        keys = class_keys(names, {row[label] for row in rows}, f"{path}: {names_path}")
    index = {key: number for number, key in enumerate(keys)}
    # The label is a group too where it has a name of its own: gender is asked for, and compared between genders.
    groups = [column for column in columns if column not in ("file", "label")]
    samples = tuple(
        Sample(row["file"], index[row[label]], {column: row[column] or NO_GROUP for column in groups}) for row in rows
    )
    classes = Classes.plain(names or keys, keys, side_templates(path.parent))
    return FileView(source.name, source.path, samples, classes, files_beside(path, [row["file"] for row in rows]))


def _open_captions(name: str, path: Path) -> View:
    captions: dict[str, list[str]] = {}
    for row in read_csv(path, ("file", "caption")):
        captions.setdefault(row["file"], []).append(row["caption"])
    where = f"{path}: column 'caption'"
    samples = tuple(Sample(file, captions=checked_captions(tuple(texts), where)) for file, texts in captions.items())
    return FileView(name, str(path), samples, None, files_beside(path, list(captions)))
