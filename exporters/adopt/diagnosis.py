"""Whether an adopted engine answers as its reference does; where it does not, which known mistake explains it.

Rows are compared by their cosine. Every mistake of the tables is tried: the adopted engine is fed as if the mistake
were mended, or the reference as if it were made, and the two are compared again. A mistake is named where that brings
the two together, and no other does as well. Several at once are looked for one after the other, the largest first: that
finds mistakes that do not hide each other, and says what remains where it does not find all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipq.bundle import TOWERS, Bundle, TowerName
from clipq.engines.base import Array, Engine
from clipq.engines.catalog import DEFAULT_RUNTIME, open_engine
from clipq.errors import ClipqError, EngineError
from clipq.exporters.adopt.comparison import Comparison, Explanation, TowerComparison
from clipq.exporters.adopt.feeds import ALL, IdFeed, PixelFeed, Rows, TextFeed
from clipq.exporters.adopt.mistakes import IMAGE_MISTAKES, TEXT_MISTAKES, TOKENIZERS, Mistake
from clipq.exporters.adopt.pooling import IMAGE_POOLINGS, CutTower, Pooling, cut_tower, text_poolings
from clipq.exporters.adopt.samples import Samples, default_samples
from clipq.tokenizer import TextTokenizer

Errors = NDArray[np.float64]

BATCH = 16
# Mistakes are tried on the samples that differ most, and the best of them on all.
SCREENED, CONFIRMED = 12, 4
MOST_TOGETHER = 3

# Of cosines. Two FP32 engines of one checkpoint agree to 0.999999 (demo, lite0-lit), its FP16 engine to 0.99999.
AGREES_MEDIAN, AGREES_LEAST = 0.9999, 0.999
# Least median at which a quantized engine counts as the reference's, by the bits of its weights, or of its activations
# where those have fewer. Measured on towers that are right: 8 bits 0.991, 4 bits 0.991, 2 bits 0.90 (demo, lite0-lit).
QUANTIZED_MEDIAN = {8: 0.97, 4: 0.9, 2: 0.7}
# A mistake is the answer where at least so much of what mending it changes is a step towards the reference (1 where it
# is the only difference, whatever quantization adds; -1 where there is no such mistake), in so many of the rows that it
# touches.
LEAST_STEP, LEAST_ROWS = 0.5, 0.8
# Another mistake explains as well where no more than this remains beside the best.
AS_WELL = 1.1
# An engine whose answers are all that close to each other sees next to nothing of the samples.
DULL = 0.99
# Most of a difference that another pooling may leave.
LEFT_BY_POOLING = 0.2


def compare_engines(
    adopted: Bundle, reference: Bundle, samples: Samples | None = None, progress: Callable[[str], None] | None = None
) -> Comparison:
    """Embed samples in both engines and say whether they agree, or which mistake explains that they do not.

    Plans run in their own runtime, ONNX files in the default one. ``samples`` default to 64 images and 64 texts that
    ship with clipq. ``progress`` is told of each step. Raises EngineError where an engine fails, or answers what is no
    number, and RuntimeUnavailable where a plan does not run here.
    """
    given, say = samples or default_samples(), progress or (lambda line: None)
    image, text = (_compare_tower(adopted, reference, tower, given, say) for tower in TOWERS)
    return Comparison(image, text)


@dataclass
class _Fed:
    """An engine with what it is fed now, and every answer that it gave to all samples."""

    bundle: Bundle
    tower: TowerName
    engine: Engine
    samples: Samples
    feed: Any
    cut: CutTower | None = None
    pooling: Pooling | None = None
    _known: dict[Any, Array] = field(default_factory=dict)

    def arrays(self, rows: Rows = ALL) -> Array:
        """What the engine is fed."""
        return self.feed.arrays(self.samples, rows)

    def embeddings(self, rows: Rows = ALL) -> Array:
        """Unit-length embeddings (samples, width); of some rows alone."""
        key = self.feed, self.pooling
        if key in self._known:
            return self._known[key][rows]
        found = self._run(self.arrays(rows))
        if rows is ALL:
            self._known[key] = found
        return found

    def _run(self, array: Array) -> Array:
        (spec,) = self.engine.inputs
        batch = spec.shape[0] or BATCH
        answers = []
        for start in range(0, len(array), batch):
            part = array[start : start + batch]
            # A fixed batch is filled up.
            whole = part if spec.shape[0] is None else np.resize(part, (batch, *part.shape[1:]))
            whole = whole.astype(spec.dtype, copy=False)
            if self.cut is not None and self.pooling is not None:
                answer = self.cut.run(whole, self.pooling)
            else:
                (answer,) = self.engine.run({spec.name: whole}).values()
            answers.append(answer[: len(part)].astype(np.float64))
        found = np.concatenate(answers)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return found / np.linalg.norm(found, axis=1, keepdims=True)

    def fed(self, **changes: Any) -> _Fed:
        """The same engine, fed or pooled otherwise."""
        return replace(self, **changes)


@dataclass(frozen=True)
class _State:
    """Both engines as they are fed at this point of the search, and how far apart their answers are."""

    adopted: _Fed
    reference: _Fed

    def errors(self, rows: Rows = ALL) -> Errors:
        """1 - cosine of each sample; 2 where an answer is no number."""
        ours, theirs = self.adopted.embeddings(rows), self.reference.embeddings(rows)
        if ours.shape != theirs.shape:
            return np.full(len(ours), np.nan)
        return np.nan_to_num(1 - (ours * theirs).sum(1), nan=2.0)


@dataclass(frozen=True)
class _Try:
    """A mistake, and the engines without it, or with it on both sides."""

    name: str
    sentence: str
    state: _State


def _compare_tower(
    adopted: Bundle, reference: Bundle, tower: TowerName, samples: Samples, say: Callable[[str], None]
) -> TowerComparison:
    say(f"comparing the {tower} tower with the reference's")
    with ExitStack() as opened:
        sides = [
            _Fed(bundle, tower, opened.enter_context(open_engine(bundle, tower, bundle.built_for or DEFAULT_RUNTIME)),
                 samples, _own_feed(bundle, adopted, tower, samples))
            for bundle in (adopted, reference)
        ]  # fmt: skip
        for side, what in zip(sides, ("adopted", "reference's"), strict=True):
            wrong = np.array(~np.isfinite(side.embeddings()).all(axis=1))
            if wrong.any():
                raise EngineError(
                    f"{side.bundle.path}: the {what} {tower} tower answers what is no direction (zero, or not a "
                    f"number) to {wrong.sum()} of {len(wrong)} samples; make it again"
                )
        state = _State(*sides)
        plain = state.errors()
        cosines = 1 - plain
        found = TowerComparison(
            tower, len(plain), float(np.median(cosines)), float(cosines.min()), _similarity(state), "agrees"
        )
        if _reached(plain):
            return found
        say(f"looking for what explains the {tower} tower's difference")
        sides[1].cut = opened.enter_context(cut_tower(reference, tower, sides[1].arrays()[:3]))
        least = min(_least_median(bundle, tower) for bundle in (adopted, reference))
        return replace(found, **_explained(state, least))


def _own_feed(bundle: Bundle, adopted: Bundle, tower: TowerName, samples: Samples) -> PixelFeed | TextFeed | IdFeed:
    """What evaluation feeds, taken apart where that gives the same ids; images in the adopted engine's order of steps.

    Whose rounding that is, is no mistake: half a pixel of a crop goes one way in open_clip, another in transformers.
    """
    if tower == "image":
        return PixelFeed.of(bundle).change(library=adopted.manifest.preprocess.library)
    feed, ids = TextFeed.of(bundle), TextTokenizer(bundle)(samples.texts)
    return feed if np.array_equal(feed.arrays(samples), ids) else IdFeed(ids)


def _least_median(bundle: Bundle, tower: TowerName) -> float:
    """The median cosine that a tower's bits can be blamed for; 1 where it is not quantized."""
    recipe = bundle.manifest.recipe
    bits = min(recipe.scheme.weight_bits, recipe.scheme.activation_bits) if tower in recipe.towers else 32
    # Not known: 0.
    return next((QUANTIZED_MEDIAN[known] for known in QUANTIZED_MEDIAN if bits >= known), 0.7) if bits < 16 else 1.0


