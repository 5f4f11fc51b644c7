"""torch.nn's Transformer layers where they would not reach the attention that they hold."""

from __future__ import annotations

import torch
from torch import Tensor

# From so many positions on, PyTorch's fused inference call, which stores all scores, is slower than the layer's parts.
LEAST_LENGTH = 256


class TransformerEncoderLayer(torch.nn.TransformerEncoderLayer):
    """`torch.nn.TransformerEncoderLayer`: the same constructor, parameters, `state_dict` keys and numbers.

    At inference PyTorch runs the whole layer in one call of its own, past `self_attn`, and stores the scores of all
    heads. For long sequences this layer runs on its parts instead, as PyTorch's does in training.
    """

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """See torch.nn.TransformerEncoderLayer."""
        length = src.size(1 if self.self_attn.batch_first and src.dim() == 3 else 0)
        if src.is_nested or length < LEAST_LENGTH:
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        masks = src_mask, src_key_padding_mask
        if self.norm_first:
            x = src + self._sa_block(self.norm1(src), *masks, is_causal=is_causal)
            return x + self._ff_block(self.norm2(x))
        x = self.norm1(src + self._sa_block(src, *masks, is_causal=is_causal))
        return self.norm2(x + self._ff_block(x))
