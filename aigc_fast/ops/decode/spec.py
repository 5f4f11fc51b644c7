"""A decoder as data: what its layers are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

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


class Cross(NamedTuple):
    """A layer's attention to a memory: what an encoder made of another sequence.

    Attributes:
        norm: of this part.
        query: of the decoder's rows.
        projections: keys and values, of one matrix or of several, in this order; made of the memory.
        out: of the attention.
        scale: of the scores.
    """

    norm: Norm
    query: Linear
    projections: tuple[Linear, ...]
    out: Linear
    scale: float


class Layer(NamedTuple):
    """A layer: attention, attention to a memory where there is one, and inner units, in this order.

    Attributes:
        attention_norm, units_norm: of these parts; `Spec.order` says where.
        projections: queries, keys and values, of one matrix or of several, in this order.
        out: of the attention.
        up, gate, down: of the inner part; `gate`, if there is one, is activated and multiplies `up`.
        scale: of the scores.
        cross: attention to a memory, in all layers or in none.
        window: tokens that one sees, itself among them; None for all before it.
    """

    attention_norm: Norm
    units_norm: Norm
    projections: tuple[Linear, ...]
    out: Linear
    up: Linear
    gate: Linear | None
    down: Linear
    scale: float
    cross: Cross | None = None
    window: int | None = None


class Spec(NamedTuple):
    """A decoder.

    Attributes:
        embedding: (vocabulary, hidden).
        positions: (positions, hidden), what is added to the embedding, learned or sinusoidal, or None.
        frequencies: (rotated / 2,), of a rotation of queries and keys by their positions, or None.
        rotation_scale: multiplies the rotation's cosines and sines.
        layers: the layers.
        norm: the last one, or None.
        head: makes logits; its weight may be the embedding.
        heads, kv_heads, head_size: of every attention.
        epsilon: of the norms.
        norm_kind: "LAYER_NORM" or "RMS_NORM".
        activation: "GELU", "GELU_TANH", "SILU" or "RELU".
        order: "BEFORE", x + part(norm(x)); "AFTER", norm(x + part(x)); or "PARALLEL", x + attention(norm(x)) +
            units(norm(x)), without attention to a memory.
        embedding_scale: multiplies what the embedding gives, before positions are added.
    """

    embedding: Tensor
    positions: Tensor | None
    frequencies: Tensor | None
    rotation_scale: float
    layers: tuple[Layer, ...]
    norm: Norm | None
    head: Linear
    heads: int
    kv_heads: int
    head_size: int
    epsilon: float
    norm_kind: str
    activation: str
    order: str = "BEFORE"
    embedding_scale: float = 1.0

    def tensors(self) -> Iterator[Tensor]:
        """All of them, each as often as it is used."""
        return _tensors_in(self)


def _tensors_in(part: Any) -> Iterator[Tensor]:
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, tuple):
        for each in part:
            yield from _tensors_in(each)
