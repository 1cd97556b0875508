"""The mistakes that make an engine answer otherwise than its checkpoint: one table, a row for each.

A mistake lies in what came with the files, or in the graph itself, so each is looked for on either side. ``fixes``: how
the adopted engine would have to be fed to answer as the reference does. ``faults``: how the reference would have to be
fed to answer as the adopted engine does. A feed that cannot be is simply not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from clipq.exporters.adopt.feeds import PixelFeed, TextFeed, Triple

Feed = TypeVar("Feed", PixelFeed, TextFeed)
# Of two feeds: the one to be changed, and the other engine's.
Changes = Callable[[Feed, Feed], Iterator[Feed]]

# Pixels between 0 and 1 as they are.
_PLAIN: tuple[Triple, Triple] = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
# What a graph normalizes by, no configuration says: OpenAI's values, ImageNet's, SigLIP's.
_KNOWN: tuple[tuple[Triple, Triple], ...] = (
    ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
)
# No data set's pixels between 0 and 1 have a standard deviation that small: the values are of 0 to 255.
_STD_OF_255 = 0.02


@dataclass(frozen=True)
class Mistake(Generic[Feed]):
    """A row: the mistake's name, what it is and the way out in a sentence, and the feeds that would show it."""

    name: str
    sentence: str
    fixes: Changes[Feed]
    faults: Changes[Feed]


def _values(feed: PixelFeed) -> tuple[Triple, Triple]:
    return feed.config.mean, feed.config.std


def _normalized(feed: PixelFeed, values: tuple[Triple, Triple], scale: float = 1.0) -> PixelFeed:
    """Pixels normalized by other values, and multiplied by ``scale`` behind it."""
    mean, std = values
    return feed.change(mean=mean, std=tuple(value / scale for value in std))


def _again(feed: PixelFeed, values: tuple[Triple, Triple], scale: float = 1.0) -> PixelFeed:
    """Pixels normalized as the feed says, multiplied by ``scale``, and normalized once more by ``values``."""
    (means, stds), (again, by) = _values(feed), values
    return feed.change(
        mean=tuple(m + a * s / scale for m, s, a in zip(means, stds, again, strict=True)),
        std=tuple(s * b / scale for s, b in zip(stds, by, strict=True)),
    )


def _is_plain(feed: PixelFeed) -> bool:
    return _values(feed) == _PLAIN


def _is_of_255(feed: PixelFeed) -> bool:
    return max(feed.config.std) < _STD_OF_255


def _not_normalized(own: PixelFeed, reference: PixelFeed) -> Iterator[PixelFeed]:
    if _is_plain(own):
        yield _normalized(own, _values(reference))
        if _is_plain(reference):
            yield from (_normalized(own, known) for known in _KNOWN)


def _of_255(own: PixelFeed, reference: PixelFeed) -> Iterator[PixelFeed]:
    if _is_of_255(own):
        yield _normalized(own, _values(reference))


def _fed_of_255(reference: PixelFeed, own: PixelFeed) -> Iterator[PixelFeed]:
    yield _normalized(reference, _PLAIN, 255)
    # Mean and std of 0 to 1, taken from and divided into pixels of 0 to 255.
    mean, std = _values(reference)
    scaled: Any = tuple(value / 255 for value in mean)
    yield _normalized(reference, (scaled, std), 255)


def _other_values(own: PixelFeed, reference: PixelFeed) -> Iterator[PixelFeed]:
    if not _is_plain(own) and not _is_of_255(own):
        yield _normalized(own, _values(reference))
        yield from (_normalized(own, known) for known in _KNOWN)


def _fed_other_values(reference: PixelFeed, own: PixelFeed) -> Iterator[PixelFeed]:
    yield from (_normalized(reference, known) for known in (_values(own), *_KNOWN))


def _plain_pixels(own: PixelFeed, reference: PixelFeed) -> Iterator[PixelFeed]:
    if not _is_plain(own):
        yield _normalized(own, _PLAIN)


def _scaled_inside(own: PixelFeed, reference: PixelFeed) -> Iterator[PixelFeed]:
    if not _is_of_255(own):
        yield _normalized(own, _PLAIN, 255)
        yield _normalized(own, _values(own), 255)


def _scaled_again(reference: PixelFeed, own: PixelFeed) -> Iterator[PixelFeed]:
    yield _normalized(reference, _values(reference), 1 / 255)
    yield _again(_normalized(reference, _values(own)), _values(reference), 1 / 255)


def _reversed(own: PixelFeed, other: PixelFeed) -> Iterator[PixelFeed]:
    yield from (replace(own, reversed=how) for how in ("before", "after"))


def _as_the_other(*fields: str) -> Changes[Any]:
    """The fields as the other engine's feed has them."""

    def changed(feed: Any, other: Any) -> Iterator[Any]:
        if isinstance(feed, PixelFeed):
            yield feed.change(**{field: getattr(other.config, field) for field in fields})
        else:
            yield replace(feed, **{field: getattr(other, field) for field in fields})

    return changed


