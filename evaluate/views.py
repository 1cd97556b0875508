"""Data views: labelled images in an order, with class names, groups and a digest of their content.

Written on the command line as ``[NAME=]SOURCE[:option=value,...]``, where SOURCE is an ImageFolder (CLIP_benchmark's
layout), a CSV (``file,label[,group...]``), or ``demo:SET``.
"""

from __future__ import annotations

import csv
import hashlib
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipq.bundle import Preprocess
from clipq.demo import world
from clipq.errors import DataError
from clipq.files import sha256_file
from clipq.preprocess import open_image, resize_and_crop

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"

OnBadImage = Literal["error", "skip"]


@dataclass(frozen=True)
class Sample:
    """One labelled image: its id within the view, its class index, and its group values by column."""

    id: str
    label: int
    groups: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class View(ABC):
    """Samples in a fixed order, the names of their classes, and the templates the data set brings, if any."""

    name: str
    source: str
    samples: tuple[Sample, ...]
    class_names: tuple[str, ...]
    templates: tuple[str, ...] | None

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Decode sample ``index``; raises DataError where it cannot be."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 over ids and image contents (labels and class names do not touch embeddings)."""

    def pixels(self, start: int, stop: int, config: Preprocess, on_bad_image: OnBadImage) -> PixelBatch:
        """Samples ``start`` to ``stop`` resized and cropped; bad images raise, or are left out and named."""
        rows, arrays, skipped = [], [], {}
        for index in range(start, min(stop, len(self.samples))):
            try:
                arrays.append(np.asarray(resize_and_crop(self.image(index), config)))
                rows.append(index)
            except DataError as error:
                if on_bad_image == "error":
                    raise DataError(f"{error}; mend it, or leave such files out with --on-bad-image skip") from error
                skipped[self.samples[index].id] = str(error)
        height, width = config.image_size
        stacked = np.stack(arrays) if arrays else np.zeros((0, height, width, 3), np.uint8)
        return PixelBatch(np.array(rows, dtype=np.int64), stacked, skipped)


@dataclass(frozen=True)
class PixelBatch:
    """Row numbers, pixels (uint8, N × H × W × 3) and the reason of each sample left out, by id."""

    rows: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    skipped: dict[str, str]


@dataclass(frozen=True)
class FileView(View):
    """Images in files."""

    root: Path
    files: tuple[Path, ...]

    def image(self, index: int) -> Image.Image:
        """Decode one file."""
        return open_image(self.files[index])

    def digest(self) -> str:
        """SHA-256 over ids and file contents."""
        state = hashlib.sha256()
        for sample, path in zip(self.samples, self.files, strict=True):
            state.update(f"{sample.id}\0{sha256_file(path)}\n".encode())
        return state.hexdigest()


@dataclass(frozen=True)
class DemoView(View):
    """Images of the demo world, drawn when they are asked for."""

    set_name: str

    def image(self, index: int) -> Image.Image:
        """Draw one image."""
        return Image.fromarray(world.sample(self.set_name, index)[1])

    def digest(self) -> str:
        """SHA-256 over ids and drawn pixels."""
        state = hashlib.sha256()
        for index, sample in enumerate(self.samples):
            state.update(sample.id.encode() + world.sample(self.set_name, index)[1].tobytes())
        return state.hexdigest()


def open_view(spec: str) -> View:
    """Open a data view from its command-line form; raises DataError in one line for whatever does not fit."""
    name, source, options = _parse(spec)
    if source.startswith("demo:"):
        return _open_demo(name, source, options)
    path = Path(source)
    if path.is_dir():
        _known(options, (), source)
        view: View = _open_folder(name or path.name, path)
    elif path.is_file() and path.suffix.lower() == ".csv":
        _known(options, ("label",), source)
        view = _open_csv(name or path.resolve().parent.name, path, options.get("label", "label"))
    else:
        raise DataError(f"--data {source}: neither a folder, nor a .csv file, nor demo:SET")
    _check(view)
    return view


def _parse(spec: str) -> tuple[str | None, str, dict[str, str]]:
    name = None
    found = re.match(r"([A-Za-z0-9][\w.-]*)=(.+)$", spec)
    if found and not Path(spec).exists():
        name, spec = found.group(1), found.group(2)
    options = {}
    found = re.match(r"(.+?):((?:[a-z_]+=[^,=]+)(?:,[a-z_]+=[^,=]+)*)$", spec)
    if found and not Path(spec).exists():
        spec = found.group(1)
        options = dict(item.split("=", 1) for item in found.group(2).split(","))
    return name, spec, options


def _known(options: dict[str, str], known: Sequence[str], source: str) -> None:
    for option in options:
        if option not in known:
            raise DataError(f"--data {source}: unknown option {option!r}; known: {', '.join(known) or 'none'}")


