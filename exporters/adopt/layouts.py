"""Which files of a folder are an engine's towers, in the layouts that CLIP engines come in."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clipq.errors import BundleError
from clipq.exporters.adopt.foreign import ForeignEngine
from clipq.exporters.adopt.signature import role_of
from clipq.given import hint
from clipq.onnx_graph import read_graph

Kind = Literal["image", "text", "both"]

# How tools call the files of several precisions; the file without such an end is what they were made of.
_VARIANT = re.compile(r"[_.-](quantized|fp32|fp16|int8|uint8|int4|q8|q4|q4f16|bnb4|bf16)$")
# What others call the pair, by the names of its files: for the record alone, files are told by what they take.
_CALLED = {
    ("vision_model", "text_model"): "transformers.js or Optimum",
    ("visual/model", "textual/model"): "Immich",
    ("visual", "textual"): "clip-as-service or Neural Magic",
    ("model", "model"): "one graph of both towers",
}
PLANS = (".plan", ".engine", ".trt")
# Of 16 (bfloat16), 1, 10, 11: floating point.
_FLOATS = (1, 10, 11, 16)


@dataclass(frozen=True)
class Found:
    """An engine's files: its towers (one file where it is one graph of both), and folders that may describe them.

    ``both``: a graph of both towers beside the pair, which knows the logit scale.
    """

    layout: str
    image: Path
    text: Path
    both: Path | None
    folders: tuple[Path, ...]

    @property
    def is_plan(self) -> bool:
        """Whether the towers are TensorRT's plans."""
        return self.image.suffix in PLANS


def find(engine: ForeignEngine) -> Found:
    """The files of an engine; raises BundleError for what is no engine, or more than one."""
    if engine.folder is None:
        assert engine.image is not None
        assert engine.text is not None
        return _pair(_file(engine.image), _file(engine.text))
    folder = engine.folder
    if not folder.is_dir():
        raise BundleError(f"{folder}: is a file; give its folder, or --image FILE --text FILE")
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".onnx", *PLANS) and path.is_file())
    if not files:
        raise BundleError(f"{folder}: holds no .onnx, .plan or .engine file; give the folder of the engine")
    chosen = _chosen(folder, files, engine.variant)
    kinds = {path: kind_of(path) for path in chosen}
    found = {kind: [path for path in chosen if kinds[path] == kind] for kind in ("image", "text", "both")}
    if not (found["both"] or (found["image"] and found["text"])) and None in kinds.values():
        raise _no_tower(next(path for path in chosen if kinds[path] is None))
    way_out = "give them: --image FILE --text FILE"
    for kind in ("image", "text", "both"):
        if len(found[kind]) > 1:
            some = ", ".join(str(path.relative_to(folder)) for path in found[kind])
            what = {"image": "image towers", "text": "text towers", "both": "graphs of both towers"}[kind]
            raise BundleError(f"{folder}: holds {len(found[kind])} {what} ({some}); {way_out}")
    if found["image"] and found["text"]:
        return _pair(found["image"][0], found["text"][0], next(iter(found["both"]), None), folder)
    if found["both"]:
        return _pair(found["both"][0], found["both"][0], found["both"][0], folder)
    there, lacks = ("image", "text") if found["image"] else ("text", "image")
    raise BundleError(f"{folder}: holds the {there} tower {found[there][0].name} and no {lacks} tower; {way_out}")


def _chosen(folder: Path, files: Sequence[Path], variant: str | None) -> list[Path]:
    """The files of one variant."""
    variants: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        ends = _VARIANT.search(path.stem)
        variants[ends[1] if ends else ""].append(path)
    if variant is None and len(variants) == 1:
        return next(iter(variants.values()))
    names = [name or "fp32" for name in variants]
    if variant is None:
        raise BundleError(f"{folder}: holds several engines: choose one with --variant {' or '.join(names)}")
    if variant not in names:
        raise BundleError(f"--variant {variant}: {folder} has {', '.join(names)}{hint(variant, names)}")
    return variants[variant if variant in variants else ""]


def _file(path: Path) -> Path:
    """A tower's file; of a folder its only ONNX file or plan, as fastembed has a folder for each tower."""
    if not path.is_dir():
        return path
    files = [one for one in sorted(path.rglob("*")) if one.suffix in (".onnx", *PLANS)]
    if len(files) != 1:
        raise BundleError(f"{path}: holds {len(files)} files of towers; name the one that is meant")
    return files[0]


def _pair(image: Path, text: Path, both: Path | None = None, folder: Path | None = None) -> Found:
    kinds = (kind_of(image), kind_of(text))
    for tower, path, kind in zip(("image", "text"), (image, text), kinds, strict=True):
        if kind is None:
            raise _no_tower(path)
        if kind not in (tower, "both"):
            raise BundleError(f"{path}: is no {tower} tower, it takes {'pixels' if kind == 'image' else 'token ids'}")
    if "both" in kinds and image != text:
        raise BundleError(f"{image} and {text}: one is a graph of both towers; give it as --image and as --text")
    return Found(_called(image, text), image, text, both or (image if image == text else None),
                 tuple(dict.fromkeys(_described_in(image, text, folder))))  # fmt: skip


def _described_in(image: Path, text: Path, folder: Path | None) -> Iterator[Path]:
    """Folders in which files beside the towers may say what the towers take: theirs, and those above, to the engine's.

    Of single files their own, and the one above where that is called ``onnx``.
    """
    for path in (image, text):
        yield path.parent
    for path in (image, text):
        if folder is not None:
            yield from (above for above in path.parents if above.is_relative_to(folder))
        elif path.parent.name == "onnx":
            yield path.parent.parent


def _called(image: Path, text: Path) -> str:
    if image.suffix in PLANS:
        return "TensorRT plans"
    names = [_VARIANT.sub("", path.stem) for path in (image, text)]
    for names_of in (names, [f"{path.parent.name}/{name}" for path, name in zip((image, text), names, strict=True)]):
        if (called := _CALLED.get((names_of[0], names_of[1]))) and (
            names[0] != "model" or image == text or names_of != names
        ):
            return called
    return "a graph of both towers" if image == text else "a pair of ONNX files"


def kind_of(path: Path) -> Kind | None:
    """Which towers a file holds, by what it takes: pixels have four dimensions, token ids two; None for neither.

    Plans are told by their names: what they take is known where they run.
    """
    if path.suffix in PLANS:
        return "text" if re.search(r"te?xt", path.stem, re.I) else "image"
    given = [value.type.tensor_type for value in _given(path) if not role_of(value.name)]
    pixels = any(one.elem_type in _FLOATS and len(one.shape.dim) == 4 for one in given)
    ids = any(one.elem_type in (6, 7) and len(one.shape.dim) == 2 for one in given)
    return ("both" if ids else "image") if pixels else "text" if ids else None


def _given(path: Path) -> list[Any]:
    """What a file is to be given: inputs that have no value of their own."""
    graph = read_graph(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _no_tower(path: Path) -> BundleError:
    takes = ", ".join(value.name for value in _given(path)) or "nothing"
    return BundleError(
        f"{path}: takes {takes}: neither pixels (four dimensions, floats) nor token ids (two, int32 or int64); "
        "export the tower with such an input"
    )
