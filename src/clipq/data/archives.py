"""Webdataset tars in CLIP_benchmark's layout, from a folder or over HTTP; shards are read in place, never unpacked.

``ROOT/SPLIT/nshards.txt`` holds the number of shards, ``ROOT/SPLIT/0.tar`` and so on their samples: an image, and a
``.cls`` (class index) or ``.txt`` (captions, one a line) with the same stem; ``ROOT/classnames.txt`` and
``ROOT/zeroshot_classification_templates.txt`` name the classes.
"""

from __future__ import annotations

import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from clipq.data.source import CLASS_NAMES, IMAGE_SUFFIXES, TEMPLATES, Source, Want, checked_templates, side_lines
from clipq.data.views import UNLABELLED, Classes, EncodedView, Sample
from clipq.errors import DataError
from clipq.files import sha256_bytes, write_atomic

ATTEMPTS = 4
TIMEOUT = 30.0


@dataclass(frozen=True)
class ArchiveView(EncodedView):
    """Images inside tar files: where each one's bytes lie."""

    places: tuple[tuple[Path, int, int], ...]

    def encoded(self, index: int) -> bytes:
        """Read one member's bytes."""
        path, offset, size = self.places[index]
        with path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)

    def lies_in(self, index: int) -> Path:
        """The shard of one member."""
        return self.places[index][0]


def open_archives(source: Source, want: Want, cache: Path | None) -> ArchiveView:
    """Open a folder or URL of shards; raises DataError for missing, truncated or hostile ones."""
    spec, split = source.path, source.options["split"]
    # CLIP_benchmark's users write the hub's page of a folder; its files lie under /resolve/.
    root = source.place.rstrip("/").replace("/tree/main", "/resolve/main")
    get = _fetcher(root, cache) if "://" in root else _finder(Path(root))
    counted = get(f"{split}/nshards.txt")
    if counted is None or not counted.read_text().strip().isdecimal():
        raise DataError(f"{spec}: has no {split}/nshards.txt with the number of shards")
    samples: list[Sample] = []
    places: list[tuple[Path, int, int]] = []
    for number in range(int(counted.read_text())):
        shard = get(f"{split}/{number}.tar")
        if shard is None:
            raise DataError(f"{spec}: {split}/{number}.tar is missing ({split}/nshards.txt counts it)")
        _read_shard(shard, f"{split}/{number}.tar", want, samples, places)
    classes = None
    if want == "labels":
        names = get(CLASS_NAMES)
        if names is None:
            raise DataError(f"{spec}: has no {CLASS_NAMES}")
        templates = get(TEMPLATES)
        lines = None if templates is None else checked_templates(templates, side_lines(templates.read_text("utf-8")))
        classes = Classes.plain(side_lines(names.read_text("utf-8")), templates=lines)
        for sample in samples:
            if not 0 <= sample.label < len(classes.names):
                raise DataError(
                    f"{spec}: {sample.id} has class {sample.label}, {CLASS_NAMES} {len(classes.names)} lines"
                )
    return ArchiveView(source.name, spec, tuple(samples), classes, tuple(places))


def _read_shard(path: Path, where: str, want: Want, samples: list[Sample], places: list[tuple[Path, int, int]]) -> None:
    """Index one shard: where its images lie, and the labels or captions beside them."""
    images: dict[str, tuple[str, int, int]] = {}
    texts: dict[tuple[str, str], str] = {}
    size_of_file = path.stat().st_size
    try:
        with tarfile.open(path) as shard:
            for member in shard:
                parts = PurePosixPath(member.name).parts
                if member.name.startswith("/") or ".." in parts:
                    raise DataError(
                        f"{path}: member {member.name!r} points outside the archive; do not trust this file"
                    )
                if not member.isfile():
                    continue
                if member.offset_data + member.size > size_of_file:
                    raise DataError(f"{path}: is truncated inside {member.name}; fetch or copy it again")
                stem, _, extension = member.name.partition(".")
                if f".{extension.lower()}" in IMAGE_SUFFIXES:
                    images[stem] = (member.name, member.offset_data, member.size)
                elif extension in ("cls", "txt"):
                    stream = shard.extractfile(member)
                    assert stream is not None
                    texts[stem, extension] = stream.read().decode("utf-8")
    except tarfile.TarError as error:
        raise DataError(f"{path}: is no readable tar file ({error}); fetch or copy it again") from error
    for stem, (name, offset, size) in images.items():
        label = UNLABELLED
        captions: tuple[str, ...] = ()
        if want == "labels":
            written = texts.get((stem, "cls"), "").strip()
            if not written.isdecimal():
                raise DataError(f"{path}: {name} has no .cls with a class index beside it")
            label = int(written)
        elif want == "captions":
            captions = side_lines(texts.get((stem, "txt"), ""))
            if not captions:
                raise DataError(f"{path}: {name} has no .txt with captions beside it")
        samples.append(Sample(f"{where}/{name}", label, captions=captions))
        places.append((path, offset, size))


def _finder(root: Path) -> Callable[[str], Path | None]:
    return lambda name: root / name if (root / name).is_file() else None


def _fetcher(root: str, cache: Path | None) -> Callable[[str], Path | None]:
    """Files below a URL, kept in the cache; None for one that the server does not have."""
    assert cache is not None, "addresses are refused without one"
    folder = cache / "wds" / sha256_bytes(root.encode())[:16]

    def get(name: str) -> Path | None:
        path = folder / name
        if not path.is_file():
            content = _download(f"{root}/{name}")
            if content is None:
                return None
            write_atomic(path, content)
        return path

    return get


def _download(url: str) -> bytes | None:
    """The body of a URL, tried ATTEMPTS times with growing pauses; None for 404."""
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(0.5 * 2**attempt)
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
                body: bytes = answer.read()
                announced = answer.headers.get("Content-Length")
                if announced is not None and len(body) != int(announced):
                    reason = f"{len(body)} of {announced} bytes came"
                    continue
                return body
        except urllib.error.HTTPError as error:
            if error.code in (403, 404, 410):
                if error.code == 404:
                    return None
                raise DataError(f"{url}: the server refuses it ({error.code} {error.reason})") from error
            reason = f"{error.code} {error.reason}"
        except (OSError, ValueError) as error:
            reason = str(getattr(error, "reason", error))
    raise DataError(f"{url}: could not be fetched in {ATTEMPTS} attempts ({reason}); check the address and the network")
