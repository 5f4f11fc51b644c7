"""GPT-2."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as TF
from torch import Tensor, nn

from aigc_fast import nn as fast
from aigc_fast.models.base import check_counts
from aigc_fast.models.text.decoder import DecoderModel
from aigc_fast.models.text.layers import Past, activation_of, attend, embedding_of, linear_of, small, with_dropout
from aigc_fast.models.text.tokenizers import Tokenizer
from aigc_fast.ops.decode.reading import ACTIVATIONS, Refused, exactly, norm, parameter
from aigc_fast.ops.decode.spec import Layer, Linear, Spec


class Conv1D(nn.Module):
    """A linear layer whose weight is (inputs, outputs), as GPT-2's files have it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        small(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return TF.linear(x, self.weight.t(), self.bias)


class _Attention(nn.Module):
    def __init__(self, hidden: int, heads: int, scale: float, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.heads, self.scale, self.dropped = heads, scale, attention_dropout
        self.c_attn, self.c_proj = Conv1D(hidden, 3 * hidden), Conv1D(hidden, hidden)
        self.resid_dropout = fast.Dropout(dropout)

    def forward(self, x: Tensor, layer: int, past: Past | None) -> Tensor:
        parts = self.c_attn(x).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        dropped = self.dropped if self.training else 0.0
        return self.resid_dropout(self.c_proj(attend(query, key, value, layer, past, self.scale, dropped)))


class _Units(nn.Module):
    def __init__(self, hidden: int, units: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.c_fc, self.c_proj = Conv1D(hidden, units), Conv1D(units, hidden)
        self.activation, self.dropout = activation_of(activation), fast.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.activation(self.c_fc(x))))


class _Block(nn.Module):
    def __init__(self, hidden: int, epsilon: float, attention: _Attention, units: _Units) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(hidden, eps=epsilon), attention
        self.ln_2, self.mlp = nn.LayerNorm(hidden, eps=epsilon), units

    def forward(self, x: Tensor, layer: int, past: Past | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), layer, past)
        return x + self.mlp(self.ln_2(x))


