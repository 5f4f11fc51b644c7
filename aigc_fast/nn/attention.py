"""Attention layers on `aigc_fast.functional.scaled_dot_product_attention`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as TF
from torch import Tensor

from aigc_fast.functional import linear, scaled_dot_product_attention
from aigc_fast.nn.drop_in import become_drop_ins, drop_in
from aigc_fast.ops.attention import choice
from aigc_fast.ops.linear.choice import wins_layers
from aigc_fast.runtime.autocast import has_autocast
from aigc_fast.runtime.modules import kind_of
from aigc_fast.runtime.operator import is_compiling

MERGE_MASKS = torch.nn.MultiheadAttention.merge_masks
STOCK_CHILDREN = (torch.nn.LayerNorm, torch.nn.Linear, torch.nn.Dropout)


@drop_in
class MultiheadAttention(torch.nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention`: the same constructor, parameters, `state_dict` keys, masks and results.

    With `need_weights=False`, as in torch.nn's Transformer layers, heads are read where the projection wrote them and
    the scores are never stored, with or without dropout. Calls that return the weights, `bias_k`, `add_zero_attn` and
    self-attention of few positions at inference, for which PyTorch has one fused call, run as in PyTorch.
    """

    float32_precision: str | None = None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See torch.nn.MultiheadAttention. With `is_causal`, which promises that `attn_mask` is causal, the mask is not
        read.

        Raises:
            RuntimeError: if shapes, or the masks' dtypes, do not match; the message names the argument.
        """
        own_masks = _is_patched(self, "merge_masks") or type(self).merge_masks is not MERGE_MASKS
        pytorchs = (
            own_masks
            or self.bias_k is not None
            or self.add_zero_attn
            or query.is_nested
            or (is_causal and attn_mask is None)
        )
        if need_weights or pytorchs or self._is_one_call(query, key, value):
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        hidden = None if is_causal else attn_mask
        batched = self._check(query, key, value, key_padding_mask, hidden)
        batch_dim = 0 if self.batch_first or not batched else 1
        q, k, v = (self._heads(tensor, batch_dim, batched) for tensor in self._projected(query, key, value))
        if hidden is not None and hidden.dim() == 3:
            hidden = hidden.unflatten(0, (q.shape[0], self.num_heads))
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask.reshape(q.shape[0], 1, 1, k.shape[2])
        mask = _merged(_visible(hidden, q.dtype), _visible(key_padding_mask, q.dtype))
        dropout_p, precision = self.dropout if self.training else 0.0, self.float32_precision
        output = scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal, precision=precision)
        # As in PyTorch, for which this child is no more than a weight and a bias, whatever stands in its place.
        last = self.out_proj
        return linear(self._joined(output, batch_dim, batched), last.weight, last.bias), None

    def _is_one_call(self, query: Tensor, key: Tensor, value: Tensor) -> bool:
        """Whether PyTorch has a call for it all that is faster than the parts."""
        even_heads = self.batch_first and self.num_heads % 2 == 0
        return choice.leave_projections(query, key, value, even_heads, self.training)

    def _check(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None
    ) -> bool:
        """Whether there is a batch; refuses, by name, shapes that the parts would broadcast or regroup."""
        shape = query.shape
        dim = len(shape)
        if dim not in (2, 3) or shape[-1] != self.embed_dim:
            raise RuntimeError(f"query has shape {tuple(shape)}: expected (L, {self.embed_dim}), or a batch of these")
        of_length = 1 if dim == 3 and self.batch_first else 0
        batch = (shape[1 - of_length],) if dim == 3 else ()
        if not (query is key is value and self._qkv_same_embed_dim):
            self._check_keys(key, value, batch, of_length)
        if attn_mask is not None:
            wanted = (shape[of_length], key.shape[of_length])
            heads = (*batch, 1)[0] * self.num_heads
            _expect("attn_mask", attn_mask, (heads, *wanted) if attn_mask.dim() == 3 else wanted)
        if key_padding_mask is not None:
            _expect("key_padding_mask", key_padding_mask, (*batch, key.shape[of_length]))
        return dim == 3

    def _check_keys(self, key: Tensor, value: Tensor, batch: tuple[int, ...], of_length: int) -> None:
        dim = len(batch) + 2
        for name, tensor, size in (("key", key, self.kdim), ("value", value, self.vdim)):
            if tensor.dim() != dim:
                raise RuntimeError(f"{name} has shape {tuple(tensor.shape)}: expected query's {dim} dimensions")
            length = key.shape[of_length]
            _expect(name, tensor, (*batch, length, size) if of_length else (length, *batch, size))

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bias = self.in_proj_bias
        if self._qkv_same_embed_dim and query is key and key is value:
            return linear(query, self.in_proj_weight, bias).chunk(3, -1)
        if self._qkv_same_embed_dim:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        return tuple(TF.linear(*each) for each in zip((query, key, value), weights, biases, strict=True))

    def _heads(self, tensor: Tensor, batch_dim: int, batched: bool) -> Tensor:
        """(batch, heads, length, size) as a view."""
        if not batched:
            tensor = tensor.unsqueeze(0)
        split = tensor.unflatten(-1, (self.num_heads, self.head_dim))
        return split.transpose(1, 2) if batch_dim == 0 else split.permute(1, 2, 0, 3)

    def _joined(self, output: Tensor, batch_dim: int, batched: bool) -> Tensor:
        joined = (output.transpose(1, 2) if batch_dim == 0 else output.permute(2, 0, 1, 3)).flatten(-2)
        return joined if batched else joined.squeeze(0)


@drop_in
class TransformerEncoderLayer(torch.nn.TransformerEncoderLayer):
    """`torch.nn.TransformerEncoderLayer`: the same constructor, parameters, `state_dict` keys and results.

    At inference PyTorch runs the whole layer in one fused call, which bypasses `self_attn` and stores the scores of all
    heads. For long sequences, and where linear layers are faster here, this layer calls its submodules instead, as
    PyTorch's does in training. Its submodules are this package's too. Where a submodule, or a method that runs one, has
    been replaced, it behaves as PyTorch's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        become_drop_ins(self.children())

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """See torch.nn.TransformerEncoderLayer."""
        is_cast = has_autocast(src)
        if src.is_nested or not self._is_stock() or self._is_short(src) or (is_cast and not self._is_cast_whole(src)):
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        output = self._by_parts(src, src_mask, src_key_padding_mask, is_causal=is_causal)
        return output.to(torch.get_autocast_dtype("cpu")) if is_cast else output

    def _by_parts(self, src: Tensor, *masks: Tensor | None, is_causal: bool) -> Tensor:
        # By the class: torch 2.6 exports no call of an inherited method of a module of torch.nn.
        kind = type(self)
        if self.norm_first:
            x = src + kind._sa_block(self, self.norm1(src), *masks, is_causal=is_causal)
            return x + kind._ff_block(self, self.norm2(x))
        x = self.norm1(src + kind._sa_block(self, src, *masks, is_causal=is_causal))
        return self.norm2(x + kind._ff_block(self, x))

    def _is_cast_whole(self, src: Tensor) -> bool:
        """Whether PyTorch would run the layer in its one call, whose result autocast has in its own dtype."""
        attention = self.self_attn
        return (
            (torch.backends.mha.get_fastpath_enabled() and not is_compiling())
            and not (self.training or torch.is_grad_enabled() or torch.is_autocast_enabled("cuda"))
            and (src.is_cpu and src.dim() == 3 and src.dtype != torch.float64)
            and (attention.batch_first and attention.num_heads % 2 == 0)
            and (attention.in_proj_bias is not None and attention._qkv_same_embed_dim)
            and (self.activation_relu_or_gelu != 0 and self.norm1.eps == self.norm2.eps)
            and not any(module._forward_hooks or module._forward_pre_hooks for module in self.modules())
        )

    def _is_stock(self) -> bool:
        """Whether PyTorch's one call, which reads weights past its children, and the parts give the same numbers."""
        children = self.norm1, self.norm2, self.linear1, self.linear2, self.dropout, self.dropout1, self.dropout2
        return (
            _is_own(self.self_attn)
            and all(kind_of(child) in STOCK_CHILDREN for child in children)
            and not _is_patched(self, "_sa_block", "_ff_block")
            and self.activation_relu_or_gelu in (0, _kind_of_activation(self.activation))
        )

    def _is_short(self, src: Tensor) -> bool:
        length = src.size(1 if self.self_attn.batch_first and src.dim() == 3 else 0)
        return choice.leave_layer(length) and not wins_layers(src, self.linear1.weight)


