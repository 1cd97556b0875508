"""What a suite asks for, written for an engine that runs where clipq cannot: each image and each text once."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipq import __version__
from clipq.bundle import TOWERS, Bundle, StoredFile, TowerName, stored_file
from clipq.data.pixels import PixelReader
from clipq.data.views import View
from clipq.engines.base import Array
from clipq.engines.external import digests_of
from clipq.errors import DataError, EngineError, RuntimeUnavailable
from clipq.evaluate.cells.cells import CHUNK, BatchSize, run_in_batches, run_on_pixels, unit
from clipq.evaluate.cells.subjects import Subject, runtime_of
from clipq.evaluate.cells.work import (
    ASKED,
    BUNDLE,
    COLUMNS,
    LISTING,
    MANIFEST,
    MASK,
    PICTURES,
    PIXELS,
    README,
    SCHEMA_VERSION,
    TEXTS,
    TOKENS,
    Listed,
    Pixels,
    Tokens,
    Work,
    labels_of,
)
from clipq.evaluate.results.key import condition_group
from clipq.evaluate.results.record import csv_text
from clipq.evaluate.settings import Settings
from clipq.evaluate.suites.plan import Plan
from clipq.evaluate.suites.templates import choose_templates
from clipq.files import sha256_bytes
from clipq.making import directory_in_making
from clipq.packed import packed
from clipq.progress import Progress
from clipq.tokenizer import TextTokenizer

# Rows that the bundle itself answers, so that answers in another order are told: neighbours, and some of all places.
_TRIAL = 32
_TEXTS = 4096

_BRING_BACK = (
    "One embedding for each row of images.npy and one for each row of tokens.npy, in the order of the rows: two arrays "
    "(rows × width, float32 or float16) as .npy or .safetensors. Or, for views that are classified, predictions alone: "
    "a probability for each of a view's labels (columns called as under views.labels) and each of its samples, by its "
    "id (images.csv) or in that order, as CSV, .npz or .parquet."
)
_SQUARE = "the Square attack, which asks an engine itself again and again: one that runs elsewhere is left out of it"


@dataclass(frozen=True)
class Order:
    """What is asked: a plan of a bundle, which says how images and texts become inputs; ``png`` files too or not.

    ``suite`` is the plan's suite as it is written down.
    """

    bundle: Bundle
    plan: Plan
    suite: dict[str, Any]
    png: bool = False


def export_work(order: Order, settings: Settings, target: Path, progress: Progress) -> Work:
    """Write a work folder of everything that is asked of an engine.

    Raises DataError for an image that cannot be decoded, unless the suite skips those, and for a folder that holds what
    was brought back already.
    """
    bundle, plan = order.bundle, order.plan
    _refuse_to_delete(target)
    with directory_in_making(target) as making:
        config = bundle.manifest.preprocess
        listed = asked_images(plan)
        progress.start("images", sum(len(view.samples) for view, _ in listed.values()))
        reader = PixelReader(config, plan.suite.on_bad_image, settings.pixels)
        with _Rows(making, config.image_size) as rows:
            views = [rows.add(name, view, classes, reader, progress) for name, (view, classes) in listed.items()]
        if order.png:
            _write_pictures(making, progress)
        progress.start("texts", 1)
        texts, tokens = _distinct_texts(bundle, plan)
        np.save(making / TOKENS, tokens)
        # With CLIP's padding, which is the token that ends a text, it cannot be told from the ids by who does not know.
        np.save(making / MASK, TextTokenizer(bundle).mask(tokens).astype(np.uint8))
        (making / TEXTS).write_text(json.dumps(texts, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
        asked = {"images": rows.digests(), "texts": _stacked(digests_of(tokens))}
        (making / ASKED).write_bytes(packed(asked | _trial(bundle, making, settings)))
        entries = (bundle.manifest.tokenizer, bundle.manifest.prompts)
        with bundle.unchanged():
            bundle.copy(entries, making / BUNDLE)
        small = (ASKED, LISTING, TEXTS, *(f"{BUNDLE}/{entry.file}" for entry in entries))
        work = Work(
            schema_version=SCHEMA_VERSION,
            clipq=__version__,
            bring_back=_BRING_BACK,
            images=Pixels(
                rows=rows.count,
                digest=sha256_bytes(asked["images"].tobytes()),
                height=config.image_size[0],
                width=config.image_size[1],
                mean=config.mean,
                std=config.std,
            ),
            tokens=Tokens(rows=len(tokens), digest=sha256_bytes(asked["texts"].tobytes()), length=tokens.shape[1]),
            views=tuple(views),
            left_out=(_SQUARE,) if plan.squares else (),
            suite=order.suite,
            bundle_name=bundle.name,
            bundle_digest=bundle.digest,
            bundle=bundle.manifest,
            files=tuple(StoredFile(**stored_file(making, name)) for name in small),
        )
        (making / README).write_text(_readme(work), encoding="utf-8")
        (making / MANIFEST).write_text(work.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return work


def _write_pictures(making: Path, progress: Progress) -> None:
    """The images once more, as PNG files named by their row."""
    pixels = np.load(making / PIXELS, mmap_mode="r")
    progress.start("PNG files", len(pixels))
    (making / PICTURES).mkdir()
    for row, image in enumerate(pixels):
        Image.fromarray(np.asarray(image)).save(making / PICTURES / f"{row:08d}.png")
        progress.advance(1)


def asked_images(plan: Plan) -> dict[str, tuple[View, View | None]]:
    """Every view whose images are asked for, by a name that no other has, with the view whose classes it is asked with.

    What is asked twice (the clean images of corruptions that are of a whole view) comes once.
    """
    found: dict[str, tuple[View, View | None]] = {}
    seen = set()

    def add(name: str, view: View, classes: View | None) -> None:
        known = (view.digest, None if classes is None or classes.classes is None else labels_of(classes.classes))
        if known not in seen:
            seen.add(known)
            while name in found:
                name += "'"
            found[name] = (view, classes)

    for planned in plan.views:
        add(planned.view.name, planned.view, planned.view if planned.is_labelled else planned.baseline)
    for corruptions in plan.corruptions:
        add(f"{corruptions.clean.name}/clean", corruptions.clean, corruptions.clean)
        for drawn, view in corruptions.corrupted.items():
            add(f"{corruptions.clean.name}/{condition_group(*drawn)}", view, corruptions.clean)
    for transfer in plan.transfers:
        add(f"{transfer.name}/clean", transfer.clean, transfer.clean)
        for epsilon, view in transfer.attacked.items():
            add(f"{transfer.name}/{epsilon}", view, transfer.clean)
    return found


@dataclass
class _Rows:
    """Writes images as they come, but for those that are there already, and which sample is which row."""

    making: Path
    size: tuple[int, int]
    _known: dict[bytes, int] = field(default_factory=dict)

    def __enter__(self) -> _Rows:
        self._files = ExitStack()
        self._pixels = self._files.enter_context((self.making / PIXELS).open("wb"))
        listing = (self.making / LISTING).open("w", encoding="utf-8", newline="")
        self._listing = csv.writer(self._files.enter_context(listing), lineterminator="\n")
        self._listing.writerow(COLUMNS)
        self._pixels.write(self._header())
        return self

    def __exit__(self, *raised: object) -> None:
        # How many there are is known now.
        self._pixels.seek(0)
        self._pixels.write(self._header())
        self._files.close()

    @property
    def count(self) -> int:
        """How many images there are."""
        return len(self._known)

    def digests(self) -> NDArray[np.uint8]:
        """Of every image."""
        return _stacked(self._known)

    def add(self, name: str, view: View, classes: View | None, reader: PixelReader, progress: Progress) -> Listed:
        """Write a view's images."""
        skipped: dict[str, str] = {}
        samples = 0
        for batch in reader.ahead(view, [(start, start + CHUNK) for start in range(0, len(view.samples), CHUNK)]):
            skipped |= batch.skipped
            samples += len(batch.rows)
            for index, digest, pixels in zip(batch.rows, digests_of(batch.pixels), batch.pixels, strict=True):
                if digest not in self._known:
                    self._known[digest] = len(self._known)
                    self._pixels.write(np.ascontiguousarray(pixels).tobytes())
                self._listing.writerow((self._known[digest], csv_text(name), csv_text(view.samples[index].id)))
            progress.advance(len(batch.rows))
        if not samples:
            raise DataError(f"{view.source}: none of its {len(view.samples)} images can be decoded")
        labels = None if classes is None or classes.classes is None else labels_of(classes.classes)
        return Listed(name=name, digest=view.digest, samples=samples, skipped=skipped, labels=labels)

    def _header(self) -> bytes:
        """Of an .npy file, always as long, so that it can be written over."""
        said = {"descr": "|u1", "fortran_order": False, "shape": (len(self._known), *self.size, 3)}
        return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + f"{said!r}".ljust(117).encode() + b"\n"


