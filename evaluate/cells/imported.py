"""Answers of an engine that ran elsewhere, as a bundle that is evaluated like any other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import ValidationError

from clipq import __version__
from clipq.bundle import (
    SCHEMA_VERSION,
    Bundle,
    Manifest,
    Recipe,
    StoredAnswers,
    Tower,
    first_reason,
    open_bundle,
    stored_file,
    write_manifest,
)
from clipq.engines.external import packed_answers
from clipq.errors import DataError
from clipq.evaluate.cells.brought_back import Embedded, Resemblance, check_order, read_embeddings
from clipq.evaluate.cells.given_predictions import packed_predictions
from clipq.evaluate.cells.prediction_files import read_predictions
from clipq.evaluate.cells.work import BUNDLE, Asked, Work, listed_ids, read_asked, read_work
from clipq.files import sha256_file
from clipq.given import hint
from clipq.making import directory_in_making
from clipq.packed import packed
from clipq.scheme import Arithmetic, Scheme

_FILES = {"image": "image.safetensors", "text": "text.safetensors"}


@dataclass(frozen=True)
class Imported:
    """A bundle of answers, and what is to be known of them, in lines."""

    bundle: Bundle
    notes: tuple[str, ...]


def import_embeddings(
    folder: Path, images: Path, texts: Path, output: Path, *, ran_on: str, scheme: str = ""
) -> Imported:
    """Make a bundle of the embeddings that came back for a work folder.

    Raises DataError for what cannot be the answers that were asked for.
    """
    made_by = parse_scheme(scheme)
    work = read_work(folder)
    asked = read_asked(folder)
    width = work.bundle.embed_dim
    found = {
        "image": read_embeddings(images, work.images.rows, width, "image embeddings"),
        "text": read_embeddings(texts, work.tokens.rows, width, "text embeddings"),
    }
    notes = _notes(found, asked, work)
    with directory_in_making(output) as making:
        towers = {}
        for (name, one), digests in zip(found.items(), (asked.images, asked.texts), strict=True):
            (making / _FILES[name]).write_bytes(packed_answers(digests, one.rows))
            answers = _answers(
                ran_on,
                kind="embeddings",
                rows=len(one.rows),
                dtype=one.dtype,
                unit_length=one.unit_length,
                source_sha256=(one.sha256,),
            )
            towers[name] = _tower(making, name, work, answers)
        _write_bundle(making, folder, work, towers, made_by)
    return Imported(open_bundle(output), notes)


def import_predictions(
    folder: Path, files: Mapping[str, Path], output: Path, *, ran_on: str, scheme: str = ""
) -> Imported:
    """Make a bundle of the predictions that came back for views of a work folder, by their names.

    Raises DataError for what cannot be that.
    """
    made_by = parse_scheme(scheme)
    work = read_work(folder)
    found, notes = [], []
    for name, path in files.items():
        listed = work.view(name)
        if listed is None:
            known = [one.name for one in work.views if one.labels is not None]
            raise DataError(
                f"predictions {name!r}: no such view was exported; there is {', '.join(known)[:300]}{hint(name, known)}"
            )
        ids = listed_ids(folder, name)
        found.append((listed, ids, read_predictions(path, listed, ids)))
        notes.append(f"predictions of {name}: {len(ids)} samples, {len(listed.labels or ())} labels")
    missing = [one.name for one in work.views if one.labels is not None and one.name not in files]
    if missing:
        notes.append(f"not measured, for no predictions came back: {', '.join(missing)}")
    with directory_in_making(output) as making:
        (making / _FILES["image"]).write_bytes(packed_predictions(found))
        (making / _FILES["text"]).write_bytes(packed({}))
        answers = _answers(ran_on, kind="predictions", rows=sum(len(one[1]) for one in found), dtype="float64",
                           unit_length=False, source_sha256=tuple(map(sha256_file, files.values())))  # fmt: skip
        towers = {name: _tower(making, name, work, answers) for name in _FILES}
        _write_bundle(making, folder, work, towers, made_by)
    return Imported(open_bundle(output), tuple(notes))


def parse_scheme(text: str) -> Scheme:
    """Bits and arithmetic as a user says them: ``W8A8-integer``; of nothing, a scheme that knows nothing.

    >>> parse_scheme("W4A16-float").widths, parse_scheme("").widths
    ('W4A16', 'bits unknown')
    """
    if not text:
        return Scheme(weight_bits=0, activation_bits=0, arithmetic="float", method="external")
    kinds = get_args(Arithmetic)
    found = re.fullmatch(rf"W(\d{{1,2}})A(\d{{1,2}})-({'|'.join(kinds)})", text, re.IGNORECASE)
    if not found or not 1 <= int(found[1]) <= 32 or not 1 <= int(found[2]) <= 32:
        raise DataError(
            f"scheme {text!r}: give bits of weights and activations, and what is multiplied ({', '.join(kinds)}), as "
            "W8A8-integer or W4A16-float; leave it out where you do not know"
        )
    arithmetic = cast("Arithmetic", found[3].lower())
    return Scheme(weight_bits=int(found[1]), activation_bits=int(found[2]), arithmetic=arithmetic, method="external")


def _answers(ran_on: str, **fields: Any) -> StoredAnswers:
    try:
        return StoredAnswers(runtime="external", ran_on=ran_on, **fields)
    except ValidationError as error:
        raise DataError(f"ran-on {ran_on[:60]!r}: {first_reason(error).removeprefix('ran_on: ')}") from error


def _tower(making: Path, name: str, work: Work, answers: StoredAnswers) -> Tower:
    image = name == "image"
    shape = (None, 3, work.images.height, work.images.width) if image else (None, work.tokens.length)
    return Tower(
        **stored_file(making, _FILES[name]),
        input_name="pixels" if image else "tokens",
        input_dtype="float32" if image else work.bundle.text.input_dtype,
        input_shape=shape,
        output_name="features",
        recipe="external",
        answers=answers,
    )


def _write_bundle(making: Path, folder: Path, work: Work, towers: Mapping[str, Tower], scheme: Scheme) -> None:
    """The rest of a bundle: the work folder's tokenizer and prompts, and the manifest."""
    reference = work.bundle
    Bundle(folder / BUNDLE, reference).copy((reference.tokenizer, reference.prompts), making)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        checkpoint=reference.checkpoint,
        # Where it is FP32, it is compared with the bundle that asked, as a plan with the bundle it was built of.
        recipe=Recipe(name="external", scheme=scheme, source_digest=work.bundle_digest),
        image=towers["image"],
        text=towers["text"],
        embed_dim=reference.embed_dim,
        logit_scale=reference.logit_scale,
        logit_bias=reference.logit_bias,
        preprocess=reference.preprocess,
        tokenizer=reference.tokenizer,
        prompts=reference.prompts,
        environment={"clipq": __version__},
    )
    write_manifest(making, manifest)


