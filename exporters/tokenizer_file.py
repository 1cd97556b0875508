"""Tokenizers of open_clip and transformers as a ``tokenizer.json`` of the ``tokenizers`` library."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from clipq.errors import CheckpointError

Cleaning = Literal["lower", "canonicalize", "whitespace", "none"]

# What tokenizers differ on: scripts, case, white space, punctuation, special tokens spelled out, length.
ODD_TEXTS = (
    "", "a photo of a cat.", "A Photo Of THE Cat!", "word " * 2000, " ", "it's we're I'D don't", "snake_case (x)",
    "tab\tnew\nline\r\nend", "  two  spaces ", "3.14 1,000 ½ ² Ⅷ", "Café naïve Zürich ÅÉ", "e\u0301 combining",
    "日本語のテキスト", "一张猫的照片", "한국어 문장", "Привет, мир!", "ΟΔΟΣ ΣΑΣ", "İ ß ſ", "عربي נסיון", "😀 🐶🐱 🇫🇷",
    "&lt;b&gt; &amp; &eacute;", "Ã© â€™ mojibake", "\u200bzero\u00a0width", "...!!!???", "▁under▁",
    "[PAD] <pad> x", "<|endoftext|> x </s> y [SEP]", "a" * 2000,
)  # fmt: skip


def write_tokenizer(tokenizer: Any, target: Path) -> Cleaning:
    """Write the file with padding and truncation fixed to the context length; returns the cleaning that comes before.

    Raises CheckpointError for a tokenizer whose ids this form cannot give.
    """
    from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer

    from clipq.exporters.transformers_model import TransformersTokenizer

    cleaning: Cleaning
    if isinstance(tokenizer, SimpleTokenizer):
        converted = _from_simple(tokenizer)
        cleaning = _cleaning(tokenizer)
    elif isinstance(tokenizer, HFTokenizer | SigLipTokenizer):
        if getattr(tokenizer, "tokenizer_mode", ""):
            raise CheckpointError(
                f"tokenizer mode {tokenizer.tokenizer_mode!r} is not supported; known: the standard mode"
            )
        converted = _from_fast(tokenizer)
        cleaning = "canonicalize" if isinstance(tokenizer, SigLipTokenizer) else _cleaning(tokenizer)
    elif isinstance(tokenizer, TransformersTokenizer):
        converted, cleaning = _from_fast(tokenizer), "none"
        _check_ids(converted, tokenizer)
    else:
        raise CheckpointError(f"tokenizer of type {type(tokenizer).__name__} is not supported")
    converted.save(str(target))
    return cleaning


def write_clip_tokenizer(target: Path, context_length: int) -> Cleaning:
    """Write CLIP's own tokenizer, as open_clip has it; raises CheckpointError where that is not installed."""
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ImportError as error:
        raise CheckpointError(
            "CLIP's tokenizer comes with open_clip: pip install 'clip-quant[export]', or put tokenizer.json beside the "
            "towers"
        ) from error
    return write_tokenizer(SimpleTokenizer(context_length=context_length), target)


def _cleaning(tokenizer: Any) -> Cleaning:
    names: dict[str, Cleaning] = {
        "_clean_lower": "lower",
        "_clean_canonicalize": "canonicalize",
        "_clean_whitespace": "whitespace",
    }
    name = tokenizer.clean_fn.__name__
    if name not in names:
        raise CheckpointError(f"text cleaning {name!r} is not supported; known: {', '.join(names)}")
    return names[name]


def _from_simple(tokenizer: Any) -> Tokenizer:
    """CLIP's byte-pair tokenizer."""
    if tokenizer.reduction_fn is not None:
        raise CheckpointError("a tokenizer with a reduction_mask (random or syntactic truncation) is not supported")
    start, end = (tokenizer.decoder[index] for index in tokenizer.all_special_ids[:2])
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    # An empty last line of the merges file leaves a merge of no parts.
    pairs = [(merge[0], merge[1]) for merge in merges if len(merge) == 2]
    converted = Tokenizer(models.BPE(vocab=tokenizer.encoder, merges=pairs, end_of_word_suffix="</w>"))
    # The special tokens are matched inside text too, and anything the pattern does not match is dropped.
    special = "|".join(tokenizer.decoder[index] for index in tokenizer.all_special_ids)
    pattern = Regex(rf"(?i:{special}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+)")
    converted.add_special_tokens([tokenizer.decoder[index] for index in tokenizer.all_special_ids])
    converted.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    converted.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, tokenizer.sot_token_id), (end, tokenizer.eot_token_id)]
    )
    converted.enable_truncation(tokenizer.context_length)
    converted.enable_padding(length=tokenizer.context_length, pad_id=0, pad_token="!")
    return converted