def _stacked(digests: Any) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


def _distinct_texts(bundle: Bundle, plan: Plan) -> tuple[list[str], Array]:
    """Every text that the plan asks for, and its token ids; of texts that have the same ids the first."""
    with bundle.unchanged():
        tokenizer = TextTokenizer(bundle)
    known: dict[bytes, str] = {}
    found: list[Array] = [tokenizer([])]
    texts = list(dict.fromkeys(_texts(bundle, plan)))
    for start in range(0, len(texts), _TEXTS):
        part = texts[start : start + _TEXTS]
        tokens = tokenizer(part)
        fresh = []
        for row, (digest, text) in enumerate(zip(digests_of(tokens), part, strict=True)):
            if digest not in known:
                known[digest] = text
                fresh.append(row)
        found.append(tokens[fresh])
    return list(known.values()), np.concatenate(found)


def _texts(bundle: Bundle, plan: Plan) -> Iterator[str]:
    for view in plan.classified_views():
        assert view.classes is not None
        yield from choose_templates(view, bundle, plan.suite.templates_of(view.name)).prompts(view.classes.names)
    for view in plan.captioned_views():
        yield from (caption for sample in view.samples for caption in sample.captions)


def _trial(bundle: Bundle, making: Path, settings: Settings) -> dict[str, Array]:
    """What the bundle itself answers on a few rows; nothing where it cannot run here."""
    subject = Subject(bundle, runtime_of(bundle, settings.runtime), settings.threads)
    found: dict[str, Array] = {}
    try:
        for tower in TOWERS:
            given = np.load(making / (PIXELS if tower == "image" else TOKENS), mmap_mode="r")
            rows = _trial_rows(len(given))
            if len(rows):
                found |= {f"{tower}/rows": rows, f"{tower}/embeddings": _embedded(subject, tower, given[rows])}
    except (RuntimeUnavailable, EngineError):
        return {}
    return found


