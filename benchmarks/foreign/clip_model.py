"""transformers: the demo's weights as a CLIPModel folder (`save_pretrained`), from which Optimum and transformers.js start.

Needs clipq's own Python, for the tests' conversion makes it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.foreign.demo import ROOT, images, model, say, token_ids, tool_versions

sys.path.insert(0, str(ROOT / "tests"))
from foreign import demo_for_transformers


def unit(rows: Any) -> Any:
    return rows / rows.norm(dim=-1, keepdim=True)


def main(folder: Path) -> None:
    import torch
    from transformers import CLIPModel

    target = demo_for_transformers(folder / "clip-model")
    made, ours = CLIPModel.from_pretrained(target).eval(), model()
    pixels, ids = torch.from_numpy(images(8)), torch.from_numpy(token_ids(8))
    with torch.no_grad():
        there, here = made(input_ids=ids, pixel_values=pixels), (ours.encode_image(pixels), ours.encode_text(ids))
    for name, mine, theirs in zip(("image", "text"), here, (there.image_embeds, there.text_embeds), strict=True):
        difference = float((unit(mine) - unit(theirs)).abs().max())
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
