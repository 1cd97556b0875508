"""Members of a shard paired to samples by webdataset's rule; what cannot be paired is an error or named.

A member's base name is split at its first dot: the folder and what is before the dot are the key, what follows is the
extension. A sample is an image, with a ``.cls`` (class index) or ``.txt`` (captions, one a line) under the same key.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from clipq.data.shards import Member, Shard
from clipq.data.source import IMAGE_SUFFIXES, Want, checked_captions, side_lines
from clipq.data.views import UNLABELLED
from clipq.errors import DataError
from clipq.text_files import as_text

# The extension of what a reading wants beside each image, what it is, and the most bytes that it may have.
_BESIDE = {"labels": ("cls", "a class index", 2**10), "captions": ("txt", "captions", 2**20)}
MOST_IMAGE = 256 * 2**20

_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")


@dataclass(frozen=True)
class Pair:
    """An image and what was written beside it."""

    image: Member
    label: int = UNLABELLED
    captions: tuple[str, ...] = ()


@dataclass
class _Group:
    """The members under one key: the image, ``cls`` and ``txt``, each once, and others."""

    parts: dict[str, Member] = field(default_factory=dict)
    others: list[Member] = field(default_factory=list)


def pairs(shard: Shard, want: Want, left_out: dict[str, str], beside: Counter[str]) -> Iterator[Pair]:
    """The samples of a shard in the order of its images; raises DataError for what should be one and cannot.

    Members without an image under their key get their reason in ``left_out``; those beside an image that nobody reads
    are counted by extension in ``beside``.
    """
    groups = _groups(shard, left_out)
    for key, group in groups.items():
        _check_group(shard, key, group, want)
        if "image" in group.parts:
            beside.update(_extension(member) for member in group.others)
        else:
            unread = [*group.parts.values(), *group.others]
            left_out.update((member.name, f"has no image under its key {key!r}") for member in unread)
    whole = [group for group in groups.values() if "image" in group.parts]
    whole.sort(key=lambda group: group.parts["image"].offset)
    with shard.path.open("rb") as stream:
        for group in whole:
            yield _pair(shard, stream, group, want)


def _groups(shard: Shard, left_out: dict[str, str]) -> dict[str, _Group]:
    groups: dict[str, _Group] = {}
    for member in shard.members:
        found = _KEY.fullmatch(member.name)
        if found is None or _base(member).startswith("."):
            left_out[member.name] = "is hidden, or has no extension"
            continue
        group = groups.setdefault(found[1], _Group())
        extension = _extension(member)
        kind = "image" if extension in IMAGE_SUFFIXES else extension[1:]
        if kind not in ("image", "cls", "txt"):
            group.others.append(member)
        elif kind in group.parts:
            other = group.parts[kind].name
            raise DataError(f"{shard.path}: {other} and {member.name} are both under the key {found[1]!r}; keep one")
        else:
            group.parts[kind] = member
    return groups


def _check_group(shard: Shard, key: str, group: _Group, want: Want) -> None:
    """See that no image or label is lost: IMG.v2.jpg is the ``v2.jpg`` of the key IMG, and no image to webdataset."""
    lone = "image" not in group.parts
    lost = {f".{_BESIDE[want][0]}"} if want in _BESIDE else set()
    lost |= IMAGE_SUFFIXES if lone else set()
    for member in [*(group.parts.values() if lone else ()), *group.others]:
        if f".{_extension(member).rpartition('.')[2]}" in lost:
            raise DataError(
                f"{shard.path}: {member.name} cannot be paired: split at its first dot, its key is {key!r} and its "
                f"extension {_extension(member)}; rename it, add what is missing, or take it out"
            )


def _pair(shard: Shard, stream: BinaryIO, group: _Group, want: Want) -> Pair:
    image = group.parts["image"]
    if image.size > MOST_IMAGE:
        raise DataError(f"{shard.path}: {image.name} has {image.size} bytes, more than the {MOST_IMAGE} of an image")
    if want not in _BESIDE:
        return Pair(image)
    extension, what, most = _BESIDE[want]
    member = group.parts.get(extension)
    if member is None:
        raise DataError(f"{shard.path}: {image.name} has no .{extension} with {what} beside it")
    if member.size > most:
        raise DataError(f"{shard.path}: {member.name} has {member.size} bytes, more than the {most} of {what}")
    stream.seek(member.offset)
    text = as_text(stream.read(member.size), f"{shard.path}: {member.name}", DataError)
    if want == "captions":
        captions = side_lines(text)
        if not captions:
            raise DataError(f"{shard.path}: {member.name} is empty; write captions in it, one a line")
        return Pair(image, captions=checked_captions(captions, f"{shard.path}: {member.name}"))
    # Not what int() takes: 007, +3, 1_0 and other scripts' digits are some other number's names.
    if not re.fullmatch(r"[ \t\r\n]*(0|[1-9][0-9]{0,8})[ \t\r\n]*", text):
        raise DataError(f"{shard.path}: {member.name} holds {text[:40]!r}, which is no class index (0, 1, 2 and so on)")
    return Pair(image, int(text))


def _extension(member: Member) -> str:
    return "." + _base(member).partition(".")[2].lower()


def _base(member: Member) -> str:
    return member.name.rpartition("/")[2]
