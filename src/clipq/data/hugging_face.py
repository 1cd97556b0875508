"""Hugging Face datasets (``hf:org/name`` or a folder that ``datasets`` can load), through the ``datasets`` library."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from clipq.data.image_files import find_images
from clipq.data.shards import read_shard
from clipq.data.source import (
    Source,
    Want,
    checked_captions,
    class_keys,
    label_classes,
    read_class_names,
    refuse_exchanged,
)
from clipq.data.views import MOST_BYTES, NO_GROUP, UNLABELLED, Classes, EncodedView, Sample
from clipq.errors import DataError
from clipq.files import sha256_bytes
from clipq.text_files import read_bytes

# Suffixes of what the library makes rows of, but for JSON, which also says something about a data set.
_TABLES = {".parquet", ".arrow", ".csv", ".tsv", ".jsonl", ".ndjson", ".tar", ".zip"}
# One of several files, as the hub's are called, with a digest or without.
_PART = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})(?:-[0-9a-f]{16})?(\.[^/]*)")
# fsspec's names for what lies on this machine: files, and what is packed in them.
_LOCAL = {None, "file", "local", "zip", "tar", "gzip", "bz2", "xz", "lz4", "zstd"}


@dataclass(frozen=True)
class HuggingFaceView(EncodedView):
    """Rows of a table with one column, which holds encoded files; ``folder`` is where paths in it are seen from.

    With others beside it, the library would decode all of a row that is asked for, in any format that Pillow has.

    ``unusable`` says by row what a sample lacks.
    """

    table: Any
    column: str
    folder: Path
    unusable: Mapping[int, str]

    def image(self, index: int) -> Image.Image:
        """Decode one row's image; raises DataError too where the row has no image, or no caption that is asked for."""
        if index in self.unusable:
            raise DataError(f"{self.samples[index].id}: {self.unusable[index]}")
        return super().image(index)

    def image_digest(self, index: int) -> str:
        """SHA-256 of one image's content, and of what makes it unusable: other views of the same rows may use it."""
        digest = super().image_digest(index)
        return sha256_bytes(f"{digest} {self.unusable[index]}".encode()) if index in self.unusable else digest

    def encoded(self, index: int) -> bytes:
        """The bytes of one row's image, none where it has no image; raises DataError for a path to no file."""
        stored = self.table[index][self.column]
        if stored is None or (stored["bytes"] is None and stored["path"] is None):
            return b""
        if stored["bytes"] is not None:
            data: bytes = stored["bytes"]
            return data
        try:
            return read_bytes(self.folder / stored["path"], DataError, MOST_BYTES)
        except DataError as error:
            raise DataError(
                f"{self.samples[index].id}: its image is {stored['path'][:200]}, which cannot be read ({error})"
            ) from error


def open_hugging_face(source: Source, want: Want, cache: Path | None) -> HuggingFaceView:
    """Open a split; raises DataError where the columns do not fit or the hub is unreachable."""
    import datasets

    spec, options = source.path, source.options
    table = _ask(datasets.load_dataset, source, cache, split=options["split"])
    needed = {"labels": ("image", "label"), "images": ("image",), "captions": ("image", "caption")}[want]
    for role in needed:
        if options[role] not in table.column_names:
            raise DataError(
                f"{spec}: has no column {options[role]!r} (it has {', '.join(table.column_names)}); "
                f":{role}=COLUMN chooses another"
            )
    try:
        # The files as they are: the library's own decoding applies EXIF rotation, open_clip's transform does not.
        table = table.cast_column(options["image"], datasets.Image(decode=False))
    except Exception as error:
        held = table.features[options["image"]]
        raise DataError(
            f"{spec}: column {options['image']!r} holds {held}, not one image a row; :image=COLUMN chooses another"
        ) from error
    columns = {name: _readable(table, name) for name in table.column_names if name != options["image"]}
    count = len(table)
    unusable = _rows_without_image(table, options["image"])
    captions: list[tuple[str, ...]] = [()] * count
    labels, classes = [UNLABELLED] * count, None
    if want == "captions":
        captions = _captions(table, source)
        unusable |= {row: "it has no caption" for row, texts in enumerate(captions) if not texts}
    elif want == "labels":
        labels, classes = _labels(table, source)
    groups = {name: values for name, values in columns.items() if values and name != "label"}
    samples = tuple(
        Sample(
            f"{options['split']}/{row:07d}",
            labels[row],
            {name: values[row] for name, values in groups.items()},
            captions[row],
        )
        for row in range(count)
    )
    folder = Path(source.place).resolve()
    images = table.select_columns([options["image"]])
    files = _data_files(source, cache)
    return HuggingFaceView(
        source.name, spec, samples, classes, images, options["image"], folder, unusable,
        left_out=_unread(source, images, files), unverified=_unverified(source, files),
    )  # fmt: skip


