"""`attn_implementation="aigc_fast"` for Hugging Face transformers: importing this module registers it.

Example:
    >>> import aigc_fast.integrations.transformers
    >>> model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="aigc_fast")
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

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
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function as transformers' AttentionInterface calls it; elsewhere than on the CPU, transformers' own
    where there are no sinks.

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
        s_aux: (H,), the sinks: one more score of each head, whose share of the softmax is dropped.
        **kwargs: what other implementations take; `softcap` is refused as by "sdpa".

    Returns:
        (B, L, H, E), and None in place of the weights.

    Raises:
        ValueError: when the model caps its scores.
    """
    if kwargs.get("softcap") is not None:
        raise ValueError(f"{NAME!r} attention does not support softcap={kwargs['softcap']}: use 'eager'")
    if not query.is_cpu and s_aux is None:
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
    mask, window = _with_bias(attention_mask, position_bias), None
    if s_aux is not None:
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        query, key, value, mask = _with_sinks(query, key, value, mask, s_aux / scaling)
        causal, window = False, (None, 1) if causal else None
    output = scaled_dot_product_attention(
        query,
        key,
        value,
        mask,
        dropout,
        causal,
        scaling,
        enable_gqa=key.shape[1] != query.shape[1],
        window=window,
    )
    return output.transpose(1, 2).contiguous(), None


def _with_bias(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    if mask is None or bias is None:
        return bias if mask is None else mask
    return bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask


def _with_sinks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, products: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The same with a first key that every query sees, whose products with the heads' queries are given (H,).

    Queries and keys have one more element for them, which is 0 in all other keys; the first key's value is zeros.
    """
    column = products.to(query.dtype).view(1, -1, 1, 1).expand(*query.shape[:3], 1)
    query = torch.cat([query, column], -1)
    if mask is not None:
        mask = pad(mask.expand(*mask.shape[:-1], key.shape[2]), (1, 0), value=mask.dtype == torch.bool)
    key, value = pad(key, (0, 1, 1, 0)), pad(value, (0, 0, 1, 0))
    key[:, :, 0, -1] = 1
    return query, key, value, mask


def register() -> None:
    """Makes `attn_implementation="aigc_fast"` known, with the masks of "sdpa": without them causality would be lost."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


register()
