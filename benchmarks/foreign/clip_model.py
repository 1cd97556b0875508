"""transformers: the demo's weights as a CLIPModel folder (`save_pretrained`), from which Optimum and transformers.js start."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.foreign.demo import BUNDLE, config, images, model, say, token_ids, tool_versions

PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
ALONE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    # The spelling is transformers' own.
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "logit_scale": "logit_scale",
}


def renamed(weights: dict[str, Any]) -> dict[str, Any]:
    """open_clip's weights under transformers' names."""
    named = {}
    for key, value in weights.items():
        base, _, kind = key.rpartition(".")
        if key in ("visual.proj", "text_projection"):
            named["visual_projection.weight" if key == "visual.proj" else "text_projection.weight"] = value.T
        elif key in ALONE or base in ALONE:
            named[ALONE[key] if key in ALONE else f"{ALONE[base]}.{kind}"] = value
        else:
            tower = "vision_model" if key.startswith("visual.") else "text_model"
            _, _, rest = key.partition("resblocks.")
            layer, _, part = rest.partition(".")
            prefix = f"{tower}.encoder.layers.{layer}"
            if part.startswith("attn.in_proj_"):
                for name, third in zip("qkv", value.chunk(3), strict=True):
                    named[f"{prefix}.self_attn.{name}_proj.{part.removeprefix('attn.in_proj_')}"] = third
            else:
                part, _, kind = part.rpartition(".")
                named[f"{prefix}.{PARTS[part]}.{kind}"] = value
    return {key: value.contiguous() for key, value in named.items()}


def clip_model() -> Any:
    from transformers import CLIPConfig, CLIPModel

    ours = config()
    text, vision = ours["model_cfg"]["text_cfg"], ours["model_cfg"]["vision_cfg"]
    start, end = text["vocab_size"] - 2, text["vocab_size"] - 1
    theirs = CLIPConfig(
        text_config={
            "vocab_size": text["vocab_size"],
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "hidden_act": "gelu",
            "bos_token_id": start,
            "eos_token_id": end,
            "pad_token_id": end,
            "projection_dim": ours["model_cfg"]["embed_dim"],
        },
        vision_config={
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision["head_width"],
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_act": "gelu",
            "projection_dim": ours["model_cfg"]["embed_dim"],
        },
        projection_dim=ours["model_cfg"]["embed_dim"],
    )
    made = CLIPModel(theirs).eval()
    missing, unexpected = made.load_state_dict(renamed(model().state_dict()), strict=False)
    assert not unexpected and all(name.endswith("position_ids") for name in missing), (missing, unexpected)
    return made


def save_processor(folder: Path) -> None:
    """preprocessor_config.json and the tokenizer's files, as transformers writes them."""
    from transformers import CLIPImageProcessor, CLIPTokenizerFast

    ours = config()
    size, preprocess = ours["model_cfg"]["vision_cfg"]["image_size"], ours["preprocess_cfg"]
    CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=preprocess["mean"],
        image_std=preprocess["std"],
        resample=3,
    ).save_pretrained(folder)
    stored = json.loads((BUNDLE / "tokenizer.json").read_text())["model"]
    with tempfile.TemporaryDirectory() as work:
        vocabulary, merges = Path(work) / "vocab.json", Path(work) / "merges.txt"
        vocabulary.write_text(json.dumps(stored["vocab"]))
        lines = [" ".join(merge) if isinstance(merge, list) else merge for merge in stored["merges"]]
        merges.write_text("#version: 0.2\n" + "\n".join(lines) + "\n")
        end = "<end_of_text>"
        special = {"bos_token": "<start_of_text>", "eos_token": end, "pad_token": end, "unk_token": end}
        CLIPTokenizerFast(
            vocab_file=str(vocabulary),
            merges_file=str(merges),
            model_max_length=ours["model_cfg"]["text_cfg"]["context_length"],
            **special,
        ).save_pretrained(folder)


def unit(rows: Any) -> Any:
    return rows / rows.norm(dim=-1, keepdim=True)


def main(folder: Path) -> None:
    import torch

    made, ours = clip_model(), model()
    target = folder / "clip-model"
    made.save_pretrained(target)
    save_processor(target)
    pixels, ids = torch.from_numpy(images(8)), torch.from_numpy(token_ids(8))
    with torch.no_grad():
        there, here = made(input_ids=ids, pixel_values=pixels), (ours.encode_image(pixels), ours.encode_text(ids))
    for name, ours_rows, their_rows in zip(
        ("image", "text"), here, (there.image_embeds, there.text_embeds), strict=True
    ):
        difference = np.abs((unit(ours_rows) - unit(their_rows)).numpy()).max()
        assert difference < 1e-5, (name, difference)
    say(
        target,
        layout="transformers' save_pretrained (a checkpoint, no engine)",
        made_by=tool_versions("transformers", "torch"),
        truth="demo FP32 (checked here: unit-length embeddings of 8 images and captions within 1e-5)",
        trap="pads with <end_of_text> where open_clip's tokenizer pads with 0; the causal tower does not see it",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
