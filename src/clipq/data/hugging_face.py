"""Hugging Face datasets (``hf:org/name`` or a folder that ``datasets`` can load), through the ``datasets`` library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipq.data.sources import Want
from clipq.data.views import UNLABELLED, Classes, EncodedView, Sample
from clipq.errors import DataError


@dataclass(frozen=True)
class HuggingFaceView(EncodedView):
    """Rows of a table whose image column holds encoded files."""

    table: Any
    column: str

    def encoded(self, index: int) -> bytes:
        """The bytes of one row's image."""
        stored = self.table[index][self.column]
        data: bytes = stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes()
        return data


def open_hugging_face(
    name: str | None, spec: str, options: Mapping[str, str], want: Want, cache: Path | None
) -> HuggingFaceView:
    """Open a split; raises DataError where the library is missing, the columns do not fit or the hub is unreachable."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{spec}: needs the package datasets: pip install '.[hf]' in clipq's folder") from error
    path = spec.removeprefix("hf:")
    if not Path(path).exists() and cache is None:
        raise DataError(f"{spec}: is remote; --fetch allows downloads")
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(
            path,
            options["config"] or None,
            split=options["split"],
            cache_dir=None if cache is None else str(cache / "hf"),
        )
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise DataError(f"{spec}: datasets could not load it ({reason})") from error
    needed = {"labels": ("image", "label"), "images": ("image",), "captions": ("image", "caption")}[want]
    for role in needed:
        if options[role] not in table.column_names:
            raise DataError(
                f"{spec}: has no column {options[role]!r} (it has {', '.join(table.column_names)}); "
                f":{role}=COLUMN chooses another"
            )
    # The files as they are: the library's own decoding applies EXIF rotation, open_clip's transform does not.
    table = table.cast_column(options["image"], datasets.Image(decode=False))
    rest = table.select_columns([options[role] for role in needed if role != "image"]) if len(needed) > 1 else None
    samples, classes = [], None
    feature = table.features[options["label"]] if want == "labels" else None
    values = rest[options[needed[1]]] if rest is not None else [None] * len(table)
    if want == "labels":
        keys = feature.names if isinstance(feature, datasets.ClassLabel) else sorted({str(value) for value in values})
        classes = Classes.plain([str(key).replace("_", " ") for key in keys], [str(key) for key in keys])
        index = {str(key): number for number, key in enumerate(keys)}
        values = [value if isinstance(feature, datasets.ClassLabel) else index[str(value)] for value in values]
    for row, value in enumerate(values):
        label = int(value) if want == "labels" else UNLABELLED
        captions: tuple[str, ...] = ()
        if want == "captions":
            captions = (value,) if isinstance(value, str) else tuple(value)
        samples.append(Sample(f"{options['split']}/{row:07d}", label, captions=captions))
    return HuggingFaceView(name or Path(path).name, spec, tuple(samples), classes, table, options["image"])
