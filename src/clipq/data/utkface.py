"""UTKFace (``utkface:FOLDER``): gender, race and age from the names of its files."""

from __future__ import annotations

import re
from pathlib import Path

from clipq.data.image_files import find_images
from clipq.data.source import Source, Want
from clipq.data.views import Classes, FileView, Sample, View
from clipq.errors import DataError

UTKFACE_GENDERS = ("male", "female")
UTKFACE_RACES = ("White", "Black", "Asian", "Indian", "Others")


def open_utkface(source: Source, want: Want, cache: Path | None) -> View:
    """``[age]_[gender]_[race]_[date].jpg`` in one folder; ages are also grouped by decade."""
    label, root = source.options["label"], Path(source.place)
    if label not in ("gender", "race"):
        raise DataError(f"{source.where}: label={label!r}: gender or race")
    names = UTKFACE_GENDERS if label == "gender" else UTKFACE_RACES
    found = find_images(root)
    samples = []
    for path in found.files:
        named = re.match(r"([0-9]+)_([01])_([0-4])_", path.name)
        if named is None:
            raise DataError(
                f"{path}: is not named AGE_GENDER_RACE_DATE.jpg as UTKFace's are; rename it, or take it out"
            )
        age, gender, race = (int(part) for part in named.groups())
        groups = {
            "gender": UTKFACE_GENDERS[gender],
            "race": UTKFACE_RACES[race],
            "age": f"{age // 10 * 10}-{age // 10 * 10 + 9}",
        }
        samples.append(Sample(path.relative_to(root).as_posix(), names.index(groups[label]), groups))
    classes = Classes.plain(names) if want == "labels" else None
    return FileView(source.name, source.path, tuple(samples), classes, found.files, left_out=found.left_out)
