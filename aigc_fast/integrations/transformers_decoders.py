"""What transformers' decoders are made of: one builder for each class, exactly, which reads a model or refuses it.

Only modules of the very classes that transformers makes are read, and configurations of which every value is known:
adapters, quantised layers, parametrised weights and replaced methods are left to transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from transformers.models.gpt2 import modeling_gpt2 as gpt2
from transformers.models.llama import modeling_llama as llama
from transformers.pytorch_utils import Conv1D

from aigc_fast.ops.decode.reading import ACTIVATIONS, Refused, check_modules, norm, parameter
from aigc_fast.ops.decode.spec import Layer, Linear, Norm, Spec

__all__ = ["BUILDERS", "Refused", "spec_of"]


# Whose frequencies are the same at every length.
_FIXED_ROTATIONS = {"default", "linear", "llama3", "yarn", "proportional"}


def _exactly(module: nn.Module, *classes: type[nn.Module]) -> nn.Module:
    if type(module) not in classes:
        raise Refused(f"{type(module).__name__} stands where transformers has {classes[0].__name__}")
    return module


def _linear(module: nn.Module) -> Linear:
    _exactly(module, nn.Linear, Conv1D)
    weight = parameter(module.weight)
    bias = None if module.bias is None else parameter(module.bias)
    return Linear(weight.t() if type(module) is Conv1D else weight, bias)


def _norm(module: nn.Module, cls: type[nn.Module]) -> Norm:
    return norm(_exactly(module, cls))


def _embedding(module: nn.Module) -> Tensor:
    _exactly(module, nn.Embedding)
    if module.max_norm is not None:
        raise Refused("an embedding has a max_norm")
    return parameter(module.weight)


def _activation(name: Any) -> str:
    if name not in ACTIVATIONS:
        raise Refused(f"the activation {name!r} is not among {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _same(values: Iterable[Any], what: str) -> Any:
    values = list(values)
    if any(value != values[0] for value in values):
        raise Refused(f"{what} differs between layers")
    return values[0]


def _gpt2(model: gpt2.GPT2LMHeadModel) -> Spec:
    config, body = model.config, _exactly(model.transformer, gpt2.GPT2Model)
    if config.add_cross_attention:
        raise Refused("it attends to an encoder")
    layers = []
    for block in body.h:
        _exactly(block, gpt2.GPT2Block)
        attention, mlp = _exactly(block.attn, gpt2.GPT2Attention), _exactly(block.mlp, gpt2.GPT2MLP)
        layers.append(
            Layer(
                _norm(block.ln_1, nn.LayerNorm),
                _norm(block.ln_2, nn.LayerNorm),
                (_linear(attention.c_attn),),
                _linear(attention.c_proj),
                _linear(mlp.c_fc),
                None,
                _linear(mlp.c_proj),
                _gpt2_scale(attention),
            )
        )
    heads = _same((block.attn.num_heads for block in body.h), "the number of heads")
    norms = [body.ln_f, *(norm for block in body.h for norm in (block.ln_1, block.ln_2))]
    return Spec(
        _embedding(body.wte),
        _embedding(body.wpe),
        None,
        1.0,
        tuple(layers),
        _norm(body.ln_f, nn.LayerNorm),
        _linear(model.lm_head),
        heads,
        heads,
        body.embed_dim // heads,
        _same((norm.eps for norm in norms), "the norms' eps"),
        "LAYER_NORM",
        _activation(config.activation_function),
    )


def _gpt2_scale(attention: gpt2.GPT2Attention) -> float:
    if hasattr(attention, "scaling"):
        return attention.scaling
    # Before 5.0 some ways to attend leave these two out.
    if not attention.scale_attn_weights or attention.scale_attn_by_inverse_layer_idx:
        raise Refused("its scores are scaled in a way that depends on how this transformers attends")
    return attention.head_dim**-0.5


def _llama(model: llama.LlamaForCausalLM) -> Spec:
    config, body = model.config, _exactly(model.model, llama.LlamaModel)
    layers = []
    for block in body.layers:
        _exactly(block, llama.LlamaDecoderLayer)
        attention, mlp = _exactly(block.self_attn, llama.LlamaAttention), _exactly(block.mlp, llama.LlamaMLP)
        layers.append(
            Layer(
                _norm(block.input_layernorm, llama.LlamaRMSNorm),
                _norm(block.post_attention_layernorm, llama.LlamaRMSNorm),
                tuple(map(_linear, (attention.q_proj, attention.k_proj, attention.v_proj))),
                _linear(attention.o_proj),
                _linear(mlp.up_proj),
                _linear(mlp.gate_proj),
                _linear(mlp.down_proj),
                attention.scaling,
            )
        )
    rotation = _exactly(body.rotary_emb, llama.LlamaRotaryEmbedding)
    if rotation.rope_type not in _FIXED_ROTATIONS:
        raise Refused(f"a rotation of kind {rotation.rope_type!r} changes with the length")
    norms = [body.norm, *(n for b in body.layers for n in (b.input_layernorm, b.post_attention_layernorm))]
    return Spec(
        _embedding(body.embed_tokens),
        None,
        rotation.inv_freq,
        float(rotation.attention_scaling),
        tuple(layers),
        _norm(body.norm, llama.LlamaRMSNorm),
        _linear(model.lm_head),
        config.num_attention_heads,
        config.num_key_value_heads,
        _same((block.self_attn.head_dim for block in body.layers), "the heads' size"),
        _same((norm.variance_epsilon for norm in norms), "the norms' eps"),
        "RMS_NORM",
        _activation(config.hidden_act),
    )


BUILDERS: dict[type[nn.Module], Callable[[Any], Spec]] = {gpt2.GPT2LMHeadModel: _gpt2, llama.LlamaForCausalLM: _llama}
# What runs in such models, with their methods from before anybody could replace them.
_PARTS = (
    *BUILDERS,
    *(getattr(gpt2, name) for name in ("GPT2Model", "GPT2Block", "GPT2Attention", "GPT2MLP")),
    *(
        getattr(llama, f"Llama{name}")
        for name in ("Model", "DecoderLayer", "Attention", "MLP", "RMSNorm", "RotaryEmbedding")
    ),
    *(Conv1D, nn.Linear, nn.LayerNorm, nn.Embedding),
)
_FORWARDS = {cls: cls.forward for cls in _PARTS}


def _check_modules(model: nn.Module) -> None:
    check_modules(model)
    for cls, forward in _FORWARDS.items():
        if cls.forward is not forward:
            raise Refused(f"{cls.__name__}.forward was replaced")


def spec_of(model: nn.Module, cls: type[nn.Module]) -> Spec:
    """The decoder that a model of a class is.

    Args:
        model: of one of the classes in `BUILDERS`, whatever stands in front of it.
        cls: that class.

    Raises:
        Refused: with the reason.
    """
    _check_modules(model)
    spec = BUILDERS[cls](model)
    if len({tensor.dtype for tensor in spec.tensors() if tensor is not spec.frequencies}) > 1:
        raise Refused("its weights are of several dtypes")
    if not spec.layers:
        raise Refused("it has no layers")
    return spec
