"""What a foreign tower takes and gives: its inputs by their roles, and which output is the embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from clipq.bundle import FurtherInput, TowerName
from clipq.engines.base import Array, TensorSpec
from clipq.errors import BundleError
from clipq.given import hint

Role = Literal["attention_mask", "position_ids", "token_type_ids", "idle"]
# By a part of an input's name; and with how many dimensions clipq feeds it.
_ROLES: dict[str, Role] = {"mask": "attention_mask", "position": "position_ids", "type": "token_type_ids"}
_RANKS: dict[Role | None, tuple[int, ...]] = {"attention_mask": (2,), "position_ids": (1, 2), "token_type_ids": (2,)}

# What tools call embeddings, the likelier first; all other names are told by their shape.
NAMES: dict[TowerName, tuple[str, ...]] = {
    "image": ("image_embeds", "image_features", "image_embedding", "image_embeddings"),
    "text": ("text_embeds", "text_features", "text_embedding", "text_embeddings"),
}


@dataclass(frozen=True)
class Answer:
    """What a tower gives: its embeddings' name and width, its other outputs, and whether embeddings have length 1."""

    name: str
    width: int
    others: tuple[str, ...]
    unit: bool | None


def inputs_of(path: Any, tower: TowerName, specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """The fields of a manifest's Tower that say what a file takes; raises BundleError for what nobody could feed.

    Shapes are as the file says them; ``with_idle_shapes`` spells out those of what is idle.
    """
    roles = {spec.name: role_of(spec.name) for spec in specs}
    nameless = [spec for spec in specs if roles[spec.name] is None]
    pixels = [spec for spec in nameless if spec.dtype.kind == "f" and len(spec.shape) == 4]
    ids = [spec for spec in nameless if spec.dtype.kind == "i" and spec not in pixels]
    mine, theirs = (pixels, ids) if tower == "image" else (ids, pixels)
    what = "pixels" if tower == "image" else "token ids"
    if len(mine) != 1:
        some = ", ".join(map(str, mine)) or "nothing that could be"
        raise BundleError(f"{path}: takes {some} {what}; clipq feeds one array of {what}")
    main = mine[0]
    also = []
    for spec in specs:
        if spec is main:
            continue
        role = roles[spec.name]
        # What belongs to token ids is fed beside them alone: a mask of pixels would hide what it is to show.
        if spec not in theirs and (not ids or len(spec.shape) not in _RANKS.get(role, ())):
            raise BundleError(f"{path}: takes {spec} beside {what}, and nobody says what it is fed")
        # Of a graph of both towers, what the text tower takes is idle while images are embedded.
        idle = spec in theirs or tower == "image"
        also.append(
            FurtherInput(name=spec.name, dtype=_dtype(spec), shape=spec.shape, role="idle" if idle else role or "idle")
        )
    layout = "nhwc" if tower == "image" and main.shape[3] == 3 and main.shape[1] != 3 else "nchw"
    return {
        "input_name": main.name, "input_dtype": _dtype(main), "input_shape": main.shape, "layout": layout,
        "further_inputs": tuple(also),
    }  # fmt: skip


def with_idle_shapes(also: Sequence[FurtherInput], pixels: tuple[int, int], tokens: int) -> tuple[FurtherInput, ...]:
    """Inputs, those that are idle with every dimension: one image, or one text, as the other tower takes it."""

    def whole(one: FurtherInput) -> tuple[int | None, ...]:
        like: tuple[int, ...] = (1, tokens)[-len(one.shape) :]
        if len(one.shape) == 4:
            like = (1, *pixels, 3) if one.shape[3] == 3 else (1, 3, *pixels)
        return tuple(size or other for size, other in zip(one.shape, like, strict=True))

    return tuple(one.model_copy(update={"shape": whole(one)}) if one.role == "idle" else one for one in also)


def output_of(path: Any, tower: TowerName, answered: Mapping[str, Array], rows: int, asked: str | None) -> str:
    """Which output is the embedding, of what a run on some rows gave; raises BundleError where that cannot be told."""
    option = f"--{tower}-output NAME"
    if asked is not None:
        if asked not in answered:
            raise BundleError(f"--{tower}-output {asked}: {path} gives {', '.join(answered)}{hint(asked, answered)}")
        if answered[asked].ndim != 2 or len(answered[asked]) != rows:
            raise BundleError(
                f"--{tower}-output {asked}: is of shape {answered[asked].shape} for {rows} rows, and no row each"
            )
        return asked
    other: TowerName = "text" if tower == "image" else "image"
    able = [
        name
        for name, array in answered.items()
        if array.ndim == 2 and len(array) == rows and array.dtype.kind == "f" and not name.startswith("logits")
    ]
    able = [name for name in able if name not in NAMES[other]] if len(able) > 1 else able
    for name in NAMES[tower]:
        if name in able:
            return name
    if len(able) == 1:
        return able[0]
    gives = ", ".join(f"{name} {array.shape}" for name, array in answered.items())
    if not able:
        raise BundleError(
            f"{path}: gives {gives} for {rows} rows, and no embedding for each; export the tower with its pooling and "
            "projection"
        )
    raise BundleError(f"{path}: gives {gives}: which of {', '.join(able)} is the embedding? say it with {option}")


def role_of(name: str) -> Role | None:
    """What an input beside pixels and token ids is, by its name; None for those, and for what nobody knows."""
    return next((role for part, role in _ROLES.items() if part in name.lower()), None)


def _dtype(spec: TensorSpec) -> Any:
    return str(spec.dtype)