def _notes(found: Mapping[str, Embedded], asked: Asked, work: Work) -> tuple[str, ...]:
    notes = []
    for tower, one in found.items():
        length = "of unit length" if one.unit_length else "not of unit length, which is no error: they are scaled to it"
        notes.append(f"{tower} embeddings: {len(one.rows)} × {one.rows.shape[1]}, {one.dtype}, {length}")
        if same := one.alike:
            notes.append(f"{tower} embeddings: {same} rows are the same as another one, though what was asked differs")
        if tower not in asked.trial:
            notes.append(
                f"{tower} embeddings: their order was not checked, for {work.bundle_name} did not run at export"
            )
            continue
        like = check_order(one, asked.trial[tower], work.bundle_name)
        notes.append(
            f"{tower} embeddings: cosine to {work.bundle_name}'s {like.mean:.4f} (least {like.least:.4f}) on "
            f"{like.rows} rows; to other rows' {like.others:.4f}"
        )
        notes += [_unlike(tower, work.bundle_name)] if _is_unlike(like) else []
    return tuple(notes)


def _is_unlike(like: Resemblance) -> bool:
    return like.rows > 1 and like.mean < like.others + (1 - like.others) / 4


def _unlike(tower: str, name: str) -> str:
    return (
        f"{tower} embeddings: they hardly resemble {name}'s more than those of other rows: is that the right engine, "
        "the right output, mean and std, and order?"
    )
