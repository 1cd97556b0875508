"""Immich's export (immich-app/immich, machine-learning/export): `visual/model.onnx`, `textual/model.onnx`, their configs."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch

from benchmarks.foreign.demo import config, images, model, say, token_ids, tool_versions
from benchmarks.foreign.torch_export import EncodeImage, EncodeText

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def main(folder: Path) -> None:
    import open_clip

    clip = model()
    target = folder / "immich"
    shutil.rmtree(target, ignore_errors=True)
    visual, textual = target / "visual", target / "textual"
    visual.mkdir(parents=True)
    textual.mkdir()
    # open_clip's configuration alone, without the preprocessing and the wrapper of open_clip_config.json.
    (target / "config.json").write_text(json.dumps(config()["model_cfg"]))
    (visual / "preprocess_cfg.json").write_text(json.dumps(open_clip.get_model_preprocess_cfg(clip)))
    for name in TOKENIZER:
        shutil.copy(folder / "clip-model" / name, textual)
    ids = torch.from_numpy(token_ids(1)).to(torch.int32)
    cases = (
        (EncodeImage(clip, unit=True), torch.from_numpy(images(1)), visual, "image"),
        (EncodeText(clip, unit=True), ids, textual, "text"),
    )
    for module, value, where, given in cases:
        torch.onnx.export(
            module,
            (value,),
            str(where / "model.onnx"),
            input_names=[given],
            output_names=["embedding"],
            opset_version=17,
            dynamo=False,
        )
    say(
        target,
        layout="Immich (visual/model.onnx, textual/model.onnx, config.json, visual/preprocess_cfg.json, textual/tokenizer*)",
        made_by=tool_versions("torch", "open_clip_torch", "transformers") + ", by the calls of immich_model_exporter",
        truth="demo FP32",
        trap="fixed batch 1 on both; int32 ids; both outputs are called embedding and have unit length; preprocess_cfg.json "
        "has size as a list; tokenizer.json has no fixed padding or truncation (Immich pads with tokenizer_config.json's "
        "pad_token to config.json's text_cfg.context_length); no logit scale anywhere",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
