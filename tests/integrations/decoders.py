"""Small random decoders of transformers, and the rule by which the engine's ids are held to transformers'."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

VOCABULARY = 97
_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 36,
    "n_layer": 2,
    "n_head": 3,
    "n_positions": 96,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def _llama(**changes: Any) -> Any:
    heads = {"num_attention_heads": 5, "num_key_value_heads": 1}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_LLAMA | heads | changes))


def _mistral(**changes: Any) -> Any:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 5}
    return transformers.MistralForCausalLM(transformers.MistralConfig(**_LLAMA | heads | changes))


def _qwen2(**changes: Any) -> Any:
    heads = {"num_attention_heads": 5, "num_key_value_heads": 5}
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_LLAMA | heads | changes))
    model.generation_config.eos_token_id = 1  # whatever versions make of the configuration's
    return model


_NEW_ROPE = hasattr(transformers.LlamaConfig(), "rope_parameters")


def _gpt_neox(partial: float = 0.5, **changes: Any) -> Any:
    part = {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": partial}
    rotation = {"rope_parameters": part} if _NEW_ROPE else {"rotary_pct": partial}
    heads = {"num_attention_heads": 5, "intermediate_size": 90} | rotation
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**_LLAMA | heads | changes))


def _gpt2(**changes: Any) -> Any:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**_GPT2 | changes))


def _scaled(**changes: Any) -> dict[str, Any]:
    """The changes where all of transformers' ways to attend know them."""
    return changes if hasattr(_gpt2().transformer.h[0].attn, "scaling") else {}


_ROTATION = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_SCALED = (
    {"rope_parameters": {**_ROTATION, "rope_theta": 500.0, "original_max_position_embeddings": 32}}
    if _NEW_ROPE
    else {"rope_theta": 500.0, "rope_scaling": {**_ROTATION, "original_max_position_embeddings": 32}}
)
MAKERS = {
    "gpt2": _gpt2,
    "gpt2-scales": lambda: _gpt2(
        **_scaled(scale_attn_by_inverse_layer_idx=True), activation_function="relu", n_inner=50
    ),
    "gpt2-gelu": lambda: _gpt2(
        **_scaled(scale_attn_weights=False), activation_function="gelu", tie_word_embeddings=False
    ),
    "llama": _llama,
    "llama-mha": lambda: _llama(num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True),
    "llama-gqa": lambda: _llama(
        hidden_size=48,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        attention_bias=True,
        mlp_bias=True,
        **_SCALED,
    ),
    "mistral": _mistral,
    "mistral-wide": lambda: _mistral(sliding_window=None, head_dim=12, tie_word_embeddings=True),
    "qwen2": _qwen2,
    "qwen2-windows": lambda: _qwen2(
        num_key_value_heads=1,
        use_sliding_window=True,
        sliding_window=6,
        max_window_layers=1,
        tie_word_embeddings=True,
    ),
    "gpt_neox": _gpt_neox,
    "gpt_neox-series": lambda: _gpt_neox(1.0, use_parallel_residual=False, hidden_act="gelu_fast"),
    "gpt_neox-tied": lambda: _gpt_neox(0.25, attention_bias=False, tie_word_embeddings=True),
}


def decoder(name: str, seed: int = 0) -> Any:
    """A decoder whose logits are far enough apart for ids to mean something, and that ends some sequences."""
    torch.manual_seed(seed)
    model = MAKERS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0) if parameter.dim() == 2 else parameter.add_(0.2 * torch.randn_like(parameter))
    model.generation_config.pad_token_id = 2
    return model


def prompts(*shape: int, seed: int = 1) -> Tensor:
    """Ids that are none of the special ones."""
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def _gap_and_error(model: Any, ids: Tensor, mask: Tensor) -> tuple[float, float]:
    """At the next token: how far the two best logits are apart in float64, and transformers' own float32 error."""
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(ids, attention_mask=mask).logits[0, -1]
        own = (model(ids, attention_mask=mask).logits[0, -1].double() - exact).abs().max()
    best = exact.topk(2).values
    return (best[0] - best[1]).item(), own.item()


def assert_same_ids(model: Any, found: Tensor, wanted: Tensor, near_ties: bool = False) -> None:
    """Ids are equal; with `near_ties`, of greedy ones without padding, unless no float32 could tell them apart."""
    if near_ties and found.shape == wanted.shape and not torch.equal(found, wanted):
        row = int((found != wanted).any(1).nonzero()[0])
        at = int((found[row] != wanted[row]).nonzero()[0])
        ids = wanted[row : row + 1, :at]
        gap, error = _gap_and_error(model, ids, torch.ones_like(ids))
        assert gap < 2 * error, f"token {at} of row {row} differs, and it is no near tie: {gap:.2g} against {error:.2g}"
        return
    assert torch.equal(found, wanted), f"ours\n{found}\ntransformers'\n{wanted}"
