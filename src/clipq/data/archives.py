"""Webdataset tars in CLIP_benchmark's layout, from a folder or over HTTP; shards are read in place, never unpacked.

``ROOT/SPLIT/nshards.txt`` holds the number of shards, ``ROOT/SPLIT/0.tar`` and so on their samples, and
``ROOT/SPLIT/sizes.json``, where there is one, how many each has; ``ROOT/classnames.txt`` and
``ROOT/zeroshot_classification_templates.txt`` name the classes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Protocol, TypeVar

from clipq.data.downloads import Mirror
from clipq.data.shards import read_shard
from clipq.data.source import CLASS_NAMES, TEMPLATES, Source, Want, checked_templates, class_names_of, side_lines
from clipq.data.views import Classes, EncodedView, Sample
from clipq.data.webdataset import pairs
from clipq.errors import DataError
from clipq.text_files import as_text, read_bytes, read_json

_COUNT = "nshards.txt"
_SIZES = "sizes.json"

Content = TypeVar("Content")


class _Place(Protocol):
    """Where the files of a data set are."""

    def read(self, name: str, parse: Callable[[Path, object], Content]) -> Content | None:
        """What ``parse`` makes of a file, given its path and what errors call it; None where there is no such file."""


@dataclass(frozen=True)
class _Folder:
    root: Path

    def read(self, name: str, parse: Callable[[Path, object], Content]) -> Content | None:
        path = self.root / name
        return parse(path, path) if path.is_file() else None


@dataclass(frozen=True)
class ArchiveView(EncodedView):
    """Images inside tar files: where each one's bytes lie."""

    places: tuple[tuple[Path, int, int], ...]

    def encoded(self, index: int) -> bytes:
        """Read one member's bytes."""
        path, offset, size = self.places[index]
        with path.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(size)
        if len(data) < size:
            raise DataError(f"{path}: became shorter since it was opened; start again when nobody writes it")
        return data

    def lies_in(self, index: int) -> Path:
        """The shard of one member."""
        return self.places[index][0]


def open_archives(source: Source, want: Want, cache: Path | None) -> ArchiveView:
    """Open a folder or URL of shards; raises DataError for missing, truncated or hostile ones."""
    spec, split = source.path, _checked_split(source)
    place: _Place = _Folder(Path(source.place))
    if "://" in source.place:
        assert cache is not None, "addresses are refused without one"
        place = Mirror.of(source.place, cache)
    count = place.read(f"{split}/{_COUNT}", _count)
    if count is None:
        raise DataError(f"{spec}: has no {split}/{_COUNT} with the number of shards")
    samples: list[Sample] = []
    places: list[tuple[Path, int, int]] = []
    left_out: dict[str, str] = {}
    beside: Counter[str] = Counter()
    counts, unmarked = {}, []
    for name in (f"{number}.tar" for number in range(count)):
        where = f"{split}/{name}"
        shard = place.read(where, read_shard)
        if shard is None:
            raise DataError(f"{spec}: {where} is missing ({split}/{_COUNT} counts it)")
        if not shard.is_marked:
            unmarked.append(name)
        unread: dict[str, str] = {}
        before = len(samples)
        for pair in pairs(shard, want, unread, beside):
            samples.append(Sample(f"{where}/{pair.image.name}", pair.label, captions=pair.captions))
            places.append((shard.path, pair.image.offset, pair.image.size))
        counts[name] = len(samples) - before
        left_out.update((f"{where}/{member}", reason) for member, reason in unread.items())
    left_out.update((f"*{end}", f"{number} files beside images") for end, number in sorted(beside.items()))
    unverified = _unproven(place, split, counts, unmarked)
    if isinstance(place, _Folder):
        read = {_COUNT, _SIZES, *counts}
        declared = place.read(f"{split}/{_SIZES}", _sizes) or {}
        there = {path.name for path in (place.root / split).iterdir()}
        others = sorted({*there, *declared} - read)
        left_out.update((f"{split}/{name}", f"is no shard that {_COUNT} counts") for name in others)
    classes = _classes(spec, place, samples) if want == "labels" else None
    return ArchiveView(
        source.name, spec, tuple(samples), classes, tuple(places), left_out=left_out,
        left_out_unnamed=beside.total() - len(beside), unverified=unverified,
    )  # fmt: skip


def _checked_split(source: Source) -> str:
    split = source.options["split"]
    # A name within the folder on any system: it becomes a path in the cache, too.
    plain = PurePosixPath(split).name == split == PureWindowsPath(split).name and split.isprintable()
    if not plain or split == "..":
        raise DataError(f"{source.where}: split={split} is no name of a folder in it; give one, such as split=test")
    return split


def _unproven(place: _Place, split: str, counts: Mapping[str, int], unmarked: list[str]) -> tuple[str, ...]:
    """Shards of which nobody says that they are whole; raises DataError for one that has another number of samples."""
    # Elsewhere it is asked for where it is needed: each run would ask again for what a server has not.
    if not unmarked and not isinstance(place, _Folder):
        return ()
    declared = place.read(f"{split}/{_SIZES}", _sizes) or {}
    for name, number in counts.items():
        if declared.get(name, number) != number:
            raise DataError(
                f"{split}/{name}: has {number} samples, {split}/{_SIZES} declares {declared[name]}; "
                "fetch or copy it again"
            )
    return tuple(
        f"{split}/{name} has no end marker and no declared size: a cut could not be told"
        for name in unmarked
        if name not in declared
    )


def _count(path: Path, where: object) -> int:
    text = _text(path, where)
    if not re.fullmatch(r"\s*[0-9]{1,6}\s*", text, re.ASCII):
        raise DataError(f"{where}: has no {_COUNT} with the number of shards: {text[:40]!r}; write a number there")
    return int(text)


def _sizes(path: Path, where: object) -> dict[str, int]:
    sizes = read_json(path, DataError, 'it declares how many samples each shard has: {"0.tar": 1000}')
    if not isinstance(sizes, dict) or any(type(number) is not int for number in sizes.values()):
        raise DataError(f'{where}: does not say how many samples each shard has: {{"0.tar": 1000}}; mend or remove it')
    return sizes


def _classes(spec: str, place: _Place, samples: list[Sample]) -> Classes:
    names = place.read(CLASS_NAMES, _class_names)
    if names is None:
        raise DataError(f"{spec}: has no {CLASS_NAMES}")
    for sample in samples:
        if sample.label >= len(names):
            raise DataError(f"{spec}: {sample.id} has class {sample.label}, {CLASS_NAMES} {len(names)} lines")
    return Classes.plain(names, templates=place.read(TEMPLATES, _templates))


def _class_names(path: Path, where: object) -> tuple[str, ...]:
    return class_names_of(_text(path, where), where)


def _templates(path: Path, where: object) -> tuple[str, ...]:
    return checked_templates(where, side_lines(_text(path, where)))


def _text(path: Path, where: object) -> str:
    text = as_text(read_bytes(path, DataError), where, DataError)
    if re.match(r"\s*(<[!?a-z]|[{[]\s*[\"{[])", text, re.IGNORECASE):
        raise DataError(f"{where}: is a web page or JSON, not the text that was meant; see the address in a browser")
    return text