def _explained(state: _State, least: float) -> dict[str, Any]:
    """Verdict and explanations, by taking the mistake that explains most again and again."""
    plain = state.errors()
    explanations: list[Explanation] = []
    while len(explanations) < MOST_TOGETHER and not _reached(state.errors()):
        best = _best(state)
        if best is None:
            break
        explanation, state = best
        explanations.append(explanation)
    left = state.errors()
    fields = {"explanations": tuple(explanations), "remaining": float(1 - np.median(left))}
    near = 1 - np.median(left) >= least
    if not explanations:
        if np.isnan(plain).all():
            return {"verdict": "not comparable"}
        return {"verdict": "agrees as quantized"} if near else {"verdict": "not explained", "note": _note(state)}
    if _reached(left) or near:
        return {"verdict": "explained", **fields}
    if left.mean() <= plain.mean() / 2:
        return {"verdict": "explained in part", **fields}
    return {"verdict": "not explained", "note": _note(state)}


def _best(state: _State) -> tuple[Explanation, _State] | None:
    """The mistake that explains most of what is between two engines now, with its evidence; None where none does."""
    plain = state.errors()
    tries = list(_tries(state))
    screened = np.sort(np.argsort(-np.nan_to_num(plain, nan=1.0))[:SCREENED])
    scores = [_score(one, screened) for one in tries]
    first = sorted((score, index) for index, score in enumerate(scores) if np.isfinite(score))[:CONFIRMED]
    taken = [tries[index] for _, index in first if _explains(state, tries[index])]
    if not taken:
        return None
    least = min(taken, key=lambda one: one.state.errors().mean())
    # What mends the adopted engine proves its graph right; what spoils the reference only looks like it, and says least
    # where the adopted engine sees nothing.
    alike = [one for one in taken if _as_well(one, least) or _is_one(state.adopted, DULL)]
    mended = [one for one in alike if one.state.reference is state.reference]
    best = min(mended or alike, key=lambda one: one.state.errors().mean())
    also = {one.name for one in mended or alike} - {best.name}
    touched = _touched(state, best.state)
    without, mended_to = (float(1 - np.median(some[touched])) for some in (plain, best.state.errors()))
    rows = int(touched.sum())
    return Explanation(best.name, best.sentence, rows, without, mended_to, tuple(sorted(also))), best.state


