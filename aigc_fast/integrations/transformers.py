"""`attn_implementation="aigc_fast"` for Hugging Face transformers: importing this module registers it.

Example:
    >>> import aigc_fast.integrations.transformers
    >>> model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="aigc_fast")
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aigc_fast.functional import scaled_dot_product_attention

try:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask
except ImportError as error:
    raise ImportError(
        f"aigc_fast.integrations.transformers needs transformers >= 4.53 ({error}): pip install -U transformers"
    ) from error

__all__ = ["NAME", "attention", "register"]

NAME = "aigc_fast"


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function as transformers' AttentionInterface calls it; elsewhere than on the CPU, transformers' own.

    Args:
        module: the attention layer.
        query: (B, H, L, E).
        key: (B, G, S, E); H / G query heads in succession share a key head, whose data are read once.
        value: (B, G, S, E).
        attention_mask: broadcasts to (B, H, L, S), bool or added to the scores, or None.
        dropout: the probability that an element of the softmax is dropped.
        scaling: of the scores; 1 / sqrt(E) by default.
        is_causal: without a mask, whether query i sees keys 0 to i; by default what the layer says.
        position_bias: broadcasts to (B, H, L, S), added to the scores.
        **kwargs: what other implementations take; `softcap` is refused as by "sdpa".

    Returns:
        (B, L, H, E), and None in place of the weights.

    Raises:
        ValueError: when the model caps its scores.
    """
    if kwargs.get("softcap") is not None:
        raise ValueError(f"{NAME!r} attention does not support softcap={kwargs['softcap']}: use 'eager'")
    if not query.is_cpu:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **({} if position_bias is None else {"position_bias": position_bias}),
            **kwargs,
        )
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    # A single query is the newest: it sees all keys, as the one-row causal mask aligned to the first key would not.
    causal = attention_mask is None and bool(is_causal) and query.shape[2] > 1
    output = scaled_dot_product_attention(
        query,
        key,
        value,
        _with_bias(attention_mask, position_bias),
        dropout,
        causal,
        scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return output.transpose(1, 2).contiguous(), None


def _with_bias(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    if mask is None or bias is None:
        return bias if mask is None else mask
    return bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask


def register() -> None:
    """Makes `attn_implementation="aigc_fast"` known, with the masks of "sdpa": without them causality would be lost."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


register()
