"""A decoder as data: what its layers are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor


class Linear(NamedTuple):
    """A product and what is added to it.

    Attributes:
        weight: (outputs, inputs), of any strides.
        bias: (outputs,) or None.
    """

    weight: Tensor
    bias: Tensor | None = None


class Norm(NamedTuple):
    """A norm's parameters, each (hidden,); of an RMSNorm without bias."""

    weight: Tensor
    bias: Tensor | None = None


class Layer(NamedTuple):
    """A layer, whose norms come before its parts.

    Attributes:
        before_attention, before_units: norms.
        projections: queries, keys and values, of one matrix or of several, in this order.
        out: of the attention.
        up, gate, down: of the inner part; `gate`, if there is one, is activated and multiplies `up`.
        scale: of the scores.
    """

    before_attention: Norm
    before_units: Norm
    projections: tuple[Linear, ...]
    out: Linear
    up: Linear
    gate: Linear | None
    down: Linear
    scale: float


class Spec(NamedTuple):
    """A decoder.

    Attributes:
        embedding: (vocabulary, hidden).
        positions: (positions, hidden), learned, or None.
        frequencies: (rotated / 2,), of a rotation of queries and keys by their positions, or None.
        rotation_scale: multiplies the rotation's cosines and sines.
        layers: the layers.
        norm: the last one.
        head: makes logits; its weight may be the embedding.
        heads, kv_heads, head_size: of the attention.
        epsilon: of the norms.
        norm_kind: "LAYER_NORM" or "RMS_NORM".
        activation: "GELU", "GELU_TANH", "SILU" or "RELU".
    """

    embedding: Tensor
    positions: Tensor | None
    frequencies: Tensor | None
    rotation_scale: float
    layers: tuple[Layer, ...]
    norm: Norm
    head: Linear
    heads: int
    kv_heads: int
    head_size: int
    epsilon: float
    norm_kind: str
    activation: str

    def tensors(self) -> Iterator[Tensor]:
        """All of them, each as often as it is used."""
        stack = [self.embedding, self.positions, self.frequencies, *self.norm, *self.head]
        for layer in self.layers:
            for part in layer[:-1]:
                linears = part if part and isinstance(part[0], tuple) else (part,)
                stack += [tensor for linear in linears if linear is not None for tensor in linear]
        return (tensor for tensor in stack if tensor is not None)