_LIKE = "adopt it with --like the reference, or mend preprocessor_config.json"
_GRAPH = "export the tower without it, or give preprocessing without it"

IMAGE_MISTAKES: tuple[Mistake[PixelFeed], ...] = (
    Mistake("missing normalization", f"pixels are not normalized by mean and std: {_LIKE}",
            _not_normalized, _plain_pixels),
    Mistake("0..255 in place of 0..1", f"pixels of 0 to 255 are fed where the engine takes 0 to 1: {_LIKE}",
            _of_255, _fed_of_255),
    Mistake("mean and std", f"pixels are normalized by another mean and std than the engine takes: {_LIKE}",
            _other_values, _fed_other_values),
    Mistake("double normalization", f"the graph normalizes pixels that are normalized before: {_GRAPH} (mean 0, std 1)",
            _plain_pixels, lambda reference, own: iter([_again(reference, _values(reference))])),
    Mistake("scaled twice", f"the graph divides pixels by 255 that are divided before: {_GRAPH} (no rescaling)",
            _scaled_inside, _scaled_again),
    Mistake("BGR in place of RGB", "the graph takes blue before green and red: export the tower for RGB",
            _reversed, _reversed),
    Mistake("interpolation", f"images are resized by another interpolation: {_LIKE}",
            _as_the_other("interpolation"), _as_the_other("interpolation")),
    Mistake("resize mode", f"images are squashed, cropped or padded where the checkpoint does otherwise: {_LIKE}",
            _as_the_other("resize_mode", "fill_color"), _as_the_other("resize_mode", "fill_color")),
    Mistake("image size", f"images are resized to another size: {_LIKE}",
            _as_the_other("image_size"), _as_the_other("image_size")),
)  # fmt: skip


def _token(field: str, missing: bool) -> tuple[Changes[TextFeed], Changes[TextFeed]]:
    """A token around texts that the adopted engine's tokenizer lacks, or has otherwise.

    Only where the tokenizers differ: no graph adds tokens, and what pools at the end token looks alike without it.
    """

    def as_the_other(feed: TextFeed, other: TextFeed, adopted: TextFeed) -> Iterator[TextFeed]:
        if getattr(feed, field) != getattr(other, field) and (not getattr(adopted, field)) == missing:
            yield replace(feed, **{field: getattr(other, field)})

    return (
        lambda own, reference: as_the_other(own, reference, own),
        lambda reference, own: as_the_other(reference, own, own),
    )


_PROBE = "a photo of a small dog on the green grass"


def _words(kind: str) -> Changes[TextFeed]:
    """The other's cleaning and vocabulary, where that is what they differ in."""

    def changed(feed: TextFeed, other: TextFeed) -> Iterator[TextFeed]:
        mine, theirs = feed.words, other.words
        if mine.ids([_PROBE]) != theirs.ids([_PROBE]):
            found = "vocabulary"
        elif mine.ids([_PROBE.title()]) != theirs.ids([_PROBE.title()]):
            found = "case"
        else:
            found = "cleaning"
        if found == kind:
            yield replace(feed, words=theirs)

    return changed


_TOKENIZER = "adopt it with --like the reference, or with the checkpoint's own tokenizer.json"

TEXT_MISTAKES: tuple[Mistake[TextFeed], ...] = (
    Mistake("missing start token", f"texts begin without the start token: {_TOKENIZER}", *_token("start", True)),
    Mistake("start token", f"texts begin with another token: {_TOKENIZER}", *_token("start", False)),
    Mistake("missing end token", f"texts end without the end token: {_TOKENIZER}", *_token("end", True)),
    Mistake("end token", f"texts end with another token: {_TOKENIZER}", *_token("end", False)),
    Mistake("padding id", f"texts are filled up with another id than the engine takes: {_TOKENIZER}",
            _as_the_other("pad"), _as_the_other("pad")),
    Mistake("padding side", f"texts are filled up on the other side: {_TOKENIZER}",
            _as_the_other("pad_left"), _as_the_other("pad_left")),
    Mistake("truncation", f"long texts are cut elsewhere: {_TOKENIZER}",
            _as_the_other("longest", "cut_left"), _as_the_other("longest", "cut_left")),
    Mistake("lower-casing", f"capitals are kept on one side and lowered on the other: {_TOKENIZER}",
            *(_words("case"),) * 2),
    Mistake("text cleaning", f"punctuation, accents or white space are cleaned otherwise: {_TOKENIZER}",
            *(_words("cleaning"),) * 2),
    Mistake("vocabulary", f"words have other ids: {_TOKENIZER}", *(_words("vocabulary"),) * 2),
)  # fmt: skip

# Where a tokenizer cannot be taken apart: the other's ids as they are.
TOKENIZERS: tuple[Mistake[Any], ...] = (
    Mistake("tokenizer", f"texts have other ids: {_TOKENIZER}",
            lambda own, reference: iter([reference]), lambda reference, own: iter([own])),
)  # fmt: skip
