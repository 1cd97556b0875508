"""Train the built-in checkpoint on the demo world: ``python -m clipq.exporters.train_demo -o DIR``.

A small ViT pair (open_clip's own classes) learns two things at once: which caption goes with which image (the CLIP
loss) and which class name in a random prompt goes with it (the same loss with the class names as the batch). Weights
are rounded to float16 before they are stored, so that the float32 towers made from them are exactly the checkpoint.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES
from safetensors.torch import save_file

from clipq.demo import world

TEMPLATES = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic", "resize_mode": "shortest"}


SMALL_WORDS = "a an the on at in outline of pattern background photo object shape thing image"


def model_config(vocab_size: int) -> dict[str, object]:
    """open_clip's configuration of the demo checkpoint."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": world.IMAGE_SIZE, "patch_size": 8, "width": 128, "head_width": 32, "layers": 4},
        "text_cfg": {"context_length": 24, "vocab_size": vocab_size, "width": 128, "heads": 4, "layers": 2},
    }


def write_merges(target: Path) -> None:
    """Write the part of CLIP's byte-pair merges that the world's words and the prompt templates need."""
    tokenizer = SimpleTokenizer()
    words = set(
        " ".join([t.format("") for t in TEMPLATES] + [t("") for t in SIMPLE_IMAGENET_TEMPLATES]).lower().split()
    )
    for named in (world.SHAPES, world.UNSEEN_SHAPES, world.COLOURS, world.UNSEEN_COLOURS):
        words |= set(named)
    for names in (world.TEXTURES, world.BACKGROUNDS, world.UNSEEN_BACKGROUNDS, world.SIZES, world.LIGHTS):
        words |= set(names)
    words |= set(SMALL_WORDS.split())
    used: set[tuple[str, str]] = set()
    for word in sorted(words):
        for piece in tokenizer.pat.findall(word):
            symbols = [tokenizer.byte_encoder[b] for b in piece.encode()]
            symbols[-1] += "</w>"
            while len(symbols) > 1:
                pairs = list(pairwise(symbols))
                best = min(pairs, key=lambda pair: tokenizer.bpe_ranks.get(pair, math.inf))
                if best not in tokenizer.bpe_ranks:
                    break
                used.add(best)
                at = pairs.index(best)
                symbols[at : at + 2] = ["".join(best)]
    merges = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")
    kept = [line for line in merges[1:48895] if tuple(line.split()) in used]
    target.write_bytes(gzip.compress(("\n".join([merges[0], *kept])).encode(), mtime=0))


