"""The two stacks of a transformer, with the weights of `torch.nn.Transformer`, over packed sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as TF
from torch import Tensor, nn

import aigc_fast.nn as fast
from aigc_fast import functional
from aigc_fast.models.text.layers import linear_of
from aigc_fast.models.text.packed import Lengths, attend
from aigc_fast.ops.decode.reading import Refused, exactly, norm, parameter
from aigc_fast.ops.decode.spec import Cross, Layer, Linear, Norm

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": TF.relu, "gelu": TF.gelu}
"""Of the inner layer, by PyTorch's names."""


class Sizes(NamedTuple):
    """What layers are built of, by the names of `torch.nn.Transformer`'s arguments."""

    d_model: int
    nhead: int
    dim_feedforward: int
    dropout: float
    activation: str
    layer_norm_eps: float
    bias: bool
    norm_first: bool

    def norm(self) -> nn.LayerNorm:
        """A new norm."""
        return nn.LayerNorm(self.d_model, eps=self.layer_norm_eps, bias=self.bias)


class Attention(nn.Module):
    """The weights of `torch.nn.MultiheadAttention`, projections apart from what is done with them."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads, self.dropped = sizes.nhead, sizes.dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * sizes.d_model, sizes.d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * sizes.d_model)) if sizes.bias else None
        self.out_proj = fast.Linear(sizes.d_model, sizes.d_model, bias=sizes.bias)

    def projected(self, x: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
        """Some of queries (0), keys (1) and values (2) of (..., d_model), each (..., heads, size)."""
        rows = slice(first * x.shape[-1], (last + 1) * x.shape[-1])
        bias = None if self.in_proj_bias is None else self.in_proj_bias[rows]
        found = functional.linear(x, self.in_proj_weight[rows], bias)
        return found.unflatten(-1, (last + 1 - first, self.heads, -1)).unbind(-3)

    def forward(
        self,
        x: Tensor,
        lengths: Lengths,
        memory: Tensor | None = None,
        of_memory: Lengths | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Attention of (total, d_model) to itself, or to a memory.

        Args:
            x: packed.
            lengths: of its sequences.
            memory: (total, d_model), what is attended to; None for `x`.
            of_memory: lengths of its sequences.
            is_causal: whether nothing is seen of what comes later.
        """
        if memory is None:
            (query, key, value), of_memory = self.projected(x, 0, 2), lengths
        else:
            (query,), (key, value) = self.projected(x, 0, 0), self.projected(memory, 1, 2)
        dropped = self.dropped if self.training else 0.0
        found = attend(query, key, value, lengths, of_memory, is_causal=is_causal, dropout=dropped)
        return self.out_proj(found)

    def spec(self, first: int, last: int) -> Linear:
        """Some of the projections, as for `projected`, as the engine reads them."""
        size = self.out_proj.in_features
        rows = slice(first * size, (last + 1) * size)
        bias = None if self.in_proj_bias is None else parameter(self.in_proj_bias)[rows]
        return Linear(parameter(self.in_proj_weight)[rows], bias)


class Sublayer(Protocol):
    """A part of a layer, of (..., d_model)."""

    def __call__(self, x: Tensor) -> Tensor:
        """What is added to the input."""


class _Layer(nn.Module):
    """What the layers of both stacks share: the inner layer, and how norms and dropout stand to the parts.

    Args:
        sizes: of its parts.
        attentions: what they are called.
    """

    def __init__(self, sizes: Sizes, *attentions: str) -> None:
        super().__init__()
        self.norm_first, self.p = sizes.norm_first, sizes.dropout
        self.activation = ACTIVATIONS[sizes.activation]
        for name in attentions:
            self.add_module(name, Attention(sizes))
        self.linear1 = fast.Linear(sizes.d_model, sizes.dim_feedforward, bias=sizes.bias)
        self.linear2 = fast.Linear(sizes.dim_feedforward, sizes.d_model, bias=sizes.bias)

    def added(self, x: Tensor, part: Sublayer, norm: nn.LayerNorm) -> Tensor:
        """A part with its residual connection, dropout and norm."""
        if self.norm_first:
            return x + self.drop(part(norm(x)))
        return norm(x + self.drop(part(x)))

    def units(self, x: Tensor) -> Tensor:
        """The inner layer."""
        return self.linear2(self.drop(self.activation(self.linear1(x))))

    def drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.p, self.training) if self.training and self.p else x