def _from_fast(tokenizer: Any) -> Tokenizer:
    """A transformers tokenizer that has a ``tokenizers`` backend."""
    fast = tokenizer.tokenizer
    backend = getattr(fast, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        if getattr(tokenizer, "strip_sep_token", False):
            _zero_separator(state, str(fast.sep_token))
        converted = Tokenizer.from_str(json.dumps(state))
    elif type(fast).__name__ == "SiglipTokenizer":
        converted = _from_siglip(fast)
    else:
        raise CheckpointError(f"tokenizer {type(fast).__name__} has no fast form (the `tokenizers` library)")
    converted.enable_truncation(tokenizer.context_length, direction=fast.truncation_side)
    converted.enable_padding(
        length=tokenizer.context_length,
        pad_id=fast.pad_token_id,
        pad_token=str(fast.pad_token),
        direction=fast.padding_side,
    )
    return converted


def _from_siglip(tokenizer: Any) -> Tokenizer:
    """SigLIP's of transformers, on sentencepiece: no punctuation, in lower case, then a unigram model."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    model = ModelProto.FromString(tokenizer.sp_model.serialized_model_proto())
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    converted = Tokenizer(models.Unigram(pieces, unk_id=model.trainer_spec.unk_id))
    charsmap = model.normalizer_spec.precompiled_charsmap
    marks = f"[{re.escape(string.punctuation)}]"
    # Python's lower() knows the Σ that ends a word, this library's does not.
    lower = [normalizers.Replace(Regex(r"(?<=\p{L})Σ(?!\p{L})"), "ς"), normalizers.Lowercase()]
    converted.normalizer = normalizers.Sequence(
        [
            *(lower if tokenizer.do_lower_case else []),
            normalizers.Replace("▁", " "),
            # A mark stands before a text, and one more where it begins with white space. Metaspace sets the first, but
            # not where what the text begins with is removed.
            normalizers.Replace(Regex(rf"\A(?:{marks}|\s)+\z"), ""),
            normalizers.Replace(Regex(rf"\A{marks}*\s(?:{marks}|\s)*"), "▁▁"),
            normalizers.Replace(Regex(rf"\A{marks}+"), "▁"),
            normalizers.Replace(Regex(marks), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
            *([normalizers.Precompiled(charsmap)] if charsmap else []),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    converted.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    end, end_id = str(tokenizer.eos_token), tokenizer.eos_token_id
    converted.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, end_id)])
    # What stands beside one is stripped, as every part of a text between them.
    special = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    converted.add_special_tokens([AddedToken(token, lstrip=True, rstrip=True) for token in special])
    return converted


def _check_ids(converted: Tokenizer, tokenizer: Any) -> None:
    """The file gives the tokenizer's own ids, or CheckpointError with a text on which it does not."""
    for text, own, found in zip(
        ODD_TEXTS, tokenizer(ODD_TEXTS).tolist(), converted.encode_batch(ODD_TEXTS), strict=True
    ):
        if own != found.ids:
            raise CheckpointError(
                f"tokenizer {type(tokenizer.tokenizer).__name__} gives ids that its fast form does not, as of "
                f"{text[:40]!r}, and a bundle holds the fast form; save a tokenizer whose two forms agree"
            )


def _zero_separator(state: dict[str, Any], token: str) -> None:
    """Let the separator that ends a text have the id 0: open_clip sets it so behind CLIPA's tokenizer.

    A text that spells the separator out (``[SEP]``) keeps its id there, for this form has one text for each id.
    """
    post = state["post_processor"] or {}
    if post.get("type") == "BertProcessing":
        post["sep"] = [token, 0]
    elif post.get("type") == "TemplateProcessing" and token in post["special_tokens"]:
        post["special_tokens"][token]["ids"] = [0]
    else:
        kind = post.get("type", "no post-processor")
        raise CheckpointError(
            f"a tokenizer with strip_sep_token is supported where it ends in {token}, not with {kind}"
        )
