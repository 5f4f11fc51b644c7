"""What transformers' decoders are made of: one builder for each class, exactly, which reads a model or refuses it.

Only modules of the very classes that transformers makes are read, and configurations of which every value is known:
adapters, quantised layers, parametrised weights and replaced methods are left to transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.gpt2 import modeling_gpt2 as gpt2
from transformers.models.gpt_neox import modeling_gpt_neox as gpt_neox
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.pytorch_utils import Conv1D

from aigc_fast.ops.decode.reading import ACTIVATIONS, Refused, check_modules, norm, parameter
from aigc_fast.ops.decode.spec import Layer, Linear, Norm, Spec
from aigc_fast.runtime.modules import kind_of

__all__ = ["BUILDERS", "Refused", "spec_of"]


# Whose frequencies are the same at every length.
_FIXED_ROTATIONS = {"default", "linear", "llama3", "yarn", "proportional"}


def _exactly(module: nn.Module, *classes: type[nn.Module]) -> nn.Module:
    if kind_of(module) not in classes:
        raise Refused(f"transformers' {classes[0].__name__} was replaced by {type(module).__name__}")
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


def _activation(name: Any, modules: Iterable[nn.Module]) -> str:
    """What a configuration names and modules are."""
    if name not in ACTIVATIONS:
        raise Refused(f"the activation {name!r} is not among {', '.join(ACTIVATIONS)}")
    for module in modules:
        _exactly(module, type(ACT2FN[name]))
    return ACTIVATIONS[name]


def _rotation(module: nn.Module, cls: type[nn.Module]) -> tuple[Tensor, float]:
    """The frequencies, and what multiplies cosines and sines."""
    _exactly(module, cls)
    if module.rope_type not in _FIXED_ROTATIONS:
        raise Refused(f"a rotation of kind {module.rope_type!r} changes with the length")
    return module.inv_freq, float(module.attention_scaling)


def _drops_nothing(attention: nn.Module) -> None:
    if attention.training and attention.attention_dropout > 0:
        raise Refused("it is in training mode, with dropout")


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
        _activation(config.activation_function, (block.mlp.act for block in body.h)),
    )


def _gpt2_scale(attention: gpt2.GPT2Attention) -> float:
    if hasattr(attention, "scaling"):
        return attention.scaling
    # Before 5.0 some ways to attend leave these two out.
    if not attention.scale_attn_weights or attention.scale_attn_by_inverse_layer_idx:
        raise Refused("its scores are scaled in a way that depends on how this transformers attends")
    return attention.head_dim**-0.5


def _window(config: Any, layer: int) -> int | None:
    """As the masks of Mistral and Qwen2 have it."""
    kinds = getattr(config, "layer_types", None) if config.model_type == "qwen2" else None
    if kinds is not None and kinds[layer] not in ("full_attention", "sliding_attention"):
        raise Refused(f"layer_types has {kinds[layer]!r}")
    window = None if kinds is not None and kinds[layer] == "full_attention" else config.sliding_window
    if window is not None and (type(window) is not int or window < 2):
        raise Refused(f"sliding_window is {window!r}: the engine takes None and numbers from 2 on")
    return window


def _like_llama(
    model: nn.Module, family: ModuleType, prefix: str, window: Callable[[Any, int], int | None] = lambda *_: None
) -> Spec:
    """Of a family whose modules are named and put together as Llama's are."""
    model_class, layer_class, attention_class, mlp_class, norm_class, rotation_class = (
        getattr(family, prefix + name) for name in _LLAMA_PARTS
    )
    config, body = model.config, _exactly(model.model, model_class)
    blocks, layers = body.layers[: config.num_hidden_layers], []
    for index, block in enumerate(blocks):
        _exactly(block, layer_class)
        attention, mlp = _exactly(block.self_attn, attention_class), _exactly(block.mlp, mlp_class)
        _drops_nothing(attention)
        layers.append(
            Layer(
                _norm(block.input_layernorm, norm_class),
                _norm(block.post_attention_layernorm, norm_class),
                tuple(map(_linear, (attention.q_proj, attention.k_proj, attention.v_proj))),
                _linear(attention.o_proj),
                _linear(mlp.up_proj),
                _linear(mlp.gate_proj),
                _linear(mlp.down_proj),
                attention.scaling,
                window=window(config, index),
            )
        )
    norms = [body.norm, *(n for b in blocks for n in (b.input_layernorm, b.post_attention_layernorm))]
    return Spec(
        _embedding(body.embed_tokens),
        None,
        *_rotation(body.rotary_emb, rotation_class),
        tuple(layers),
        _norm(body.norm, norm_class),
        _linear(model.lm_head),
        config.num_attention_heads,
        config.num_key_value_heads,
        _same((block.self_attn.head_dim for block in blocks), "the heads' size"),
        _same((norm.variance_epsilon for norm in norms), "the norms' eps"),
        "RMS_NORM",
        _activation(config.hidden_act, (block.mlp.act_fn for block in blocks)),
    )


