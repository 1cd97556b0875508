"""open_clip's families, shrunken: their own configurations with smaller numbers and random weights."""

from __future__ import annotations

import json
from copy import deepcopy

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2}
SMALL = {
    "ViT-B-32": {"vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 16, "patch_size": 16}},
    "ViT-B-32-quickgelu": {
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 16, "patch_size": 16}
    },
    "ViT-B-16": {"vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8}},
    "RN50": {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}},
    "convnext_base": {"vision_cfg": {"timm_model_name": "convnext_atto", "image_size": 64}},
    "ViT-B-16-SigLIP": {"vision_cfg": {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224}},
    "MobileCLIP-S1": {"vision_cfg": {"timm_model_name": "fastvit_mci0", "image_size": 128}},
    "coca_ViT-B-32": {"vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 16, "patch_size": 16}},
}


def shrunken(name, folder):
    """A family's own configuration with smaller numbers and random weights, as a local-dir checkpoint."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    config = deepcopy(open_clip.get_model_config(name))
    config["embed_dim"] = 64
    config["text_cfg"] |= TEXT
    if name == "ViT-B-16-SigLIP":
        from support import write_t5_like

        write_t5_like(folder)
        config["text_cfg"] |= {"vocab_size": 600, "hf_tokenizer_name": "own"}
        config["embed_dim"] = 192
    config["vision_cfg"] |= SMALL[name]["vision_cfg"]
    if name == "RN50":
        config["vision_cfg"]["head_width"] = 16
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= TEXT
        config["vision_cfg"]["attn_pooler_heads"] = 4
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    custom = deepcopy(config)
    kind = (
        open_clip.CoCa
        if "multimodal_cfg" in config
        else open_clip.CustomTextCLIP
        if custom.pop("custom_text", False)
        else open_clip.CLIP
    )
    custom.pop("custom_text", None)
    model = kind(**custom)
    save_file(
        {k: v.contiguous().clone() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
