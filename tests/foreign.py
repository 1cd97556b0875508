"""The built-in checkpoint in the forms of others' tools."""

from __future__ import annotations

import json
from pathlib import Path

from support import DEMO_BUNDLE

CHECKPOINT = DEMO_BUNDLE.parent / "checkpoint"


def demo_for_transformers(folder: Path) -> Path:
    """Write the built-in open_clip checkpoint as ``save_pretrained`` does: a CLIPModel, its tokenizer and processor.

    As in OpenAI's repositories: padding is the end token over again (open_clip's is the token of id 0), which a causal
    tower does not see, and texts are not mended or unescaped first.
    """
    from safetensors.torch import load_file
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    config = json.loads((CHECKPOINT / "open_clip_config.json").read_text())
    model, preprocess = config["model_cfg"], config["preprocess_cfg"]
    vision, text = model["vision_cfg"], model["text_cfg"]
    vocabulary = json.loads((DEMO_BUNDLE / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    start, end = "<start_of_text>", "<end_of_text>"
    ids = vocabulary["vocab"]
    shared = {"projection_dim": model["embed_dim"], "hidden_act": "gelu"}
    clip = CLIPModel(
        CLIPConfig(
            projection_dim=model["embed_dim"],
            vision_config={
                "hidden_size": vision["width"],
                "intermediate_size": 4 * vision["width"],
                "num_hidden_layers": vision["layers"],
                "num_attention_heads": vision["width"] // vision["head_width"],
                "image_size": vision["image_size"],
                "patch_size": vision["patch_size"],
                **shared,
            },
            text_config={
                "hidden_size": text["width"],
                "intermediate_size": 4 * text["width"],
                "num_hidden_layers": text["layers"],
                "num_attention_heads": text["heads"],
                "max_position_embeddings": text["context_length"],
                "vocab_size": text["vocab_size"],
                "bos_token_id": ids[start],
                "eos_token_id": ids[end],
                "pad_token_id": ids[end],
                **shared,
            },
        )
    )
    clip.load_state_dict(_as_transformers(load_file(CHECKPOINT / "open_clip_model.safetensors")))
    clip.save_pretrained(folder)
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in vocabulary["merges"]]
    CLIPTokenizer(
        vocab=ids, merges=merges, unk_token=end, bos_token=start, eos_token=end, pad_token=end,
        model_max_length=text["context_length"],
    ).save_pretrained(folder)  # fmt: skip
    size = vision["image_size"]
    CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size},
        image_mean=preprocess["mean"], image_std=preprocess["std"],
    ).save_pretrained(folder)  # fmt: skip
    return folder


def _as_transformers(weights):
    """open_clip's names and packed projections as CLIPModel's."""
    converted = {
        "logit_scale": weights["logit_scale"],
        "visual_projection.weight": weights["visual.proj"].T.contiguous(),
        "text_projection.weight": weights["text_projection"].T.contiguous(),
        "vision_model.embeddings.class_embedding": weights["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": weights["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": weights["visual.positional_embedding"],
        "text_model.embeddings.token_embedding.weight": weights["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": weights["positional_embedding"],
    }
    norms = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }
    within = {
        "attn.out_proj": "self_attn.out_proj",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for name, value in weights.items():
        module, _, kind = name.rpartition(".")
        if module in norms:
            converted[f"{norms[module]}.{kind}"] = value
        elif "resblocks." in name:
            side = "vision_model" if name.startswith("visual.") else "text_model"
            layer, _, rest = name.split("resblocks.")[1].partition(".")
            place = f"{side}.encoder.layers.{layer}"
            if rest.startswith("attn.in_proj_"):
                for part, chunk in zip("qkv", value.chunk(3), strict=True):
                    converted[f"{place}.self_attn.{part}_proj.{rest.removeprefix('attn.in_proj_')}"] = chunk.clone()
            else:
                converted[f"{place}.{within[rest.rpartition('.')[0]]}.{kind}"] = value
    return converted
