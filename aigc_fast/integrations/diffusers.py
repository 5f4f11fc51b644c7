"""Hugging Face diffusers' attention processor on `aigc_fast.functional.scaled_dot_product_attention`.

Example:
    >>> from aigc_fast.integrations.diffusers import AttnProcessor, use
    >>> pipeline.unet.set_attn_processor(AttnProcessor())  # every attention of the U-Net, or
    >>> use(pipeline.unet), use(pipeline.vae)  # only those with diffusers' default processor
    >>> restore(pipeline.unet)  # diffusers' own again, which its `set_default_attn_processor` needs
"""

from __future__ import annotations

import logging
from collections import Counter
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

log = logging.getLogger("aigc_fast")

REPLACEABLE = (theirs.AttnProcessor, theirs.AttnProcessor2_0)
# What a layer computes with its own methods, a subclass of somebody's may compute otherwise.
METHODS = ("forward", "get_attention_scores", "head_to_batch_dim", "batch_to_head_dim")


class AttnProcessor(theirs.AttnProcessor2_0):
    """diffusers' `AttnProcessor2_0` on our attention: self and cross attention over sequences and images.

    Args:
        replaced: the processor that this one replaces, with the same results, and that `restore` puts back; None for an
            `AttnProcessor2_0`.
    """

    def __init__(self, replaced: theirs.AttentionProcessor | None = None) -> None:
        super().__init__()
        self.replaced = replaced

    def __call__(
        self,
        attn: theirs.Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Computes one attention layer.

        Args:
            attn: the layer, which holds the projections and norms.
            hidden_states: (B, L, C), or an image (B, C, H, W), whose pixels are the sequence.
            encoder_hidden_states: (B, S, C_cross); `hidden_states` by default.
            attention_mask: as the layer's `prepare_attention_mask` takes it.
            temb: the time embedding, for a spatial norm.
            *args, **kwargs: anything else goes to diffusers' own processor, with all the rest.

        Returns:
            A tensor of the shape of `hidden_states`.
        """
        if args or any(value is not None for value in kwargs.values()):
            original = super().__call__ if self.replaced is None else self.replaced
            return original(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)
        # diffusers' first processor, which layers with a scale of their own have, knows no norms of heads.
        first = isinstance(self.replaced, theirs.AttnProcessor)
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
        query = query if first or attn.norm_q is None else attn.norm_q(query)
        key = key if first or attn.norm_k is None else attn.norm_k(key)
        x = scaled_dot_product_attention(query, key, value, mask, scale=attn.scale if first else None)
        x = x.transpose(1, 2).flatten(2).to(query.dtype)
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
    """Replaces every `AttnProcessor2_0` and `AttnProcessor` of diffusers in a model by an `AttnProcessor` of ours.

    Other processors, such as those for added keys or IP adapters, compute something else and stay; the log tells how
    many. `restore` undoes it.

    Args:
        model: a diffusers model, such as a pipeline's `unet` or `vae`.

    Returns:
        The names of the attention layers that changed.
    """
    names, kept = [], Counter()
    for name, module in model.named_modules():
        processor = getattr(module, "processor", None)
        if not hasattr(module, "set_processor") or processor is None or isinstance(processor, AttnProcessor):
            continue
        reason = _kept_because(module, processor)
        if reason is None:
            module.set_processor(AttnProcessor(processor))
            names.append(name)
        else:
            kept[f"{type(module).__name__} with {type(processor).__name__}: {reason}"] += 1
    for text, count in kept.items():
        log.warning("%d of %s", count, text)
    return names


def _kept_because(module: torch.nn.Module, processor: Any) -> str | None:
    """Why a layer keeps its processor; None where ours computes the same."""
    if type(processor) not in REPLACEABLE or not isinstance(module, theirs.Attention):
        return "computes something else"
    changed = [name for name in METHODS if getattr(type(module), name) is not getattr(theirs.Attention, name)]
    changed += [name for name in METHODS if name in vars(module)]
    if not _is_own(type(processor)):
        changed.append("processor")
    return f"its {', '.join(changed)} may compute something else" if changed else None


def _is_own(cls: type) -> bool:
    """Whether a class of diffusers still has the method that it was written with."""
    call = cls.__call__
    return (call.__module__, call.__qualname__) == (cls.__module__, f"{cls.__name__}.__call__")


def restore(model: torch.nn.Module) -> list[str]:
    """Puts back the processors that `use` replaced in a model.

    Args:
        model: one that `use` was called with, or a part or copy of it.

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