def _as_well(one: _Try, best: _Try) -> bool:
    """Whether a mistake explains as well as the best."""
    errors, least = one.state.errors(), best.state.errors()
    return bool(errors.mean() <= least.mean() * AS_WELL or (_reached(errors) and _reached(least)))


def _score(one: _Try, rows: NDArray[np.int64]) -> float:
    """Mean distance of some samples; infinite where an engine does not take what the mistake makes."""
    try:
        return float(np.nan_to_num(one.state.errors(rows), nan=np.inf).mean())
    except ClipqError:
        return float("inf")


def _explains(before: _State, one: _Try) -> bool:
    """Whether what a mistake changes is a step towards the other engine, in nearly all of the samples it touches."""
    after, plain = one.state, before.errors()
    errors, touched = after.errors(), _touched(before, after)
    if not touched.any():
        return False
    if np.isnan(plain).all():
        return _reached(errors)
    if after.reference is not before.reference:
        # An engine that sees nothing of the samples answers as any other does that is made to see nothing; and some
        # pooling is near to many answers, so there only a nearly whole explanation counts.
        dull = any(_is_one(side, DULL) for side in (before.adopted, after.reference))
        pooled = after.reference.pooling is not None
        if (dull and not pooled) or (pooled and errors.mean() > LEFT_BY_POOLING * plain.mean()):
            return False
    gain, moved = (plain - errors)[touched], _moved(before, after)[touched]
    # What is hardly moved is moved by quantization as much.
    clear = moved > moved.mean() / 10
    return bool(clear.any() and gain.mean() / moved.mean() >= LEAST_STEP and (gain[clear] > 0).mean() >= LEAST_ROWS)