class GPT2(DecoderModel):
    """GPT-2 (Radford et al., "Language models are unsupervised multitask learners", 2019), with the `state_dict` of
    transformers' `GPT2LMHeadModel`.

    Args:
        tokenizer: a `Tokenizer` or its `config`.
        hidden: size of the hidden states.
        num_layers: number of layers.
        num_heads: number of attention heads, a divisor of `hidden`.
        context: number of positions, the longest sequence.
        units: size of the feed-forward layer; None for 4 times `hidden`.
        vocab_size: size of the embedding; None for the tokenizer's.
        tied: whether the head shares the embedding's weight.
        activation: of the feed-forward layer, by transformers' name.
        epsilon: added to the variances in the norms.
        scale_scores: whether attention scores are divided by the square root of the head size.
        scale_by_layer: whether they are also divided by the layer's number, counted from 1.
        dropout: the share of the layers' outputs that training drops, in [0, 1).
        attention_dropout: the same for attention weights; None for `dropout`.
        embedding_dropout: the same for embeddings; None for `dropout`.
        generation: defaults for the options of `generate`, as in a generation_config.json.
        num_classes: must be None; text has no classes.

    Raises:
        ValueError: for sizes that are not positive or do not match, or unknown settings.

    Example:
        >>> model = GPT2.from_pretrained("gpt2")
        >>> model.generate("In this article", max_length=50, num_beams=5, no_repeat_ngram_size=2)
    """

    name = "gpt2"
    is_bounded = True

    def __init__(
        self,
        *,
        tokenizer: Tokenizer | Mapping[str, Any],
        hidden: int = 192,
        num_layers: int = 4,
        num_heads: int = 6,
        context: int = 128,
        units: int | None = None,
        vocab_size: int | None = None,
        tied: bool = True,
        activation: str = "gelu_new",
        epsilon: float = 1e-5,
        scale_scores: bool = True,
        scale_by_layer: bool = False,
        dropout: float = 0.2,
        attention_dropout: float | None = None,
        embedding_dropout: float | None = None,
        generation: Mapping[str, Any] | None = None,
        num_classes: None = None,
    ) -> None:
        super().__init__(
            tokenizer=tokenizer,
            hidden=hidden,
            num_layers=num_layers,
            num_heads=num_heads,
            context=context,
            units=units,
            vocab_size=vocab_size,
            tied=tied,
            activation=activation,
            epsilon=epsilon,
            scale_scores=scale_scores,
            scale_by_layer=scale_by_layer,
            dropout=dropout,
            attention_dropout=attention_dropout,
            embedding_dropout=embedding_dropout,
            generation=generation,
            num_classes=num_classes,
        )
        units = 4 * hidden if units is None else units
        check_counts(units=units)
        if hidden % num_heads:
            raise ValueError(f"num_heads={num_heads}: expected a divisor of hidden={hidden}")
        scale = (hidden // num_heads) ** -0.5 if scale_scores else 1.0
        attention_dropout = with_dropout(attention_dropout, dropout)
        blocks = [
            _Block(
                hidden,
                epsilon,
                _Attention(hidden, num_heads, scale / (i + 1 if scale_by_layer else 1), dropout, attention_dropout),
                _Units(hidden, units, activation, dropout),
            )
            for i in range(num_layers)
        ]
        self.transformer = nn.ModuleDict(
            {
                "wte": embedding_of(self.vocab_size, hidden),
                "wpe": embedding_of(context, hidden),
                "drop": fast.Dropout(with_dropout(embedding_dropout, dropout)),
                "h": nn.ModuleList(blocks),
                "ln_f": nn.LayerNorm(hidden, eps=epsilon),
            }
        )
        self.lm_head = nn.Linear(hidden, self.vocab_size, bias=False)
        self.tie()
        small(self.lm_head.weight)
        # What layers add to the residual stream does not grow with their number.
        for block in blocks:
            for projection in (block.attn.c_proj, block.mlp.c_proj):
                small(projection.weight, 0.02 / math.sqrt(2 * num_layers))

    @property
    def embedding(self) -> nn.Embedding:
        """See `DecoderModel.embedding`."""
        return self.transformer["wte"]

    @property
    def head(self) -> nn.Linear:
        """See `DecoderModel.head`."""
        return self.lm_head

    def forward(
        self, tokens: Tensor, *, positions: Tensor | None = None, past: Past | None = None, keep: int | None = None
    ) -> Tensor:
        """See `DecoderModel.forward`."""
        body = self.transformer
        positions = self.positions_after(tokens, past) if positions is None else positions
        x = body["drop"](body["wte"](tokens) + body["wpe"](positions))
        for layer, block in enumerate(body["h"]):
            x = block(x, layer, past)
        return self.lm_head(body["ln_f"](x if keep is None else x[:, -keep:]))

    def spec(self) -> Spec:
        """See `DecoderModel.spec`."""
        body = self.transformer
        heads = self.config["num_heads"]
        if type(self).forward is not GPT2.forward:
            raise Refused(f"{type(self).__name__} overrides forward")
        for block in body["h"]:
            for part, cls in ((block, _Block), (block.attn, _Attention), (block.mlp, _Units)):
                exactly(part, cls)
        for part in (body["ln_f"], *(part for block in body["h"] for part in (block.ln_1, block.ln_2))):
            exactly(part, nn.LayerNorm)
        for part in (body["wte"], body["wpe"]):
            exactly(part, nn.Embedding)
        layers = tuple(
            Layer(
                norm(block.ln_1),
                norm(block.ln_2),
                (_transposed(block.attn.c_attn),),
                _transposed(block.attn.c_proj),
                _transposed(block.mlp.c_fc),
                None,
                _transposed(block.mlp.c_proj),
                block.attn.scale,
            )
            for block in body["h"]
        )
        return Spec(
            parameter(body["wte"].weight),
            parameter(body["wpe"].weight),
            None,
            1.0,
            layers,
            norm(body["ln_f"]),
            linear_of(self.lm_head),
            heads,
            heads,
            self.config["hidden"] // heads,
            self.config["epsilon"],
            "LAYER_NORM",
            ACTIVATIONS[self.config["activation"]],
        )


def _transposed(module: nn.Module) -> Linear:
    exactly(module, Conv1D)
    return Linear(parameter(module.weight).t(), parameter(module.bias))
