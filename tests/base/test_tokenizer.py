"""tokenizer.json gives the ids of open_clip's tokenizer."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from odd_texts import strings
from support import write_t5_like

from clipq.bundle import open_bundle
from clipq.errors import CheckpointError
from clipq.tokenizer import TextTokenizer, clean

open_clip_tokenizer = pytest.importorskip("open_clip.tokenizer", reason="needs the export extra")


class Stub:
    """A bundle of which only the tokenizer is there."""

    def __init__(self, folder, cleaning, context_length):
        class Entry:
            file = "tokenizer.json"

        Entry.cleaning, Entry.context_length = cleaning, context_length
        self.path = folder
        self.manifest = type("M", (), {"tokenizer": Entry, "text": type("T", (), {"input_dtype": "int64"})})


def same(tokenizer, folder, texts):
    from clipq.exporters.tokenizer_file import write_tokenizer

    cleaning = write_tokenizer(tokenizer, folder / "tokenizer.json")
    actual = TextTokenizer(Stub(folder, cleaning, tokenizer.context_length))(texts)
    expected = tokenizer(texts).numpy()
    wrong = [text[:60] for text, a, e in zip(texts, actual, expected, strict=True) if (a != e).any()]
    assert actual.dtype == np.int64 and not wrong, wrong[:5]


@pytest.mark.parametrize("context_length", [77, 24])
def test_clip_tokenizer(tmp_path, context_length):
    same(open_clip_tokenizer.SimpleTokenizer(context_length=context_length), tmp_path, strings())


def test_demo_tokenizer(bundles):
    from pathlib import Path

    import clipq.demo

    merges = Path(clipq.demo.__file__).parent / "checkpoint" / "bpe_merges.txt.gz"
    expected = open_clip_tokenizer.SimpleTokenizer(bpe_path=str(merges), context_length=24)(strings()).numpy()
    assert (TextTokenizer(open_bundle(bundles / "fp32"))(strings()) == expected).all()


@pytest.mark.parametrize("cleaning", ["canonicalize", "whitespace", "lower"])
def test_transformers_tokenizer(tmp_path, cleaning):
    pytest.importorskip("transformers", reason="needs the export extra")
    write_t5_like(tmp_path / "hf")
    tokenizer = open_clip_tokenizer.HFTokenizer(str(tmp_path / "hf"), context_length=64, clean=cleaning)
    same(tokenizer, tmp_path, strings())


@pytest.mark.parametrize("context_length", [8, 32])
def test_clipas_tokenizer(tmp_path, context_length):
    """BERT's, whose separator open_clip turns into padding."""
    transformers = pytest.importorskip("transformers", reason="needs the export extra")
    letters = sorted({letter for text in strings() for letter in text.lower() if letter.isalnum()} | set(".,!'-#&"))
    words = ["photo", "of", "the", "cat", "##s", "##ing", *letters, *(f"##{letter}" for letter in letters)]
    vocab = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
    bert = transformers.BertTokenizerFast(vocab={word: index for index, word in enumerate(vocab)})
    bert.save_pretrained(tmp_path / "hf")
    path = str(tmp_path / "hf")
    tokenizer = open_clip_tokenizer.HFTokenizer(path, context_length=context_length, strip_sep_token=True)
    assert 3 not in tokenizer(strings()) and 2 in tokenizer(strings())
    same(tokenizer, tmp_path, strings())


def test_a_tokenizer_without_this_form_is_refused_before_anything_is_exported(tmp_path, monkeypatch):
    from clipq.exporters import onnx_bundle

    # Nothing else of the checkpoint is there, so any work on it would fail in another way.
    loaded = SimpleNamespace(tokenizer=open_clip_tokenizer.SimpleTokenizer(reduction_mask="random"))
    monkeypatch.setattr(onnx_bundle, "load_checkpoint", lambda source: loaded)
    with pytest.raises(CheckpointError, match="reduction_mask"):
        onnx_bundle.export_bundle("demo", None, tmp_path / "fp32", progress=lambda line: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cleaning", ["lower", "canonicalize", "whitespace"])
def test_cleaning_is_open_clips(cleaning):
    expected = open_clip_tokenizer.get_clean_fn(cleaning)
    for text in strings():
        assert clean(text, cleaning) == expected(text)
