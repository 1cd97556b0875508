"""A source as it is written, taken apart, and the files beside images that several kinds of sources read."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from clipq import image_formats
from clipq.errors import DataError
from clipq.given import is_unicode, shown, unusable
from clipq.text_files import read_text

if TYPE_CHECKING:
    from clipq.data.views import View

logger = logging.getLogger(__name__)

# Of files and archives' members that are samples.
IMAGE_SUFFIXES = image_formats.SUFFIXES
CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
# What says something about the images of a folder and lies among them.
SIDE_FILES = {CLASS_NAMES, TEMPLATES}

# What tables hold in place of a class: several of them ([0, 1], {}, (0,), tensor(0)), none as programs write it, or
# numbers, of which only whole ones can be classes, and only where there are no others (0.0, 1e-3, -1, nan).
_NO_NAME = re.compile(
    r"\[.*\]|\{.*\}|\([-+\d., ]*\)|\(\s*['\"].*\)|(array|tensor)\(.*\)|nan|NaN|<NA>|NaT|None|NULL|null|#?N/A|n/a|NA"
)
_NUMBER = re.compile(r"[-+]?(\d+([.,]\d*)?|[.,]\d+)(e[-+]?\d+)?|[-+]?inf(inity)?|nan", re.IGNORECASE)
# What stands between several classes in one cell.
_BETWEEN = re.compile(r"\s*[|;,]\s*")
# Several texts written as one: ["a cat", "a dog"].
_TEXTS = re.compile(r"\[\s*(['\"]).*\1\s*\]", re.DOTALL)
_NO_WORD = re.compile(r"[0-9]+|true|false", re.IGNORECASE)

# Names that open_clip's and CLIP_benchmark's list for ImageNet gives to two classes each: published results rest on it.
_IMAGENET_TWICE, _IMAGENET_CLASSES = {"missile", "sunglasses"}, 1000

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Want = Literal["labels", "images", "captions"]


@dataclass(frozen=True)
class Source:
    """A source taken apart; ``path`` is what results and errors call it, ``place`` the path without the prefix."""

    name: str
    path: str
    place: str
    options: Mapping[str, str]

    @property
    def where(self) -> str:
        """What errors call it."""
        return f"--data {self.path}"


def split_source(spec: str, folder: Path = Path()) -> tuple[str, str, str]:
    """``[NAME=]SOURCE[:option=value,...]`` as three texts: ``NAME=`` or nothing, SOURCE, ``:option=...`` or nothing.

    A path that exists as it stands, seen from the folder, is taken as it stands.
    """
    if "\0" in spec:
        raise DataError(f"source {shown(spec)}: holds a NUL")
    before, path, after = "", spec, ""
    found = re.match(r"([A-Za-z0-9][\w.-]*=)(.+)$", path)
    if found and not exists(folder / path):
        before, path = found.groups()
    found = re.match(r"(.+?)(:(?:[a-z_]+=[^,=]+)(?:,[a-z_]+=[^,=]+)*)$", path)
    if found and not exists(folder / path):
        path, after = found.groups()
    return before, path, after


def exists(path: Path) -> bool:
    """Whether there is something: a source with its name and options may be longer than names of files get."""
    return unusable(str(path)) is None and path.exists()


def side_file(folder: Path, name: str) -> Path | None:
    """A side file in the folder or beside it; of a link to a folder, beside the link or the folder."""
    places = (folder, Path(os.path.abspath(folder)).parent, folder.resolve().parent)  # noqa: PTH100
    # Whatever has its name: a folder or a link to nothing is refused by who reads it.
    return next((place / name for place in places if os.path.lexists(place / name)), None)


def side_lines(text: str) -> tuple[str, ...]:
    """The lines of a text, without empty ones."""
    return tuple(line for line in _lines(text) if line)


def read_class_names(path: Path) -> tuple[str, ...]:
    """The class names in a file, line k the k-th class; raises DataError for an empty line between two of them."""
    return class_names_of(read_text(path, DataError), path)


def class_names_of(text: str, where: object) -> tuple[str, ...]:
    """``read_class_names`` of a text; ``where`` is what errors call it."""
    names = tuple(_lines(text.rstrip()))
    if "" in names:
        raise DataError(
            f"{where}: line {names.index('') + 1} is empty, so that later names would stand for other classes; "
            "write one name a line"
        )
    return names


def _lines(text: str) -> list[str]:
    # str.splitlines also parts lines at letters that a name may hold.
    return [line.strip() for line in re.split(r"\r\n|\r|\n", text)]


def side_templates(folder: Path) -> tuple[str, ...] | None:
    """The templates in the folder or beside it, None where there are none."""
    found = side_file(folder, TEMPLATES)
    return None if found is None else read_templates(found)


def read_templates(path: Path) -> tuple[str, ...]:
    """The templates in a file, one a line."""
    return checked_templates(path, side_lines(read_text(path, DataError)))


def checked_templates(path: object, lines: Sequence[str]) -> tuple[str, ...]:
    """Templates with ``{}`` for the class name; raises DataError for one without."""
    templates = tuple(line.replace("{c}", "{}") for line in lines)
    if not templates:
        raise DataError(f"{path}: holds no template; write some, one a line, or remove it")
    for template in templates:
        if template.count("{}") != 1:
            raise DataError(f"{path}: template {template!r} must hold {{}} or {{c}} exactly once")
    return templates


def label_classes(labels: Iterable[str], where: str) -> list[str]:
    """The classes that a column of labels names; raises DataError where those are none, fractions, or several."""
    found = sorted(set(labels))
    odd = [label for label in found if _NO_NAME.fullmatch(label)]
    if not odd and all(map(_NUMBER.fullmatch, found)):
        odd = [label for label in found if not label.isdecimal()]
    if not odd:
        odd = [label for label in found if _BETWEEN.search(label) and set(_BETWEEN.split(label)) <= set(found)]
    if odd:
        raise DataError(
            f"{where} holds values such as {odd[0][:80]}, no names of classes; choose or write another column, or "
            f"name the classes in a file ({CLASS_NAMES} beside a CSV, :names=FILE)"
        )
    return found


def checked_captions(captions: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The captions of an image; raises DataError for one that is a list of several."""
    listed = next(filter(_TEXTS.fullmatch, captions), None)
    if listed is not None:
        raise DataError(f"{where}: {listed[:80]} is a list of captions; write each in a row or line of its own")
    return captions


