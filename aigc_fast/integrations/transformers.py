"""`attn_implementation="aigc_fast"` for Hugging Face transformers: importing this module registers it.

Models see the name "sdpa", whose masks and arguments are the same, and are asked whether they support that. Only the
function behind "sdpa" differs, for the modules of models that were given this name.

Example:
    >>> import aigc_fast.integrations.transformers
    >>> model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="aigc_fast")
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from aigc_fast.functional import scaled_dot_product_attention

try:
    from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask
except ImportError as error:
    raise ImportError(
        f"aigc_fast.integrations.transformers needs transformers >= 4.53 ({error}): pip install -U transformers"
    ) from error

__all__ = ["NAME", "attention", "register"]

log = logging.getLogger("aigc_fast")

NAME = "aigc_fast"

# Arguments of attention functions that "sdpa" needs no more than this one does: masks say it, or it is for losses.
INERT = frozenset(
    {
        "cache_position",
        "cu_seq_lens_k",
        "cu_seq_lens_q",
        "deterministic",
        "input_ids",
        "logits_to_keep",
        "max_length_k",
        "max_length_q",
        "num_items_in_batch",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "seq_idx",
        "sliding_window",
        "use_cache",
    }
)

# Models without "sdpa" for their sinks alone, which this attention has.
WITH_SINKS = frozenset(
    {
        "deepseek_v4",
        "flint",
        "gpt_oss",
        "granite_swa",
        "granitemoe_swa",
        "hy_v4",
        "mimo_v2_flash",
        "openai_privacy_filter",
    }
)


class _Sdpa(str):
    """ "sdpa" as it is read in a configuration that was given our name."""


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers' AttentionInterface calls. On other devices than the CPU, transformers'
    own runs, unless there are sinks or a bias.

    Args:
        module: the attention layer.
        query: (B, H, L, E).
        key: (B, G, S, E); each H / G consecutive query heads share a key head, which is read once.
        value: (B, G, S, E).
        attention_mask: broadcastable to (B, H, L, S), bool or added to the scores; None for no mask.
        dropout: the probability of dropping an element of the softmax.
        scaling: of the scores; 1 / sqrt(E) by default.
        is_causal: whether query i sees only keys 0 to i, if there is no mask; by default as the layer says.
        position_bias: broadcastable to (B, H, L, S), added to the scores.
        s_aux: (H,), the attention sinks: a further score of each head, whose share of the softmax is dropped.
        **kwargs: arguments of other implementations; those that change nothing are ignored, any other is refused.

    Returns:
        (output, None): the output (B, L, H, E), and None for the attention weights.

    Raises:
        ValueError: for an argument that is not supported, such as a soft cap of the scores.
    """
    if unknown := _unknown(kwargs):
        raise ValueError(f"{NAME!r} attention does not know {', '.join(unknown)}: use 'eager'")
    if not query.is_cpu and s_aux is None and position_bias is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    # A single query is the newest: it sees all keys, as the one-row causal mask aligned to the first key would not.
    causal = attention_mask is None and bool(is_causal) and query.shape[2] > 1
    mask, window = _with_bias(attention_mask, position_bias), None
    if s_aux is not None:
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        query, key, value, mask = _with_sinks(query, key, value, mask, s_aux / scaling)
        causal, window = False, (None, 1) if causal else None
    output = scaled_dot_product_attention(
        query,
        key,
        value,
        mask,
        dropout,
        causal,
        scaling,
        enable_gqa=key.shape[1] != query.shape[1],
        window=window,
    )
    return output.transpose(1, 2).contiguous(), None


KNOWN = INERT | inspect.signature(attention).parameters.keys() - {"kwargs"}


def _unknown(arguments: dict[str, Any]) -> list[str]:
    """Those that may change the result, each with its value where that is short."""
    return [
        f"{name}={value!r}" if isinstance(value, int | float | str) else name
        for name, value in arguments.items()
        if name not in KNOWN and value is not None and value is not False
    ]