def _draw(bounds: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
    samples = (world.sample_with_silhouette("train", index) for index in range(*bounds))
    scenes, pixels, silhouettes = zip(*samples, strict=True)
    labels = np.array([world.CLASS_NAMES.index(scene.shape) for scene in scenes])
    covered = np.rint(np.stack(silhouettes) * 255).astype(np.uint8)
    return np.stack(pixels), covered, [scene.caption() for scene in scenes], labels


def training_set(count: int) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
    """Pixels (uint8, N x 48 x 48 x 3), silhouettes (uint8, N x 48 x 48), captions, labels of the first ``count``."""
    step = 2000
    with ProcessPoolExecutor() as pool:
        parts = list(pool.map(_draw, [(a, min(a + step, count)) for a in range(0, count, step)]))
    return (
        np.concatenate([part[0] for part in parts]),
        np.concatenate([part[1] for part in parts]),
        [caption for part in parts for caption in part[2]],
        np.concatenate([part[3] for part in parts]),
    )


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """Normalized float image batch, N x 3 x 48 x 48."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (images - 0.5) / 0.25


def contrast(images: torch.Tensor, texts: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Symmetric contrastive loss with targets that may share a text (rows: images; columns: texts)."""
    logits = images @ texts.T
    weight = targets / targets.sum(0, keepdim=True).clamp_min(1)
    by_image = -(targets / targets.sum(1, keepdim=True) * F.log_softmax(logits, 1)).sum(1).mean()
    by_text = -(weight * F.log_softmax(logits, 0)).sum(0).mean()
    return (by_image + by_text) / 2


def make_optimizer(
    parameters: list[torch.nn.Parameter], steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW that decays matrices alone, and its learning rate over so many steps: a warm-up below half a cosine."""
    decay = [p for p in parameters if p.ndim >= 2]
    rest = [p for p in parameters if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.02}, {"params": rest, "weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.95)
    )
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-3
    )


def train(model: Any, tokenizer: SimpleTokenizer, count: int, epochs: int) -> None:
    """Train in place; deterministic for a given torch build and thread count."""
    rng = np.random.default_rng(world.SEED)
    pixels, silhouettes, captions, labels = training_set(count)
    # Two helpers that are dropped afterwards shorten training from hours to minutes: a linear head that draws each
    # patch's part of the object's silhouette from its token, and one that names the class without the text tower.
    patch = model.visual.patch_size[0]
    grid = world.IMAGE_SIZE // patch
    sketch = torch.nn.Linear(model.visual.transformer.width, patch * patch)
    naming = torch.nn.Linear(model.visual.transformer.width, len(world.CLASS_NAMES))
    model.visual.output_tokens = True
    tokens = tokenizer(captions)
    prompts = tokenizer([template.format(name) for template in TEMPLATES for name in world.CLASS_NAMES])
    prompts = prompts.reshape(len(TEMPLATES), len(world.CLASS_NAMES), -1)
    batch, captioned = 96, 48
    steps = epochs * (count // batch)
    optimizer, schedule = make_optimizer([*model.parameters(), *sketch.parameters(), *naming.parameters()], steps)
    eye = torch.eye(captioned)
    started = time.monotonic()
    step = 0
    for _ in range(epochs):
        order = rng.permutation(count)
        for start in range(0, count - batch + 1, batch):
            rows = order[start : start + batch]
            label = torch.from_numpy(labels[rows])
            template = int(rng.integers(len(TEMPLATES)))
            text = torch.cat([prompts[template], tokens[rows[:captioned]]])
            pooled, tokens_out = model.visual(to_tensor(pixels[rows]))
            image_features = F.normalize(pooled, dim=-1)
            covered = torch.from_numpy(silhouettes[rows]).float() / 255
            covered = covered.reshape(batch, grid, patch, grid, patch).transpose(2, 3).reshape(batch, grid * grid, -1)
            sketched = F.binary_cross_entropy_with_logits(sketch(tokens_out), covered)
            text_features = model.encode_text(text, normalize=True)
            scale = model.logit_scale.exp()
            classes = len(world.CLASS_NAMES)
            of_class = F.one_hot(label, classes).float()
            loss = contrast(scale * image_features, text_features[:classes], of_class)
            loss = loss + 0.3 * contrast(scale * image_features[:captioned], text_features[classes:], eye)
            named = naming(pooled)
            loss = loss + 2.0 * sketched + F.cross_entropy(named, label)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            model.logit_scale.data.clamp_(0, math.log(100))
            step += 1
            if step % 100 == 0:
                with torch.no_grad():
                    hit = ((image_features @ text_features[:classes].T).argmax(1) == label).float().mean()
                    named_hit = (named.argmax(1) == label).float().mean()
                minutes = (time.monotonic() - started) / 60
                accuracy = f"zero-shot {hit:.3f}, by the helper {named_hit:.3f}"
                print(f"step {step}/{steps}: loss {loss.item():.3f}, {accuracy}, {minutes:.1f} min", flush=True)
    model.visual.output_tokens = False


def main() -> None:
    """Train and write the checkpoint folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=world.SETS["train"].count)
    parser.add_argument("--epochs", type=int, default=7)
    arguments = parser.parse_args()
    torch.manual_seed(world.SEED)
    arguments.output.mkdir(parents=True, exist_ok=True)
    merges = arguments.output / "bpe_merges.txt.gz"
    write_merges(merges)
    tokenizer = SimpleTokenizer(bpe_path=str(merges), context_length=24)
    config = model_config(tokenizer.vocab_size)
    model = open_clip.CLIP(**config)
    print(sum(p.numel() for p in model.parameters()), "parameters,", tokenizer.vocab_size, "tokens", flush=True)
    train(model, tokenizer, arguments.count, arguments.epochs)
    state = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    save_file(state, arguments.output / "open_clip_model.safetensors")
    (arguments.output / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