def refuse_exchanged(names: Sequence[str], keys: Sequence[str], where: object) -> None:
    """Raise DataError where a file names a class as another one is called, so that its lines are in another order."""
    called = {_letters(key): key for key in keys}
    for line, (name, key) in enumerate(zip(names, keys, strict=True), start=1):
        other = called.get(_letters(name), key)
        if _letters(other) != _letters(key):
            raise DataError(
                f"{where}: line {line} calls the class {key!r} {name!r}, as class {other!r} is called; write the names "
                "in the order of the classes"
            )


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", name).casefold()))


def refuse_unwritable(names: Iterable[str], where: str) -> None:
    """Raise DataError for a name that is no UTF-8: no record could hold it."""
    for name in names:
        if not is_unicode(name):
            raise DataError(f"{where}: the name {name} is not UTF-8; rename it")


def class_keys(names: Sequence[str], labels: Collection[str], where: object) -> Sequence[str]:
    """What a data set calls the classes that a file names: their numbers, where all its labels are, or their names.

    Raises DataError for a label that is neither.
    """
    numbers = [str(number) for number in range(len(names))]
    keys: Sequence[str] = numbers if all(map(str.isdecimal, labels)) else names
    # Years, say, or digits, which are names themselves.
    if keys is numbers and set(labels) <= set(names):
        if set(labels) <= set(numbers) and any(names[int(label)] != label for label in labels):
            raise DataError(f"{where}: its names are numbers in another order; write them from 0 on")
        keys = names
    unknown = sorted(set(labels).difference(keys))
    if unknown:
        raise DataError(f"{where}: has no class name for label {unknown[0][:80]!r} (it names {len(names)})")
    return keys


def _alike(names: Sequence[str], read: Sequence[str]) -> str:
    """What to say of the first name that is read as an earlier one; nothing where all are different."""
    earlier: dict[str, str] = {}
    for name, one in zip(names, read, strict=True):
        if one in earlier:
            other = "" if earlier[one] == name else f" (as {earlier[one]!r})"
            return f"class name {name!r}{other} stands for more than one class"
        earlier[one] = name
    return ""


def _is_imagenet(names: Sequence[str]) -> bool:
    """Whether the names that stand for several classes are those of open_clip's list for ImageNet, twice each."""
    twice = {name: count for name, count in Counter(names).items() if count > 1}
    return len(names) == _IMAGENET_CLASSES and twice == dict.fromkeys(_IMAGENET_TWICE, 2)


def checked_classes(view: View) -> View:
    """The view, if classification makes sense on it: two classes or more, with names that tell them apart."""
    assert view.classes is not None
    names = view.classes.names
    # As tokenizers take them: blanks are one, and a letter is the same however it is put together.
    read = [" ".join(unicodedata.normalize("NFC", name).split()) for name in names]
    imagenet = _is_imagenet(read)
    if imagenet:
        twice = " and ".join(sorted(_IMAGENET_TWICE))
        logger.warning("%s: %s stand for two classes each, as in open_clip's names for ImageNet", view.source, twice)
    elif alike := _alike(names, read):
        raise DataError(f"{view.source}: {alike}; write it in one way, or tell them apart")
    if not all(read):
        raise DataError(f"{view.source}: a class has an empty name; name it")
    odd = [name for name in names if _CONTROL.search(name)]
    if odd:
        raise DataError(f"{view.source}: class name {odd[0][:80]!r} holds a tab or another control letter; take it out")
    if not imagenet and (alike := _alike(names, [name.casefold() for name in read])):
        logger.warning("%s: %s to tokenizers without capitals; should it be one?", view.source, alike)
    if all(map(_NO_WORD.fullmatch, read)):
        logger.warning(
            "%s: its classes are called %s; %s gives them names", view.source, ", ".join(read[:3]), CLASS_NAMES
        )
    if len(view.classes.keys) < 2:
        raise DataError(f"{view.source}: only one class ({names[0]!r}); classification needs two")
    if len(view.samples) < len(view.classes.keys):
        # A small part of a large data set tries out whether all works.
        logger.warning(
            "%s: %d samples are fewer than the %d classes; figures by class mean little",
            view.source, len(view.samples), len(view.classes.keys),
        )  # fmt: skip
    return view
