"""Load a checkpoint of transformers: what ``save_pretrained`` wrote, in a folder or on the Hugging Face hub."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipq.errors import CheckpointError
from clipq.exporters.image_processor import checked_preprocess, pixels_of
from clipq.exporters.loaded_checkpoint import LoadedCheckpoint, reason_of
from clipq.exporters.tokenizer_file import ODD_TEXTS
from clipq.exporters.transformers_model import PaddingMask, TransformersModel, TransformersTokenizer
from clipq.files import sha256_bytes, sha256_file
from clipq.progress import quiet_logging
from clipq.text_files import read_json

# ``model_type`` of config.json. Text towers of the first two are causal and read their feature at the end token, so
# padding behind it is not seen.
CAUSAL = ("clip", "metaclip_2")
KINDS = (*CAUSAL, "siglip", "altclip", "chinese_clip")

_CONFIG = "config.json"
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
# Each part of a checkpoint, and the files of which one is enough.
_PARTS = {
    "configuration": (_CONFIG,),
    "weights": _WEIGHTS,
    "tokenizer": ("tokenizer.json", "vocab.json", "vocab.txt", "*.model"),
    "image processor": ("preprocessor_config.json", "processor_config.json"),
}
_DESCRIBED = ("*.json", "*.txt", "*.model")

# Of ODD_TEXTS, as many as even the largest text towers take in a moment.
_MOST_ENCODED = 4


def load_transformers(where: str, name: str) -> LoadedCheckpoint:
    """Load model, tokenizer and image processor of a folder, or of ORG/REPO on the hub; errors call it ``name``.

    Raises CheckpointError with the reason in one line.
    """
    import transformers

    if int(transformers.__version__.split(".")[0]) < 5:
        raise CheckpointError(
            f"{name}: checkpoints of transformers need transformers 5, this is {transformers.__version__}: "
            "pip install -U transformers"
        )
    with _one_line(name):
        folder = _folder(where)
    kind = _checked_kind(name, folder)
    with _one_line(f"{name}, model"):
        model, loading = transformers.AutoModel.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True
        )
    with _one_line(f"{name}, tokenizer"):
        own_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with _one_line(f"{name}, image processor"):
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    _check_names(name, loading)
    config = model.config
    tokenizer = TransformersTokenizer(own_tokenizer, _context_length(name, own_tokenizer, config.text_config))
    adapted = TransformersModel(model, _mask(name, kind, own_tokenizer)).eval().float()
    _check_texts(name, adapted, tokenizer)
    return LoadedCheckpoint(
        name,
        adapted,
        tokenizer,
        checked_preprocess(processor, config.vision_config.image_size, name),
        lambda image: torch.from_numpy(pixels_of(processor, image)),
        _weights_digest(folder),
        packages=("torch", "transformers", "tokenizers", "onnx", "onnxscript"),
    )


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Around the libraries: no chatter, and their errors in one line."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        quiet_logging(),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"{what}: {reason_of(error)}") from error


def _folder(where: str) -> Path:
    """The folder itself, or where the hub's repository was put."""
    from huggingface_hub import snapshot_download

    if Path(where).is_dir():
        return Path(where)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", where):
        raise CheckpointError(f"transformers:{where}: is no folder, and no ORG/REPO of the Hugging Face hub; give one")
    for weights in _WEIGHTS:
        folder = Path(snapshot_download(where, allow_patterns=[*_DESCRIBED, weights]))
        if any(folder.glob(weights)):
            break
    return folder


def _checked_kind(name: str, folder: Path) -> str:
    """The model type, where clipq knows it and nothing of the checkpoint is missing."""
    for part, files in _PARTS.items():
        if not any(path.is_file() for file in files for path in folder.glob(file)):
            raise CheckpointError(
                f"{name}: there is no {part} ({' or '.join(files)}); give a folder that model, tokenizer and "
                "image processor were saved into (save_pretrained)"
            )
    config = read_json(folder / _CONFIG, CheckpointError, "save the model again")
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind == "siglip2":
        raise CheckpointError(
            f"{name}: is SigLIP 2's NaFlex form, which gives each image a shape of its own, and an engine takes "
            "one; take a checkpoint of fixed resolution (google/siglip2-base-patch16-224)"
        )
    if kind not in KINDS:
        raise CheckpointError(f"{name}: model_type {kind!r} is none that clipq exports; known: {', '.join(KINDS)}")
    if config.get("quantization_config"):
        raise CheckpointError(f"{name}: is quantized already (quantization_config); give what it was made of")
    return str(kind)


