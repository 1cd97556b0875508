"""The tokenizer of an engine that others made, as the one file that evaluation reads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from clipq.bundle import Bundle
from clipq.errors import BundleError
from clipq.exporters.adopt.configs import find_file, read_object
from clipq.exporters.tokenizer_file import Cleaning, write_clip_tokenizer

# Of CLIP's own byte pairs, which models without a tokenizer's name in their configuration have.
_CLIP_VOCABULARY = 49408

# Who says a length, where it is the only one that the tower takes.
_TOWER = "the tower"


@dataclass(frozen=True)
class Written:
    """How a tokenizer was written: what cleans texts before it, tokens of a text, and the files that said so."""

    cleaning: Cleaning
    context_length: int
    source: str
    length_source: str


def write_tokenizer(
    folders: tuple[Path, ...], fixed: int | None, asked: int | None, like: Bundle | None, target: Path
) -> Written:
    """Write ``target``, padding and truncation fixed; ``fixed`` is the length that the tower takes alone.

    Raises BundleError where no file says what a text's ids are, how long it is, or what it is padded with.
    """
    path = find_file(folders, "tokenizer.json")
    if path is None and like is not None:
        return _of_like(like, fixed, asked, target)
    said, limit = _lengths(folders, fixed, asked), _limit(folders)
    if len(set(said.values())) > 1:
        some = ", ".join(f"{source} says {length}" for source, length in said.items())
        raise BundleError(f"the text's length: {some}; give the tokenizer that goes with the tower")
    if limit is not None and (not said or set(said) == {_TOWER}):
        said |= {limit[0]: limit[1]}
        if len(set(said.values())) > 1:
            raise BundleError(
                f"the text tower takes {fixed} tokens and {limit[0]} says {limit[1]}: give the tokenizer that goes "
                f"with it, or say that it is meant so: --context-length {fixed}"
            )
    if not said:
        raise BundleError("how many tokens has a text? no file says it: give --context-length (77 for CLIP)")
    length, source = next(iter(said.values())), next(iter(said))
    if path is None:
        return _clip(folders, length, source, target)
    tokenizer = _opened(path)
    token, pad = _padding(folders, tokenizer, path)
    tokenizer.enable_truncation(length, direction=_side(folders, "truncation_side", tokenizer.truncation))
    tokenizer.enable_padding(
        length=length, pad_id=pad, pad_token=token, direction=_side(folders, "padding_side", tokenizer.padding)
    )
    tokenizer.save(str(target))
    said_by = " and ".join(name for name in ("tokenizer.json", "tokenizer_config.json") if find_file(folders, name))
    return Written(_cleaning(folders), length, said_by, source)


def _of_like(like: Bundle, fixed: int | None, asked: int | None, target: Path) -> Written:
    entry = like.manifest.tokenizer
    for what, length in ((_TOWER, fixed), ("--context-length", asked)):
        if length not in (None, entry.context_length):
            raise BundleError(
                f"the text's length: {what} says {length}, the tokenizer of {like.name} gives {entry.context_length}; "
                "give the tokenizer.json that goes with the tower"
            )
    shutil.copyfile(like.path / entry.file, target)
    said = f"--like {like.name}"
    return Written(entry.cleaning, entry.context_length, said, said)


def _lengths(folders: tuple[Path, ...], fixed: int | None, asked: int | None) -> dict[str, int]:
    """How many tokens a text has, by who says it: the tower, the user, the model's configuration."""
    found = {_TOWER: fixed, "--context-length": asked}
    for name, *keys in (
        ("open_clip_config.json", "model_cfg", "text_cfg", "context_length"),
        ("config.json", "text_cfg", "context_length"),
        ("config.json", "text_config", "max_position_embeddings"),
    ):
        value = _said(folders, name, keys)
        # A configuration says it in one way or the other.
        found[name] = found.get(name) or (value if isinstance(value, int) else None)
    return {source: length for source, length in found.items() if length is not None}


def _said(folders: tuple[Path, ...], name: str, keys: Sequence[str]) -> Any:
    """What a file of that name says under keys in keys; None where it is not there, or says nothing."""
    path = find_file(folders, name)
    value: Any = None if path is None else read_object(path)
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _limit(folders: tuple[Path, ...]) -> tuple[str, int] | None:
    """The longest text by the tokenizer's own files, which may be of a model with longer ones."""
    for name, *keys in (("tokenizer.json", "truncation", "max_length"), ("tokenizer_config.json", "model_max_length")):
        value = _said(folders, name, keys)
        # transformers writes 10^30 where there is none.
        if isinstance(value, int) and 0 < value < 2**16:
            return name, value
    return None


def _side(folders: tuple[Path, ...], name: str, own: Mapping[str, Any] | None) -> str:
    """Where a text is padded or cut: as its configuration says, else as the tokenizer's file does."""
    path = find_file(folders, "tokenizer_config.json")
    side = (None if path is None else read_object(path).get(name)) or (own or {}).get("direction") or "right"
    if side not in ("right", "left"):
        raise BundleError(f"{path}: {name} {side!r}: right or left")
    return str(side)


def _opened(path: Path) -> Any:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no other
        raise BundleError(
            f"{path}: is no file of a tokenizer ({error}); give the one that goes with the tower"
        ) from error


def _padding(folders: tuple[Path, ...], tokenizer: Any, path: Path) -> tuple[str, int]:
    """The token that pads, and its id."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        there = find_file(folders, name)
        token = None if there is None else read_object(there).get("pad_token")
        token = token.get("content") if isinstance(token, Mapping) else token
        if token is not None:
            number = tokenizer.token_to_id(token) if isinstance(token, str) else None
            if number is None:
                raise BundleError(f"{there}: pads with {token!r}, which {path} does not know")
            return token, number
    if tokenizer.padding is not None:
        return tokenizer.padding["pad_token"], tokenizer.padding["pad_id"]
    raise BundleError(f"{path}: what is a text padded with? give tokenizer_config.json with its pad_token beside it")


def _text_config(folders: tuple[Path, ...]) -> dict[str, Any]:
    """open_clip's configuration of the text tower, by either of its files."""
    for name in ("open_clip_config.json", "config.json"):
        if (path := find_file(folders, name)) is not None:
            found = read_object(path)
            found = found.get("model_cfg", found)
            if isinstance(found, Mapping) and isinstance(found.get("text_cfg"), Mapping):
                return dict(found["text_cfg"])
    return {}


def _cleaning(folders: tuple[Path, ...]) -> Cleaning:
    """What open_clip's configuration says; a tokenizer's file does without, for others run it alone."""
    kwargs = _text_config(folders).get("tokenizer_kwargs") or {}
    return "canonicalize" if kwargs.get("clean") == "canonicalize" else "none"


def _clip(folders: tuple[Path, ...], length: int, source: str, target: Path) -> Written:
    """CLIP's own tokenizer, where open_clip's configuration says that it is the model's."""
    said = _text_config(folders)
    if not said or "hf_tokenizer_name" in said or said.get("vocab_size", _CLIP_VOCABULARY) != _CLIP_VOCABULARY:
        named = said.get("hf_tokenizer_name")
        raise BundleError(
            f"no tokenizer.json {f'of {named} ' if named else ''}lies beside the towers: put it there, or give "
            "--like BUNDLE"
        )
    return Written(
        write_clip_tokenizer(target, length), length, "open_clip's tokenizer, as its configuration says", source
    )
