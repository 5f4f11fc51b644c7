"""Llama."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aigc_fast.models.base import check_counts
from aigc_fast.models.text.decoder import DecoderModel
from aigc_fast.models.text.layers import Past, activation_of, attend, embedding_of, linear_of, small
from aigc_fast.models.text.rotation import frequencies, rotated
from aigc_fast.models.text.tokenizers import Tokenizer
from aigc_fast.ops.decode.reading import ACTIVATIONS, Refused, exactly, norm, parameter
from aigc_fast.ops.decode.spec import Layer, Spec

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


class RMSNorm(nn.Module):
    """x over the root of its mean square (Zhang and Sennrich, "Root mean square layer normalization", 2019), in
    float32."""

    def __init__(self, hidden: int, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(hidden)), epsilon

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return self.weight * wide.to(x.dtype)


class _Attention(nn.Module):
    def __init__(self, hidden: int, heads: int, kv_heads: int, size: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.size, self.dropped = size, dropout
        self.q_proj = nn.Linear(hidden, heads * size, bias=bias)
        self.k_proj = nn.Linear(hidden, kv_heads * size, bias=bias)
        self.v_proj = nn.Linear(hidden, kv_heads * size, bias=bias)
        self.o_proj = nn.Linear(heads * size, hidden, bias=bias)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], layer: int, past: Past | None) -> Tensor:
        projections = self.q_proj, self.k_proj, self.v_proj
        query, key, value = (part(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for part in projections)
        query, key = rotated(query, *rotation), rotated(key, *rotation)
        dropped = self.dropped if self.training else 0.0
        return self.o_proj(attend(query, key, value, layer, past, self.size**-0.5, dropped))


class _Units(nn.Module):
    def __init__(self, hidden: int, units: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, units, bias=bias)
        self.up_proj = nn.Linear(hidden, units, bias=bias)
        self.down_proj = nn.Linear(units, hidden, bias=bias)
        self.activation = activation_of(activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class _Block(nn.Module):
    def __init__(self, hidden: int, epsilon: float, attention: _Attention, units: _Units) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = RMSNorm(hidden, epsilon), attention
        self.post_attention_layernorm, self.mlp = RMSNorm(hidden, epsilon), units

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], layer: int, past: Past | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, layer, past)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(DecoderModel):
    """Llama (Touvron et al., "Llama 2: open foundation and fine-tuned chat models", 2023; "The Llama 3 herd of models",
    2024), with the `state_dict` of transformers' `LlamaForCausalLM`.

    Args:
        tokenizer: a `Tokenizer` or its `config`.
        hidden: size of the hidden states.
        num_layers: number of layers.
        num_heads: number of query heads.
        num_kv_heads: number of key and value heads, a divisor of `num_heads`; None for `num_heads`.
        head_size: size of a head, even; None for hidden / num_heads.
        context: number of positions that the model is meant for; longer sequences are possible.
        units: size of the feed-forward layer; None for 8/3 of `hidden`, rounded up to a multiple of 16.
        vocab_size: size of the embedding; None for the tokenizer's.
        tied: whether the head shares the embedding's weight.
        activation: of the feed-forward layer, by transformers' name.
        epsilon: added to the variances in the norms.
        rope: settings of the rotary position embedding, as transformers' `rope_parameters`; None for the plain one.
        attention_bias: whether the attention's linear layers have biases.
        units_bias: whether the feed-forward layer's have.
        dropout: the share of attention weights that training drops, in [0, 1).
        generation: defaults for the options of `generate`, as in a generation_config.json.
        num_classes: must be None; text has no classes.

    Raises:
        ValueError: for sizes that are not positive or do not match, or unknown settings.
    """

    name = "llama"
    is_bounded = False

    def __init__(
        self,
        *,
        tokenizer: Tokenizer | Mapping[str, Any],
        hidden: int = 192,
        num_layers: int = 4,
        num_heads: int = 6,
        num_kv_heads: int | None = None,
        head_size: int | None = None,
        context: int = 128,
        units: int | None = None,
        vocab_size: int | None = None,
        tied: bool = True,
        activation: str = "silu",
        epsilon: float = 1e-6,
        rope: Mapping[str, Any] | None = None,
        attention_bias: bool = False,
        units_bias: bool = False,
        dropout: float = 0.2,
        generation: Mapping[str, Any] | None = None,
        num_classes: None = None,
    ) -> None:
        super().__init__(
            tokenizer=tokenizer,
            hidden=hidden,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_size=head_size,
            context=context,
            units=units,
            vocab_size=vocab_size,
            tied=tied,
            activation=activation,
            epsilon=epsilon,
            rope=None if rope is None else dict(rope),
            attention_bias=attention_bias,
            units_bias=units_bias,
            dropout=dropout,
            generation=generation,
            num_classes=num_classes,
        )
        if head_size is None and hidden % num_heads:
            raise ValueError(f"num_heads={num_heads}: expected a divisor of hidden={hidden}, or a head_size")
        self.kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.head_size = hidden // num_heads if head_size is None else head_size
        units = -(-8 * hidden // 48) * 16 if units is None else units
        check_counts(num_kv_heads=self.kv_heads, head_size=self.head_size, units=units)
        if num_heads % self.kv_heads:
            raise ValueError(f"num_kv_heads={self.kv_heads}: expected a divisor of num_heads={num_heads}")
        if self.head_size % 2:
            raise ValueError(f"head_size={self.head_size}: expected an even number")
        # Not a buffer: `to` would convert it to other dtypes, in which far positions are not told apart.
        self.frequencies, self.rotation_scale = frequencies(rope or _ROPE, self.head_size, context)
        blocks = [
            _Block(
                hidden,
                epsilon,
                _Attention(hidden, num_heads, self.kv_heads, self.head_size, attention_bias, dropout),
                _Units(hidden, units, activation, units_bias),
            )
            for _ in range(num_layers)
        ]
        self.model = nn.ModuleDict(
            {
                "embed_tokens": embedding_of(self.vocab_size, hidden),
                "layers": nn.ModuleList(blocks),
                "norm": RMSNorm(hidden, epsilon),
            }
        )
        self.lm_head = nn.Linear(hidden, self.vocab_size, bias=False)
        self.tie()
        for name, parameter_ in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter_)
            elif parameter_.dim() > 1:
                small(parameter_)

    @property
    def embedding(self) -> nn.Embedding:
        """See `DecoderModel.embedding`."""
        return self.model["embed_tokens"]

    @property
    def head(self) -> nn.Linear:
        """See `DecoderModel.head`."""
        return self.lm_head

    def forward(
        self, tokens: Tensor, *, positions: Tensor | None = None, past: Past | None = None, keep: int | None = None
    ) -> Tensor:
        """See `DecoderModel.forward`."""
        positions = self.positions_after(tokens, past) if positions is None else positions
        x = self.embedding(tokens)
        angles = positions[:, None, :, None].float() * self.frequencies.to(x.device)
        rotation = tuple((part * self.rotation_scale).to(x.dtype) for part in (angles.cos(), angles.sin()))
        for layer, block in enumerate(self.model["layers"]):
            x = block(x, rotation, layer, past)
        return self.lm_head(self.model["norm"](x if keep is None else x[:, -keep:]))

    def spec(self) -> Spec:
        """See `DecoderModel.spec`."""
        if type(self).forward is not Llama.forward:
            raise Refused(f"{type(self).__name__} overrides forward")
        exactly(self.embedding, nn.Embedding)
        exactly(self.model["norm"], RMSNorm)
        for block in self.model["layers"]:
            for part, cls in ((block, _Block), (block.self_attn, _Attention), (block.mlp, _Units)):
                exactly(part, cls)
            for part in (block.input_layernorm, block.post_attention_layernorm):
                exactly(part, RMSNorm)
        layers = tuple(
            Layer(
                norm(block.input_layernorm),
                norm(block.post_attention_layernorm),
                tuple(map(linear_of, (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj))),
                linear_of(block.self_attn.o_proj),
                linear_of(block.mlp.up_proj),
                linear_of(block.mlp.gate_proj),
                linear_of(block.mlp.down_proj),
                self.head_size**-0.5,
            )
            for block in self.model["layers"]
        )
        return Spec(
            parameter(self.embedding.weight),
            None,
            self.frequencies,
            self.rotation_scale,
            layers,
            norm(self.model["norm"]),
            linear_of(self.lm_head),
            self.config["num_heads"],
            self.kv_heads,
            self.head_size,
            self.config["epsilon"],
            "RMS_NORM",
            ACTIVATIONS[self.config["activation"]],
        )