def _check_names(name: str, loading: dict[str, Any]) -> None:
    """transformers would give random values to what is missing, and leave out what is too many."""
    for what in ("missing", "unexpected", "mismatched"):
        found = (key if isinstance(key, str) else key[0] for key in loading[f"{what}_keys"])
        # Older versions stored positions as weights.
        names = sorted(key for key in found if not key.endswith("position_ids"))
        if names:
            raise CheckpointError(
                f"{name}: {_CONFIG} and the weights are of two models ({what}: {names[0]}"
                f"{f' and {len(names) - 1} more' if len(names) > 1 else ''}); save the whole model again"
            )


def _context_length(name: str, tokenizer: Any, config: Any) -> int:
    """What text tower and tokenizer both allow; SigLIP 2's tokenizer sets no limit."""
    if tokenizer.pad_token_id is None:
        raise CheckpointError(f"{name}: the tokenizer has no padding token; set pad_token, and save it again")
    # RoBERTa's positions begin behind its padding id.
    before = config.pad_token_id + 1 if config.model_type.startswith("altclip") else 0
    return int(min(tokenizer.model_max_length, config.max_position_embeddings - before))


def _mask(name: str, kind: str, tokenizer: Any) -> PaddingMask | None:
    """None where padding is not seen, and where the tower was trained to see it: SigLIP's tokenizers make no mask."""
    if kind not in CAUSAL and "attention_mask" not in tokenizer.model_input_names:
        return None
    if tokenizer.padding_side != "right":
        raise CheckpointError(
            f"{name}: the tokenizer pads on the {tokenizer.padding_side}, and its ids do not tell where a text "
            "begins; set padding_side to right, and save it again"
        )
    ends_with = tokenizer("a")["input_ids"][-1]
    return None if kind in CAUSAL else PaddingMask(tokenizer.pad_token_id, ends_with == tokenizer.pad_token_id)


def _check_texts(name: str, model: TransformersModel, tokenizer: TransformersTokenizer) -> None:
    """The text tower knows the tokenizer's ids, and they alone give the features that it has with the own mask."""
    given, config = tokenizer.encoded(ODD_TEXTS), model.model.config.text_config
    ids = torch.from_numpy(given["input_ids"])
    mask = torch.from_numpy(given["attention_mask"]) if "attention_mask" in given else None
    if int(ids.max()) >= config.vocab_size:
        raise CheckpointError(
            f"{name}: the tokenizer gives the id {int(ids.max())}, and the text tower has {config.vocab_size} "
            "tokens; save the model with its own tokenizer"
        )
    ends = getattr(model.model.text_model, "eos_token_id", None)
    # CLIP's of before 2023 say 2, and then the largest id is meant.
    legacy = config.model_type.startswith("clip") and ends == 2
    if ends is not None and not legacy and not (ids == ends).any(1).all():
        raise CheckpointError(
            f"{name}: the text tower reads its feature at the token {ends} (eos_token_id), which the tokenizer "
            "does not put behind a text; save the model with its own tokenizer"
        )
    if mask is not None and model.mask_of is not None:
        for text, one, other in zip(ODD_TEXTS, model.mask_of(ids), mask, strict=True):
            if not torch.equal(one, other):
                raise CheckpointError(f"{name}: the attention mask of {text[:40]!r} cannot be told from its ids")
    with torch.no_grad():
        some = np.s_[:_MOST_ENCODED]
        mine = model.encode_text(ids[some], normalize=True)
        own = model.encode_masked(ids[some], None if mask is None else mask[some], normalize=True)
    # Not a number: that is said of the whole checkpoint.
    if (mine - own).abs().max() > 1e-5:
        raise CheckpointError(
            f"{name}: the text tower's features depend on an attention mask that ids do not tell; set pad_token "
            "to the end token, and save the tokenizer again"
        )


def _weights_digest(folder: Path) -> str:
    """Of the file; of the digests of all of them, where there are several."""
    patterns = (sorted(folder.glob(pattern)) for pattern in _WEIGHTS)
    files = next(found for found in patterns if found)
    digests = [f"{path.name} {sha256_file(path)}" for path in files]
    return sha256_file(files[0]) if len(files) == 1 else sha256_bytes("\n".join(digests).encode())
