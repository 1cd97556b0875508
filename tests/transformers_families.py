"""transformers' dual encoders, shrunken: their own classes with small numbers, random weights and tokenizers made here."""

from __future__ import annotations

import io
import json
import string

from support import DEMO_BUNDLE, WORDS

SIZE, LENGTH = 32, 16
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
LETTERS = sorted({*string.ascii_lowercase, *string.digits, *".,!'()_-", *"éüñßς日本語猫照片Привет"})
SENTENCES = [f"a {adjective} photo of the {noun}" for adjective in WORDS for noun in WORDS]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def byte_pairs(**options):
    """CLIP's kind, with the built-in checkpoint's vocabulary."""
    from transformers import CLIPTokenizer

    model = json.loads((DEMO_BUNDLE / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    start, end = "<start_of_text>", "<end_of_text>"
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(
        vocab=model["vocab"], merges=merges, bos_token=start, eos_token=end, unk_token=end, pad_token=end,
        **{"model_max_length": LENGTH, **options},
    )  # fmt: skip


def words(**options):
    """BERT's kind."""
    from transformers import BertTokenizer

    listed = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "photo", "of", "the", "##s", *WORDS, *LETTERS]
    vocab = dict.fromkeys([*listed, *(f"##{letter}" for letter in LETTERS)])
    return BertTokenizer(vocab={word: index for index, word in enumerate(vocab)}, model_max_length=LENGTH, **options)


def unigrams(**options):
    """XLM-RoBERTa's kind."""
    from transformers import XLMRobertaTokenizer

    pieces = [(word, -5.0) for word in ["▁", *(f"▁{word}" for word in [*WORDS, "photo", "of", "the"]), *LETTERS]]
    vocab = [*((token, 0.0) for token in SPECIAL), *dict(pieces).items(), ("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=vocab, model_max_length=LENGTH, **options)


def sentence_pieces(folder, **options):
    """SigLIP's kind: a file of sentencepiece, in lower case and without punctuation."""
    import sentencepiece
    from transformers import SiglipTokenizer

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*SENTENCES, "".join(LETTERS)]), model_writer=written, vocab_size=150,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(written.getvalue())
    return SiglipTokenizer(
        str(folder / "spiece.model"), **{"model_max_length": LENGTH, "model_input_names": ["input_ids"], **options}
    )


def byte_fallback(**options):
    """SigLIP 2's kind, Gemma's in lower case, which sets no limit to the length of a text."""
    from transformers import Siglip2Tokenizer

    listed = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS]
    merges = [("t", "h"), ("th", "e"), ("o", "f"), ("p", "h"), ("▁", "a"), ("c", "a"), ("ca", "t")]
    vocab = {token: index for index, token in enumerate([*listed, *("".join(merge) for merge in merges)])}
    return Siglip2Tokenizer(
        vocab=vocab, merges=merges, add_bos_token=False, add_eos_token=True,
        **{"model_input_names": ["input_ids"], "padding_side": "right", **options},
    )  # fmt: skip


def clip_processor(**options):
    from transformers import CLIPImageProcessor

    square = {"height": SIZE, "width": SIZE}
    return CLIPImageProcessor(
        **{"size": {"shortest_edge": SIZE}, "crop_size": square, "image_mean": MEAN, "image_std": STD, **options}
    )


def siglip_processor(**options):
    from transformers import SiglipImageProcessor

    size = {"height": SIZE, "width": SIZE}
    return SiglipImageProcessor(**{"size": size, "image_mean": MEAN, "image_std": STD, "resample": 2, **options})


TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**TOWER, "image_size": SIZE, "patch_size": 8, "projection_dim": 24}
# Model class, tokenizer, image processor, and what its text tower's configuration says besides.
FAMILIES = {
    "clip": ("CLIP", byte_pairs, clip_processor, {"max_position_embeddings": LENGTH, "projection_dim": 24}),
    "clip of before 2023": ("CLIP", byte_pairs, clip_processor, {"max_position_embeddings": LENGTH, "eos_token_id": 2}),
    "siglip": ("Siglip", sentence_pieces, siglip_processor, {"max_position_embeddings": LENGTH}),
    "siglip 2": ("Siglip", byte_fallback, siglip_processor, {"max_position_embeddings": LENGTH}),
    "altclip": ("AltCLIP", unigrams, clip_processor, {"max_position_embeddings": LENGTH + 2, "project_dim": 32}),
    "chinese clip": ("ChineseCLIP", words, siglip_processor, {"max_position_embeddings": 2 * LENGTH}),
    "metaclip 2": ("MetaClip2", unigrams, clip_processor, {"max_position_embeddings": LENGTH, "projection_dim": 24}),
}


def saved(family, folder, **tokenizer_options):
    """A family's model, tokenizer and image processor, as ``save_pretrained`` writes them."""
    import torch
    import transformers

    name, make_tokenizer, make_processor, more = FAMILIES[family]
    folder.mkdir(parents=True, exist_ok=True)
    arguments = (folder,) if make_tokenizer is sentence_pieces else ()
    tokenizer = make_tokenizer(*arguments, **tokenizer_options)
    text = {**TOWER, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **more}
    if name in ("CLIP", "MetaClip2"):
        text = {"eos_token_id": tokenizer.eos_token_id, **text}
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=VISION, projection_dim=24)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Their own initial values are too small to tell texts and images apart.
            parameter.add_(torch.randn_like(parameter) * 0.25)
        model.logit_scale.fill_(3.0)
    for part in (model, tokenizer, make_processor()):
        part.save_pretrained(folder)
    return folder