def _open_demo(name: str | None, source: str, options: dict[str, str]) -> DemoView:
    _known(options, ("n",), source)
    set_name = source.removeprefix("demo:")
    labelled = [key for key, value in world.SETS.items() if value.role in ("in-distribution", "shifted")]
    if set_name not in labelled:
        raise DataError(f"--data {source}: unknown set of the demo world; labelled ones: {', '.join(labelled)}")
    try:
        count = int(options.get("n", world.SETS[set_name].count))
    except ValueError as error:
        raise DataError(f"--data {source}: n={options['n']!r} is not a number") from error
    samples = []
    for index in range(count):
        scene, _ = world.sample(set_name, index)
        assert scene.shape is not None
        label = world.CLASS_NAMES.index(scene.shape)
        samples.append(Sample(f"{set_name}/{index:05d}", label, {"light": scene.light, "size": scene.size}))
    view = DemoView(name or f"demo-{set_name}", source, tuple(samples), world.CLASS_NAMES, None, set_name)
    _check(view)
    return view


def _open_folder(name: str, root: Path) -> FileView:
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise DataError(f"--data {root}: no class folders in it (an ImageFolder has one folder per class)")
    files, samples = [], []
    for label, folder in enumerate(folders):
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                files.append(path)
                samples.append(Sample(path.relative_to(root).as_posix(), label))
    if not files:
        raise DataError(f"--data {root}: no images in its {len(folders)} class folders")
    found = _lines(root, CLASS_NAMES)
    if found is None:
        class_names = tuple(folder.name.replace("_", " ") for folder in folders)
    else:
        path, class_names = found
        if len(class_names) != len(folders):
            raise DataError(f"{path} names {len(class_names)} classes, {root} has {len(folders)} class folders")
    return FileView(name, str(root), tuple(samples), class_names, _templates(root), root, tuple(files))


def _open_csv(name: str, path: Path, label_column: str) -> FileView:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        columns = list(reader.fieldnames or [])
        for needed in ("file", label_column):
            if needed not in columns:
                hint = ":label=COLUMN chooses another label column" if needed == label_column else "paths go there"
                raise DataError(f"{path}: has no column {needed!r} (it has {', '.join(columns)}); {hint}")
        rows = list(reader)
    if not rows:
        raise DataError(f"{path}: has no rows")
    labels = [row[label_column] for row in rows]
    found = _lines(path.parent, CLASS_NAMES)
    values = sorted(set(labels))
    if found is None:
        class_names = tuple(values)
        index = {value: number for number, value in enumerate(values)}
    else:
        names_path, class_names = found
        index = {value: number for number, value in enumerate(class_names)}
        if all(value.isdecimal() for value in values):
            index = {str(number): number for number in range(len(class_names))}
        unknown = [value for value in values if value not in index]
        if unknown:
            raise DataError(f"{path}: label {unknown[0]!r} is not in {names_path}")
    groups = [column for column in columns if column not in ("file", label_column)]
    files = tuple(path.parent / row["file"] for row in rows)
    repeated = [file for file, count in Counter(files).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: names {repeated[0].relative_to(path.parent)} more than once")
    for file in files:
        if not file.is_file():
            raise DataError(f"{path}: names {file.relative_to(path.parent)}, which does not exist")
    samples = tuple(
        Sample(row["file"], index[row[label_column]], {column: row[column] for column in groups}) for row in rows
    )
    return FileView(name, str(path), samples, class_names, _templates(path.parent), path.parent, files)


def _lines(folder: Path, name: str) -> tuple[Path, tuple[str, ...]] | None:
    """The lines of a side file in the folder or beside it, with the file's path."""
    for path in (folder / name, folder.resolve().parent / name):
        if path.is_file():
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
            return path, tuple(line for line in lines if line)
    return None


def _templates(folder: Path) -> tuple[str, ...] | None:
    found = _lines(folder, TEMPLATES)
    if found is None:
        return None
    path, lines = found
    templates = tuple(line.replace("{c}", "{}") for line in lines)
    for template in templates:
        if template.count("{}") != 1:
            raise DataError(f"{path}: template {template!r} must hold {{}} or {{c}} exactly once")
    return templates


def _check(view: View) -> None:
    repeated = [name for name, count in Counter(view.class_names).items() if count > 1]
    if repeated:
        raise DataError(f"{view.source}: class name {repeated[0]!r} stands for more than one class; tell them apart")
    if len(view.class_names) < 2:
        raise DataError(f"{view.source}: only one class ({view.class_names[0]!r}); classification needs two")
    if len(view.samples) < len(view.class_names):
        raise DataError(
            f"{view.source}: {len(view.samples)} samples are fewer than the {len(view.class_names)} classes"
        )
