"""Hugging Face diffusers' attention processor on `aigc_fast.functional.scaled_dot_product_attention`.

Example:
    >>> from aigc_fast.integrations.diffusers import AttnProcessor, use
    >>> pipeline.unet.set_attn_processor(AttnProcessor())  # every attention of the U-Net, or
    >>> use(pipeline.unet), use(pipeline.vae)  # those alone that have diffusers' default processor
    >>> restore(pipeline.unet)  # diffusers' own again, without which its `set_default_attn_processor` raises
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aigc_fast.functional import scaled_dot_product_attention

try:
    from diffusers.models import attention_processor as theirs
except ImportError as error:
    raise ImportError(
        f"aigc_fast.integrations.diffusers needs diffusers ({error}): pip install -U diffusers"
    ) from error

__all__ = ["AttnProcessor", "restore", "use"]


class AttnProcessor:
    """The same as diffusers' `AttnProcessor2_0`: self and cross attention over sequences and over images.

    Args:
        replaced: the processor that `restore` puts back; None for none.
    """

    def __init__(self, replaced: theirs.AttentionProcessor | None = None) -> None:
        self.replaced = replaced

    def __call__(
        self,
        attn: theirs.Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Computes one attention layer.

        Args:
            attn: the layer, which holds the projections and norms.
            hidden_states: (B, L, C), or an image (B, C, H, W), whose pixels are the sequence.
            encoder_hidden_states: (B, S, C_cross); `hidden_states` by default.
            attention_mask: as the layer's `prepare_attention_mask` takes it.
            temb: the time embedding, for a spatial norm.
            **kwargs: what other processors take.

        Returns:
            A tensor of the shape of `hidden_states`.
        """
        x = hidden_states if attn.spatial_norm is None else attn.spatial_norm(hidden_states, temb)
        is_image = x.dim() == 4
        if is_image:
            x = x.flatten(2).transpose(1, 2)
        context = x if encoder_hidden_states is None else encoder_hidden_states
        mask = _prepared(attn, attention_mask, context)
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        if encoder_hidden_states is None:
            context = x
        elif attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        query, key, value = (
            _split(tensor, attn.heads) for tensor in (attn.to_q(x), attn.to_k(context), attn.to_v(context))
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        x = scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2).to(query.dtype)
        for layer in attn.to_out:
            x = layer(x)
        if is_image:
            x = x.transpose(1, 2).reshape(hidden_states.shape)
        if attn.residual_connection:
            x = x + hidden_states
        return x / attn.rescale_output_factor


def _prepared(attn: theirs.Attention, mask: Tensor | None, context: Tensor) -> Tensor | None:
    """(B, heads, 1 or L, S)."""
    if mask is None:
        return None
    batch, length, _ = context.shape
    mask = attn.prepare_attention_mask(mask, length, batch)
    return mask.view(batch, attn.heads, -1, mask.shape[-1])


def _split(tensor: Tensor, heads: int) -> Tensor:
    """(B, heads, L, E) as a view of (B, L, heads * E)."""
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


def use(model: torch.nn.Module) -> list[str]:
    """Puts an `AttnProcessor` in the place of every `AttnProcessor2_0` and `AttnProcessor` of diffusers in a model.

    Other processors, of added keys, IP adapters and the like, compute something else and stay. `restore` undoes it.

    Args:
        model: a diffusers model, such as a pipeline's `unet` or `vae`.

    Returns:
        The names of the attention layers that changed.
    """
    names = []
    for name, module in model.named_modules():
        if isinstance(module, theirs.Attention) and type(module.processor) in (
            theirs.AttnProcessor,
            theirs.AttnProcessor2_0,
        ):
            module.set_processor(AttnProcessor(module.processor))
            names.append(name)
    return names


def restore(model: torch.nn.Module) -> list[str]:
    """Puts back the processors that `use` replaced in a model.

    Args:
        model: that `use` was called with, or a part or copy of it.

    Returns:
        The names of the attention layers that changed.
    """
    names = []
    for name, module in model.named_modules():
        processor = getattr(module, "processor", None)
        if isinstance(processor, AttnProcessor) and processor.replaced is not None:
            module.set_processor(processor.replaced)
            names.append(name)
    return names
