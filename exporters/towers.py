"""The two towers of a checkpoint as modules that export well."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainAttention(nn.Module):
    """``nn.MultiheadAttention`` (self-attention, batch first) as two linears around scaled dot-product attention.

    torch's own module exports its output projection as Gemm on flattened rows, which MatMul-only quantizers skip; here
    every projection becomes a MatMul on ``(batch, tokens, width)``. Shares the original's parameters.
    """

    def __init__(self, original: nn.MultiheadAttention):
        super().__init__()
        self.num_heads = original.num_heads
        self.in_proj_weight = original.in_proj_weight
        self.in_proj_bias = original.in_proj_bias
        self.out_proj = original.out_proj

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Self-attention over ``query`` (batch, tokens, width); ``key`` and ``value`` must be the same tensor."""
        if query is not key or key is not value or key_padding_mask is not None:
            raise NotImplementedError("PlainAttention is self-attention without a padding mask")
        batch, tokens, width = query.shape
        packed = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        if attn_mask is not None and attn_mask.ndim == 3:
            # torch's module takes (batch * heads, tokens, tokens); CoCa's text tower gives that.
            attn_mask = attn_mask.reshape(batch, self.num_heads, tokens, tokens)
        heads = packed.reshape(batch, tokens, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=attn_mask)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, width)), None


class ProbeAttention(nn.Module):
    """``nn.MultiheadAttention`` from learned queries to the tokens, as three linears and one: SigLIP's pooling head."""

    def __init__(self, original: nn.MultiheadAttention):
        super().__init__()
        self.num_heads = original.num_heads
        self.weights = nn.ParameterList(original.in_proj_weight.detach().chunk(3))
        self.biases = nn.ParameterList(original.in_proj_bias.detach().chunk(3))
        self.out_proj = original.out_proj

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, None]:
        """Attention of ``query`` (batch, queries, width) to ``key`` and ``value`` (batch, tokens, width)."""
        heads = []
        for given, weight, bias in zip((query, key, value), self.weights, self.biases, strict=True):
            batch, tokens, width = given.shape
            split = (batch, tokens, self.num_heads, width // self.num_heads)
            heads.append(F.linear(given, weight, bias).reshape(split).transpose(1, 2))
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


class AttentionPool(nn.Module):
    """open_clip's ``AttentionPool2d`` (ModifiedResNet) with projections that export as MatMul; one query, the mean."""

    def __init__(self, original: Any):
        super().__init__()
        self.original = original

    def forward(self, x: Tensor) -> Tensor:
        """Pool a feature map (batch, channels, height, width) to (batch, embedding)."""
        pool = self.original
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + pool.positional_embedding.to(x.dtype)
        batch, _, width = x.shape
        split = (batch, -1, pool.num_heads, width // pool.num_heads)
        query = pool.q_proj(x[:, :1]).reshape(split).transpose(1, 2)
        key = pool.k_proj(x).reshape(split).transpose(1, 2)
        value = pool.v_proj(x).reshape(split).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return pool.c_proj(mixed.transpose(1, 2).reshape(batch, 1, width))[:, 0]


class ImageTower(nn.Module):
    """Pixels to image features, not normalized."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """``image`` is (batch, 3, height, width), normalized."""
        return self.model.encode_image(image, normalize=False)


class TextTower(nn.Module):
    """Token ids to text features, not normalized."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, text: Tensor) -> Tensor:
        """``text`` is (batch, context_length), int64."""
        return self.model.encode_text(text, normalize=False)


def make_exportable(model: Any) -> Any:
    """Replace, in place, the modules of a model that export badly; returns the model.

    MobileCLIP's training branches are merged into single convolutions (timm's reparameterization).
    """
    from open_clip.modified_resnet import AttentionPool2d
    from timm.utils import reparameterize_model

    if hasattr(getattr(model, "visual", None), "trunk"):
        model.visual.trunk = reparameterize_model(model.visual.trunk)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MultiheadAttention) and _is_plain(module, child):
                probes = type(module).__name__ == "SiglipMultiheadAttentionPoolingHead"
                setattr(module, name, ProbeAttention(child) if probes else PlainAttention(child))
            elif isinstance(child, AttentionPool2d):
                setattr(module, name, AttentionPool(child))
    return model.eval()


def _is_plain(parent: nn.Module, attention: nn.MultiheadAttention) -> bool:
    # AttentionalPooler (CoCa) attends from learned queries to the tokens: not self-attention.
    from open_clip.transformer import AttentionalPooler

    packed = attention._qkv_same_embed_dim and attention.in_proj_bias is not None
    return packed and attention.bias_k is None and attention.batch_first and not isinstance(parent, AttentionalPooler)