def _is_one(side: _Fed, cosine: float) -> bool:
    """Whether an engine gives all samples one embedding, or nearly so."""
    answers = side.embeddings()
    return bool((answers @ answers[0] > cosine).all())


def _moved(before: _State, after: _State) -> Errors:
    """1 - cosine between the answers to each sample as one of the engines was fed and as it is fed now."""
    for old, new in ((before.adopted, after.adopted), (before.reference, after.reference)):
        if old is not new:
            ours, theirs = old.embeddings(), new.embeddings()
            if ours.shape == theirs.shape:
                return np.nan_to_num(1 - (ours * theirs).sum(1), nan=2.0)
    return np.full(len(before.errors()), 2.0)


def _touched(before: _State, after: _State) -> NDArray[np.bool_]:
    """Samples that are fed otherwise, or that another pooling answers otherwise."""
    for old, new in ((before.adopted, after.adopted), (before.reference, after.reference)):
        if old.pooling is not new.pooling:
            return _moved(before, after) > 1e-6
        if old.feed is not new.feed:
            a, b = old.arrays(), new.arrays()
            return (a != b).reshape(len(a), -1).any(1) if a.shape == b.shape else np.ones(len(a), bool)
    return np.zeros(len(before.errors()), bool)


def _tries(state: _State) -> Iterator[_Try]:
    """Every mistake on either side, each feed once, in the order of the tables."""
    ours, theirs = state.adopted, state.reference
    mistakes: tuple[Mistake[Any], ...] = IMAGE_MISTAKES if ours.tower == "image" else TEXT_MISTAKES
    if IdFeed in (type(ours.feed), type(theirs.feed)):
        mistakes = TOKENIZERS
    seen = {(0, ours.feed), (1, theirs.feed)}
    for mistake in mistakes:
        for index, feeds in enumerate((mistake.fixes(ours.feed, theirs.feed), mistake.faults(theirs.feed, ours.feed))):
            for feed in feeds:
                if (index, feed) not in seen:
                    seen.add((index, feed))
                    changed = (ours.fed(feed=feed), theirs) if index == 0 else (ours, theirs.fed(feed=feed))
                    yield _Try(mistake.name, mistake.sentence, _State(*changed))
    if theirs.cut is not None and theirs.pooling is None:
        poolings = IMAGE_POOLINGS if ours.tower == "image" else text_poolings(next(iter(theirs.feed.end[-1:]), None))
        for pooling in poolings:
            yield _Try(
                "pooling" if pooling.projected else "projection",
                f"the graph answers with {pooling.name}, which the checkpoint does not: export the tower with the "
                "checkpoint's own pooled and projected output",
                _State(ours, theirs.fed(pooling=pooling)),
            )


def _reached(errors: Errors) -> bool:
    """Whether two floating-point engines count as one."""
    return bool(np.median(errors) <= 1 - AGREES_MEDIAN and errors.max() <= 1 - AGREES_LEAST)


def _similarity(state: _State) -> float:
    """Correlation of the similarities between samples in one engine and in the other."""
    above = np.triu_indices(len(state.errors()), 1)
    ours, theirs = ((side.embeddings() @ side.embeddings().T)[above] for side in (state.adopted, state.reference))
    if min(ours.std(), theirs.std()) < 1e-9:
        return 0.0
    return float(np.corrcoef(ours, theirs)[0, 1])


def _note(state: _State) -> str:
    """What can be said of an engine that no mistake explains."""
    if _is_one(state.adopted, AGREES_MEDIAN):
        return (
            f"; all {len(state.errors())} samples have one embedding: the graph looks at nothing that differs between "
            "them, as a text tower does that is pooled at its start token"
        )
    return ""