def _data_files(source: Source, cache: Path | None) -> Mapping[str, Sequence[str]]:
    """The files of a folder that the library reads, by split; none of what lies elsewhere."""
    import datasets

    if not Path(source.place).is_dir():
        return {}
    return _ask(datasets.load_dataset_builder, source, cache).config.data_files or {}


def _unverified(source: Source, files: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Tars of the split of which nobody says that they are whole; raises DataError where a file is missing or cut."""
    asked = re.findall(r"\w+(?:\.\w+)*", source.options["split"])
    wanted = [file for split, names in files.items() if str(split) in asked or "all" in asked for file in names]
    parts: dict[tuple[str, ...], set[int]] = {}
    for name in wanted:
        if found := _PART.fullmatch(name):
            before, number, count, after = found.groups()
            parts.setdefault((before, count, after), set()).add(int(number))
    for (before, count, after), numbers in parts.items():
        if missing := sorted(set(range(int(count))) - numbers):
            raise DataError(
                f"{source.path}: {Path(before).name}-{missing[0]:05d}-of-{count}{after} is missing, {len(numbers)} of "
                f"{int(count)} parts are there; fetch all of them, or take the count out of their names"
            )
    # The library's reader ends where a tar does, as if it were whole.
    tars = [Path(name) for name in wanted if name.endswith(".tar") and "://" not in name]
    return tuple(
        f"{path.name} has no end marker: a cut could not be told"
        for path in tars
        if not read_shard(path, path).is_marked
    )


def _unread(source: Source, images: Any, files: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Files in a folder that the library passes over: tables beside those it chose, images of other suffixes."""
    folder, read = Path(source.place), set()
    known = {os.path.realpath(name) for names in files.values() for name in names}
    tables = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in _TABLES) if files else ()
    left_out = {
        path.relative_to(folder).as_posix(): "is not read by the library datasets"
        for path in tables
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and os.path.realpath(path) not in known
    }
    for chunk in images.data.column(0).chunks:
        packed = chunk.field("bytes").is_valid().to_pylist()
        read |= {path for path, inside in zip(chunk.field("path").to_pylist(), packed, strict=True) if not inside}
    if not folder.is_dir() or not read - {None}:
        return left_out
    # Those of another split are not passed over, nor those of the rest where a part of a split is asked for.
    for split, names in files.items():
        read |= set() if split == source.options["split"] else set(names)
    read = {os.path.realpath(folder / path) for path in read if path}
    missed = [path for path in find_images(folder).files if os.path.realpath(path) not in read]
    return left_out | {path.relative_to(folder).as_posix(): "is not read by the library datasets" for path in missed}


def _ask(load: Callable[..., Any], source: Source, cache: Path | None, **options: Any) -> Any:
    """What the library makes of a source; nothing is fetched without a cache."""
    import datasets

    datasets.disable_progress_bars()
    # What they log of a failure is in the error, and a failure is one line.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        with _offline(cache is None):
            return load(
                source.place,
                source.options["config"] or None,
                cache_dir=None if cache is None else str(cache / "hf"),
                **options,
            )
    except Exception as error:
        if isinstance(error, datasets.exceptions.DatasetGenerationError):
            error = error.__cause__ or error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise DataError(f"{source.path}: datasets could not load it ({reason})") from error


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Where wanted, without the network: a folder's own description can name addresses, on the hub or anywhere."""
    import datasets
    import fsspec.core
    import huggingface_hub

    switches: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    open_class = fsspec.core.get_filesystem_class

    def local_class(protocol: str | None) -> Any:
        if protocol not in _LOCAL:
            raise DataError(f"it names {protocol}: addresses; --fetch allows downloads")
        return open_class(protocol)

    with ExitStack() as changed:
        if wanted:
            for switch in switches:
                changed.callback(setattr, switch, "HF_HUB_OFFLINE", switch.HF_HUB_OFFLINE)
                switch.HF_HUB_OFFLINE = True
            changed.callback(setattr, fsspec.core, "get_filesystem_class", open_class)
            fsspec.core.get_filesystem_class = local_class
        yield


