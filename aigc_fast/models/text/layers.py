"""What the layers of transformers share: attention to what came before, and how they begin and are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from aigc_fast import functional
from aigc_fast.ops.decode.reading import ACTIVATIONS, exactly, parameter
from aigc_fast.ops.decode.spec import Linear

if TYPE_CHECKING:
    from aigc_fast.models.text.decoder import DecoderModel


class Past:
    """Keys and values of each layer, in PyTorch's own memory, for where the native engine does not run.

    Attributes:
        length: tokens that each sequence has been given.
        seen: bool (slots, length), which are no padding; None for all.
    """

    def __init__(self, model: DecoderModel, slots: int) -> None:
        self.model, self.slots, self.length = model, slots, 0
        self.seen: Tensor | None = None
        self._pairs: list[tuple[Tensor, Tensor] | None] = [None] * model.config["num_layers"]

    def step(self, ids: Tensor, positions: Tensor) -> Tensor:
        """See `decoding.Sequences`."""
        return self.extend(ids[:, None], positions[:, None], None, 1)[:, 0]

    def extend(self, ids: Tensor, positions: Tensor, visible: Tensor | None, keep: int) -> Tensor:
        """See `decoding.Sequences`."""
        if visible is not None or self.seen is not None:
            new = torch.ones_like(ids, dtype=torch.bool) if visible is None else visible
            before = new.new_ones(self.slots, self.length) if self.seen is None else self.seen
            self.seen = torch.cat([before, new], 1)
        logits = self.model(ids, positions=positions, past=self, keep=keep)
        self.length += ids.shape[1]
        return logits.float()

    def reorder(self, parents: Tensor) -> None:
        """See `decoding.Sequences`."""
        self._pairs = [(keys[parents], values[parents]) for keys, values in self._pairs]
        self.seen = None if self.seen is None else self.seen[parents]

    def add(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, with these at their end."""
        if (before := self._pairs[layer]) is not None:
            keys, values = torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)
        self._pairs[layer] = keys, values
        return keys, values


def attend(
    query: Tensor, key: Tensor, value: Tensor, layer: int, past: Past | None, scale: float, dropout: float
) -> Tensor:
    """Causal attention, also to what came before.

    Args:
        query: (batch, heads, length, size).
        key, value: (batch, kv_heads, length, size).
        layer: its number.
        past: of the sequences; None where they begin here.
        scale: of the scores.
        dropout: the share of attention weights to drop.

    Returns:
        (batch, length, heads * size).
    """
    seen = None
    if past is not None:
        key, value = past.add(layer, key, value)
        seen = None if past.seen is None else past.seen[:, None, None, :]
    found = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        seen,
        dropout,
        is_causal=True,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
        alignment="lower_right",
    )
    return found.transpose(1, 2).flatten(2)


def small(weight: Tensor, std: float = 0.02) -> None:
    """Begins with normal numbers, where there is memory for them: without, PyTorch takes seconds for nothing."""
    if not weight.is_meta:
        nn.init.normal_(weight, std=std)


def embedding_of(size: int, hidden: int) -> nn.Embedding:
    """Vectors that begin small."""
    found = nn.Embedding.from_pretrained(torch.empty(size, hidden), freeze=False)
    small(found.weight)
    return found


_FUNCTIONS: dict[str, Callable[[], nn.Module]] = {
    "GELU": nn.GELU,
    "GELU_TANH": lambda: nn.GELU(approximate="tanh"),
    "SILU": nn.SiLU,
    "RELU": nn.ReLU,
}


def activation_of(name: str) -> nn.Module:
    """An activation, as transformers calls it."""
    return _FUNCTIONS[ACTIVATIONS[name]]()


def linear_of(module: nn.Linear) -> Linear:
    """A linear layer as the engine reads it."""
    exactly(module, nn.Linear)
    return Linear(parameter(module.weight), None if module.bias is None else parameter(module.bias))


def with_dropout(share: float | None, other: float) -> float:
    """A dropout that is another one unless it is given."""
    return other if share is None else share