def _kind_of_activation(activation: Any) -> int:
    """As PyTorch's layer notes it when it is made."""
    if activation is TF.relu or isinstance(activation, torch.nn.ReLU):
        return 1
    return 2 if activation is TF.gelu or isinstance(activation, torch.nn.GELU) else 0


def _is_own(attention: torch.nn.Module) -> bool:
    """Whether it is known what masks this module takes, and whether its batches come first."""
    known = type(attention) in (MultiheadAttention, torch.nn.MultiheadAttention)
    return known and not _is_patched(attention, "forward")


def _is_patched(module: torch.nn.Module, *methods: str) -> bool:
    """Whether some of its methods were replaced on the instance."""
    return any(method in module.__dict__ for method in methods)


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise RuntimeError(f"{name} has shape {tuple(tensor.shape)}: expected {shape}")


def _visible(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask of torch.nn.MultiheadAttention, where True hides, as the attention takes it."""
    if mask is None:
        return None
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise RuntimeError(f"attn_mask or key_padding_mask has dtype {mask.dtype}: expected bool or floating-point")
    return ~mask if mask.dtype == torch.bool else mask.to(dtype)


def _merged(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return first if second is None else second
    if first.dtype == second.dtype == torch.bool:
        return first & second
    return _added(first, second.dtype) + _added(second, first.dtype)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What the mask adds to the scores, in its own dtype or, where that is bool, the other's."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