def _llama(model: llama.LlamaForCausalLM) -> Spec:
    return _like_llama(model, llama, "Llama")


def _mistral(model: mistral.MistralForCausalLM) -> Spec:
    return _like_llama(model, mistral, "Mistral", _window)


def _qwen2(model: qwen2.Qwen2ForCausalLM) -> Spec:
    return _like_llama(model, qwen2, "Qwen2", _window)


def _heads_of(linear: Linear, heads: int) -> tuple[Linear, ...]:
    """The queries, keys and values of all heads, of a product that has these three side by side in each head."""
    weights = linear.weight.unflatten(0, (heads, 3, -1))
    biases = None if linear.bias is None else linear.bias.unflatten(0, (heads, 3, -1))
    return tuple(
        Linear(weights[head, which], None if biases is None else biases[head, which])
        for which in range(3)
        for head in range(heads)
    )


def _gpt_neox(model: gpt_neox.GPTNeoXForCausalLM) -> Spec:
    config, body = model.config, _exactly(model.gpt_neox, gpt_neox.GPTNeoXModel)
    rotation = _rotation(body.rotary_emb, gpt_neox.GPTNeoXRotaryEmbedding)
    heads, layers = config.num_attention_heads, []
    for block in body.layers:
        _exactly(block, gpt_neox.GPTNeoXLayer)
        attention = _exactly(block.attention, gpt_neox.GPTNeoXAttention)
        mlp = _exactly(block.mlp, gpt_neox.GPTNeoXMLP)
        _drops_nothing(attention)
        if attention.rotary_ndims != 2 * rotation[0].shape[0]:
            raise Refused(f"it turns {attention.rotary_ndims} numbers of a head, by {rotation[0].shape[0]} frequencies")
        layers.append(
            Layer(
                _norm(block.input_layernorm, nn.LayerNorm),
                _norm(block.post_attention_layernorm, nn.LayerNorm),
                _heads_of(_linear(attention.query_key_value), heads),
                _linear(attention.dense),
                _linear(mlp.dense_h_to_4h),
                None,
                _linear(mlp.dense_4h_to_h),
                attention.scaling,
            )
        )
    norms = [body.final_layer_norm, *(n for b in body.layers for n in (b.input_layernorm, b.post_attention_layernorm))]
    is_parallel = _same((bool(block.use_parallel_residual) for block in body.layers), "use_parallel_residual")
    return Spec(
        _embedding(body.embed_in),
        None,
        *rotation,
        tuple(layers),
        _norm(body.final_layer_norm, nn.LayerNorm),
        _linear(model.get_output_embeddings()),
        heads,
        heads,
        _same((block.attention.head_size for block in body.layers), "the heads' size"),
        _same((norm.eps for norm in norms), "the norms' eps"),
        "LAYER_NORM",
        _activation(config.hidden_act, (block.mlp.act for block in body.layers)),
        "PARALLEL" if is_parallel else "BEFORE",
    )


BUILDERS: dict[type[nn.Module], Callable[[Any], Spec]] = {
    gpt2.GPT2LMHeadModel: _gpt2,
    gpt_neox.GPTNeoXForCausalLM: _gpt_neox,
    llama.LlamaForCausalLM: _llama,
    mistral.MistralForCausalLM: _mistral,
    qwen2.Qwen2ForCausalLM: _qwen2,
}
_LLAMA_PARTS = "Model", "DecoderLayer", "Attention", "MLP", "RMSNorm", "RotaryEmbedding"
# What runs in such models, with their methods from before anybody could replace them.
_PARTS = (
    *BUILDERS,
    *(getattr(gpt2, f"GPT2{name}") for name in ("Model", "Block", "Attention", "MLP")),
    *(getattr(gpt_neox, f"GPTNeoX{name}") for name in ("Model", "Layer", "Attention", "MLP", "RotaryEmbedding")),
    *(
        getattr(family, prefix + name)
        for family, prefix in ((llama, "Llama"), (mistral, "Mistral"), (qwen2, "Qwen2"))
        for name in _LLAMA_PARTS
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