def _labels(table: Any, source: Source) -> tuple[list[int], Classes]:
    """Every row's class, and the classes; raises DataError for a column that holds none, and rows without."""
    import datasets

    column, names_file = source.options["label"], source.options["names"]
    feature, where = table.features[column], f"{source.path}: column {column!r}"
    if _items(feature) is not None:
        raise DataError(f"{where} holds lists, but a sample has one class; :label=COLUMN chooses another")
    is_number = _is_value(feature, "int", "bool")
    if not is_number and not isinstance(feature, datasets.ClassLabel) and not _is_value(feature, "string"):
        raise DataError(
            f"{where} holds {getattr(feature, 'dtype', feature)}, no names of classes; :label=COLUMN chooses "
            "a column of words, or of whole numbers that :names=FILE names"
        )
    values: list[Any] = [str(int(value)) if is_number and value is not None else value for value in table[column]]
    missing = [row for row, value in enumerate(values) if not _says_a_class(value)]
    if missing:
        raise DataError(
            f"{source.path}: split {source.options['split']!r} has rows without a label ({len(missing)} of "
            f"{len(values)}, the first is {missing[0]}); choose another :split="
        )
    names = read_class_names(Path(names_file)) if names_file else None
    if isinstance(feature, datasets.ClassLabel):
        keys: Sequence[str] = feature.names
        if names is not None and len(names) != len(keys):
            raise DataError(f"{where} has {len(keys)} classes, {names_file} names {len(names)}")
        refuse_exchanged(names or keys, keys, names_file)
        if max(values, default=-1) >= len(keys):
            raise DataError(f"{where} holds {max(values)}, but has names for {len(keys)} classes")
        labels: list[int] = values
    elif is_number and names is None:
        raise DataError(f"{where} holds numbers, no names of classes; :names=FILE has the names, one a line from 0 on")
    else:
        keys = label_classes(values, where) if names is None else class_keys(names, values, f"{where}: {names_file}")
        index = {key: number for number, key in enumerate(keys)}
        labels = [index[value] for value in values]
    return labels, Classes.plain(names or [key.replace("_", " ") for key in keys], keys)


def _says_a_class(value: str | int | None) -> bool:
    return value >= 0 if isinstance(value, int) else bool(value and value.strip())


def _captions(table: Any, source: Source) -> list[tuple[str, ...]]:
    """Every row's captions, none where one of them is missing or empty; raises DataError for a column without texts."""
    column = source.options["caption"]
    feature = table.features[column]
    if not _is_value(_items(feature) or feature, "string"):
        raise DataError(f"{source.path}: column {column!r} holds {feature}, no texts; :caption=COLUMN chooses another")
    rows = [(one,) if isinstance(one, str) else tuple(one or ()) for one in table[column]]
    where = f"{source.path}: column {column!r}"
    return [checked_captions(row, where) if all(text and text.strip() for text in row) else () for row in rows]


def _rows_without_image(table: Any, column: str) -> dict[int, str]:
    empty: list[bool] = []
    for chunk in table.data.column(column).chunks:
        parts = (part.is_null().to_pylist() for part in (chunk, chunk.field("bytes"), chunk.field("path")))
        empty += [cell or (data and path) for cell, data, path in zip(*parts, strict=True)]
    return {row: "it has no image" for row, one in enumerate(empty) if one}


def _items(feature: Any) -> Any:
    """What a column of lists holds; None for a column of anything else."""
    if isinstance(feature, list):
        return feature[0]
    return getattr(feature, "feature", None)


def _is_value(feature: Any, *dtypes: str) -> bool:
    import datasets

    return isinstance(feature, datasets.Value) and any(dtype in feature.dtype for dtype in dtypes)


def _readable(table: Any, column: str) -> list[str] | None:
    """A column as words, where it holds classes, texts, whole numbers or truth values; None where it does not."""
    import datasets

    feature = table.features[column]
    if isinstance(feature, datasets.ClassLabel):
        names = dict(enumerate(feature.names))
        return [names.get(value, NO_GROUP) for value in table[column]]
    if _is_value(feature, "string", "int", "bool"):
        return [NO_GROUP if value is None else str(value).strip() or NO_GROUP for value in table[column]]
    return None