def _with_bias(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    if mask is None or bias is None:
        return bias if mask is None else mask
    # As "sdpa", whose queries without a key to see average all values.
    return bias.masked_fill(~mask, torch.finfo(bias.dtype).min) if mask.dtype == torch.bool else bias + mask


def _with_sinks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, products: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The same with a first key that every query sees, whose products with the heads' queries are given (H,).

    Queries and keys have one more element for them, which is 0 in all other keys; the first key's value is zeros.
    """
    column = products.to(query.dtype).view(1, -1, 1, 1).expand(*query.shape[:3], 1)
    query = torch.cat([query, column], -1)
    if mask is not None:
        mask = pad(mask.expand(*mask.shape[:-1], key.shape[2]), (1, 0), value=mask.dtype == torch.bool)
    key, value = pad(key, (0, 1, 1, 0)), pad(value, (0, 0, 1, 0))
    key[:, :, 0, -1] = 1
    return query, key, value, mask


def register() -> None:
    """Registers `attn_implementation="aigc_fast"`; importing this module does it, and further calls do nothing."""
    known = AttentionInterface()
    if NAME in known:
        return
    AttentionInterface.register("sdpa", _dispatching(known["sdpa"]))
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    PretrainedConfig._attn_implementation = _disguised(PretrainedConfig._attn_implementation)
    for name in ("_check_and_adjust_attn_implementation", "get_correct_attn_implementation"):
        if hasattr(PreTrainedModel, name):
            setattr(PreTrainedModel, name, _checked(getattr(PreTrainedModel, name)))
    if hasattr(PreTrainedModel, "_autoset_attn_implementation"):  # 4.53
        PreTrainedModel._autoset_attn_implementation = _checked_class(PreTrainedModel._autoset_attn_implementation)
    else:
        PreTrainedModel.set_attn_implementation = _settable(PreTrainedModel.set_attn_implementation)


def _dispatching(sdpa: Callable[..., tuple[Tensor, None]]) -> Callable[..., tuple[Tensor, None]]:
    """What "sdpa" stands for: our attention in modules of models that were given our name."""

    @functools.wraps(sdpa)
    def dispatch(module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        if getattr(getattr(module, "config", None), "_attn_implementation_internal", None) != NAME:
            return sdpa(module, *args, **kwargs)
        # Sinks are not known to "sdpa": they would be lost.
        if kwargs.get("s_aux") is None and kwargs.get("softcap") is None and (unknown := _unknown(kwargs)):
            _say_once(f"{type(module).__name__} has {', '.join(unknown)}, which {NAME!r} does not know: 'sdpa' runs")
            return sdpa(module, *args, **kwargs)
        return attention(module, *args, **kwargs)

    return dispatch


@functools.cache
def _say_once(text: str) -> None:
    log.warning(text)


def _is_ours(name: Any) -> bool:
    return name == NAME or isinstance(name, _Sdpa)


def _disguised(name: property) -> property:
    """A configuration's `_attn_implementation`: what is stored as our name is read as "sdpa"."""

    def read(config: PretrainedConfig) -> Any:
        found = name.fget(config)
        if not _is_ours(found):
            return found
        return "sdpa" if torch.compiler.is_compiling() else _Sdpa("sdpa")

    def write(config: PretrainedConfig, value: Any) -> None:
        name.fset(config, NAME if _is_ours(value) else value)
        if isinstance(config._attn_implementation_internal, _Sdpa):
            config._attn_implementation_internal = NAME

    return property(read, write)


def _checked(check: Callable[..., str]) -> Callable[..., str]:
    """A model's check of a name: of ours as of "sdpa"."""

    @functools.wraps(check)
    def checked(model: PreTrainedModel, name: str | None, *args: Any, **kwargs: Any) -> str:
        if not _is_ours(name):
            return check(model, name, *args, **kwargs)
        if model.config.model_type not in WITH_SINKS:
            check(model, "sdpa", *args, **kwargs)
        # A configuration that reads its name in a way of its own would show ours to the model.
        return NAME if type(model.config)._attn_implementation is PretrainedConfig._attn_implementation else "sdpa"

    return checked


def _checked_class(check: Callable[..., PretrainedConfig]) -> classmethod:
    """The same where the class checks the configuration, before there is a model."""
    function = check.__func__

    @functools.wraps(function)
    def checked(cls: type[PreTrainedModel], config: PretrainedConfig, *args: Any, **kwargs: Any) -> PretrainedConfig:
        if _is_ours(config._attn_implementation):
            cls._check_and_enable_sdpa(config, hard_check_only=True)
        return function(cls, config, *args, **kwargs)

    return classmethod(checked)


def _settable(set_name: Callable[..., None]) -> Callable[..., None]:
    """`set_attn_implementation`, which does nothing where a configuration reads what it is given: "sdpa" for ours."""

    @functools.wraps(set_name)
    def settable(model: PreTrainedModel, name: str | dict, *args: Any, **kwargs: Any) -> None:
        _leave(model.config, name)
        set_name(model, name, *args, **kwargs)

    return settable


def _leave(config: PretrainedConfig, name: Any) -> None:
    """Stores "sdpa" in place of our name, in a configuration and its parts, where a caller asks for it."""
    own = name.get("") if isinstance(name, dict) else name
    if own == "sdpa" and not _is_ours(own) and _is_ours(config._attn_implementation_internal):
        config._attn_implementation_internal = "sdpa"
    for key in config.sub_configs:
        if (part := getattr(config, key, None)) is not None:
            _leave(part, name.get(key) if isinstance(name, dict) else name)


register()