class EncoderLayer(_Layer):
    """`torch.nn.TransformerEncoderLayer`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes, "self_attn")
        self.norm1, self.norm2 = sizes.norm(), sizes.norm()

    def forward(self, x: Tensor, lengths: Lengths) -> Tensor:
        x = self.added(x, lambda x: self.self_attn(x, lengths), self.norm1)
        return self.added(x, self.units, self.norm2)


class DecoderLayer(_Layer):
    """`torch.nn.TransformerDecoderLayer`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes, "self_attn", "multihead_attn")
        self.norm1, self.norm2, self.norm3 = sizes.norm(), sizes.norm(), sizes.norm()

    def forward(self, x: Tensor, lengths: Lengths, memory: Tensor, of_memory: Lengths) -> Tensor:
        return self.parts(
            x,
            lambda x: self.self_attn(x, lengths, is_causal=True),
            lambda x: self.multihead_attn(x, lengths, memory, of_memory),
        )

    def spec(self) -> Layer:
        """The layer as the engine reads it."""
        for part, cls in ((self, DecoderLayer), (self.self_attn, Attention), (self.multihead_attn, Attention)):
            exactly(part, cls)
        if self.activation not in ACTIVATIONS.values():
            raise Refused("a layer has an activation of its own")
        scale = (self.self_attn.out_proj.in_features // self.self_attn.heads) ** -0.5
        return Layer(
            attention_norm=norm_of(self.norm1),
            units_norm=norm_of(self.norm3),
            projections=(self.self_attn.spec(0, 2),),
            out=linear_of(self.self_attn.out_proj),
            up=linear_of(self.linear1),
            gate=None,
            down=linear_of(self.linear2),
            scale=scale,
            cross=Cross(
                norm=norm_of(self.norm2),
                query=self.multihead_attn.spec(0, 0),
                projections=(self.multihead_attn.spec(1, 2),),
                out=linear_of(self.multihead_attn.out_proj),
                scale=scale,
            ),
        )

    def parts(self, x: Tensor, to_itself: Sublayer, to_memory: Sublayer) -> Tensor:
        """The layer by how it attends to what came before, and to the memory."""
        x = self.added(x, to_itself, self.norm1)
        x = self.added(x, to_memory, self.norm2)
        return self.added(x, self.units, self.norm3)


class Stack(nn.Module):
    """Layers, and a norm after the last where there is one."""

    def __init__(self, layers: list[nn.Module], norm: nn.LayerNorm | None) -> None:
        super().__init__()
        self.layers, self.norm = nn.ModuleList(layers), norm

    def forward(self, x: Tensor, *rest: object) -> Tensor:
        for layer in self.layers:
            x = layer(x, *rest)
        return self.finished(x)

    def finished(self, x: Tensor) -> Tensor:
        """What the last layer gives, after the norm."""
        return x if self.norm is None else self.norm(x)


class Stacks(nn.Module):
    """`torch.nn.Transformer` with `batch_first` and a causal decoder: its `state_dict`, on packed sequences.

    Args:
        sizes: of the layers.
        num_encoder_layers, num_decoder_layers: how many.
        final_norm: whether a norm follows each stack, as torch's has it.
    """

    def __init__(self, sizes: Sizes, num_encoder_layers: int, num_decoder_layers: int, final_norm: bool) -> None:
        super().__init__()
        norms = [sizes.norm() if final_norm else None for _ in range(2)]
        self.encoder = Stack([EncoderLayer(sizes) for _ in range(num_encoder_layers)], norms[0])
        self.decoder = Stack([DecoderLayer(sizes) for _ in range(num_decoder_layers)], norms[1])
        for weight in self.parameters():
            if weight.dim() > 1 and not weight.is_meta:
                nn.init.xavier_uniform_(weight)

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        *,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """The decoder's hidden states; zeros in place of padding.

        Args:
            src: (N, S, d_model).
            tgt: (N, T, d_model).
            src_key_padding_mask: bool (N, S), true for padding, wherever it is; None for none.
            tgt_key_padding_mask: bool (N, T), likewise.

        Returns:
            (N, T, d_model).
        """
        source, of_source = packed(src, src_key_padding_mask)
        target, of_target = packed(tgt, tgt_key_padding_mask)
        found = self.decoder(target, of_target, self.encoder(source, of_source), of_source)
        return unpacked(found, tgt, tgt_key_padding_mask)


def norm_of(module: nn.LayerNorm) -> Norm:
    """A norm as the engine reads it."""
    exactly(module, nn.LayerNorm)
    return norm(module)


def packed(x: Tensor, padding: Tensor | None) -> tuple[Tensor, Lengths]:
    """(N, T, ...) without what is padding, and its lengths."""
    if padding is None:
        return x.flatten(0, 1), Lengths([x.shape[1]] * len(x), x.device)
    return x[~padding], Lengths((~padding).sum(1).tolist(), x.device)


def unpacked(x: Tensor, like: Tensor, padding: Tensor | None) -> Tensor:
    """(total, ...) to (N, T, ...), zeros in place of padding."""
    if padding is None:
        return x.unflatten(0, like.shape[:2])
    found = x.new_zeros(*like.shape[:2], *x.shape[1:])
    return found.masked_scatter(~padding.view(*padding.shape, *[1] * (x.dim() - 1)), x)
