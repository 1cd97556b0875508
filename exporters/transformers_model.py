"""A dual encoder of transformers, and its tokenizer, behind the methods of open_clip's that clipq calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class TransformersModel(nn.Module):
    """A model of transformers as open_clip's are called.

    ``mask_of`` makes the attention mask of token ids, (batch, tokens) both; None where the text tower needs none.
    """

    def __init__(self, model: Any, mask_of: Callable[[Tensor], Tensor] | None):
        super().__init__()
        self.model, self.mask_of = model, mask_of

    @property
    def logit_scale(self) -> Tensor:
        """Its logarithm, as in open_clip."""
        scale: Tensor = self.model.logit_scale
        return scale

    @property
    def logit_bias(self) -> Tensor | None:
        """SigLIP's; the others have none."""
        return getattr(self.model, "logit_bias", None)

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """``image`` is (batch, 3, height, width), the features (batch, width)."""
        return _features(self.model.get_image_features(pixel_values=image), normalize)

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """``text`` is (batch, context_length), int64; the features are (batch, width)."""
        mask = None if self.mask_of is None else self.mask_of(text)
        return self.encode_masked(text, mask, normalize)

    def encode_masked(self, text: Tensor, mask: Tensor | None, normalize: bool = False) -> Tensor:
        """The same with an attention mask that is given, as the checkpoint's own tokenizer makes it."""
        return _features(self.model.get_text_features(input_ids=text, attention_mask=mask), normalize)


def _features(output: Any, normalize: bool) -> Tensor:
    features: Tensor = output.pooler_output
    return nn.functional.normalize(features, dim=-1) if normalize else features


class PaddingMask:
    """The attention mask of ids padded on the right: 1 up to the last that is no padding, int64.

    ``is_end``: padding is the end token over again, so the first of those behind a text is its own.
    """

    def __init__(self, padding: int, is_end: bool):
        self._padding, self._own = padding, int(is_end)

    def __call__(self, text: Tensor) -> Tensor:
        """``text`` and the mask are (batch, context_length)."""
        place = torch.arange(1, text.shape[1] + 1, device=text.device)
        last = ((text != self._padding) * place).amax(dim=1, keepdim=True) + self._own
        return (place <= last).long()


class TransformersTokenizer:
    """A tokenizer of transformers as open_clip's are called: padded and truncated to one length."""

    def __init__(self, tokenizer: Any, context_length: int):
        self.tokenizer, self.context_length = tokenizer, context_length

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Ids, (texts, context_length), int64."""
        return torch.from_numpy(self.encoded(texts)["input_ids"])

    def encoded(self, texts: str | Sequence[str]) -> dict[str, NDArray[np.int64]]:
        """What the checkpoint's own text tower is given: ids, and an attention mask where the tokenizer makes one."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        given = self.tokenizer(texts, padding="max_length", truncation=True, max_length=self.context_length)
        return {name: np.array(given[name], np.int64) for name in ("input_ids", "attention_mask") if name in given}
