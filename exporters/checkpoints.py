"""Open a checkpoint by any of the names its users have for it."""

from __future__ import annotations

import contextlib
import difflib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clipq.bundle import Preprocess, first_reason
from clipq.errors import CheckpointError
from clipq.exporters.image_processor import transform_of
from clipq.exporters.loaded_checkpoint import LoadedCheckpoint, reason_of
from clipq.files import sha256_file
from clipq.progress import quiet_logging

DEMO = "demo"

RANDOM = "random"

TRANSFORMERS = "transformers:"

OPEN_CLIP_CONFIG = "open_clip_config.json"


@dataclass(frozen=True)
class Source:
    """A parsed checkpoint name: model name or schema, the weights' tag or file, and how clipq calls it.

    ``model`` is open_clip's, or begins with ``transformers:``.
    """

    model: str
    pretrained: str | None
    name: str


def parse_checkpoint(checkpoint: str, pretrained: str | None) -> Source:
    """Resolve ``NAME/TAG``, ``NAME`` with ``--pretrained``, ``hf-hub:``, ``transformers:``, ``local-dir:`` or ``demo``.

    ``--pretrained`` is a tag of open_clip's, a file of weights, or ``random`` (untrained weights, for trying out
    speed). Raises CheckpointError, with similar names, where the name or the tag is unknown.
    """
    import open_clip

    if checkpoint == DEMO:
        return Source(f"local-dir:{_demo_folder()}", None, DEMO)
    if checkpoint.startswith(("hf-hub:", "local-dir:", TRANSFORMERS)):
        if pretrained:
            raise CheckpointError(
                f"--pretrained {pretrained!r} does not go with {checkpoint!r}, which names its weights"
            )
        return _with_schema(checkpoint)
    model, tag = checkpoint, pretrained
    if "/" in checkpoint and not pretrained:
        model, tag = checkpoint.split("/", 1)
    model = model.replace("/", "-")
    if model not in open_clip.list_models():
        raise CheckpointError(f"unknown checkpoint {checkpoint!r}{_meant(checkpoint, model, open_clip.list_models())}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not tag:
        known = f"one of {', '.join(tags)}" if tags else "a weights file (open_clip has no tag for this model)"
        raise CheckpointError(f"{model}: which weights? give {model}/TAG or --pretrained: {known}")
    if Path(tag).is_file():
        return Source(model, tag, f"{model}/{Path(tag).name}")
    if tag != RANDOM and tag not in tags:
        raise CheckpointError(
            f"{model} has no weights {tag!r}{_similar(tag, tags)}; known: {', '.join(tags) or 'none'}"
        )
    return Source(model, tag, f"{model}/{tag}")


def _with_schema(checkpoint: str) -> Source:
    schema, _, where = checkpoint.partition(":")
    folder = Path(where)
    if schema == "hf-hub" or (schema == "transformers" and not folder.is_dir()):
        return Source(checkpoint, None, checkpoint)
    name = f"{schema}:{folder.resolve().name}"
    if schema == "transformers" or _is_saved_by_transformers(folder):
        return Source(f"{TRANSFORMERS}{folder}", None, name)
    _check_local_folder(folder)
    return Source(checkpoint, None, name)


def load_checkpoint(source: Source) -> LoadedCheckpoint:
    """Load model, tokenizer and transform; raises CheckpointError with the reason in one line."""
    import open_clip
    import torch

    if source.model.startswith(TRANSFORMERS):
        from clipq.exporters.transformers_checkpoints import load_transformers

        return load_transformers(source.model.removeprefix(TRANSFORMERS), source.name)
    torch.manual_seed(0)
    schema = ":" in source.model.split("/")[0]
    pretrained = None if schema or source.pretrained == RANDOM else source.pretrained
    chatter = io.StringIO()
    try:
        with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(chatter), quiet_logging():
            warnings.simplefilter("always")
            model, _, transform = open_clip.create_model_and_transforms(
                source.model, pretrained=pretrained, require_pretrained=source.pretrained != RANDOM
            )
            tokenizer = _tokenizer(source)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{source.name}: {reason_of(error)}") from error
    for warning in caught:
        if "QuickGELU mismatch" in str(warning.message):
            raise CheckpointError(
                f"{source.name}: these weights were trained with the other GELU (QuickGELU mismatch); "
                f"use {_other_gelu(source)}"
            )
    preprocess = _preprocess(source, model.visual.image_size, dict(open_clip.get_model_preprocess_cfg(model)))
    return LoadedCheckpoint(
        source.name, model.eval().float(), tokenizer, preprocess, transform, _weights_digest(source)
    )


def _preprocess(source: Source, size: Any, config: dict[str, Any]) -> Preprocess:
    """What the checkpoint says of its transform; raises CheckpointError for what no bundle can hold."""
    try:
        return transform_of(config, size)
    except ValidationError as error:
        raise CheckpointError(
            f"{source.name}: preprocess_cfg: {first_reason(error)}; mend the checkpoint's configuration"
        ) from error


def _demo_folder() -> Path:
    import clipq.demo

    return Path(clipq.demo.__file__).parent / "checkpoint"


def _is_saved_by_transformers(folder: Path) -> bool:
    # open_clip's own repositories hold both, with the preprocessing and the cleaning of texts in open_clip's.
    return (folder / "config.json").is_file() and not (folder / OPEN_CLIP_CONFIG).is_file()


def _check_local_folder(folder: Path) -> None:
    if not (folder / OPEN_CLIP_CONFIG).is_file():
        raise CheckpointError(
            f"local-dir:{folder} has no {OPEN_CLIP_CONFIG} (open_clip's) and no config.json (transformers'); give the "
            "folder that one of them would load"
        )
    if _local_weights(folder) is None:
        # open_clip would go on with random weights.
        raise CheckpointError(
            f"local-dir:{folder} has no weights (open_clip_model.safetensors or open_clip_pytorch_model.bin)"
        )


def _local_weights(folder: Path) -> Path | None:
    from open_clip.factory import _find_checkpoint_in_dir

    found = _find_checkpoint_in_dir(folder)
    return Path(found) if found else None


def _weights_digest(source: Source) -> str | None:
    if source.model.startswith("local-dir:"):
        weights = _local_weights(Path(source.model.removeprefix("local-dir:")))
        return sha256_file(weights) if weights else None
    if source.pretrained and Path(source.pretrained).is_file():
        return sha256_file(Path(source.pretrained))
    return None


def _tokenizer(source: Source) -> Any:
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer

    folder = Path(source.model.removeprefix("local-dir:"))
    merges = folder / "bpe_merges.txt.gz"
    if source.model.startswith("local-dir:") and merges.is_file():
        context_length = open_clip.get_tokenizer(source.model).context_length
        return SimpleTokenizer(bpe_path=str(merges), context_length=context_length)
    return open_clip.get_tokenizer(source.model)


def _meant(checkpoint: str, model: str, known: list[str]) -> str:
    if Path(checkpoint).is_dir():
        return f"; it is a folder: give local-dir:{checkpoint}"
    said = _similar(model, [DEMO, *known])
    if checkpoint.count("/") == 1 and "did you mean" not in said:
        return (
            f"; a repository of the Hugging Face hub is {TRANSFORMERS}{checkpoint}, or hf-hub:{checkpoint} where it is "
            "open_clip's"
        )
    return said


def _similar(name: str, known: list[str]) -> str:
    folded = {candidate.lower(): candidate for candidate in known}
    close = [folded[match] for match in difflib.get_close_matches(name.lower(), list(folded), n=4, cutoff=0.5)]
    return f"; did you mean {', '.join(close)}?" if close else "; clipq-export list --checkpoints shows the known ones"


def _other_gelu(source: Source) -> str:
    suffix = "-quickgelu"
    model = source.model.removesuffix(suffix) if source.model.endswith(suffix) else source.model + suffix
    return f"{model}/{source.pretrained}"
