"""transformers' own models after `aigc_fast.optimize` on the CUDA engine, as the CPU emulates it, and on a card."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from decoders import MAKERS, assert_same_ids, decoder, prompts, transformers

import aigc_fast
from aigc_fast.runtime import native

generation = importlib.import_module("aigc_fast.integrations.transformers_generation")

GRID = {
    "beams": {"num_beams": 3, "no_repeat_ngram_size": 2},
    "penalty": {"repetition_penalty": 1.7, "min_new_tokens": 4},
    "sampling": {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 1.2},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "scores": {"return_dict_in_generate": True, "output_scores": True},
}
IN_GRID = pytest.mark.parametrize("options", GRID.values(), ids=GRID.keys())


@pytest.fixture
def in_emulation() -> Iterator[None]:
    if not native.is_emulated or native.cuda is None or native.cpu_reason() is not None:
        pytest.skip("AIGC_FAST_CUDA_HOST=1 is not set")
    with aigc_fast.backend("cuda"):
        yield


def ids_of(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else result.sequences


def check(model: Any, fast: Any, options: dict[str, Any], device: str) -> None:
    rows = 1 if "prompt_lookup_num_tokens" in options else 2
    ids, mask = prompts(rows, 7).to(device), torch.ones(rows, 7, dtype=torch.int64, device=device)
    mask[1:, :3] = 0
    results = []
    for each in (model, fast):
        torch.manual_seed(5)
        results.append(ids_of(each.generate(ids, attention_mask=mask, max_new_tokens=6, **options)))
    assert generation.last_decision(fast)[2:] == (None, "cuda")
    assert "on CUDA, fp32 weights" in str(generation.last_decision(fast))
    assert_same_ids(model, results[1], results[0])


@pytest.mark.parametrize("name", MAKERS)
def test_emulated_greedy_ids_are_transformers(name: str, in_emulation: None) -> None:
    model = decoder(name)
    check(model, aigc_fast.optimize(copy.deepcopy(model)), {}, "cpu")


@IN_GRID
def test_emulated_ids_are_transformers_by_every_loop(options: dict[str, Any], in_emulation: None) -> None:
    model = decoder("llama")
    check(model, aigc_fast.optimize(copy.deepcopy(model)), options, "cpu")


def test_emulated_caches_go_on(in_emulation: None) -> None:
    model = decoder("llama")
    fast, ids = aigc_fast.optimize(copy.deepcopy(model)), prompts(1, 7)
    cache = transformers.DynamicCache()
    first = fast.generate(ids, past_key_values=cache, max_new_tokens=3)
    assert cache.get_seq_length() == 9
    found = fast.generate(first, past_key_values=cache, max_new_tokens=4)
    assert_same_ids(model, found, model.generate(ids, max_new_tokens=7))


def test_emulated_explanations(in_emulation: None) -> None:
    fast = aigc_fast.optimize(decoder("gpt2"))
    explained = aigc_fast.explain("decode", fast, prompts(1, 7), max_new_tokens=3)
    assert (explained.chosen, explained.reasons["cuda"]) == ("cuda", None)
    assert explained.detail == "native loop on CUDA, fp32 weights"
    with torch.autocast("cpu"):
        explained = aigc_fast.explain("decode", fast, prompts(1, 7), max_new_tokens=3)
    assert (explained.chosen, explained.reasons["cuda"]) == ("reference", "autocast is on")


@pytest.mark.gpu
class TestCard:
    @IN_GRID
    @pytest.mark.parametrize("name", ["gpt2", "llama"])
    def test_ids_are_transformers(self, name: str, options: dict[str, Any]) -> None:
        model = decoder(name).cuda()
        fast = aigc_fast.optimize(copy.deepcopy(model))
        with aigc_fast.backend("cuda"):
            check(model, fast, options, "cuda")

    def test_weights_that_transformers_does_not_keep_are_the_engines(self) -> None:
        fast, ids = aigc_fast.optimize(decoder("gpt2").cuda(), weights="int8"), prompts(1, 7).cuda()
        fast.generate(ids, max_new_tokens=3)
        assert str(generation.last_decision(fast)) == "native loop on CUDA, int8 weights"
        aigc_fast.restore(fast)
        aigc_fast.optimize(fast).generate(ids, max_new_tokens=3)
        assert "not measured to be faster on any GPU" in generation.last_decision(fast).reason
