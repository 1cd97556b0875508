"""What several tests need: paths, and the command lines run as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from commands import commands

import clipq.demo
from clipq.cpu import cpu_level

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
CALIBRATION = ROOT / "calib_data" / "demo"
# How the files of an engine that ran here end, in a results folder.
ON_THIS_CPU = f"ort-cpu__{cpu_level().name}"
DEMO_BUNDLE = Path(clipq.demo.__file__).parent / "bundle"

RECIPES = {
    "fp16": "fp16",
    "int8-static-minmax": "int8-static",
    "int8-static-entropy": "int8-static:ranges=entropy",
    "int8-static-minmax-symmetric": "int8-static:activations=symmetric",
    "int8-static-percentile": "int8-static:ranges=percentile",
    "int8-dynamic": "int8-dynamic",
    "int8-weight-only-rtn": "int8-weight-only",
    "int4-weight-only-rtn": "int4-weight-only",
    "int4-weight-only-rtn-qdq-symmetric": "int4-weight-only:form=qdq,symmetric=true",
    "int4-weight-only-rtn-token-table": "int4-weight-only:token_table=true",
    "int4-weight-only-hqq": "int4-weight-only:algorithm=hqq",
    "int2-weight-only-rtn": "int2-weight-only",
}


def run(module: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command line as a user would, in a process of its own."""
    ready = None if options else commands(module)
    if ready is not None:
        return ready.run([*map(str, arguments)], Path.cwd())
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


def export(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return run("clipq.exporters.cli", *arguments, **options)


def evaluate(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return run("clipq.evaluate.cli", *arguments, **options)


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, one line on stderr that starts with ``error:`` and holds the words, no traceback."""
    lines = [line for line in done.stderr.strip().splitlines() if line.startswith("error:")]
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in lines[0], lines[0]


WORDS = [
    "cat",
    "dog",
    "tree",
    "house",
    "river",
    "bright",
    "small",
    "wooden",
    "striped",
    "flying",
    "stone",
    "paper",
    "little",
    "river",
    "cartoon",
    "blurry",
]


def write_t5_like(folder):
    """A unigram tokenizer of SigLIP's kind (T5: sentencepiece, padding with id 1), trained on a few prompts."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=600, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(
        [f"a {adjective} photo of the {noun}" for adjective in WORDS for noun in WORDS], trainer
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="</s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
