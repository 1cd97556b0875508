"""Hugging Face datasets (``hf:org/name`` or a folder that ``datasets`` can load), through the ``datasets`` library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipq.data.source import Source, Want
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


def open_hugging_face(source: Source, want: Want, cache: Path | None) -> HuggingFaceView:
    """Open a split; raises DataError where the columns do not fit or the hub is unreachable."""
    import datasets

    spec, options = source.path, source.options
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(
            source.place,
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
    columns = {name: _readable(table, name) for name in table.column_names if name != options["image"]}
    count = len(table)
    captions: list[tuple[str, ...]] = [()] * count
    labels, classes = [UNLABELLED] * count, None
    if want == "captions":
        captions = [(one,) if isinstance(one, str) else tuple(one) for one in table[options["caption"]]]
    elif want == "labels":
        feature = table.features[options["label"]]
        values = columns[options["label"]] or [str(value) for value in table[options["label"]]]
        keys = feature.names if isinstance(feature, datasets.ClassLabel) else sorted(set(values))
        classes = Classes.plain([key.replace("_", " ") for key in keys], keys)
        index = {key: number for number, key in enumerate(keys)}
        if any(value not in index for value in values):
            raise DataError(f"{spec}: split {options['split']!r} has rows without a label; choose another :split=")
        labels = [index[value] for value in values]
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
    return HuggingFaceView(source.name, spec, samples, classes, table, options["image"])


def _readable(table: Any, column: str) -> list[str] | None:
    """A column as words, where it holds classes, texts, whole numbers or truth values; None where it does not."""
    import datasets

    feature = table.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return [feature.names[value] if value >= 0 else "unlabelled" for value in table[column]]
    if isinstance(feature, datasets.Value) and (feature.dtype in ("string", "bool") or "int" in feature.dtype):
        return [str(value) for value in table[column]]
    return None