def _embedded(subject: Subject, tower: TowerName, given: Array) -> NDArray[np.float32]:
    with subject.open(tower) as engine:
        if tower == "image":
            return unit(run_on_pixels(engine, given, subject.bundle.manifest.preprocess, BatchSize(_TRIAL)))
        return unit(run_in_batches(engine, given, BatchSize(_TRIAL)))


def _trial_rows(count: int) -> NDArray[np.int64]:
    spread = np.linspace(0, max(count - 1, 0), min(count, _TRIAL)).astype(np.int64)
    return np.unique(np.concatenate([np.arange(min(count, _TRIAL)), spread]))


def _refuse_to_delete(target: Path) -> None:
    """Raise DataError for a work folder that holds what this command did not write: it would be replaced as a whole."""
    ours = {PIXELS, TOKENS, MASK, TEXTS, LISTING, ASKED, BUNDLE, PICTURES, README, MANIFEST}
    others = sorted({path.name for path in target.iterdir()} - ours) if (target / MANIFEST).is_file() else []
    if others:
        raise DataError(f"{target} holds {others[0]}, which this command did not write; give another folder with -o")


def _readme(work: Work) -> str:
    mean, std = (", ".join(f"{value!r}" for value in values) for values in (work.images.mean, work.images.std))
    views = "\n".join(f"  {one.name}: {one.samples} images" for one in work.views)
    return f"""What an engine is to embed: {work.images.rows} images and {work.tokens.rows} texts.

images.npy   uint8, {work.images.rows} x {work.images.height} x {work.images.width} x 3 (RGB), after resize and crop
tokens.npy   token ids, {work.tokens.rows} x {work.tokens.length}; texts.json says which text each row is
{MASK}   uint8, as tokens.npy: 1 for a token of the text, 0 for padding; for engines that take it
images.csv   which sample of which view each row of images.npy is (one image can be several samples)
{MANIFEST}   all of it for programs

Bring back: {work.bring_back}

For example, where ENGINE is yours:

    import numpy as np

    pixels = np.load("images.npy", mmap_mode="r")
    mean, std = np.array([{mean}], "float32"), np.array([{std}], "float32")
    found = []
    for start in range(0, len(pixels), 32):
        batch = (pixels[start : start + 32].astype("float32") / np.float32(255) - mean) / std
        found.append(ENGINE.image(batch.transpose(0, 3, 1, 2)))
    np.save("image-embeddings.npy", np.concatenate(found))

    tokens = np.load("tokens.npy")
    found = [ENGINE.text(tokens[start : start + 32]) for start in range(0, len(tokens), 32)]
    np.save("text-embeddings.npy", np.concatenate(found))

Then, here:

    clipq-eval cells import WORK --images image-embeddings.npy --texts text-embeddings.npy \\
      --ran-on "QNN 2.26 on a Snapdragon 8 Gen 3, INT8" -o phone
    clipq-eval run FP32 phone --suite SUITE -o results

Views:
{views}
"""
