"""Small decoders: transformers' with random weights, and ours with the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from aigc_fast.models import GPT2, DecoderModel, IdTokenizer, Llama

VOCABULARY = 97
_GPT2 = {"hidden": 36, "num_layers": 2, "num_heads": 3, "context": 96}
_LLAMA = {"hidden": 48, "num_layers": 2, "num_heads": 6, "num_kv_heads": 2, "context": 128, "units": 72}
_ROPES = {
    "default": None,
    "linear": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32},
}
GPT2S = {
    "gpt2": {},
    "gpt2-scales": {"scale_by_layer": True, "activation": "relu", "units": 50},
    "gpt2-untied": {"tied": False, "scale_scores": False, "activation": "gelu"},
}
LLAMAS = {
    "llama": {"tied": False},
    "llama-mha": {"num_kv_heads": None},
    "llama-linear": {"rope": _ROPES["linear"]},
    "llama-yarn": {"rope": _ROPES["yarn"]},
    "llama-llama3": {"rope": _ROPES["llama3"], "head_size": 10, "attention_bias": True, "units_bias": True},
}


def decoder(name: str, seed: int = 0, **changes: Any) -> DecoderModel:
    """One whose logits are far enough apart for ids to mean something, and that ends some sequences."""
    torch.manual_seed(seed)
    kind, settings = (GPT2, _GPT2 | GPT2S[name]) if name in GPT2S else (Llama, _LLAMA | LLAMAS[name])
    common = {"dropout": 0.0, "generation": {"bos_token_id": 0, "eos_token_id": 1}}
    model = kind(tokenizer=IdTokenizer(VOCABULARY, 1, 0), **common | settings | changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.12 * torch.randn_like(parameter))
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def transformers_twin(model: DecoderModel, folder: Any) -> Any:
    """transformers' own model with the same weights, by way of a folder."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model.save_pretrained(folder)
    transformers.utils.logging.disable_progress_bar()
    twin = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert twin.name_or_path == str(folder)
    return twin


def prompts(*shape: int, seed: int = 1) -> Tensor:
    """Ids that are none of the special ones."""
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))
